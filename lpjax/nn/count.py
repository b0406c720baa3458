"""What a chain costs: operations, parameters, and bytes kept for its backward pass; nothing is computed."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from lpjax.nn.chain import Chain, Mode, Shape, UnitLike, apply, init


@functools.cache
def unit_flops(unit: UnitLike, in_shape: Shape) -> float:
    """Floating-point operations of one unit's forward pass on one example, as XLA counts them before optimising."""
    params, stats = jax.eval_shape(lambda key: unit.init(key, in_shape), jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, *in_shape), jnp.result_type(float))
    traced = jax.jit(lambda p, s, x: unit.apply(p, s, x, Mode(train=True))[0]).trace(params, stats, x)
    cost = traced.lower(lowering_platforms=("cpu",)).cost_analysis()
    return float(cost.get("flops", 0))  # there is no entry where axes are only moved


def chain_flops(chain: Chain) -> float:
    """Floating-point operations of a chain's forward pass on one example."""
    return sum((unit_flops(unit, shape) for unit, shape in zip(chain.units, chain.shapes[:-1], strict=True)), 0.0)


@dataclass(frozen=True)
class Layers:
    """The layers of a unit.

    Attributes:
      kernels: Number of convolutions and matrices.
      params: Number of values of its parameters.
      arrays: Number of arrays that they are in.
      norms: Channels of each batch norm.
    """

    kernels: int
    params: int
    arrays: int
    norms: tuple[int, ...]


@functools.cache
def layers(unit: UnitLike, in_shape: Shape) -> Layers:
    """Find the layers of a unit, from its parameters and statistics."""
    params, stats = jax.eval_shape(lambda key: unit.init(key, in_shape), jax.random.key(0))
    named = jax.tree.leaves_with_path(params)
    return Layers(
        kernels=sum(getattr(path[-1], "key", None) == "kernel" for path, _ in named),
        params=sum(leaf.size for _, leaf in named),
        arrays=len(named),
        norms=tuple(leaf.size for leaf in jax.tree.leaves(stats))[::2],  # each has a mean and a variance
    )


def chain_layers(chain: Chain) -> Iterator[tuple[int, Layers]]:
    """Of each repeat how many units it has, and the layers of one."""
    return ((repeat.count, layers(repeat.unit, repeat.in_shape)) for repeat in chain.repeats)


def chain_size(chain: Chain) -> int:
    """Number of trainable parameters of a chain."""
    return sum(count * own.params for count, own in chain_layers(chain))


def chain_arrays(chain: Chain) -> int:
    """Number of arrays that a chain's parameters are in; equal units in a row share theirs."""
    return sum(own.arrays for _, own in chain_layers(chain))


def activation_bytes(chain: Chain, batch: int) -> int:
    """Bytes of what a chain's forward pass keeps for the backward pass, parameters left out.

    Counted from the residuals of `jax.vjp`, nothing is computed; what XLA keeps after fusing and computing again is
    less.  With `remat` the units' inputs, and what one unit keeps, the largest.

    Args:
      chain: The chain.
      batch: Examples.
    """
    fixed, each = _activation_bytes(chain)
    return fixed + batch * each


@functools.cache
def _activation_bytes(chain: Chain) -> tuple[int, int]:
    """Bytes that do not depend on the batch, and those of each example."""
    params, stats = jax.eval_shape(lambda key: init(chain, key), jax.random.key(0))

    def kept(batch: int) -> int:
        def forward(params: PyTree, stats: PyTree, x: Array) -> PyTree:
            return jax.vjp(lambda p, x: apply(chain, p, stats, x, Mode(train=True))[0], params, x)

        x = jax.ShapeDtypeStruct((batch, *chain.in_shape), jnp.result_type(float))
        _, residuals = jax.eval_shape(forward, params, stats, x)
        kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))
        return kept - sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))

    one, two = kept(1), kept(2)
    each = two - one
    if chain.remat:
        units = [replace(chain.piece(i, i + 1), remat=False, offset=0) for i in range(len(chain.units))]
        each += max((_activation_bytes(unit)[1] for unit in units), default=0)
    return one - (two - one), each
