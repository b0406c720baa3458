"""The schedule of a layer-parallel step, numbered as the drawing in `step`."""

from typing import Any

from lpjax.config.schema import Config
from lpjax.methods import moving
from lpjax.methods.base import UPDATE, WIDTH
from lpjax.methods.layer_parallel.step import make_exchange
from lpjax.network import aux_net
from lpjax.network.network import Network
from lpjax.nn.count import chain_arrays, chain_size
from lpjax.nn.losses import features
from lpjax.nn.schedule import Item, Part, Plan
from lpjax.parallel import mesh as meshes
from lpjax.parallel.exchange import Exchange

BOTH = ("input", "weights")


class _Writer:
    """The parts of a step that are written more than once."""

    def __init__(self, network: Network, config: Config) -> None:
        self.network, self.config, self.plan = network, config, Plan()
        self.devices = range(config.mesh_shape[0])
        self.column = config.batch_size // config.mesh.data
        self.own = self.column // config.mesh_shape[0]
        self.pieces = list(enumerate(network.aux_net))

    def aux(self, gradients: tuple[str, ...] = (), pieces: Any = None) -> list[tuple[int, int]]:
        """A pass of the AuxNet on each device's own examples; returns (position, piece) of each entry."""
        order = self.pieces if pieces is None else pieces
        what: dict[str, Any] = {"examples": self.own, "norm_axes": meshes.ALL_AXES}
        return [
            (self.plan.work(d, "aux", stage=j, chain=piece, gradients=own, **what), j)
            for d in self.devices
            for j, piece in (reversed(order) if gradients else order)
            for own in [("weights",) if j == 0 and gradients == BOTH else gradients]
        ]

    def aux_both(self, forward: list[tuple[int, int]]) -> None:
        """The AuxNet's backward pass after a forward pass at these positions, whose activations are kept until then."""
        backward = self.aux(BOTH)
        per = len(self.pieces)
        for d in self.devices:
            ends = {j: position for position, j in backward[d * per : (d + 1) * per]}
            for position, j in forward[d * per : (d + 1) * per]:
                self.plan.keep(position, ends[j])

    def owners(self) -> list[tuple[int, int]]:
        """1, 2: what owners make of their examples; returns the AuxNet's forward pass."""
        network, config, plan = self.network, self.config, self.plan
        for d in self.devices:
            plan.work(d, "augment", accesses=4 * self.own * features(network.chain.in_shape))
        forward = self.aux()
        if config.multiplier == "adjoint":
            self.aux(("input",))
        if config.multiplier == "per_example":
            for shape in network.interfaces[1:]:
                plan.message("all_gather", meshes.ALL_AXES, 4 * self.own, "exchange")
                size = WIDTH * config.batch_size * features(shape)
                plan.message("reduce_scatter", meshes.ALL_AXES, size, "exchange")
        return forward

    def exchange(self, length: int, *, next_step: bool = False) -> None:
        """3 or 6: packets are written and read twice, and move by one all_to_all."""
        if self.network.num_stages == 1:
            return
        values = self.network.num_stages * self.own * length
        for d in self.devices:
            self.plan.work(d, "pack", accesses=4 * values)
        width = 2 if self.config.exchange.bfloat16 else WIDTH
        self.plan.message("all_to_all", "stage", width * values, "exchange", next_step=next_step)

    def stages(self, *, backward: bool) -> None:
        """4: all stages at the same time; a forward pass alone in a sweep."""
        network, config, plan = self.network, self.config, self.plan
        K = network.num_stages
        what: dict[str, Any] = {"examples": self.column, "norm_axes": ("data",), "micro": -int(config.exchange.stale)}
        for part in network.parts():
            k, device, behind = part.stage, part.stage // (K // len(self.devices)), []
            if not backward:
                plan.work(device, "stage", stage=k, chain=part.chain, **what)
                continue
            if config.multiplier == "coarse_tail" and network.aux_tails:
                behind = [Part(k, network.aux_tails[i]) for i in aux_net.tail(K, k + 1, config.aux.tail)]
            plan.local(device, part, behind, "tail", **what)


def plan_step(network: Network, config: Config) -> list[Item]:
    """What each device computes and sends in a step."""
    writer, exchange = _Writer(network, config), make_exchange(network, config)
    plan, stale, lengths = writer.plan, config.exchange.stale, (exchange.outward_length, exchange.homeward_length)
    if network.num_stages > 1:
        for d in writer.devices:
            plan.work(d, "pack", keeps=2 * WIDTH * network.num_stages * writer.own * sum(lengths))
    forward = writer.owners()
    plan.message("all_gather", "stage", 3 * WIDTH * writer.own, "exchange")
    without = Exchange(network.interfaces, len(writer.devices), with_multiplier=False).outward_length
    for _ in range(config.penalty.sweeps):
        writer.exchange(without)
        writer.stages(backward=False)
        writer.exchange(lengths[1])
        for _ in range(2):  # at the corrected inputs and at the old ones
            writer.aux(pieces=writer.pieces[:-1])
    writer.exchange(lengths[0], next_step=stale)
    if stale:
        forward = writer.owners()
    writer.stages(backward=True)
    moving.plan_update(plan, network, config)
    writer.exchange(lengths[1])
    _learn(writer, forward)
    K = network.num_stages
    plan.message("psum", meshes.ALL_AXES, WIDTH * K, "metrics", count=2)
    plan.message("psum", meshes.ALL_AXES, 5 * WIDTH * K, "metrics")
    return plan.items


def _learn(writer: _Writer, forward: list[tuple[int, int]]) -> None:
    """7: the correction, the AuxNet's fit to it, and the stored multipliers."""
    network, config, plan = writer.network, writer.config, writer.plan
    interfaces = [features(shape) for shape in network.interfaces[1:]]
    for d in writer.devices:  # lambda, P and X are read, the corrected lambda is written
        plan.work(d, "correct", accesses=4 * writer.own * sum(interfaces))
    for number in range(config.aux.inner_steps if network.aux_net else 0):
        writer.aux_both(forward if number == 0 else writer.aux())
        if config.aux.adjoint_weight > 0:  # of the mismatch: both passes, and the way back through both
            plan.message("psum", meshes.ALL_AXES, WIDTH * len(interfaces), "gradients", count=len(interfaces))
            again = writer.aux()
            writer.aux(("input",))
            writer.aux(BOTH)
            writer.aux_both(again)
        values = sum(map(chain_size, network.aux_net))
        arrays = sum(map(chain_arrays, network.aux_net))
        plan.message("psum", meshes.ALL_AXES, WIDTH * values, "gradients", count=arrays)
        for d in writer.devices:
            plan.work(d, "update", accesses=UPDATE * values)
    for size in interfaces:
        if config.multiplier == "mean":
            plan.message("psum", meshes.ALL_AXES, WIDTH * size, "gradients")
        if config.multiplier == "per_example":
            plan.message("all_gather", meshes.ALL_AXES, 4 * writer.own, "exchange")
            plan.message("all_gather", meshes.ALL_AXES, WIDTH * writer.own * size, "exchange")
