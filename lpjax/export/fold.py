"""Batch norms folded into the convolutions before them.

In inference a batch norm is y = a x + c per channel, with a = scale / sqrt(var + epsilon) and c = bias - a mean.  After
a convolution, a may as well be part of its kernel; the norm is left with scale 1, bias c, mean 0 and variance
1 - epsilon, an addition: XLA drops the multiplication by 1.

Which norm follows which convolution is in a unit's code, not in its parameters: those of `layers.conv_norm` and of a
pre-activation block, whose norm comes first, look the same.  So every pair of a kernel and a norm with as many
channels is tried once per kind of unit, with random parameters, and folded where the output stays the same.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from lpjax.network import packing
from lpjax.network.network import Network
from lpjax.nn.chain import Mode, Shape, UnitLike
from lpjax.nn.layers import BATCH_NORM_EPSILON

Trees = tuple[PyTree, ...]
"""One tree a stage."""

KeyPath = tuple[str, ...]
Pair = tuple[KeyPath, KeyPath, KeyPath]
"""Where a kernel and a norm's {scale, bias} are in a unit's parameters, and its {mean, var} in the statistics."""

TOLERANCE = 1e-4
"""Relative, that tells rounding (1e-6) from the wrong kernel's channels times 1/2 to 2."""


def fold(network: Network, params: Trees, stats: Trees) -> tuple[Trees, Trees, int]:
    """Fold every batch norm of a network that can be folded.

    Args:
      network: whose units tell what can be folded.
      params: one tree a stage; not changed.
      stats: likewise.

    Returns:
      Parameters and statistics of the same function, as numpy arrays, and how many batch norms were folded.
    """
    params, stats = jax.tree.map(np.array, (params, stats))
    count = 0
    for stage, stage_params, stage_stats in zip(network.stages, params, stats, strict=True):
        for repeat, repeat_params, repeat_stats in zip(stage.repeats, stage_params, stage_stats, strict=True):
            for pair in foldable_pairs(repeat.unit, repeat.in_shape):
                _fold(repeat_params, repeat_stats, pair)
                count += repeat.count
    return params, stats, count


@functools.cache
def foldable_pairs(unit: UnitLike, in_shape: Shape) -> tuple[Pair, ...]:
    """The convolutions of a unit and the batch norms after them, found by trying every pair.

    Args:
      unit: to search.
      in_shape: [H, W, C] of its input.
    """
    rng = np.random.default_rng(0)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        """Kernels that keep the size of what goes through, everything else positive and far from 0."""
        if packing.kind(path) == "kernel":
            return rng.normal(0, math.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(leaf.dtype)
        return rng.uniform(0.5, 2, leaf.shape).astype(leaf.dtype)

    x = jnp.asarray(rng.normal(size=(2, *in_shape)), float)
    shapes = jax.eval_shape(lambda key: unit.init(key, in_shape), jax.random.key(0))
    trees = jax.tree.map_with_path(draw, shapes)
    apply = jax.jit(lambda trees: unit.apply(trees[0], trees[1], x, Mode(train=False))[0])
    found = []
    for pair in _candidates(*trees):
        folded = jax.tree.map(np.array, trees)
        _fold(folded[0], folded[1], pair)
        before, after = apply(trees), apply(folded)
        if np.abs(after - before).max() <= TOLERANCE * np.abs(before).max():
            found.append(pair)
    return tuple(found)


def _candidates(params: PyTree, stats: PyTree) -> Iterator[Pair]:
    """Pairs of a kernel without bias and a batch norm with as many channels."""
    nodes = dict(_nodes(params))
    kernels = {(*path, "kernel"): node["kernel"] for path, node in nodes.items() if set(node) == {"kernel"}}
    norms = {path: node["scale"] for path, node in nodes.items() if set(node) == {"scale", "bias"}}
    moments = {path: node["mean"] for path, node in _nodes(stats) if set(node) == {"mean", "var"}}
    for (kernel_path, kernel), (path, scale) in itertools.product(kernels.items(), norms.items()):
        for moments_path in {path, path[:-1]} & set(moments):
            if kernel.shape[-1:] == scale.shape == moments[moments_path].shape:
                yield kernel_path, path, moments_path


def _nodes(tree: PyTree, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Mapping[str, Any]]]:
    if isinstance(tree, Mapping):
        yield path, tree
        for name, branch in tree.items():
            yield from _nodes(branch, (*path, name))


def _fold(params: PyTree, stats: PyTree, pair: Pair) -> None:
    """Fold one pair in place; leaves may have a leading axis of a run's units."""
    kernel, norm, moments = (functools.reduce(lambda tree, name: tree[name], path, tree)
                             for path, tree in zip(pair, (params, params, stats), strict=True))  # fmt: skip
    factor = norm["scale"] / np.sqrt(moments["var"] + BATCH_NORM_EPSILON)
    norm["bias"] -= moments["mean"] * factor
    kernel *= factor.reshape(*factor.shape[:-1], *(1,) * (kernel.ndim - factor.ndim), factor.shape[-1])
    norm["scale"][:], moments["mean"][:], moments["var"][:] = 1, 0, 1 - BATCH_NORM_EPSILON
