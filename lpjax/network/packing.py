"""Stages of unlike structure as rows of equal length: pytrees <-> [K, P_max].

Under `shard_map` every device runs the same program on arrays of the same shape, but the parameters of the stages
differ in structure.  So the leaves of stage k travel as flat vectors padded with zeros to the longest stage's, one
vector a kind of leaf: those called `kernel` (convolution and matrix weights, which weight decay may act on) and the
others (scales, biases, statistics).  An optimiser acts on a row as on any other pytree.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from lpjax.nn import chain
from lpjax.parallel.mesh import Stage

Row = dict[str, Float[Array | np.ndarray, "..."]]
"""One stage's leaves: {"kernel": [P_max], "other": [Q_max]}; stacked over stages each vector has a leading axis K.
A kind that no stage has is left out."""

KINDS = ("kernel", "other")


def kind(path: tuple[Any, ...]) -> str:
    """The kind of a leaf, from its path in the tree: the last key, if that is one of `KINDS`, else "other"."""
    name = getattr(path[-1], "key", "other")
    return name if name in KINDS else "other"


@dataclass(frozen=True)
class Packing:
    """How the trees of K stages are laid out in rows.

    Attributes:
      trees: The stages' trees of shapes.
      lengths: Of the vectors of each kind that occurs.
    """

    trees: tuple[PyTree, ...]
    lengths: dict[str, int]

    @classmethod
    def of(cls, trees: Sequence[PyTree]) -> "Packing":
        """The layout of trees of arrays or `jax.ShapeDtypeStruct`, one a stage."""
        used = [_sizes(tree) for tree in trees]
        lengths = {name: max(sizes[name] for sizes in used) for name in KINDS}
        return cls(tuple(trees), {name: length for name, length in lengths.items() if length})

    @property
    def length(self) -> int:
        """Values of a row."""
        return sum(self.lengths.values())

    def pack(self, tree: PyTree, xp: Any = jnp) -> Row:
        """One stage's tree as a row, computed with `xp`: `numpy` to stay in host memory."""
        parts: dict[str, list[Array]] = {name: [xp.zeros(0, jnp.result_type(float))] for name in KINDS}
        for path, leaf in jax.tree.leaves_with_path(tree):
            parts[kind(path)].append(leaf.reshape(-1))
        flat = {name: xp.concatenate(parts[name]) for name in self.lengths}
        return {name: xp.pad(row, (0, self.lengths[name] - row.size)) for name, row in flat.items()}

    def unpack(self, stage: int, row: Row) -> PyTree:
        """The tree of `stage` from its row."""
        position = dict.fromkeys(KINDS, 0)
        leaves = []
        for path, leaf in jax.tree.leaves_with_path(self.trees[stage]):
            name, size = kind(path), math.prod(leaf.shape)
            leaves.append(row[name][position[name] : position[name] + size].reshape(leaf.shape))
            position[name] += size
        return jax.tree.unflatten(jax.tree.structure(self.trees[stage]), leaves)

    def pack_all(self, trees: Sequence[PyTree], xp: Any = jnp) -> Row:
        """All stages' trees as rows stacked to {kind: [K, length]}; `xp` as for `pack`."""
        rows = [self.pack(tree, xp) for tree in trees]
        return jax.tree.map(lambda *row: xp.stack(row), *rows)

    def unpack_all(self, rows: Row, stages: Sequence[int] | None = None) -> tuple[PyTree, ...]:
        """The trees of all stages, or of some, from their stacked rows."""
        stages = range(len(self.trees)) if stages is None else stages
        return tuple(self.unpack(k, jax.tree.map(lambda row, i=i: row[i], rows)) for i, k in enumerate(stages))

    @property
    def waste(self) -> float:
        """Share of the stacked rows that is padding, in 0..1."""
        total = len(self.trees) * self.length
        return 1 - sum(sum(_sizes(tree).values()) for tree in self.trees) / max(total, 1)


@dataclass(frozen=True, eq=False)
class PackedChains:
    """Chains, one a stage, and how they are packed into rows.

    Attributes:
      chains: The chains.
      params: How their parameters are packed.
      stats: How their statistics are packed.
    """

    chains: tuple[chain.Chain, ...]
    params: Packing
    stats: Packing

    @classmethod
    def of(cls, chains: Sequence[chain.Chain]) -> "PackedChains":
        """The layout of chains, found by abstract evaluation."""
        trees = [jax.eval_shape(lambda key, c=c: chain.init(c, key), jax.random.key(0)) for c in chains]
        params, stats = zip(*trees, strict=True)
        return cls(tuple(chains), Packing.of(params), Packing.of(stats))

    def init(self, k: Stage, key: PRNGKeyArray) -> tuple[Row, Row]:
        """Rows of a stage's parameters and statistics, see `chain.init`."""
        own = replace(self.chains[k.like], offset=k.of([chain.offset for chain in self.chains]))
        params, stats = chain.init(own, key)
        return self.params.pack(params), self.stats.pack(stats)


def drawn_alike(chains: Sequence[chain.Chain], kinds: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Kinds of stages, each with those alone whose chains one program draws: they are of the same unit objects.

    Equal units may draw differently: modules hold weights of their own.
    """
    found: dict[tuple[Any, ...], list[int]] = {}
    for kind in kinds:
        for k in kind:
            found.setdefault((kind, *map(id, chains[k].units)), []).append(k)
    return tuple(map(tuple, found.values()))


def _sizes(tree: PyTree) -> dict[str, int]:
    sizes = dict.fromkeys(KINDS, 0)
    for path, leaf in jax.tree.leaves_with_path(tree):
        sizes[kind(path)] += math.prod(leaf.shape)
    return sizes
