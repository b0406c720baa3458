"""What a chain costs: operations, parameters, and bytes kept for its backward pass; nothing is computed."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from lpjax.nn.chain import Chain, Mode, Shape, UnitLike, apply, init


@functools.cache
def unit_flops(unit: UnitLike, in_shape: Shape) -> float:
    """Floating-point operations of one unit's forward pass on one example, as XLA counts them before optimising."""

    def initialise(key: jax.Array) -> object:
        return unit.init(key, in_shape)

    params, stats = jax.eval_shape(initialise, jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, *in_shape), jnp.result_type(float))
    traced = jax.jit(lambda p, s, x: unit.apply(p, s, x, Mode(train=True))[0]).trace(params, stats, x)
    return float(traced.lower(lowering_platforms=("cpu",)).cost_analysis()["flops"])


def chain_flops(chain: Chain) -> float:
    """Floating-point operations of a chain's forward pass on one example."""
    return sum((unit_flops(unit, shape) for unit, shape in zip(chain.units, chain.shapes[:-1], strict=True)), 0.0)


def chain_size(chain: Chain) -> int:
    """Number of trainable parameters of a chain."""
    params, _ = jax.eval_shape(lambda key: init(chain, key), jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def activation_bytes(chain: Chain, batch: int) -> int:
    """Memory of what a chain's forward pass keeps for the backward pass, parameters left out.

    Counted from the residuals of `jax.vjp`, nothing is computed: what XLA then fuses or computes again is less.

    Args:
      chain: the chain.
      batch: number of examples.

    Returns:
      Bytes.
    """

    def forward(params: PyTree, stats: PyTree, x: Array) -> PyTree:
        return jax.vjp(lambda p, x: apply(chain, p, stats, x, Mode(train=True))[0], params, x)

    params, stats = jax.eval_shape(lambda key: init(chain, key), jax.random.key(0))
    x = jax.ShapeDtypeStruct((batch, *chain.in_shape), jnp.result_type(float))
    _, residuals = jax.eval_shape(forward, params, stats, x)
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))
    return kept - sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
