"""What a training step would take on machines one does not have: seconds and bytes by formulas, nothing is run.

B examples a step, K stages, a mesh of S x D devices; f(n), b(n): forward and backward seconds of a chain on n examples,
sums of `Machine.unit_seconds`; M micro-batches; l_k: the AuxNet's pieces behind stage k (`aux_net.tail`).

    serial          f + b of the network                              B examples
    data_parallel   f + b of the network                              B / (S D)
    pipeline        (M + S - 2) f_d + (M + S - 1) (f_d + b_d)         B / (D M), of a device's stages; equal devices
    fdg             max over devices of 2 f_d + b_d                   B / D; the last stage f + b
    ddg             sum of f_k, k < K-1,  + max of f_d + b_d          B / D
    local           max of f_d + b_d with their classifiers           B / D; no stage has an input gradient
    layer_parallel  max of f_d + b_d + sum of f + b of l_k            B / D
                    + f + b of the AuxNet                             B / (S D)
    coarse_adjoint  max of f_d + b_d + sum of f + b of l_k and,       B / D; no stage has an input gradient
                    where it is fitted, of G_k

and, for each, what moves and synchronises as the methods' files say.  Nothing overlaps: a step of lpjax is one program
whose collectives wait for what they send.  Sent bytes are those of `cost.exchanged_bytes`.  Left out: what `lax.scan`
and `lax.switch` cost, and everything before the batch is on the devices.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Literal

import jax.numpy as jnp
import numpy as np

from lpjax.config.check import check
from lpjax.config.schema import AuxConfig, Config, DataConfig, DelayedConfig, MeshConfig, PipelineConfig, Policy
from lpjax.cost.machine import WIDTH, Group, Machine, Number, all_gather, all_to_all, kept_bytes, layers, ppermute
from lpjax.methods import delayed, moving
from lpjax.methods.local import classifiers
from lpjax.network.aux_net import tail as pieces_behind
from lpjax.network.network import Network
from lpjax.nn.chain import Chain
from lpjax.nn.losses import features
from lpjax.parallel.exchange import Exchange
from lpjax.training.structure import beside

UPDATE = 5
"""Accesses to a parameter's values in an update by SGD with momentum: both read and written, the gradient read."""


@dataclass(frozen=True)
class StepSeconds:
    """Parts of a step on the device that takes longest.

    data: augmentation.  aux_forward, aux_backward: the AuxNet's passes.  exchange: packets, packing and collectives.
    stages: forward and backward passes with tails or classifiers, and waits for other stages.
    batch_norm: collectives of batch norm.  correction: of the auxiliary variables.  gradients: their all-reduces.
    fixed: launch, and the psums of figures.
    """

    data: float
    stages: float
    batch_norm: float
    gradients: float
    optimizer: float
    fixed: float
    exchange: float = 0.0
    aux_forward: float = 0.0
    aux_backward: float = 0.0
    correction: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of the step: nothing overlaps."""
        return float(sum(astuple(self)))


# ------------------------------------------------------------------------------------------------- steps of the methods


@dataclass(frozen=True)
class _Case:
    """What `step_seconds` was asked for.  stage, data, mesh: the devices along the axes, and all of them.

    Seconds of passes are arrays [.., 2]: of computing, and of synchronising batch norm.
    """

    network: Network
    config: Config
    machine: Machine
    exchange_bytes: int
    synchronised: bool
    stage: Group
    data: Group
    mesh: Group

    @property
    def column(self) -> int:
        """Examples of a stage column."""
        return self.config.batch_size // self.data.n

    @property
    def own(self) -> int:
        """Examples of a device."""
        return self.config.batch_size // self.mesh.n

    @property
    def slots(self) -> int:
        """Stages of a device."""
        return self.network.num_stages // self.stage.n

    @property
    def rows(self) -> int:
        """Values of the packed parameters of a device's stages."""
        return self.slots * sum(self.network.params.lengths.values())

    def accesses(self, count: Number) -> float:
        """Seconds to read or write values so many times."""
        return WIDTH * count / self.machine.memory_bandwidth

    def passes(
        self, chains: Sequence[Chain], examples: int, group: Group, *, input_gradient: bool = False
    ) -> np.ndarray:
        """[chains, forward and backward, 2] of chains whose batch norm is over `group`: an all-reduce of two moments a
        layer and pass.  Without input_gradient the backward pass of the first chain's first unit takes half the time.
        """
        seconds = np.zeros((len(chains), 2, 2))
        for own, chain in zip(seconds, chains, strict=True):
            for repeat in chain.repeats:
                unit, in_shape, count = repeat.unit, repeat.in_shape, repeat.count
                own[:, 0] += count * np.array(self.machine.unit_seconds(unit, in_shape, examples))
                norms = layers(unit, in_shape).norms if self.synchronised else ()
                own[:, 1] += count * sum(group.all_reduce(2 * WIDTH * channels) for channels in norms)
            if chain.remat:
                own[1] += own[0]
        if chains and not input_gradient:
            unit, in_shape = chains[0].units[0], chains[0].in_shape
            seconds[0, 1, 0] -= self.machine.unit_seconds(unit, in_shape, examples)[1] / 2
        return seconds

    def on_devices(self, stages: np.ndarray) -> np.ndarray:
        """Sums over the stages of each device, [K, ..] -> [S, ..]."""
        return stages.reshape(-1, self.slots, *stages.shape[1:]).sum(1)

    def step(self, work: np.ndarray, *, psums: int = 0, **parts: float) -> StepSeconds:
        """A step of these parts.  Augmentation accesses an image four times.  psums: of figures."""
        return StepSeconds(
            data=self.accesses(4 * self.own * features(self.network.chain.in_shape)),
            stages=float(work[0]),
            batch_norm=float(work[1]),
            fixed=self.machine.launch + psums * self.mesh.all_reduce(3 * WIDTH * self.network.num_stages),
            **parts,
        )

    def averaged(self, values: int) -> float:
        """All-reduces over 'data' of so many gradients and of the stages' statistics."""
        stats = self.slots * sum(self.network.stats.lengths.values())
        return self.data.all_reduce(WIDTH * values) + self.data.all_reduce(WIDTH * stats)

    def shifting(self, work: np.ndarray, *, values: int, touched: Number, shifts: int, examples: Number) -> StepSeconds:
        """A step in which packets move from stage to stage.

        The devices of a column gather its images and their tags.  A packet is read and written when it is packed and
        when it is opened.  values: parameters of a device.  touched: accesses to them.  examples: of a packet.
        """
        gathered = self.stage(all_gather, WIDTH * self.own * features(self.network.chain.in_shape))
        packet = examples * moving.length(self.network)
        shift = self.stage(ppermute, WIDTH * packet) + self.accesses(4 * packet)
        return self.step(
            work,
            psums=1,
            exchange=gathered + self.stage(all_gather, 3 * WIDTH * self.own) + (self.stage.n > 1) * shifts * shift,
            gradients=self.averaged(values),
            optimizer=self.accesses(touched),
        )


def _longest(works: np.ndarray) -> np.ndarray:
    """The row [2] of the largest sum; zeros of none."""
    return max(works, key=np.sum, default=np.zeros(2))


def _backprop(case: _Case) -> StepSeconds:
    values = case.network.num_stages * sum(case.network.params.lengths.values())
    work = case.passes(case.network.stages, case.own, case.mesh).sum((0, 1))
    return case.step(work, gradients=case.mesh.all_reduce(WIDTH * values), optimizer=case.accesses(UPDATE * values))


def _pipeline(case: _Case) -> StepSeconds:
    """In every backward round a device adds to its gradients, whether it had a micro-batch or not: three accesses."""
    S, M = case.stage.n, case.config.pipeline.micro_batches
    passes = case.on_devices(case.passes(case.network.stages, case.column // M, case.data))

    def in_file(works: np.ndarray) -> np.ndarray:
        """The first micro-batch meets all devices in turn; the others follow at the pace of the slowest."""
        return works.sum(0) + (M - 1) * _longest(works)

    return case.shifting(
        in_file(passes[:-1, 0]) + in_file(passes.sum(1)),
        values=case.rows,
        touched=(UPDATE + 3 * (M + S - 1)) * case.rows,
        shifts=2 * (M + S) - 3,
        examples=case.column / M,
    )


def _delayed(case: _Case) -> StepSeconds:
    """All weights enter a ring and those of an older step are read: three accesses."""
    fdg = case.config.delayed.variant == "fdg"
    passes = case.passes(case.network.stages, case.column, case.data)
    work, forward = passes.sum(1), passes[:-1, 0]
    if fdg:
        work[:-1] += forward
    return case.shifting(
        _longest(case.on_devices(work)) + (0 if fdg else forward.sum(0)),
        values=case.rows,
        touched=(UPDATE + 3) * case.rows,
        shifts=2 if fdg else case.network.num_stages + 1,  # DDG also sends what FDG would, zeros
        examples=case.column,
    )


_classifiers = functools.cache(classifiers)


def _local(case: _Case) -> StepSeconds:
    own = _classifiers(case.network, case.config.local.blocks)
    stages = np.concatenate([case.passes([stage], case.column, case.data) for stage in case.network.stages])
    heads = case.passes(own.chains, case.column, case.data, input_gradient=True)
    values = case.rows + case.slots * sum(own.params.lengths.values())
    return case.shifting(
        _longest(case.on_devices((stages + heads).sum(1))),
        values=values,
        touched=UPDATE * values,
        shifts=1,
        examples=case.column,
    )


def _coarse_adjoint(case: _Case) -> StepSeconds:
    """All the AuxNet's gradients are averaged and its parameters updated on every device; tied ones are sent there."""
    network, values = case.network, _values(case.network.aux_own)
    shared = _values(case.network.aux_net) - values
    stages = np.concatenate([case.passes([stage], case.column, case.data) for stage in network.stages]).sum(1)
    for own, chains in zip(stages, beside(network, case.config), strict=True):
        own += case.passes(chains, case.column, case.data, input_gradient=True).sum((0, 1))
    found = case.shifting(
        _longest(case.on_devices(stages)),
        values=case.rows,
        touched=UPDATE * (case.rows + values),
        shifts=1,
        examples=case.column,
    )
    reduced = case.mesh.all_reduce(WIDTH * (values + shared)) + case.stage.all_reduce(WIDTH * shared)
    return replace(found, gradients=found.gradients + reduced)


def _layer_parallel(case: _Case) -> StepSeconds:
    network, policy = case.network, case.config.multiplier
    K, pieces = network.num_stages, network.aux_net
    work = case.passes(network.stages, case.column, case.data).sum(1)
    if policy == "coarse_tail" and pieces:
        behind = case.passes(network.aux_tails, case.column, case.data).sum(1)
        for k in range(K):
            work[k] += behind[pieces_behind(K, k + 1, case.config.aux.tail)].sum(0)
    forward, backward = case.passes(pieces, case.own, case.mesh).sum(0)
    if policy == "adjoint":  # one more backward pass, without the parameters' gradients
        backward = backward * np.array([1.5, 2])
    exchange, moved = Exchange(network.interfaces, case.stage.n, policy == "adjoint"), 0.0
    for length in (exchange.outward_length, exchange.homeward_length) if pieces else ():
        packets = K * case.own * length
        moved += case.stage(all_to_all, case.exchange_bytes * packets) + case.accesses(4 * packets)
    values = _values(network.aux_net)
    return case.step(
        _longest(case.on_devices(work)) + np.array([0, forward[1] + backward[1]]),
        psums=2,
        aux_forward=float(forward[0]),
        aux_backward=float(backward[0]),
        exchange=moved + case.stage(all_gather, 3 * WIDTH * case.own),  # tags
        correction=case.accesses(4 * case.own * sum(map(features, network.interfaces[1:]))),  # lambda, P, X; result
        gradients=case.averaged(case.rows) + case.mesh.all_reduce(WIDTH * values),
        optimizer=case.accesses(UPDATE * (case.rows + values)),
    )


def _values(chains: Sequence[Chain]) -> int:
    """Their parameters."""
    repeats = (repeat for chain in chains for repeat in chain.repeats)
    return sum(repeat.count * layers(repeat.unit, repeat.in_shape).params for repeat in repeats)


STEPS: dict[str, Callable[[_Case], StepSeconds]] = {
    "serial": _backprop,
    "data_parallel": _backprop,
    "pipeline": _pipeline,
    "fdg": _delayed,
    "ddg": _delayed,
    "local": _local,
    "layer_parallel": _layer_parallel,
    "coarse_adjoint": _coarse_adjoint,
}
"""By method; "fdg" and "ddg" are the variants of `delayed`."""


def step_seconds(
    method: str,
    network: Network,
    machine: Machine,
    *,
    batch: int,
    stage: int,
    data: int,
    micro_batches: int = 4,
    policy: Policy = "coarse_tail",
    tail: int | None = None,
    exchange_bytes: int = WIDTH,
    adjacent: Literal["data", "stage"] = "data",
    synchronised: bool = True,
) -> StepSeconds:
    """Seconds of a step.

    Args:
      method: one of `STEPS`.
      batch, stage, data: B, S and D; each of S devices holds K/S of the network's stages.
      micro_batches: M of the pipeline.
      policy, tail: `config.multiplier` of layer_parallel, and `config.aux.tail`.
      exchange_bytes: of a value in layer_parallel's packets: 4, or 2 with `config.exchange.bfloat16`.
      adjacent: the mesh axis whose devices are next to each other; `jax.make_mesh` makes it 'data'.
      synchronised: batch norm is of all devices' examples, as in lpjax; otherwise of a device's own.
    Raises:
      ValueError: an argument out of range, what `config.check` refuses, a policy that stores multipliers.
    """
    config = _config(method, network, batch, stage, data, micro_batches, policy, tail)
    if exchange_bytes not in (2, 4):
        raise ValueError(f"exchange_bytes={exchange_bytes}: expected 4 for single precision or 2 for bfloat16")
    if policy not in (modelled := ("none", "adjoint", "coarse_tail")):
        raise ValueError(
            f"policy={policy!r}: expected one of {', '.join(modelled)}; stored multipliers are not modelled"
        )
    strides = (1, stage) if adjacent == "stage" else (data, 1)
    groups = Group(machine, stage, strides[0]), Group(machine, data, strides[1]), Group(machine, stage * data)
    return STEPS[method](_Case(network, config, machine, exchange_bytes, synchronised, *groups))


def _config(
    method: str, network: Network, batch: int, stage: int, data: int, micro: int, policy: Policy, tail: int | None
) -> Config:
    """The configuration of such a run, checked."""
    if method not in STEPS:
        raise ValueError(f"method={method!r}: expected one of {', '.join(STEPS)}")
    if method == "serial" and stage * data > 1:
        raise ValueError(f"stage={stage}, data={data}: expected 1 and 1 with method=serial; choose data_parallel")
    config = Config(
        method="delayed" if method in ("fdg", "ddg") else method,
        num_stages=network.num_stages,
        batch_size=batch,
        multiplier=policy,
        mesh=MeshConfig(stage, data),
        data=DataConfig(crop=0),
        aux=AuxConfig(tail=tail, tied=bool(network.tied)),
        pipeline=PipelineConfig(micro),
        delayed=DelayedConfig("ddg" if method == "ddg" else "fdg"),
    )
    check(config)
    return config


def memory_bytes(
    method: str,
    network: Network,
    *,
    batch: int,
    stage: int,
    data: int,
    micro_batches: int = 4,
    policy: Policy = "coarse_tail",
    tail: int | None = None,
) -> int:
    """Bytes of the fullest device: parameters, gradients and momentum; kept activations; packets.

    The counts of `tables.device_bytes`, fast enough for thousands of meshes; activations are taken to grow with the
    examples.  Arguments as of `step_seconds`.
    """
    config = _config(method, network, batch, stage, data, micro_batches, policy, tail)
    K, column, slots = network.num_stages, batch // data, network.num_stages // stage
    kept = np.array([_kept(chain) for chain in network.stages])
    row = WIDTH * sum(network.params.lengths.values())
    if not config.staged:
        return 3 * K * row + int(column // stage * kept.sum())
    ring = max(delayed.staleness(config)) + 1 if config.method == "delayed" else 0
    packet = WIDTH * column * moving.length(network)
    fixed = slots * (3 + ring) * (row + packet)
    if method == "pipeline":
        return fixed + int(column // micro_batches * kept.reshape(stage, -1).sum(1).max())
    if method == "local":
        own = _classifiers(network, config.local.blocks)
        kept += [_kept(chain) for chain in own.chains]
        fixed += 3 * slots * WIDTH * sum(own.params.lengths.values())
    if method == "coarse_adjoint":
        kept += [math.fsum(map(_kept, chains)) for chains in beside(network, config)]
        fixed += 3 * WIDTH * _values(network.aux_own)
    if method != "layer_parallel":
        return fixed + int(column * kept.max())
    aux = np.array([_kept(piece) for piece in network.aux_net])
    if policy == "coarse_tail" and K > 1:
        behind = np.array([_kept(piece) for piece in network.aux_tails])
        kept += [behind[pieces_behind(K, k + 1, tail)].sum() for k in range(K)]
    exchange = Exchange(network.interfaces, stage, policy == "adjoint")
    packets = 2 * WIDTH * K * (column // stage) * (exchange.outward_length + exchange.homeward_length)
    fixed = 3 * (slots * row + WIDTH * _values(network.aux_net)) + packets
    return fixed + int(column * kept.max() + column // stage * aux.sum())


def _kept(chain: Chain) -> float:
    """Bytes of an example that a chain keeps; with `remat` its units' inputs, and one unit's at a time."""
    units = [kept_bytes(unit, shape, chain.dtype) for unit, shape in zip(chain.units, chain.shapes[:-1], strict=True)]
    if not chain.remat:
        return math.fsum(units)
    width = jnp.dtype(chain.dtype or jnp.result_type(float)).itemsize
    return width * sum(map(features, chain.shapes[:-1])) + max(units, default=0)
