"""Pieces of the AuxNet that are alike: one program serves a row of them, with their trees stacked."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from lpjax.nn.chain import Chain

Rows = tuple[range, ...]
"""Positions of pieces, those of equal ones in a row together."""


def in_a_row(pieces: Sequence[Chain]) -> Rows:
    """The positions of pieces; equal ones in a row are taken together."""
    starts = [j for j in range(len(pieces)) if j == 0 or without_place(pieces[j]) != without_place(pieces[j - 1])]
    return tuple(range(start, stop) for start, stop in itertools.pairwise([*starts, len(pieces)]))


def without_place(chain: Chain) -> Chain:
    """A chain that equals others of the same units and shapes, wherever they are in the network."""
    return replace(chain, offset=0)


def stacked(rows: Rows, trees: Sequence[PyTree]) -> tuple[PyTree, ...]:
    """One tree a row, every leaf with a leading axis where the row has several pieces, of one tree a piece."""
    return tuple(
        trees[row.start] if len(row) == 1 else jax.tree.map(lambda *leaves: jnp.stack(leaves), *(trees[j] for j in row))
        for row in rows
    )


def unstacked(rows: Rows, trees: Sequence[PyTree]) -> tuple[PyTree, ...]:
    """The inverse of `stacked`."""
    return tuple(
        tree if len(row) == 1 else jax.tree.map(lambda leaf, i=i: leaf[i], tree)
        for row, tree in zip(rows, trees, strict=True)
        for i in range(len(row))
    )
