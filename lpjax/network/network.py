"""Everything about the network that is fixed before training: stages, AuxNet, and how stages are packed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from lpjax.config.schema import Config
from lpjax.errors import BadInput
from lpjax.network.aux_net import make_aux_net, own_positions
from lpjax.network.coarse_tails import as_tails, check_tail
from lpjax.network.packing import PackedChains, Packing, Row
from lpjax.network.partition import split
from lpjax.nn import chain
from lpjax.nn.chain import Chain, Mode, Shape, UnitLike, make_chain
from lpjax.nn.losses import features
from lpjax.nn.schedule import Part


@dataclass(frozen=True, eq=False)
class Network:
    """A network cut into K stages, with its AuxNet.

    Attributes:
      chain: The network, uncut.
      stages: The K stages; composed, they are the network, but for the standardisation at the interfaces.
      aux_net: Its K pieces; empty when K = 1.
      aux_tails: The same as coarse tails run them, see `coarse_tails.as_tails`.
      tied: Positions in the last stage of the units that the AuxNet's last piece is made of, with their weights; ():
        pieces have weights of their own.
      params: How the stages' parameters are packed into rows.
      stats: How their batch-norm statistics are.
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

    @property
    def packet_length(self) -> int:
        """L, values of an example's packet, which holds one of any interface."""
        return max(map(features, self.interfaces))

    def parts(self) -> list[Part]:
        """The stages with the gradients that backprop finds of them: none of the image."""
        return [Part(k, stage, ("input", "weights") if k > 0 else ("weights",)) for k, stage in enumerate(self.stages)]

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


def build(units: Sequence[UnitLike], image_shape: Shape, config: Config, *, with_aux_net: bool = True) -> Network:
    """Cut a network into stages and derive its AuxNet.

    Args:
      units: Of the network.
      image_shape: Of an example, [H, W, C].
      config: Of the run; read are `num_stages`, `cuts`, `standardise`, `bfloat16`, `remat` and `aux`.
      with_aux_net: Whether to derive an AuxNet; otherwise it has no pieces.

    Returns:
      The network.

    Raises:
      BadInput: The units do not fit each other, the image or the number of stages, or the AuxNet does not fit them.
    """
    dtype = "bfloat16" if config.bfloat16 else None
    whole = replace(make_chain(units, image_shape), dtype=dtype, remat=config.remat)
    if len(whole.out_shape) != 1:
        raise BadInput(f"the network ends with shape {whole.out_shape}: expected (classes,), logits; add a head")
    stages = split(whole, num_stages=config.num_stages, cuts=config.cuts, standardise=bool(config.standardise))
    packed, aux = PackedChains.of(stages), config.aux
    pieces = make_aux_net(stages, aux) if with_aux_net else ()
    check_tail(pieces, aux.tail)
    return Network(
        chain=whole,
        stages=stages,
        aux_net=pieces,
        aux_tails=as_tails(pieces, aux.grid),
        tied=tuple(own_positions(stages[-1], aux.blocks_per_stage)) if aux.tied and pieces else (),
        params=packed.params,
        stats=packed.stats,
    )


def composed(
    network: Network, params: tuple[PyTree, ...], stats: tuple[PyTree, ...], x: Float[Array, "b ..."], mode: Mode
) -> tuple[Float[Array, "b classes"], tuple[PyTree, ...]]:
    """Forward pass of the composed network F_{K-1} o .. o F_0, on the real image and without AuxNet.

    Every accuracy reported as the network's is that of these logits.

    Args:
      network: The network.
      params: One tree a stage.
      stats: Likewise.
      x: Images [b, H, W, C].
      mode: Training or not.

    Returns:
      Logits, and statistics.
    """
    new_stats = []
    for stage, stage_params, stage_stats in zip(network.stages, params, stats, strict=True):
        x, out = chain.apply(stage, stage_params, stage_stats, x, mode)
        new_stats.append(out)
    return x, tuple(new_stats)
