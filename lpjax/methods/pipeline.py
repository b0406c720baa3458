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

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.data.source import Spec
from lpjax.errors import require
from lpjax.methods import moving
from lpjax.methods.base import WIDTH, Age, Method, StepFunction, stage_values
from lpjax.network.network import Network
from lpjax.network.packing import Row
from lpjax.nn import chain, losses
from lpjax.nn.chain import Mode
from lpjax.nn.schedule import Item
from lpjax.parallel import mesh as meshes
from lpjax.state import optim, train_state
from lpjax.state.step_inputs import StepInputs
from lpjax.state.train_state import TrainState


class _Backward(NamedTuple):
    """A device's part of a micro-batch's backward pass, or sums of them; rows lead with the device's stages."""

    loss: Float[Array, ""]
    correct: Float[Array, ""]
    grads: Row
    stats: Row


@dataclass(frozen=True, eq=False)
class _Step:
    network: Network
    config: Config
    step_inputs: StepInputs

    def stages_of(self, device: int) -> range:
        """The stages that a device along 'stage' holds."""
        slots = self.network.num_stages // self.config.mesh_shape[0]
        return range(device * slots, (device + 1) * slots)

    def unpacked(self, device: int, state: TrainState) -> tuple[list[PyTree], list[PyTree]]:
        """Parameters and statistics of a device's stages."""
        network, stages = self.network, self.stages_of(device)
        rows = [jax.tree.map(lambda x, i=i: x[i], (state.stage_params, state.stage_stats)) for i in range(len(stages))]
        params = [network.params.unpack(k, row) for k, (row, _) in zip(stages, rows, strict=True)]
        return params, [network.stats.unpack(k, row) for k, (_, row) in zip(stages, rows, strict=True)]

    def apply(
        self, device: int, params: list[PyTree], stats: list[PyTree], lam: Array, mode: Mode
    ) -> tuple[Array, list[PyTree]]:
        """A device's stages one after the other."""
        new = []
        for k, p, s in zip(self.stages_of(device), params, stats, strict=True):
            lam, out = chain.apply(self.network.stages[k], p, s, lam, mode)
            new.append(out)
        return lam, new

    def run_forward(self, device: int, packet: Array, tags: moving.Tags, *, state: TrainState) -> Array:
        """What a device sends on of a micro-batch."""
        mode = Mode(train=True, axes=("data",), keys=moving.tagged(state, tags).keys)
        lam = moving.unpack(packet, self.network.interfaces[self.stages_of(device)[0]])
        return moving.pack(self.network, self.apply(device, *self.unpacked(device, state), lam, mode)[0])

    def run_backward(
        self, device: int, packet: Array, tags: moving.Tags, gradient: Array, *, state: TrainState
    ) -> tuple[_Backward, Array]:
        """A micro-batch's backward pass, and the gradient to send back."""
        network, examples = self.network, moving.tagged(state, tags)
        mode = Mode(train=True, axes=("data",), keys=examples.keys)
        stages = self.stages_of(device)
        last = stages[-1] == network.num_stages - 1
        params, stats = self.unpacked(device, state)

        def run(params: list[PyTree], lam: Array) -> tuple[Array, tuple[Array, list[PyTree]]]:
            output, new = self.apply(device, params, stats, lam, mode)
            if not last:
                return output, (jnp.zeros(()), new)
            correct = losses.correct(output, examples.labels).astype(float).sum()
            return losses.task_loss(output, examples.labels).sum() / self.config.batch_size, (correct, new)

        lam = moving.unpack(packet, network.interfaces[stages[0]])
        output, pullback, (correct, new) = jax.vjp(run, params, lam, has_aux=True)
        grads, adjoint = pullback(jnp.ones_like(output) if last else moving.unpack(gradient, output.shape[1:]))
        back = moving.pack(network, adjoint) if device > 0 else jnp.zeros_like(packet)
        loss = output if last else jnp.zeros(())
        grad_rows = jax.tree.map(lambda *rows: jnp.stack(rows), *map(network.params.pack, grads))
        stat_rows = jax.tree.map(lambda *rows: jnp.stack(rows), *map(network.stats.pack, new))
        return _Backward(loss, correct, grad_rows, stat_rows), back

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

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        """One step as one device sees it."""
        network, config = self.network, self.config
        S, M = config.mesh_shape[0], config.pipeline.micro_batches
        device = lax.axis_index("stage")
        x, tags = moving.column_batch(self.step_inputs, state, batch)
        x, tags = (
            value.reshape(-1, M, *value.shape[1:]).swapaxes(0, 1) for value in (moving.pack(network, x), tags)
        )  # [M, b / M, ..]
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

        rows = jax.tree.map(jnp.zeros_like, (state.stage_params, state.stage_stats))
        nothing = _Backward(jnp.zeros(()), jnp.zeros(()), *rows)

        def backward(carry: tuple[_Backward, Array], tick: Array) -> tuple[tuple[_Backward, Array], None]:
            total, gradient = carry
            micro = tick - (S - 1 - device)
            operands = at(inputs, micro), at(tags, micro), gradient
            run = partial(self.run_backward, state=state)
            done, back = self.round(run, micro, (nothing, silence), *operands, working=S)
            back = lax.ppermute(back, "stage", [(s, s - 1) for s in range(1, S)])
            return (jax.tree.map(jnp.add, total, done), back), None

        (done, _), _ = lax.scan(backward, (nothing, silence), jnp.arange(M + S - 1, dtype=device.dtype))
        grads = lax.psum(done.grads, "data")
        stage_params, stage_opt = optim.update_rows(
            self.step_inputs.optimizer, grads, state.stage_opt, state.stage_params
        )
        batch_stats = jax.tree.map(lambda total: total / M, lax.pmean(done.stats, "data"))
        new_state = replace(
            state,
            step=state.step + 1,
            stage_params=stage_params,
            stage_opt=stage_opt,
            stage_stats=train_state.running_average(state.stage_stats, batch_stats),
        )
        squares = meshes.by_stage(jnp.square(optim.row_norms(grads)) / config.mesh.data, network.num_stages)
        loss, correct = lax.psum((done.loss, done.correct), meshes.ALL_AXES)
        metrics = {"task_loss": loss, "accuracy": correct / config.batch_size, "gradient_norm": jnp.sqrt(squares)}
        return new_state, metrics


class Pipeline(Method):
    """Pipelined backprop in rounds that all devices share."""

    name = "pipeline"
    title = "pipelined backprop"
    paper = "arXiv:1811.06965"

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

    def make_step(self, network: Network, config: Config, mesh: Mesh, step_inputs: StepInputs) -> StepFunction:
        """The jitted step (state, batch) -> (state, metrics)."""
        return self.jit(_Step(network, config, step_inputs), network, config, mesh)

    def ages(self, config: Config) -> list[list[Age]]:
        """How old the gradients are: of this step's micro-batches, at this step's weights."""
        M = config.pipeline.micro_batches
        return [[Age(M - 1 - m, 0) for m in range(M)] for _ in range(config.num_stages)]

    def work(self, network: Network, config: Config) -> list[Item]:
        """The schedule of a step, round by round.

        In each backward round a device adds to its gradients, micro-batch or none: three accesses.
        """
        (S, D), M = config.mesh_shape, config.pipeline.micro_batches
        slots, examples = network.num_stages // S, config.batch_size // (D * M)
        plan = moving.plan_start(network, config, 3 * moving.packet_bytes(network, config))
        what: dict[str, Any] = {"examples": examples, "norm_axes": ("data",)}
        parts = network.parts()
        devices = [parts[d * slots : (d + 1) * slots] for d in range(S)]
        for number in range(M + S - 2 if S > 1 else 0):
            for d in range(S - 1):
                if 0 <= (m := number - d) < M:
                    for part in devices[d]:
                        plan.work(d, "stage", stage=part.stage, chain=part.chain, micro=m, **what)
            moving.plan_shift(plan, network, config, examples)
        for number in range(M + S - 1):
            for d in range(S):
                if 0 <= (m := number - (S - 1 - d)) < M:
                    plan.passes(d, devices[d], "stage", again="recompute" if d < S - 1 else "", micro=m, **what)
            moving.plan_shift(plan, network, config, examples)
        added = 3 * (M + S - 1) * stage_values(network, config)
        moving.plan_update(plan, network, config, more=added)
        plan.message("psum", meshes.ALL_AXES, WIDTH * network.num_stages, "metrics")
        plan.message("psum", meshes.ALL_AXES, 2 * WIDTH, "metrics", count=2)
        return plan.items
