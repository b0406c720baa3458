"""Pipelined backprop: micro-batches follow each other through the stages; the gradient is exact.

    GPipe  Huang et al., "GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism",
           arXiv:1811.06965

S = 3 devices, M = 4 micro-batches; f m, b m: forward and backward pass of micro-batch m:

    device 0   f0 f1 f2 f3 .  .  |  .  .  b0 b1 b2 b3  | update
    device 1   .  f0 f1 f2 f3 .  |  .  b0 b1 b2 b3 .   | update       rounds: M + S - 1 forward, as many backward
    device 2   .  .  f0 f1 f2 f3 |  b0 b1 b2 b3 .  .   | update       idle (the bubble): (S-1) / (M+S-1)

    grad W = sum over m of d/dW [ sum over examples of micro-batch m of phi(F_{K-1} o .. o F_0(x; W), y) ] / B

With `pipeline.keep="activations"` a device keeps what the backward passes of all M micro-batches need, the activations
of a batch.  With "inputs", as in the paper, it keeps its inputs alone and computes its stages again in the backward
rounds; then the last device has nothing to do in the forward rounds, of which there is one less.  Between rounds
outputs move one device on, or gradients one device back.  **Batch norm sees a micro-batch**, not the batch: the
gradient is that of serial gradient accumulation over the micro-batches, which without batch norm is backprop's.
Micro-batch m of a column has its examples m, m + M, m + 2M .. , so the numbers do not depend on the mesh.

1F1B (arXiv:1806.03377) would start a backward pass as soon as one can; in rounds that all devices share it takes
M + 2(S-1) rounds of both passes, more time than here, to keep 2S - 1 inputs instead of M, which here are small.

Collectives of a step: two all_gathers over 'stage' (input and tags); a ppermute over 'stage' a round; psum over 'data'
of the gradients, psum over the mesh of the metrics; batch norm's over 'data'.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.data.source import Spec
from lpjax.methods import base, kept, moving
from lpjax.methods.base import WIDTH, Age, Metrics, StageResult, stage_values
from lpjax.methods.stage_plan import StagePlan, check_micro_batches
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
        self, device: int, packet: Array, tags: moving.Tags, *, state: TrainState
    ) -> tuple[Array, StageResult, list[Array]]:
        """What a device sends on of a micro-batch, what it makes of it beside that, and what it keeps of it."""
        network, trees = self.network, self.unpacked(device, packet, state)
        output, (shares, stats), own = kept.forward(self.function(device, tags, state), *trees)
        done = StageResult(shares, {}, network.stats.pack_all(stats), ())
        last = device == self.config.mesh_shape[0] - 1
        return jnp.zeros_like(packet) if last else moving.pack(network, output), done, own

    def run_backward(
        self,
        device: int,
        packet: Array,
        tags: moving.Tags,
        gradient: Array,
        rows: kept.Rows,
        micro: Array,
        *,
        state: TrainState,
    ) -> tuple[StageResult, Array]:
        """A micro-batch's backward pass, and the gradient to send back."""
        network, trees = self.network, self.unpacked(device, packet, state)
        function = self.function(device, tags, state)
        behind = moving.gradient_behind(network, self.stages_of(device)[-1], gradient)
        if keeps(self.config):
            own = jax.tree.map(lambda row: _at(row, micro), rows)
            grads, adjoint = kept.backward(function, *trees, own, behind)
            done = self.nothing(state)
        else:
            _, pullback, (shares, stats) = jax.vjp(function, *trees, has_aux=True)
            grads, adjoint = pullback(behind)
            done = StageResult(shares, {}, network.stats.pack_all(stats), ())
        back = moving.pack(network, adjoint) if device > 0 else jnp.zeros_like(packet)
        return done._replace(grads=network.params.pack_all(grads)), back

    def nothing(self, state: TrainState) -> StageResult:
        """The result of a device that has no micro-batch, but for gradients."""
        stats = jax.tree.map(jnp.zeros_like, state.stage_stats)
        return StageResult({"loss": jnp.zeros(()), "correct": jnp.zeros(())}, {}, stats, ())

    def round(self, run: Callable[..., Any], micro: Array, nothing: PyTree, *operands: PyTree, working: int) -> Any:
        """Run a round on the devices that have a micro-batch in it.

        Args:
          run: (device, *operands) -> its result.
          micro: The device's micro-batch; it has one where 0 <= micro < M.
          nothing: The result of the other devices.
          *operands: What `run` is given.
          working: Only the first so many devices work in this round.
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
        inputs, rows, passed = self.forward_rounds(state, x, tags)
        done = self.backward_rounds(state, inputs, tags, rows)
        shares, stats = jax.tree.map(jnp.add, (passed.shares, passed.stats), (done.shares, done.stats))
        grads = lax.psum(done.grads, "data")
        stats = jax.tree.map(lambda total: total / M, lax.pmean(stats, "data"))
        squares = meshes.by_stage(jnp.square(optim.row_norms(grads)) / config.mesh.data, network.num_stages)
        sums = lax.psum(shares, meshes.ALL_AXES)
        metrics = {"task_loss": sums["loss"], "accuracy": sums["correct"] / config.batch_size}
        return self.updated(state, grads, stats), metrics | {"gradient_norm": jnp.sqrt(squares)}

    def forward_rounds(
        self, state: TrainState, x: Float[Array, "m b l"], tags: Array
    ) -> tuple[Float[Array, "m b l"], kept.Rows, StageResult]:
        """The forward rounds.

        Args:
          state: Before the step.
          x: The network's input.
          tags: Of the micro-batches.

        Returns:
          The device's inputs, what it kept of each micro-batch, and the sums of what it made of them beside that.
        """
        S, M, device = self.config.mesh_shape[0], len(x), lax.axis_index("stage")
        working, run = S if keeps(self.config) else S - 1, partial(self.run_forward, state=state)
        nothing = self.nothing(state)
        if working == 0:
            return x, {}, nothing
        lengths = self.lengths(x, tags, state)

        def with_room(device: int, *operands: Array) -> tuple[Array, StageResult, kept.Rows]:
            output, done, own = run(device, *operands)
            return (output, done, kept.rows(own, lengths)) if keeps(self.config) else (output, nothing, {})

        def forward(carry: tuple[Array, kept.Rows, StageResult], tick: Array) -> tuple[Any, None]:
            inputs, rows, total = carry
            micro, silence = tick - device, (jnp.zeros_like(x[0]), nothing, kept.empty(lengths))
            operands = _at(inputs, micro), _at(tags, micro)
            output, done, new = self.round(with_room, micro, silence, *operands, working=working)
            place = jnp.where((micro >= 0) & (micro < M), micro, M)  # the last one is of a device that waits
            rows = jax.tree.map(lambda row, new: _put(row, new, place), rows, new)
            arrived = lax.ppermute(output, "stage", [(s, s + 1) for s in range(S - 1)])
            micro = micro + 1  # what the device before this one just had
            new_input = jnp.where((device > 0) & (micro >= 0) & (micro < M), arrived, _at(inputs, micro))
            return (_put(inputs, new_input, micro), rows, jax.tree.map(jnp.add, total, done)), None

        ticks = jnp.arange(M + working - 1, dtype=device.dtype)
        return lax.scan(forward, (x, kept.empty(lengths, M + 1), nothing), ticks)[0]

    def lengths(self, x: Float[Array, "m b l"], tags: Array, state: TrainState) -> dict[str, int]:
        """Of the rows of what is kept."""
        if not keeps(self.config):
            return {}
        each = [
            (self.function(d, tags[0], state), *self.unpacked(d, x[0], state)) for d in range(self.config.mesh_shape[0])
        ]
        return kept.lengths(each)

    def backward_rounds(
        self, state: TrainState, inputs: Float[Array, "m b l"], tags: Array, rows: kept.Rows
    ) -> StageResult:
        """The backward rounds: the sums of what the device makes of its micro-batches.

        Args:
          state: Before the step.
          inputs: The device's.
          tags: Of the micro-batches.
          rows: What it kept of each.
        """
        S, M, device = self.config.mesh_shape[0], len(inputs), lax.axis_index("stage")
        nothing = self.nothing(state)._replace(grads=jax.tree.map(jnp.zeros_like, state.stage_params))
        silence, run = jnp.zeros_like(inputs[0]), partial(self.run_backward, state=state)

        def backward(carry: tuple[StageResult, Array], tick: Array) -> tuple[tuple[StageResult, Array], None]:
            total, gradient = carry
            micro = tick - (S - 1 - device)
            operands = _at(inputs, micro), _at(tags, micro), gradient, rows, micro
            done, back = self.round(run, micro, (nothing, silence), *operands, working=S)
            back = lax.ppermute(back, "stage", [(s, s - 1) for s in range(1, S)])
            return (jax.tree.map(jnp.add, total, done), back), None

        return lax.scan(backward, (nothing, silence), jnp.arange(M + S - 1, dtype=device.dtype))[0][0]


def _at(values: Array, micro: Array) -> Array:
    """What a micro-batch has of values [M, ..]; of the nearest one, for a micro-batch that there is not."""
    return lax.dynamic_index_in_dim(values, jnp.clip(micro, 0, len(values) - 1), keepdims=False)


def _put(values: Array, new: Array, micro: Array) -> Array:
    """Values [M, ..] with those of a micro-batch, or of the nearest one, replaced."""
    return lax.dynamic_update_index_in_dim(values, new, jnp.clip(micro, 0, len(values) - 1), 0)


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

        In each backward round a device adds to its gradients, micro-batch or none: three accesses.
        """
        plan, M = StagePlan(network, config), config.pipeline.micro_batches
        S, examples = len(plan.devices), plan.column // M
        stages = [range(d * plan.slots, (d + 1) * plan.slots) for d in plan.devices]
        plan.column_batch(3)
        row = max(sum(activation_bytes(network.stages[k], examples) for k in own) for own in stages) // WIDTH
        made, read = (3 * row, 2 * row) if keeps(config) else (0, 0)  # accesses: made, put and read
        working, kept_of = S if keeps(config) else S - 1, dict[tuple[int, int], int]()
        for number in range(M + working - 1 if working else 0):
            for d in range(working):
                if 0 <= (m := number - d) < M:
                    for k in stages[d]:
                        kept_of[k, m] = plan.forward(k, micro=m, examples=examples)
            plan.each("pack", accesses=made)
            plan.shift(examples)
        for number in range(M + S - 1):
            for d in range(S):
                if not 0 <= (m := number - (S - 1 - d)) < M:
                    continue
                if keeps(config):
                    for k in reversed(stages[d]):
                        plan.keep(kept_of[k, m], plan.backward_of(k, micro=m, examples=examples))
                else:
                    plan.backward(d, stages[d], again=d < S - 1, micro=m, examples=examples)
            plan.each("pack", accesses=read)
            plan.shift(examples)
        plan.update(more=3 * (M + S - 1) * stage_values(network, config))
        plan.message("psum", meshes.ALL_AXES, WIDTH * network.num_stages, "metrics")
        plan.message("psum", meshes.ALL_AXES, 2 * WIDTH, "metrics", count=2)
        return plan.items
