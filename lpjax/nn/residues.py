"""What residual blocks add to their shortcuts.

A unit is a residual block if it has, beside `apply`,

    with_residue(params, stats, x, mode) -> y, r, stats

with r [b, ..] what it adds to its shortcut, which may be of another shape than x, and y and stats those of `apply`.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from lpjax.nn import chain, layers, losses
from lpjax.nn.chain import Chain, Mode, Shape, UnitLike


def is_residual(unit: UnitLike) -> bool:
    """Whether a unit is a residual block."""
    return hasattr(unit, "with_residue")


def features(own: Chain) -> int:
    """Values of the residues of an example, in all blocks of a chain."""
    outputs = zip(own.units, own.shapes[1:], strict=True)
    return sum(losses.features(shape) for unit, shape in outputs if is_residual(unit))


@dataclass(frozen=True)
class _Measured:
    """A residual block whose statistics have with them the mean square of each example's residue."""

    block: Any
    name = property(lambda self: self.block.name)

    def init(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[PyTree, PyTree]:
        """The block's own."""
        return self.block.init(key, in_shape)

    def apply(self, params: PyTree, stats: PyTree, x: Array, mode: Mode) -> tuple[Array, PyTree]:
        """The block's output."""
        y, r, stats = self.block.with_residue(params, stats[0], x, mode)
        return y, (stats, losses.psi(layers.at_least_float32(r)))


def apply(
    own: Chain, params: tuple[PyTree, ...], stats: tuple[PyTree, ...], x: Float[Array, "b ..."], mode: Mode
) -> tuple[Float[Array, "b ..."], tuple[PyTree, ...], Float[Array, " b"]]:
    """`chain.apply`, with the residues of its blocks.

    Args:
      own: The chain.
      params: As for `chain.apply`.
      stats: Likewise.
      x: Likewise.
      mode: Likewise.

    Returns:
      The output and the statistics; and of each example the mean squares of the residues, summed over the blocks.
    """
    blocks = [is_residual(repeat.unit) for repeat in own.repeats]
    measured = replace(own, units=tuple(_Measured(unit) if is_residual(unit) else unit for unit in own.units))
    room = [(old, jnp.zeros((repeat.count, len(x)))) for repeat, old in zip(own.repeats, stats, strict=True)]
    given = tuple(pair if block else pair[0] for pair, block in zip(room, blocks, strict=True))
    y, found = chain.apply(measured, params, given, x, mode)
    sizes = sum((new[1].sum(0) for new, block in zip(found, blocks, strict=True) if block), jnp.zeros(len(x)))
    return y, tuple(new[0] if block else new for new, block in zip(found, blocks, strict=True)), sizes
