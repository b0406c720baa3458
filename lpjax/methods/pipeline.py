"""Pipelined backprop: micro-batches follow each other through the stages; the gradient is exact.

    GPipe  Huang et al., "GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism",
           arXiv:1811.06965
    1F1B   the order of passes: Narayanan et al., "PipeDream: Generalized Pipeline Parallelism for DNN Training",
           arXiv:1806.03377, without its several versions of the weights

In a round a device runs a forward and a backward pass, of the micro-batches that have come to it.  S = 3 devices, M = 5
micro-batches; f m, b m: forward and backward pass of micro-batch m:

    device 0   f0 |  f1 |  f2    |  f3    |  f4 b0 |     b1 |     b2 |     b3 |  b4
    device 1      |  f0 |  f1    |  f2 b0 |  f3 b1 |  f4 b2 |     b3 |     b4 |
    device 2      |     |  f0 b0 |  f1 b1 |  f2 b2 |  f3 b3 |  f4 b4 |        |        | update

    grad W = sum over m of d/dW [ sum over examples of micro-batch m of phi(F_{K-1} o .. o F_0(x; W), y) ] / B

Devices wait for each other at the end of a round, where outputs move one device on and gradients one device back.  The
first and last S-1 of M + 2(S-1) rounds have one pass only, so a step takes as long as GPipe's, all forward passes
before all backward passes: (S-1) / (M+S-1) of it is idle (the bubble).  But a device keeps no more than 2S - 1
micro-batches of what is under way, rather than M.  With `pipeline.keep="activations"` that is what backward passes need
beside inputs, with "inputs" inputs alone, and all devices but the last, which has both passes of a micro-batch at once,
compute their stages again.

**Batch norm sees a micro-batch**, not the batch: the gradient is that of serial gradient accumulation, which without
batch norm is backprop's.  Micro-batch m of a column has its examples m, m + M, m + 2M .. , on every mesh.

Collectives of a step: two all_gathers over 'stage' (input and tags); two ppermutes over 'stage' a round; psum over
'data' of the gradients, psum over the mesh of the metrics; batch norm's over 'data'.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.data.source import Spec
from lpjax.methods import base, kept, moving
from lpjax.methods.base import WIDTH, Age, Metrics, StageResult, stage_values
from lpjax.methods.stage_plan import StagePlan, check_micro_batches, packet_bytes
from lpjax.network.network import Network
from lpjax.nn import chain
from lpjax.nn.count import activation_bytes
from lpjax.nn.schedule import Item
from lpjax.parallel import mesh as meshes
from lpjax.state import optim
from lpjax.state.train_state import TrainState


def keeps(config: Config) -> bool:
    """Whether activations are kept between rounds; with one device no round needs those of another."""
    return config.pipeline.keep == "activations" and config.mesh_shape[0] > 1


class UnderWay(NamedTuple):
    """What a device has between rounds.

    Attributes:
      inputs: Ring [positions, b, L] of its inputs.
      rows: Rings `{type: [positions, length]}` of what it keeps.
      arrived: [b, L], its next input.
      gradient: [b, L], at the output of its next backward pass.
      total: Sums of what it has made of micro-batches.
    """

    inputs: Float[Array, "positions b l"]
    rows: kept.Rows
    arrived: Float[Array, "b l"]
    gradient: Float[Array, "b l"]
    total: StageResult


class Step(base.Step):
    """One step of one device, whose `StageResult`s are of all its stages: rows lead with these."""

    def stages_of(self, device: int) -> range:
        """The stages that a device along 'stage' holds."""
        slots = self.network.num_stages // self.config.mesh_shape[0]
        return range(device * slots, (device + 1) * slots)

    def apply(
        self, device: int, state: TrainState, mode: chain.Mode, params: Sequence[PyTree], lam: Array
    ) -> tuple[Array, list[PyTree]]:
        """A device's stages one after the other: the output, and their batch statistics."""
        new, stages = [], self.stages_of(device)
        for k, p, s in zip(stages, params, self.network.stats.unpack_all(state.stage_stats, stages), strict=True):
            lam, out = chain.apply(self.network.stages[k], p, s, lam, mode)
            new.append(out)
        return lam, new

    def unpacked(self, device: int, packet: Array, state: TrainState) -> tuple[tuple[PyTree, ...], Array]:
        """The parameters of a device's stages, and the input of the first one."""
        stages = self.stages_of(device)
        lam = moving.unpack(packet, self.network.interfaces[stages[0]])
        return self.network.params.unpack_all(state.stage_params, stages), lam

    def function(self, device: int, tags: moving.Tags, state: TrainState) -> kept.Function:
        """A device's stages on a micro-batch, to be differentiated: see `moving.to_loss`."""
        examples, last = moving.tagged(self.config, state, tags), device == self.config.mesh_shape[0] - 1
        run = partial(self.apply, device, state, examples.mode)
        return moving.to_loss(run, examples, last, self.config.batch_size)

    def run_forward(
        self, device: int, packet: Array, tags: moving.Tags, *, state: TrainState, lengths: dict[str, int]
    ) -> tuple[Array, StageResult, kept.Rows]:
        """What a device sends on of a micro-batch, what it makes of it beside that, and what it keeps of it."""
        trees = self.unpacked(device, packet, state)
        output, (shares, stats), own = kept.forward(self.function(device, tags, state), *trees)
        done, rows = self.nothing(state), dict[str, Array]()
        if keeps(self.config):
            done, rows = StageResult(shares, {}, self.network.stats.pack_all(stats), ()), kept.rows(own, lengths)
        return moving.pack(self.network, output), done, rows

    def run_backward(
        self,
        device: int,
        packet: Array,
        tags: moving.Tags,
        gradient: Array,
        rows: kept.Rows,
        place: Array,
        *,
        state: TrainState,
    ) -> tuple[StageResult, Array]:
        """A micro-batch's backward pass, and the gradient to send back; the last device runs its forward pass, too."""
        network, trees = self.network, self.unpacked(device, packet, state)
        function, done = self.function(device, tags, state), self.nothing(state)
        behind = moving.gradient_behind(network, self.stages_of(device)[-1], gradient)
        if keeps(self.config) and device < self.config.mesh_shape[0] - 1:
            own = jax.tree.map(lambda row: _at(row, place), rows)
            grads, adjoint = kept.backward(function, *trees, own, behind)
        else:
            _, pullback, (shares, stats) = jax.vjp(function, *trees, has_aux=True)
            grads, adjoint = pullback(behind)
            done = StageResult(shares, {}, network.stats.pack_all(stats), ())
        back = moving.pack(network, adjoint) if device > 0 else jnp.zeros_like(packet)
        return done._replace(grads=network.params.pack_all(grads)), back

    def nothing(self, state: TrainState) -> StageResult:
        """The result of a device that has no micro-batch, but for gradients."""
        shares = dict.fromkeys(("loss", "correct"), jnp.zeros(()))
        return StageResult(shares, {}, jax.tree.map(jnp.zeros_like, state.stage_stats), ())

    def where_busy(
        self, run: Callable[..., Any], micro: Array, nothing: PyTree, *operands: PyTree, working: int
    ) -> Any:
        """Run a pass on the devices that have a micro-batch for it.

        Args:
          run: (device, *operands) -> its result.
          micro: The device's micro-batch; it has one where 0 <= micro < M.
          nothing: The result of the other devices.
          *operands: What `run` is given.
          working: Only the first so many devices have such a pass.
        """
        device = lax.axis_index("stage")
        busy = (micro >= 0) & (micro < self.config.pipeline.micro_batches) & (device < working)
        branches = [partial(run, d) for d in range(working)] + [lambda *_: nothing]
        return lax.switch(jnp.where(busy, device, working), branches, *operands)

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One step as one device sees it."""
        network, config, M = self.network, self.config, self.config.pipeline.micro_batches
        whole = moving.column_batch(network, self.step_inputs, state, batch)
        x, tags = (value.reshape(-1, M, *value.shape[1:]).swapaxes(0, 1) for value in whole)  # [M, b / M, ..]
        done = self.rounds(state, x, tags)
        grads, stats = lax.psum(done.grads, "data"), jax.tree.map(lambda x: x / M, lax.pmean(done.stats, "data"))
        squares = meshes.by_stage(jnp.square(optim.row_norms(grads)) / config.mesh.data, network.num_stages)
        sums = lax.psum(done.shares, meshes.ALL_AXES)
        metrics = {"task_loss": sums["loss"], "accuracy": sums["correct"] / config.batch_size}
        return self.updated(state, grads, stats), metrics | {"gradient_norm": jnp.sqrt(squares)}

    def rounds(self, state: TrainState, x: Float[Array, "m b l"], tags: Array) -> StageResult:
        """The sums of what the device makes of its micro-batches.

        Args:
          state: Before the step.
          x: The network's input.
          tags: Of the micro-batches.
        """
        S, M, device = self.config.mesh_shape[0], len(x), lax.axis_index("stage")
        lengths, silence, nothing = self.lengths(x, tags, state), jnp.zeros_like(x[0]), self.nothing(state)
        no_grads = nothing._replace(grads=jax.tree.map(jnp.zeros_like, state.stage_params))
        run_forward = partial(self.run_forward, state=state, lengths=lengths)
        positions, run_backward = places(S, M), partial(self.run_backward, state=state)

        def place(micro: Array) -> Array:
            """Of a micro-batch in the rings; where there is none, one of which nothing is needed."""
            return micro % positions if positions <= M else jnp.clip(micro, 0, M)

        def one(before: UnderWay, number: Array) -> tuple[UnderWay, None]:
            ahead, back = number - device, number - 2 * (S - 1) + device
            packet = jnp.where(device == 0, _at(x, ahead), before.arrived)
            inputs = _put(before.inputs, packet, place(ahead))
            silent = silence, nothing, kept.empty(lengths)
            output, passed, made = self.where_busy(run_forward, ahead, silent, packet, _at(tags, ahead), working=S - 1)
            rows = jax.tree.map(lambda row, new: _put(row, new, place(ahead)), before.rows, made)
            behind = _at(inputs, place(back)), _at(tags, back), before.gradient, rows, place(back)
            done, adjoint = self.where_busy(run_backward, back, (no_grads, silence), *behind, working=S)
            arrived = lax.ppermute(output, "stage", [(s, s + 1) for s in range(S - 1)])
            gradient = lax.ppermute(adjoint, "stage", [(s, s - 1) for s in range(1, S)])
            total = jax.tree.map(jnp.add, before.total, done)
            shares, stats = jax.tree.map(jnp.add, (total.shares, total.stats), (passed.shares, passed.stats))
            return UnderWay(inputs, rows, arrived, gradient, total._replace(shares=shares, stats=stats)), None

        inputs, rows = jnp.zeros((positions, *silence.shape)), kept.empty(lengths, positions)
        start = UnderWay(inputs, rows, silence, silence, no_grads)
        return lax.scan(one, start, jnp.arange(M + 2 * (S - 1), dtype=device.dtype))[0].total

    def lengths(self, x: Float[Array, "m b l"], tags: Array, state: TrainState) -> dict[str, int]:
        """Of the rows of what is kept."""
        working = self.config.mesh_shape[0] - 1 if keeps(self.config) else 0
        return kept.lengths((self.function(d, tags[0], state), *self.unpacked(d, x[0], state)) for d in range(working))


def places(S: int, M: int) -> int:
    """Positions of the rings: for all micro-batches that are under way at a time, or for all and one for none."""
    return min(2 * S - 1, M + 1)


def _at(values: Array, position: Array) -> Array:
    """What stands at a position, or at the nearest one that there is."""
    return lax.dynamic_index_in_dim(values, jnp.clip(position, 0, len(values) - 1), keepdims=False)


def _put(values: Array, new: Array, position: Array) -> Array:
    """Values with those at a position replaced."""
    return lax.dynamic_update_index_in_dim(values, new, position, 0)


class Pipeline(base.Method):
    """Pipelined backprop in rounds that all devices share."""

    name = "pipeline"
    title = "pipelined backprop"
    paper = "arXiv:1811.06965"
    step = Step

    def settings(self, config: Config) -> dict[str, Any]:
        """The number of micro-batches, which tells its runs apart, and what is kept, unless it is inputs."""
        unusual = {"keep": "activations"} if config.pipeline.keep == "activations" else {}
        return {"micro_batches": config.pipeline.micro_batches} | unusual

    def advice(self, config: Config) -> str | None:
        """The bubble, and that with twice as many micro-batches."""
        S, M = config.mesh_shape[0], config.pipeline.micro_batches
        now, twice = (f"micro_batches={m}: bubble {100 * (S - 1) / (m + S - 1):.0f} %" for m in (M, 2 * M))
        return f"a pipeline of {S} devices waits; {now}; {twice}" if S > 1 else None

    def check(self, config: Config, data: Spec | None = None) -> None:
        """Refuse a number of micro-batches that a stage column cannot be cut into.

        Raises:
          BadInput: It does not divide the column's batch.
        """
        check_micro_batches("pipeline", config.pipeline.micro_batches, config)

    def ages(self, config: Config) -> list[list[Age]]:
        """How old the gradients are: of this step's micro-batches, at this step's weights."""
        M = config.pipeline.micro_batches
        return [[Age(M - 1 - m, 0) for m in range(M)] for _ in range(config.num_stages)]

    def work(self, network: Network, config: Config) -> list[Item]:
        """The schedule of a step, round by round.

        In each round a device adds to its gradients, micro-batch or none: three accesses.
        """
        plan, M = StagePlan(network, config), config.pipeline.micro_batches
        S, examples = len(plan.devices), plan.column // M
        stages = [range(d * plan.slots, (d + 1) * plan.slots) for d in plan.devices]
        plan.column_batch(1)
        plan.each("pack", keeps=packet_bytes(network, config) // M * (places(S, M) + 2))
        row = max(sum(activation_bytes(network.stages[k], examples) for k in own) for own in stages) // WIDTH
        kept_of = dict[tuple[int, int], int]()
        for number in range(M + 2 * (S - 1)):
            for d in range(S - 1):
                if 0 <= (m := number - d) < M:
                    for k in stages[d]:
                        kept_of[k, m] = plan.forward(k, micro=m, examples=examples)
            for d in range(S):
                if not 0 <= (m := number - 2 * (S - 1) + d) < M:
                    continue
                if keeps(config) and d < S - 1:
                    for k in reversed(stages[d]):
                        plan.keep(kept_of[k, m], plan.backward_of(k, micro=m, examples=examples))
                else:
                    plan.backward(d, stages[d], again=d < S - 1, micro=m, examples=examples)
            if keeps(config):  # a row is made, put into the ring, and read from it
                plan.each("pack", accesses=5 * row)
            for _ in range(2):  # outputs and gradients
                plan.shift(examples)
        plan.update(more=3 * (M + 2 * (S - 1)) * stage_values(network, config))
        plan.message("psum", meshes.ALL_AXES, WIDTH * network.num_stages, "metrics")
        plan.message("psum", meshes.ALL_AXES, 2 * WIDTH, "metrics", count=2)
        return plan.items
