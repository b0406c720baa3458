"""The AuxNet's pieces as coarse tails run them: on which maps, and whether they can leave pieces out."""

from dataclasses import replace

import jax
from jaxtyping import PyTree

from lpjax.errors import BadInput
from lpjax.network.aux_net import conv_stride, tail
from lpjax.network.grid_block import on_grid
from lpjax.nn import chain


def as_tails(pieces: tuple[chain.Chain, ...], grid: int | None) -> tuple[chain.Chain, ...]:
    """The pieces as tails run them.

    Args:
      pieces: The K pieces.
      grid: Side in pixels of the maps that tails compute on, at most; None: those of the pieces.

    Returns:
      The pieces with these shapes; the first one, where no tail begins, as it is.

    Raises:
      BadInput: A piece does not run on the grid with the parameters that it has.
    """
    if grid is None:
        return pieces

    def trees(piece: chain.Chain) -> PyTree:
        return jax.eval_shape(lambda: chain.init(piece, jax.random.key(0)))

    tails = list(pieces[:1])  # no tail begins at the image
    for j, piece in enumerate(pieces[1:], 1):
        expected = on_grid(piece.out_shape, grid)
        small = chain.make_chain(piece.units, on_grid(piece.in_shape, grid))
        if small.out_shape != expected or trees(small) != trees(piece):
            raise BadInput(
                f"aux.grid={grid}: the AuxNet's piece beside stage {j} maps {small.in_shape} to {small.out_shape}: "
                f"expected {expected} with the parameters it has on {piece.in_shape}; choose a grid that all maps can "
                f"be averaged to, correct aux.function, or leave aux.grid unset"
            )
        tails.append(replace(piece, shapes=small.shapes))
    return tuple(tails)


def check_tail(pieces: tuple[chain.Chain, ...], length: int | None) -> None:
    """Refuse tails that cannot pass over the pieces they leave out.

    Args:
      pieces: The K pieces.
      length: See `aux_net.tail`.

    Raises:
      BadInput: A map that is passed on would have to grow or to lose channels.
    """
    for j in range(1, len(pieces)):
        have = pieces[j].in_shape
        for piece in (pieces[i] for i in tail(len(pieces), j, length)):
            want = piece.in_shape
            if have != want:
                try:
                    conv_stride(have, want)
                except ValueError as error:
                    raise BadInput(f"aux.tail={length}: {error}; or leave aux.tail unset") from error
                if have[-1] > want[-1]:
                    raise BadInput(
                        f"aux.tail={length}: from {have} to {want}: expected no fewer channels; leave aux.tail unset"
                    )
            have = piece.out_shape
