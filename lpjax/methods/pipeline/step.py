"""One step of pipelined backprop, and what is under way between rounds."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.methods import base, kept, moving
from lpjax.methods.base import Metrics, StageResult
from lpjax.nn import chain
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
      rows: Rings `{name: [positions, length]}` of what it keeps.
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
        examples, last = moving.tagged(self.network, self.config, state, tags), device == self.config.mesh_shape[0] - 1
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
        *,
        state: TrainState,
    ) -> tuple[StageResult, Array]:
        """A micro-batch's backward pass, and the gradient to send back; the last device runs its forward pass, too."""
        network, trees = self.network, self.unpacked(device, packet, state)
        function, done = self.function(device, tags, state), self.nothing(state)
        behind = moving.gradient_behind(network, self.stages_of(device)[-1], gradient)
        if keeps(self.config) and device < self.config.mesh_shape[0] - 1:
            grads, adjoint = kept.backward(function, *trees, rows, behind)
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
            own = jax.tree.map(lambda row: _at(row, place(back)), rows)  # a branch is given no rings
            behind = _at(inputs, place(back)), _at(tags, back), before.gradient, own
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
        arguments = ((self.function(d, tags[0], state), *self.unpacked(d, x[0], state)) for d in range(working))
        return kept.longest(kept.lengths(*own) for own in arguments)


def places(S: int, M: int) -> int:
    """Positions of the rings: for all micro-batches that are under way at a time, or for all and one for none."""
    return min(2 * S - 1, M + 1)


def _at(values: Array, position: Array) -> Array:
    """What stands at a position, or at the nearest one that there is."""
    return lax.dynamic_index_in_dim(values, jnp.clip(position, 0, len(values) - 1), keepdims=False)


def _put(values: Array, new: Array, position: Array) -> Array:
    """Values with those at a position replaced."""
    return lax.dynamic_update_index_in_dim(values, new, position, 0)
