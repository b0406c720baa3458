"""Pipelined backprop: micro-batches follow each other through the stages; the gradient is exact.

    GPipe  Huang et al., "GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism",
           arXiv:1811.06965

S = 3 devices, M = 4 micro-batches; f m, b m: forward and backward pass of micro-batch m; B recomputes f first:

    device 0   f0 f1 f2 f3 .  |  .  .  b0 b1 b2 b3  | update
    device 1   .  f0 f1 f2 f3 |  .  b0 b1 b2 b3 .   | update       rounds: M + S - 2 forward, M + S - 1 backward
    device 2   .  .  .  .  .  |  b0 b1 b2 b3 .  .   | update       idle (the bubble): about (S-1) / (M+S-1)

    grad W = sum over m of d/dW [ sum over examples of micro-batch m of phi(F_{K-1} o .. o F_0(x; W), y) ] / B

As in the paper a device keeps only its inputs of the forward rounds and computes its stages again in the backward ones
(so the last device has nothing to do in the forward rounds).  Between rounds outputs move one device on, or gradients
one device back.  **Batch norm sees a micro-batch**, not the batch: the gradient is that of serial gradient accumulation
over the micro-batches, which without batch norm is backprop's.  Micro-batch m of a column has its examples m, m + M,
m + 2M .. , so the numbers do not depend on the mesh.

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
from jaxtyping import Array, PyTree

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.data.source import Spec
from lpjax.errors import require
from lpjax.methods import base, moving
from lpjax.methods.base import WIDTH, Age, Metrics, StageResult, stage_values
from lpjax.methods.stage_plan import StagePlan
from lpjax.network.network import Network
from lpjax.nn import chain
from lpjax.nn.schedule import Item
from lpjax.parallel import mesh as meshes
from lpjax.state import optim
from lpjax.state.train_state import TrainState


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

    def run_forward(self, device: int, packet: Array, tags: moving.Tags, *, state: TrainState) -> Array:
        """What a device sends on of a micro-batch."""
        trees, mode = self.unpacked(device, packet, state), moving.tagged(self.config, state, tags).mode
        return moving.pack(self.network, self.apply(device, state, mode, *trees)[0])

    def run_backward(
        self, device: int, packet: Array, tags: moving.Tags, gradient: Array, *, state: TrainState
    ) -> tuple[StageResult, Array]:
        """A micro-batch's backward pass, and the gradient to send back."""
        network, config, examples = self.network, self.config, moving.tagged(self.config, state, tags)
        run, trees = partial(self.apply, device, state, examples.mode), self.unpacked(device, packet, state)
        behind = gradient if device < config.mesh_shape[0] - 1 else None
        shares, new, grads, adjoint = moving.exact_passes(run, *trees, examples, behind, config.batch_size)
        back = moving.pack(network, adjoint) if device > 0 else jnp.zeros_like(packet)
        return StageResult(shares, network.params.pack_all(grads), network.stats.pack_all(new), ()), back

    def round(self, run: Callable[..., Any], micro: Array, nothing: PyTree, *operands: Array, working: int) -> Any:
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
        network, config = self.network, self.config
        S, M = config.mesh_shape[0], config.pipeline.micro_batches
        device = lax.axis_index("stage")
        whole = moving.column_batch(network, self.step_inputs, state, batch)
        x, tags = (value.reshape(-1, M, *value.shape[1:]).swapaxes(0, 1) for value in whole)  # [M, b / M, ..]
        silence = jnp.zeros_like(x[0])

        def at(values: Array, micro: Array) -> Array:
            return lax.dynamic_index_in_dim(values, jnp.clip(micro, 0, M - 1), keepdims=False)

        def forward(inputs: Array, tick: Array) -> tuple[Array, None]:
            micro = tick - device
            operands = at(inputs, micro), at(tags, micro)
            output = self.round(partial(self.run_forward, state=state), micro, silence, *operands, working=S - 1)
            arrived = lax.ppermute(output, "stage", [(s, s + 1) for s in range(S - 1)])
            micro = micro + 1  # what the device before this one just had
            new = jnp.where((device > 0) & (micro >= 0) & (micro < M), arrived, at(inputs, micro))
            return lax.dynamic_update_index_in_dim(inputs, new, jnp.clip(micro, 0, M - 1), 0), None

        inputs = x
        if S > 1:
            inputs, _ = lax.scan(forward, x, jnp.arange(M + S - 2, dtype=device.dtype))

        grads, stats = jax.tree.map(jnp.zeros_like, (state.stage_params, state.stage_stats))
        nothing = StageResult({"loss": jnp.zeros(()), "correct": jnp.zeros(())}, grads, stats, ())

        def backward(carry: tuple[StageResult, Array], tick: Array) -> tuple[tuple[StageResult, Array], None]:
            total, gradient = carry
            micro = tick - (S - 1 - device)
            operands = at(inputs, micro), at(tags, micro), gradient
            run = partial(self.run_backward, state=state)
            done, back = self.round(run, micro, (nothing, silence), *operands, working=S)
            back = lax.ppermute(back, "stage", [(s, s - 1) for s in range(1, S)])
            return (jax.tree.map(jnp.add, total, done), back), None

        (done, _), _ = lax.scan(backward, (nothing, silence), jnp.arange(M + S - 1, dtype=device.dtype))
        grads = lax.psum(done.grads, "data")
        stats = jax.tree.map(lambda total: total / M, lax.pmean(done.stats, "data"))
        squares = meshes.by_stage(jnp.square(optim.row_norms(grads)) / config.mesh.data, network.num_stages)
        sums = lax.psum(done.shares, meshes.ALL_AXES)
        metrics = {"task_loss": sums["loss"], "accuracy": sums["correct"] / config.batch_size}
        return self.updated(state, grads, stats), metrics | {"gradient_norm": jnp.sqrt(squares)}


class Pipeline(base.Method):
    """Pipelined backprop in rounds that all devices share."""

    name = "pipeline"
    title = "pipelined backprop"
    paper = "arXiv:1811.06965"
    step = Step

    def settings(self, config: Config) -> dict[str, Any]:
        """The number of micro-batches, which tells its runs apart."""
        return {"micro_batches": config.pipeline.micro_batches}

    def check(self, config: Config, data: Spec | None = None) -> None:
        """Refuse a number of micro-batches that a stage column cannot be cut into.

        Raises:
          BadInput: It does not divide the column's batch.
        """
        column, micro = config.batch_size // config.mesh.data, config.pipeline.micro_batches
        require(
            column % micro == 0,
            f"pipeline.micro_batches={micro}: expected a divisor of batch_size / mesh.data = {column}, so that "
            f"micro-batches are equal; choose another number",
        )

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
        for number in range(M + S - 2 if S > 1 else 0):
            for d in range(S - 1):
                if 0 <= (m := number - d) < M:
                    for k in stages[d]:
                        plan.forward(k, micro=m, examples=examples)
            plan.shift(examples)
        for number in range(M + S - 1):
            for d in range(S):
                if 0 <= (m := number - (S - 1 - d)) < M:
                    plan.backward(d, stages[d], again=d < S - 1, micro=m, examples=examples)
            plan.shift(examples)
        plan.update(more=3 * (M + S - 1) * stage_values(network, config))
        plan.message("psum", meshes.ALL_AXES, WIDTH * network.num_stages, "metrics")
        plan.message("psum", meshes.ALL_AXES, 2 * WIDTH, "metrics", count=2)
        return plan.items
