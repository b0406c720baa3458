"""Everything about the network that is fixed before training: stages, AuxNet, and how stages are packed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from lpjax.network.aux_net import PieceUnits, as_tails, check_tail, convolutions, make_aux_net, own_positions, widest
from lpjax.network.packing import Packing, Row
from lpjax.network.partition import split
from lpjax.nn import chain
from lpjax.nn.chain import Chain, Mode, Shape, UnitLike, make_chain


@dataclass(frozen=True, eq=False)
class Network:
    """A network cut into K stages, with its AuxNet.

    chain: the network, uncut.
    stages: the K stages; composed, they are the network, but for the standardisation at the interfaces.
    aux_net: its K pieces; empty when K = 1.
    aux_tails: the same as coarse tails run them, see `aux_net.as_tails`.
    tied: positions in the last stage of the units that the AuxNet's last piece is made of, with their weights; ():
        pieces have weights of their own.
    params, stats: how the stages' parameters and batch-norm statistics are packed into rows.
    """

    chain: Chain
    stages: tuple[Chain, ...]
    aux_net: tuple[Chain, ...]
    aux_tails: tuple[Chain, ...]
    tied: tuple[int, ...]
    params: Packing
    stats: Packing

    @property
    def num_stages(self) -> int:
        """K."""
        return len(self.stages)

    @property
    def aux_own(self) -> tuple[Chain, ...]:
        """The AuxNet's pieces that have weights of their own."""
        return self.aux_net[:-1] if self.tied else self.aux_net

    def tied_params(self, row: Row) -> tuple[PyTree, ...]:
        """Parameters of the AuxNet's last piece, from the last stage's row."""
        units = chain.unstack(self.stages[-1], self.params.unpack(self.num_stages - 1, row))
        return chain.stack(self.aux_net[-1], [units[i] for i in self.tied], jnp)

    @property
    def cuts(self) -> tuple[int, ...]:
        """Positions in the chain where stages 1..K-1 start."""
        return tuple(stage.offset for stage in self.stages[1:])

    @property
    def interfaces(self) -> tuple[Shape, ...]:
        """Per-example shapes of the stages' inputs lambda_0 (the image) .. lambda_{K-1}."""
        return tuple(stage.in_shape for stage in self.stages)


def build(
    units: Sequence[UnitLike],
    image_shape: Shape,
    *,
    num_stages: int,
    cuts: tuple[int, ...] | None = None,
    standardise: bool = True,
    dtype: str | None = None,
    remat: bool = False,
    aux_function: PieceUnits = convolutions,
    aux_blocks: int = 1,
    aux_width: float = 1.0,
    aux_share: float | None = None,
    aux_grid: int | None = None,
    aux_tail: int | None = None,
    aux_tied: bool = False,
) -> Network:
    """Cut the chain of `units` on images of `image_shape` [H, W, C] and derive its AuxNet.

    dtype, remat: see `chain.Chain`.  aux_share: instead of aux_width, see `aux_net.widest`.  aux_tail: is checked.

    Raises ValueError where `chain.make_chain`, `partition.split` or `aux_net.make_aux_net` do.
    """
    whole = replace(make_chain(units, image_shape), dtype=dtype, remat=remat)
    if len(whole.out_shape) != 1:
        raise ValueError(f"the network ends with shape {whole.out_shape}: expected (classes,), logits; add a head")
    stages = split(whole, num_stages=num_stages, cuts=cuts, standardise=standardise)
    trees = [jax.eval_shape(lambda key, stage=stage: chain.init(stage, key), jax.random.key(0)) for stage in stages]
    made_of: dict[str, Any] = {
        "function": aux_function,
        "blocks_per_stage": aux_blocks,
        "grid": aux_grid,
        "tied": aux_tied,
    }
    if aux_share is None or num_stages == 1:
        pieces = make_aux_net(stages, width=aux_width, **made_of)
    else:
        pieces = widest(stages, share=aux_share, **made_of)
    check_tail(pieces, aux_tail)
    return Network(
        chain=whole,
        stages=stages,
        aux_net=pieces,
        aux_tails=as_tails(pieces, aux_grid),
        tied=tuple(own_positions(stages[-1], aux_blocks)) if aux_tied and pieces else (),
        params=Packing.of([params for params, _ in trees]),
        stats=Packing.of([stats for _, stats in trees]),
    )


def composed(
    network: Network, params: tuple[PyTree, ...], stats: tuple[PyTree, ...], x: Float[Array, "b ..."], mode: Mode
) -> tuple[Float[Array, "b classes"], tuple[PyTree, ...]]:
    """Logits of the composed network F_{K-1} o .. o F_0, and its statistics; `params` and `stats` are one tree a stage.

    On the real image and without AuxNet: every accuracy reported as the network's is its own.
    """
    new_stats = []
    for stage, stage_params, stage_stats in zip(network.stages, params, stats, strict=True):
        x, out = chain.apply(stage, stage_params, stage_stats, x, mode)
        new_stats.append(out)
    return x, tuple(new_stats)
