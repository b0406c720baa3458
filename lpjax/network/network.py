"""Everything about the network that is fixed before training: stages, AuxNet, and how stages are packed."""

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from lpjax.config.schema import Config
from lpjax.errors import BadInput
from lpjax.network.alike import Rows, in_a_row, without_place
from lpjax.network.aux_net import make_aux_net, own_positions, tail, tail_logits
from lpjax.network.coarse_tails import as_tails, check_tail
from lpjax.network.packing import PackedChains, Packing, Row
from lpjax.network.partition import split
from lpjax.nn import chain
from lpjax.nn.chain import Chain, Mode, Shape, UnitLike, make_chain
from lpjax.nn.losses import CLASSIFICATION, Interface, Task, features
from lpjax.nn.schedule import Part
from lpjax.parallel.mesh import Stage


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
      kinds: Stages 0 .. K-1 by kind (`mesh.Stage`): those of a kind are of the same units and shapes, and behind them
        are the same pieces of the AuxNet but for such that keep the shape.
      params: How the stages' parameters are packed into rows.
      stats: How their batch-norm statistics are.
      task: What it learns.
    """

    chain: Chain
    stages: tuple[Chain, ...]
    aux_net: tuple[Chain, ...]
    aux_tails: tuple[Chain, ...]
    tied: tuple[int, ...]
    kinds: tuple[tuple[int, ...], ...]
    params: Packing
    stats: Packing
    task: Task

    @property
    def num_stages(self) -> int:
        """K."""
        return len(self.stages)

    @property
    def aux_own(self) -> tuple[Chain, ...]:
        """The AuxNet's pieces that have weights of their own."""
        return self.aux_net[:-1] if self.tied else self.aux_net

    @functools.cached_property
    def aux_rows(self) -> Rows:
        """The AuxNet's pieces; equal ones in a row are taken together, see `alike`."""
        return in_a_row(self.aux_tails)

    def stage(self, k: Stage) -> Chain:
        """Stage k, at its place in the network."""
        return replace(self.stages[k.like], offset=k.of([stage.offset for stage in self.stages]))

    def aux_trees(self, k: Stage, *trees: tuple[PyTree, ...]) -> list[PyTree]:
        """Of trees of the AuxNet's pieces, in rows, those of the piece beside stage k."""
        position, row = next((i, row) for i, row in enumerate(self.aux_rows) if k.like in row)
        own = [tree[position] for tree in trees]
        return own if len(row) == 1 else jax.tree.map(lambda leaf: leaf[k.number - row.start], own)

    def tail_logits(
        self, k: Stage, params: PyTree, stats: PyTree, output: Interface, mode: Mode, length: int | None
    ) -> Float[Array, "b ..."]:
        """`aux_net.tail_logits` of what stage k puts out."""
        begins = [stage + 1 for stage in k.kind]
        return tail_logits(self.aux_tails, params, stats, k.number + 1, output, mode, length, begins)

    @property
    def label_shape(self) -> Shape:
        """Of an example's label."""
        return self.task.label_shape(self.chain.in_shape)

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
        return tuple(int(stage.offset) for stage in self.stages[1:])

    @property
    def interfaces(self) -> tuple[Shape, ...]:
        """Per-example shapes of the stages' inputs lambda_0 (the image) .. lambda_{K-1}."""
        return tuple(stage.in_shape for stage in self.stages)


def build(
    units: Sequence[UnitLike],
    image_shape: Shape,
    config: Config,
    *,
    with_aux_net: bool = True,
    task: Task = CLASSIFICATION,
) -> Network:
    """Cut a network into stages and derive its AuxNet.

    Args:
      units: Of the network.
      image_shape: Of an example, [H, W, C]; of tokens [T].
      config: Of the run; read are `num_stages`, `cuts`, `standardise`, `bfloat16`, `remat` and `aux`.
      with_aux_net: Whether to derive an AuxNet; otherwise it has no pieces.
      task: What it is to learn.

    Returns:
      The network.

    Raises:
      BadInput: The units do not fit each other, the image or the number of stages, or the AuxNet does not fit them.
    """
    dtype = "bfloat16" if config.bfloat16 else None
    whole = replace(make_chain(units, image_shape), dtype=dtype, remat=config.remat)
    labels = task.label_shape(whole.in_shape)
    if whole.out_shape[:-1] != labels or not whole.out_shape:
        expected = f"({', '.join([*map(str, labels), 'classes'])}{'' if labels else ','})"
        raise BadInput(f"the network ends with shape {whole.out_shape}: expected {expected}, logits; add a head")
    stages = split(whole, num_stages=config.num_stages, cuts=config.cuts, standardise=bool(config.standardise))
    packed, aux = PackedChains.of(stages), config.aux
    pieces = make_aux_net(stages, aux) if with_aux_net else ()
    check_tail(pieces, aux.tail)
    tails = as_tails(pieces, aux.grid)
    return Network(
        chain=whole,
        stages=stages,
        aux_net=pieces,
        aux_tails=tails,
        kinds=_kinds(stages, tails, aux.tail),
        tied=tuple(own_positions(stages[-1], aux.blocks_per_stage)) if aux.tied and pieces else (),
        params=packed.params,
        stats=packed.stats,
        task=task,
    )


def _kinds(stages: tuple[Chain, ...], tails: tuple[Chain, ...], length: int | None) -> tuple[tuple[int, ...], ...]:
    """See `Network.kinds`; the first and the last stage are alone."""
    K, kinds, rows = len(stages), dict[Hashable, list[int]](), in_a_row(tails)
    for k, stage in enumerate(stages):
        behind = [i for i in tail(K, k + 1, length) if tails and tails[i].in_shape != tails[i].out_shape]
        beside = [row for row in rows if k in row]
        kinds.setdefault((without_place(stage), k == 0, k == K - 1, *beside, *behind), []).append(k)
    return tuple(map(tuple, kinds.values()))


def composed(
    network: Network, params: tuple[PyTree, ...], stats: tuple[PyTree, ...], x: Float[Array, "b ..."], mode: Mode
) -> tuple[Float[Array, "b ..."], tuple[PyTree, ...]]:
    """Forward pass of the composed network F_{K-1} o .. o F_0, on the real image and without AuxNet.

    Every accuracy reported as the network's is that of these logits.

    Args:
      network: The network.
      params: One tree a stage.
      stats: Likewise.
      x: Images [b, H, W, C], or tokens [b, T].
      mode: Training or not.

    Returns:
      Logits, and statistics.
    """
    outputs, new_stats = stage_outputs(network, params, stats, x, mode)
    return outputs[-1], new_stats


def stage_outputs(
    network: Network, params: tuple[PyTree, ...], stats: tuple[PyTree, ...], x: Float[Array, "b ..."], mode: Mode
) -> tuple[tuple[Interface, ...], tuple[PyTree, ...]]:
    """What each stage puts out in `composed`, the logits last, and statistics."""
    outputs, new_stats = [], []
    for stage, stage_params, stage_stats in zip(network.stages, params, stats, strict=True):
        x, out = chain.apply(stage, stage_params, stage_stats, x, mode)
        outputs.append(x)
        new_stats.append(out)
    return tuple(outputs), tuple(new_stats)
