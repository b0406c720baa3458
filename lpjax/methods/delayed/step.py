"""One step by delayed gradients."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from lpjax.data.batch import Batch
from lpjax.methods import base, kept, moving
from lpjax.methods.base import Metrics, StageResult
from lpjax.methods.delayed.carry import Carry, Pass, at, delay, lateness, put, row_lengths
from lpjax.network.packing import Row
from lpjax.nn import chain
from lpjax.parallel import exchange
from lpjax.parallel.mesh import Stage
from lpjax.state.train_state import TrainState


class Step(base.Step):
    """One step of one device."""

    def numbers(self) -> Array:
        """Which stages the device has, [slots]."""
        slots = self.network.num_stages // self.config.mesh_shape[0]
        return lax.axis_index("stage") * slots + jnp.arange(slots, dtype=jnp.int32)

    def keeps(self, k: Stage) -> bool:
        """Whether the stage keeps activations; the last one has both passes at once."""
        return self.config.delayed.keep == "activations" and k.like < self.network.num_stages - 1

    def function(self, k: Stage, stats: Row, examples: moving.Tagged) -> kept.Function:
        """The stage on a micro-batch, to be differentiated: see `moving.to_loss`."""

        def run(params: PyTree, lam: Array) -> tuple[Array, PyTree]:
            old = self.network.stats.unpack(k.like, stats)
            return chain.apply(self.network.stage(k), params, old, lam, examples.mode)

        return moving.to_loss(run, examples, k.like == self.network.num_stages - 1, self.config.batch_size)

    def trees(self, k: Stage, params: Row, packet: Array) -> tuple[PyTree, Array]:
        """What `function` is given."""
        network = self.network
        return network.params.unpack(k.like, params), moving.unpack(packet, network.interfaces[k.like])

    def forward(
        self, state: TrainState, k: Stage, params: Row, stats: Row, packet: Float[Array, "b l"], tags: moving.Tags
    ) -> tuple[Float[Array, "b l"], kept.Rows, Row]:
        """X_k as a packet, what is kept, and the batch statistics; the last stage sends and keeps nothing."""
        if k.like == self.network.num_stages - 1:
            return jnp.zeros_like(packet), kept.empty(row_lengths(self.network, self.config)), stats
        function = self.function(k, stats, moving.tagged(self.network, self.config, state, tags))
        output, (_, new), own = kept.forward(function, *self.trees(k, params, packet))
        rows = kept.rows(own, row_lengths(self.network, self.config)) if self.keeps(k) else {}
        return moving.pack(self.network, output), rows, self.network.stats.pack(new)

    def kept_again(self, state: TrainState) -> Carry:
        """What is under way, with what forward passes keep computed again.

        With `delayed.weights=newest`, whose weights are no longer there, at the newest ones.
        """
        M, carry, by_batch = self.config.delayed.micro_batches, state.carry, self.config.delayed.weights == "batch"
        ticks = max(lateness(self.config))

        def run(k: Stage, params: Row, stats: Row, made: Pass) -> kept.Rows:
            return self.forward(state, k, params | made.weights, stats, made.packet, made.tags)[1]

        def tick(rows: kept.Rows, tick: Array) -> tuple[kept.Rows, None]:
            then = jnp.full_like(self.numbers(), tick)
            version = (self.entered(self.numbers(), tick) if by_batch else then) // M
            packet, tags = at((carry.inputs, carry.input_tags), then)
            made = Pass(packet, tags, at(carry.weights, version), {})
            return put(rows, self.on_stages(run, state, made), tick), None

        before = state.step * M - 1 - jnp.arange(ticks, dtype=state.step.dtype)
        return replace(carry, kept=lax.scan(tick, carry.kept, before)[0])

    def sequential_forward(self, state: TrainState, x: Float[Array, "b l"], tags: Array) -> Array:
        """DDG's forward pass: every stage's input, one stage after the other."""

        def turn(inputs: Array, turn: Array) -> tuple[Array, None]:
            def run(k: Stage, *args: Any) -> Array:
                def forward(*args: Any) -> Array:
                    return self.forward(state, k, *args)[0]

                return lax.cond(k.number == turn, forward, lambda *args: jnp.zeros_like(args[2]), *args)

            outputs = self.on_stages(run, state, inputs, tags)
            return inputs + exchange.shift(outputs, self.config.mesh_shape[0], forward=True), None

        inputs = moving.with_new_batch(x, jnp.zeros_like(state.carry.forward))
        return lax.scan(turn, inputs, jnp.arange(self.network.num_stages - 1, dtype=jnp.int32))[0]

    def entered(self, k: Any, tick: Array) -> Array:
        """The tick in which the micro-batch of stage k's forward pass entered the network."""
        return tick - k if self.config.delayed.variant == "fdg" else tick

    def run_stage(
        self,
        k: Stage,
        params: Row,
        stats: Row,
        forward: Pass,
        backward: Pass,
        gradient: Array,
        *,
        state: TrainState,
        tick: Array,
    ) -> StageResult:
        """Stage k's passes of a tick: `gradient` is that at the output of the backward pass.

        What it sends is zeros in DDG; `beside` is the adjoint, packed, and what is kept of the forward pass.  Shares
        are of the backward pass's examples, statistics of the pass that computes them.
        """
        network, config = self.network, self.config
        output, rows, new = jnp.zeros_like(forward.packet), dict[str, Array](), stats
        if config.delayed.variant == "fdg":
            ahead = params | forward.weights, stats, forward.packet, forward.tags
            output, rows, new = self.forward(state, k, *ahead)
        examples = moving.tagged(network, config, state, backward.tags)
        function, real = self.function(k, stats, examples), examples.real
        trees = self.trees(k, params | backward.weights, backward.packet)
        behind = moving.gradient_behind(network, k.like, gradient)
        if self.keeps(k):
            found, adjoint = kept.backward(function, *trees, backward.kept, behind)
            shares, real = {"loss": jnp.zeros(()), "correct": jnp.zeros(())}, moving.is_real(forward.tags)
        else:
            _, pullback, (shares, tree) = jax.vjp(function, *trees, has_aux=True)
            (found, adjoint), new = pullback(behind), network.stats.pack(tree)
        grads = network.params.pack(found)
        if config.delayed.weights == "batch":  # a step's ticks are of two batches at most
            entered = self.entered(k.number, tick) - k.of(lateness(config))
            later = entered // config.delayed.micro_batches - self._first_batch(k.number, state.step)
            grads = jax.tree.map(lambda g: jnp.zeros((2, *g.shape)).at[later].set(g), grads)
        return StageResult(
            shares=shares,
            grads=grads,
            stats=new,
            output=output,
            real=real,
            beside=(
                moving.pack(network, config.delayed.shrink * adjoint) if k.like > 0 else jnp.zeros_like(output),
                rows,
            ),
        )

    def passes(
        self, new: tuple[Array, Array], rings: tuple[Array, Array], weights: Row, rows: kept.Rows, tick: Array
    ) -> tuple[Pass, Pass]:
        """What the stages' forward and backward passes of a tick are run on, [slots, ..].

        Args:
          new: The inputs of the forward passes, and their tags.
          rings: Of the inputs and tags, with the new ones.
          weights: Rings of the parameters; {} where none are kept.
          rows: Rings of what was kept of forward passes, likewise.
          tick: The tick.
        """
        M, by_batch, k = self.config.delayed.micro_batches, self.config.delayed.weights == "batch", self.numbers()
        late, entered = jnp.asarray(lateness(self.config), tick.dtype)[k], self.entered(k, tick)
        forward = Pass(*new, at(weights, entered // M) if by_batch else {}, {})
        (packet, tags), own = at((rings, rows), tick - late)
        return forward, Pass(packet, tags, at(weights, ((entered if by_batch else tick) - late) // M), own)

    def _first_batch(self, k: Any, step: Array) -> Array:
        """The step in which the micro-batch of stage k's first backward pass of a step entered the network."""
        M = self.config.delayed.micro_batches
        return (step * M - 2 * (self.network.num_stages - 1) + k) // M

    def complete(self, state: TrainState) -> TrainState:
        """The state as `run_stage` reads it."""
        return state

    def nothing_beside(self, state: TrainState) -> PyTree:
        """Zeros, of what else `run_stage` finds to be summed over a step's ticks: the end of its `beside`."""
        return ()

    def with_beside(self, state: TrainState, beside: PyTree) -> TrainState:
        """The state after a step, with what comes of such sums, [slots, ..]."""
        return state

    def tick(
        self, state: TrainState, weights: Row, before: tuple[Carry, PyTree], new: tuple[Array, Array, Array]
    ) -> tuple[tuple[Carry, PyTree], tuple[dict[str, Array], Row, Array]]:
        """A tick of a step.

        Args:
          state: Before the step; its carry is not looked at.
          weights: Rings of the stages' parameters, with those of this step.
          before: What is under way, and the sums of the step's ticks so far: gradients, and `nothing_beside`.
          new: The micro-batch that enters, as a packet and tags, and the number of the tick.

        Returns:
          `before` after the tick; and of the stages' micro-batches the shares, statistics and whether there was one.
        """
        (carry, sums), (x, tags, tick), S = before, new, self.config.mesh_shape[0]
        if self.config.delayed.variant == "fdg":
            inputs, tags = moving.with_new_batch(x, carry.forward), moving.with_new_batch(tags, carry.tags)
        else:
            tags = jnp.repeat(tags[None], len(carry.forward), 0)
            inputs = self.sequential_forward(state, x, tags)
        inputs_ring, tags_ring = put((carry.inputs, carry.input_tags), (inputs, tags), tick)
        passes = self.passes((inputs, tags), (inputs_ring, tags_ring), weights, carry.kept, tick)
        run = partial(self.run_stage, state=state, tick=tick)
        done: StageResult = self.on_stages(run, state, *passes, carry.backward)
        carry = replace(
            carry,
            forward=exchange.shift(done.output, S, forward=True),
            tags=exchange.shift(tags, S, forward=True),
            backward=exchange.shift(done.beside[0], S, forward=False),
            inputs=inputs_ring,
            input_tags=tags_ring,
            kept=put(carry.kept, done.beside[1], tick),
        )
        assert done.real is not None
        return (carry, jax.tree.map(jnp.add, sums, (done.grads, done.beside[2:]))), (done.shares, done.stats, done.real)

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One step; its metrics are of the micro-batches that the last stage has, 0 for those that it has not."""
        M, by_batch = self.config.delayed.micro_batches, self.config.delayed.weights == "batch"
        whole = moving.column_batch(self.network, self.step_inputs, state, batch)
        micro = [value.reshape(-1, M, *value.shape[1:]).swapaxes(0, 1) for value in whole]  # [M, b, ..]
        weights = put(state.carry.weights, state.stage_params, state.step) if state.carry.weights else {}
        zeros = jax.tree.map(lambda x: jnp.zeros((len(x), 2, x.shape[1]) if by_batch else x.shape), state.stage_params)
        ticks = state.step * M + jnp.arange(M, dtype=state.step.dtype)
        under_way = replace(state.carry, weights={}, gradients={})
        whole_state = self.complete(state)
        tick, sums = partial(self.tick, whole_state, weights), (zeros, self.nothing_beside(whole_state))
        scanned = lax.scan(tick, (under_way, sums), (*micro, ticks), unroll=M == 1)  # one would copy what is under way
        (carry, (sums, beside)), found = scanned
        (shares, stats, real), sums = found, lax.psum(sums, "data")
        grads, gradients = self.by_batch(sums, state) if by_batch else (sums, state.carry.gradients)
        count = real.astype(float).sum(0)

        def mean(stats: Array) -> Array:
            return jnp.where(real[..., None], stats, 0.0).sum(0) / jnp.maximum(count, 1.0)[:, None]

        new_state = self.updated(state, grads, lax.pmean(jax.tree.map(mean, stats), "data"), count > 0)
        shares = jax.tree.map(lambda share: share.sum(0), shares)
        carry = replace(carry, weights=weights, gradients=gradients)
        return self.with_beside(replace(new_state, carry=carry), beside), self.metrics(grads, shares)[0]

    def by_batch(self, sums: Row, state: TrainState) -> tuple[Row, Row]:
        """The gradients of the batch that has gone through all stages, and the rings of those that have not.

        Args:
          sums: [slots, 2, length], of this step's ticks: of two batches one after the other.
          state: Before the step.
        """
        stages = self.numbers()
        due = jnp.full_like(stages, state.step - delay(self.config))

        def add(ring: Array, sums: Array) -> Array:
            for later in range(2):
                positions = (self._first_batch(stages, state.step) + later) % ring.shape[1]
                ring = ring.at[jnp.arange(len(stages), dtype=jnp.int32), positions].add(sums[:, later])
            return ring

        rings = jax.tree.map(add, state.carry.gradients, sums)
        grads = at(rings, due)
        return grads, put(rings, jax.tree.map(jnp.zeros_like, grads), due[0])
