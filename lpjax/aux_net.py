"""The AuxNet: a low-capacity network that emits every stage's input in one forward pass.

It is a chain cut in K pieces G_0 .. G_{K-1}, one beside each stage and of the same input and output shape:

    lambda_1 = G_0(x),   lambda_{j+1} = G_j(lambda_j),   G_{K-1} ends with the AuxNet's own head.

A piece holds the transition it must have (another width or resolution) and `blocks_per_stage` residual blocks, all of
`width` times the channels of the interface behind it, and ends like a stage: with the standardisation if those do.
A piece is the coarse propagator of parareal terms: `lagrangian` uses G_j .. G_{K-1} as the tail of stage j-1.
"""

from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from lpjax import chain
from lpjax.chain import Chain, Mode, Shape, Unit, make_chain
from lpjax.lagrangian import Interface
from lpjax.models.layers import STANDARDISE
from lpjax.models.resnet import basic_block, conv_block
from lpjax.partition import chain_flops


def make_aux_net(stages: tuple[Chain, ...], *, blocks_per_stage: int, width: float) -> tuple[Chain, ...]:
    """The K pieces of the AuxNet of a network cut into `stages`; none for K = 1, where no stage needs an input.

    Args:
      stages: the stages of the network, as `partition.split` returns them.
      blocks_per_stage: residual blocks of each piece, >= 0.
      width: channels of a piece over those of the interface behind it, > 0.
    Raises:
      ValueError: an argument out of range, or an interface that no strided convolution reaches.
    """
    if blocks_per_stage < 0 or width <= 0:
        raise ValueError(
            f"aux.blocks_per_stage={blocks_per_stage}, aux.width={width}: expected blocks_per_stage >= 0 and width > 0"
        )
    if len(stages) == 1:
        return ()
    pieces: list[Chain] = []
    offset = 0
    for j, stage in enumerate(stages):
        if j == len(stages) - 1:  # the head of the network is a cheap enough head for the AuxNet
            features = max(1, round(width * stage.in_shape[-1]))
            units = [*_body(stage.in_shape, features, 1, blocks_per_stage), stage.units[-1]]
        else:
            channels = stage.out_shape[-1]
            features = max(1, round(width * channels))
            stride = _stride(stage.in_shape, stage.out_shape, j)
            units = _body(stage.in_shape, features, stride, blocks_per_stage)
            if features != channels:
                units.append(conv_block(channels, 1, 1))
            if stage.units[-1] == STANDARDISE:
                units.append(STANDARDISE)
        piece = make_chain(units, stage.in_shape)
        pieces.append(Chain(piece.units, piece.shapes, offset))
        offset += len(units)
    return tuple(pieces)


def _body(in_shape: Shape, features: int, stride: int, blocks: int) -> list[Unit]:
    transition = [] if (in_shape[-1], stride) == (features, 1) else [conv_block(features, stride, 3)]
    return transition + [basic_block(features, 1)] * blocks


def _stride(in_shape: Shape, out_shape: Shape, j: int) -> int:
    (height, width), (out_height, out_width) = in_shape[:2], out_shape[:2]
    stride = -(-height // out_height)
    if (-(-height // stride), -(-width // stride)) != (out_height, out_width):
        raise ValueError(
            f"stage {j} maps {in_shape} to {out_shape}: expected a map that one strided convolution can make "
            f"(ceil(size / stride)); choose other cuts"
        )
    return stride


def aux_share(stages: tuple[Chain, ...], aux_net: tuple[Chain, ...]) -> float:
    """Forward cost of the AuxNet over that of the network."""
    return sum(map(chain_flops, aux_net)) / sum(map(chain_flops, stages))


def init(pieces: tuple[Chain, ...], key: PRNGKeyArray) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
    """Parameters and statistics of the AuxNet, one tree a piece."""
    trees = [chain.init(piece, key) for piece in pieces]
    return tuple(params for params, _ in trees), tuple(stats for _, stats in trees)


def apply(
    pieces: tuple[Chain, ...],
    params: tuple[PyTree, ...],
    stats: tuple[PyTree, ...],
    x: Float[Array, "b h w c"],
    shifts: tuple[Interface, ...],
    mode: Mode,
) -> tuple[tuple[Interface, ...], Float[Array, "b classes"], tuple[PyTree, ...]]:
    """The auxiliary variables (lambda_1, .., lambda_{K-1}), the logits of the AuxNet's own head, and its statistics.

    `shifts[j-1]` is added to lambda_j before the rest of the AuxNet sees it: zeros whose gradient is the AuxNet's
    adjoint at interface j.
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
    pieces: tuple[Chain, ...],
    params: tuple[PyTree, ...],
    stats: tuple[PyTree, ...],
    j: int,
    x: Float[Array, "b h w c"],
    mode: Mode,
) -> Float[Array, "b classes"]:
    """Logits of the AuxNet's remaining pieces G_j .. G_{K-1} at x, an input of interface j."""
    for i in range(j, len(pieces)):
        x, _ = chain.apply(pieces[i], params[i], stats[i], x, mode)
    return x
