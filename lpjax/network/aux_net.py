"""The AuxNet: a low-capacity network that emits every stage's input in one forward pass.

It is a chain cut in K pieces G_0 .. G_{K-1}, one beside each stage and of the same input and output shape:

    lambda_1 = G_0(x),   lambda_{j+1} = G_j(lambda_j),   G_{K-1} ends with the AuxNet's own head.

A piece is the coarse propagator of parareal terms: `lagrangian` uses G_j .. G_{K-1} as the tail of stage j-1.  What it
is made of is a function's choice, `config.aux.function`: `convolutions` where stages map images to images,
`own_units` for any chain, or a user's own of the same signature

    (stage, blocks=, width=, grid=) -> the units of the piece beside it

A piece ends like its stage: with the standardisation if that does.

With a `grid` a piece computes on maps of at most grid x grid pixels and adds what it finds there to its input
(`grid_block`).  A tail pools a stage's output to the grid and stays there to the head: it costs a few small maps.

The last piece may be made of the last stage's own units and weights (`config.aux.tied`, `own_positions`), which then
learn from all tails.

A tail may be cut short (`config.aux.tail`): after so many pieces it goes on with the last one, G_{K-1}, the pieces
between being passed over by the shortcut of ResNets, without parameters.  Its cost then does not grow with K.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from lpjax.config import named
from lpjax.config.schema import AuxConfig
from lpjax.errors import BadInput
from lpjax.models.resnet import ConvBlock, basic_block
from lpjax.network.alike import in_a_row
from lpjax.network.grid_block import GridBlock
from lpjax.nn import chain, layers
from lpjax.nn.chain import Chain, Mode, Shape, UnitLike, make_chain
from lpjax.nn.count import chain_flops
from lpjax.nn.layers import STANDARDISE
from lpjax.nn.losses import Interface


def convolutions(stage: Chain, *, blocks: int, width: float, grid: int | None = None) -> list[UnitLike]:
    """Make a piece of convolutions, for stages that map images to images.

    A convolution to the resolution behind the stage where it must be, residual blocks, and a 1x1 convolution to the
    channels there.  The last piece has the network's head, and "behind" is before the head.

    Args:
      stage: The stage beside the piece.
      blocks: Number of residual blocks.
      width: Channels of the blocks, over those behind the stage.
      grid: If set, a `GridBlock`, in the first piece behind a convolution.

    Returns:
      The units of the piece.

    Raises:
      BadInput: The stage does not map [H, W, C] to a map that a strided convolution reaches.
    """
    last = len(stage.out_shape) == 1
    out_shape = stage.shapes[-2] if last else stage.out_shape
    stride, channels = conv_stride(stage.in_shape, out_shape), out_shape[-1]
    features = max(1, round(width * channels))
    head = [stage.units[-1]] if last else []
    if grid is not None:
        image = [ConvBlock(channels, stride, 3)] if stage.offset == 0 else []
        return [*image, GridBlock(channels, features, out_shape[:2], grid, blocks), *head]
    units: list[UnitLike] = [] if (stage.in_shape[-1], stride) == (features, 1) else [ConvBlock(features, stride, 3)]
    units += [basic_block(features, 1)] * blocks
    if features != channels:
        units.append(ConvBlock(channels, 1, 1))
    return [*units, *head]


def conv_stride(in_shape: Shape, out_shape: Shape) -> int:
    """The stride at which a convolution makes one map [H, W, C] of another.

    Raises:
      BadInput: There is none.
    """
    if len(in_shape) == len(out_shape) == 3:
        stride = -(-in_shape[0] // out_shape[0])
        if tuple(-(-size // stride) for size in in_shape[:2]) == out_shape[:2]:
            return stride
    raise BadInput(
        f"from {in_shape} to {out_shape}: expected maps [H, W, C], the second one made of the first by a strided "
        f"convolution (ceil(size / stride)); choose other cuts, or aux.function=own_units"
    )


def own_units(stage: Chain, *, blocks: int, width: float, grid: int | None = None) -> list[UnitLike]:
    """Make a piece of some of the stage's own units, for any network.

    Args:
      stage: The stage beside the piece.
      blocks: How many of the units that keep the shape, besides all that change it.
      width: 1, or of units that have a method `narrowed(width)`, which makes the piece's.
      grid: None.

    Returns:
      The units of the piece.

    Raises:
      BadInput: Another `width` of units without `narrowed`, or a `grid`.
    """
    places = own_positions(stage, blocks)
    own: list[tuple[Any, bool]] = [(stage.units[i], stage.shapes[i] == stage.shapes[i + 1]) for i in places]
    if grid is not None or (width != 1 and any(inner and not hasattr(unit, "narrowed") for unit, inner in own)):
        raise BadInput(
            f"aux.width={width}, aux.grid={grid}: expected 1 and none with aux.function=own_units, which takes the "
            f"stage's units as they are (aux.width is obeyed by those with a method `narrowed`); leave both unset"
        )
    return [unit.narrowed(width) if inner and width != 1 else unit for unit, inner in own]


def own_positions(stage: Chain, blocks: int) -> list[int]:
    """Positions in a stage of the units that change the shape, and of the first `blocks` others."""
    positions = []
    for i, (unit, before, after) in enumerate(zip(stage.units, stage.shapes[:-1], stage.shapes[1:], strict=True)):
        if before != after:
            positions.append(i)
        elif blocks > 0 and unit != STANDARDISE:
            positions.append(i)
            blocks -= 1
    return positions


def make_aux_net(stages: tuple[Chain, ...], aux: AuxConfig) -> tuple[Chain, ...]:
    """Derive the AuxNet of a network.

    Args:
      stages: The stages of the network, as `partition.split` returns them.
      aux: `function`, `blocks_per_stage`, `width` or `share`, `grid` and `tied` are read.

    Returns:
      Its K pieces; none for K = 1, where no stage needs an input.

    Raises:
      BadInput: A field out of range, units that do not map a stage's input to its output, or no AuxNet of so small a
        share.
    """
    if aux.share is not None and len(stages) > 1:
        return _widest(stages, aux, aux.share)
    if aux.blocks_per_stage < 0 or aux.width <= 0:
        raise BadInput(
            f"aux.blocks_per_stage={aux.blocks_per_stage}, aux.width={aux.width}: expected blocks_per_stage >= 0 and "
            f"width > 0"
        )
    function: Callable[..., Sequence[UnitLike]] = named.load(aux.function, "aux.function")
    if len(stages) == 1:
        return ()
    pieces: list[Chain] = []
    for j, stage in enumerate(stages):
        try:
            if aux.tied and j == len(stages) - 1:
                units = own_units(stage, blocks=aux.blocks_per_stage, width=1.0)
            else:
                units = list(function(stage, blocks=aux.blocks_per_stage, width=aux.width, grid=aux.grid))
            piece = make_chain([*units, *([STANDARDISE] if stage.units[-1] == STANDARDISE else [])], stage.in_shape)
        except ValueError as error:
            raise BadInput(f"the AuxNet's piece beside stage {j}: {error}") from error
        if piece.out_shape != stage.out_shape:
            raise BadInput(
                f"the AuxNet's piece beside stage {j} maps {piece.in_shape} to {piece.out_shape}: expected "
                f"{stage.out_shape}, as the stage; correct aux.function"
            )
        offset = sum(len(piece.units) for piece in pieces)
        pieces.append(replace(piece, offset=offset, dtype=stage.dtype, remat=stage.remat))
    return tuple(pieces)


def aux_share(stages: tuple[Chain, ...], aux_net: tuple[Chain, ...]) -> float:
    """Forward cost of the AuxNet over that of the network."""
    return sum(map(chain_flops, aux_net)) / sum(map(chain_flops, stages))


def _widest(stages: tuple[Chain, ...], aux: AuxConfig, share: float) -> tuple[Chain, ...]:
    """The widest AuxNet, of a multiple of 1/16 of the stages' channels, of at most this share of their cost."""
    for sixteenths in range(16, 0, -1):
        pieces = make_aux_net(stages, replace(aux, width=sixteenths / 16, share=None))
        found = aux_share(stages, pieces)
        if found <= share:
            return pieces
    raise BadInput(
        f"aux.share={share}: the narrowest AuxNet of {aux.blocks_per_stage} blocks a stage has {found:.4f} of the "
        f"network's cost; expected at least that; lower aux.blocks_per_stage or num_stages"
    )


def init(pieces: tuple[Chain, ...], key: PRNGKeyArray) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
    """Parameters and statistics of the AuxNet, one tree a piece."""
    trees = [chain.init(piece, key) for piece in pieces]
    return tuple(params for params, _ in trees), tuple(stats for _, stats in trees)


def apply(
    pieces: tuple[Chain, ...],
    params: tuple[PyTree, ...],
    stats: tuple[PyTree, ...],
    x: Interface,
    shifts: tuple[Interface, ...],
    mode: Mode,
) -> tuple[tuple[Interface, ...], Float[Array, "b ..."], tuple[PyTree, ...]]:
    """Forward pass of the AuxNet.

    Args:
      pieces: The K pieces.
      params: One tree a piece.
      stats: Likewise.
      x: Images [b, H, W, C], or tokens [b, T].
      shifts: `shifts[j-1]` is added to lambda_j before the rest of the AuxNet sees it: zeros, whose gradient is the
        AuxNet's adjoint at interface j.
      mode: Training or not.

    Returns:
      The auxiliary variables (lambda_1, .., lambda_{K-1}), the logits of the AuxNet's own head, and its statistics.
    """
    lam, new_stats = [], []
    for j, piece in enumerate(pieces):
        x, piece_stats = chain.apply(piece, params[j], stats[j], x, mode)
        new_stats.append(piece_stats)
        if j < len(pieces) - 1:
            x = x + shifts[j]
            lam.append(x)
    return tuple(lam), x, tuple(new_stats)


def tail_logits(
    tails: tuple[Chain, ...],
    params: tuple[PyTree, ...],
    stats: tuple[PyTree, ...],
    j: int | Array,
    x: Interface,
    mode: Mode,
    length: int | None,
    begins: Sequence[int] = (),
) -> Float[Array, "b ..."]:
    """Logits of the AuxNet's tail.

    Args:
      tails: The K pieces, from `coarse_tails.as_tails`.
      params: One tree a row of equal pieces, see `alike.stacked`.
      stats: Likewise.
      j: The interface where the tail begins, 1..K.
      x: Of that interface, [b, ..].
      mode: Training or not.
      length: See `tail`.
      begins: What j may be, where it is known only when the program runs: interfaces of one shape, with the same pieces
        behind them but for those that keep the shape.

    Returns:
      What the head of the AuxNet makes of x.
    """
    K = len(tails)
    runs = np.array([[i in tail(K, begin, length) for i in range(K)] for begin in range(K + 1)])
    possible = runs[[j] if isinstance(j, int) else list(begins)]
    for row, *trees in zip(in_a_row(tails), params, stats, strict=True):
        if not (used := [i for i in row if possible[:, i].any()]):
            continue
        x, some = skip(x, tails[row.start].in_shape), slice(used[0], used[-1] + 1)

        def step(x: Array, own: tuple[Any, Any, Any], piece: Chain = tails[row.start]) -> tuple[Array, None]:
            def run(x: Array) -> Array:
                return chain.apply(piece, own[0], own[1], x, mode)[0]

            return (run(x) if own[2] is None else lax.cond(own[2], run, lambda x: x, x)), None

        of_row = slice(some.start - row.start, some.stop - row.start) if len(row) > 1 else None  # which adds an axis
        is_run = None if possible[:, some].all() else jnp.asarray(runs[:, some])[j]
        own = *jax.tree.map(lambda leaf, of_row=of_row: leaf[of_row], trees), is_run
        x, _ = lax.scan(step, x, own) if len(used) > 1 else step(x, jax.tree.map(lambda leaf: leaf[0], own))
    return x


def tail(num_stages: int, j: int, length: int | None) -> list[int]:
    """The pieces a tail runs through.

    Args:
      num_stages: K.
      j: The interface where the tail begins, 1..K.
      length: How many pieces there are before G_{K-1}; None: all.

    Returns:
      j .. K-1, or the first `length` of them and K-1; none for j = K, behind the last stage.
    """
    if j == num_stages:
        return []
    stop = num_stages if length is None else min(j + length, num_stages)
    return list(dict.fromkeys([*range(j, stop), num_stages - 1]))


def skip(x: Interface, shape: Shape) -> Interface:
    """x as a map of `shape`, on a grid or at a later interface, without parameters; see `coarse_tails.check_tail`."""
    return x if x.shape[1:] == shape else layers.padded(layers.pooled(x, shape[:2]), shape[-1])
