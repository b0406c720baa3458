"""One step by delayed gradients, and what is under way between steps."""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Float, PyTree

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.methods import base, moving
from lpjax.methods.base import Metrics, StageResult
from lpjax.network.packing import Row
from lpjax.nn import chain
from lpjax.parallel import exchange
from lpjax.parallel.mesh import Stage
from lpjax.state.train_state import TrainState


@struct.dataclass
class Carry:
    """What is under way between steps, with b = B/M examples a micro-batch, H = largest lateness + 1, d = `delay`.

    Attributes:
      forward: [K, b, L], the stages' inputs of the next tick (FDG).
      tags: [K, b, T], whose they are.
      backward: [K, b, L], gradients at the stages' outputs, for their backward passes of the next tick.
      inputs: Ring [K, H, b, L] of the stages' inputs; position t mod H is of tick t.
      input_tags: Ring [K, H, b, T] of their tags.
      weights: Rings `{kind: [K, d+1, length]}` of the stages' parameters; position t mod d+1 is of step t.
      gradients: Rings `{kind: [K, d+1, length]}` of the sums of the batches under way, likewise.
    """

    forward: PyTree
    tags: PyTree
    backward: PyTree
    inputs: PyTree
    input_tags: PyTree
    weights: PyTree
    gradients: PyTree


class Pass(NamedTuple):
    """What a stage's forward or backward pass is run on.

    Attributes:
      packet: The stage's input.
      tags: Whose it is.
      weights: The stage's parameters; {} for those of the step.
    """

    packet: Float[Array, "... b l"]
    tags: moving.Tags
    weights: Row


def lateness(config: Config) -> list[int]:
    """How many ticks after its forward pass each stage has a micro-batch's backward pass, [K]."""
    once = 2 if config.delayed.variant == "fdg" else 1
    return [once * (config.num_stages - 1 - k) for k in range(config.num_stages)]


def delay(config: Config) -> int:
    """d, the most steps from a micro-batch's forward pass in a stage to its backward pass."""
    return -(-max(lateness(config)) // config.delayed.micro_batches)


def _at(ring: PyTree, positions: Array) -> PyTree:
    """What stands in rings [slots, positions, ..] at one position a slot, counted without end."""
    at = jax.vmap(lambda x, position: lax.dynamic_index_in_dim(x, position, keepdims=False))
    return jax.tree.map(lambda x: at(x, positions % x.shape[1]), ring)


def _put(ring: PyTree, new: PyTree, position: Array) -> PyTree:
    """Rings [slots, positions, ..] with `new`, [slots, ..], at a position, counted without end."""

    def put(x: Array, new: Array) -> Array:
        return lax.dynamic_update_index_in_dim(x, new[:, None], position % x.shape[1], 1)

    return jax.tree.map(put, ring, new)


class Step(base.Step):
    """One step of one device."""

    def numbers(self) -> Array:
        """Which stages the device has, [slots]."""
        slots = self.network.num_stages // self.config.mesh_shape[0]
        return lax.axis_index("stage") * slots + jnp.arange(slots, dtype=jnp.int32)

    def apply(self, k: Stage, stats: Row, mode: chain.Mode, params: PyTree, lam: Array) -> tuple[Array, PyTree]:
        """X_k, and the stage's batch statistics."""
        return chain.apply(self.network.stage(k), params, self.network.stats.unpack(k.like, stats), lam, mode)

    def forward(
        self, state: TrainState, k: Stage, params: Row, stats: Row, packet: Float[Array, "b l"], tags: moving.Tags
    ) -> Float[Array, "b l"]:
        """X_k as a packet; the last stage sends none."""
        network = self.network
        if k.like == network.num_stages - 1:
            return jnp.zeros_like(packet)
        trees = network.params.unpack(k.like, params), moving.unpack(packet, network.interfaces[k.like])
        return moving.pack(network, self.apply(k, stats, moving.tagged(self.config, state, tags).mode, *trees)[0])

    def sequential_forward(self, state: TrainState, x: Float[Array, "b l"], tags: Array) -> Array:
        """DDG's forward pass: every stage's input, one stage after the other."""

        def turn(inputs: Array, turn: Array) -> tuple[Array, None]:
            def run(k: Stage, *args: Any) -> Array:
                return lax.cond(
                    k.number == turn, partial(self.forward, state, k), lambda *args: jnp.zeros_like(args[2]), *args
                )

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

        What it sends is zeros in DDG; `beside` is the adjoint, packed.
        """
        network, config, none = self.network, self.config, jnp.zeros_like(forward.packet)
        output, weights = none, params | forward.weights
        if config.delayed.variant == "fdg":
            output = self.forward(state, k, weights, stats, forward.packet, forward.tags)
        examples = moving.tagged(config, state, backward.tags)
        run = partial(self.apply, k, stats, examples.mode)
        params = network.params.unpack(k.like, params | backward.weights)
        lam = moving.unpack(backward.packet, network.interfaces[k.like])
        function = moving.to_loss(run, examples, k.like == network.num_stages - 1, config.batch_size)
        _, pullback, (shares, new) = jax.vjp(function, params, lam, has_aux=True)
        found, adjoint = pullback(moving.gradient_behind(network, k.like, gradient))
        grads = network.params.pack(found)
        if config.delayed.weights == "batch":  # a step's ticks are of two batches at most
            entered = self.entered(k.number, tick) - k.of(lateness(config))
            later = entered // config.delayed.micro_batches - self._first_batch(k.number, state.step)
            grads = jax.tree.map(lambda g: jnp.zeros((2, *g.shape)).at[later].set(g), grads)
        return StageResult(
            shares=shares,
            grads=grads,
            stats=network.stats.pack(new),
            output=output,
            real=examples.real,
            beside=moving.pack(network, config.delayed.shrink * adjoint) if k.like > 0 else none,
        )

    def passes(
        self, new: tuple[Array, Array], rings: tuple[Array, Array], weights: Row, tick: Array
    ) -> tuple[Pass, Pass]:
        """What the stages' forward and backward passes of a tick are run on, [slots, ..].

        Args:
          new: The inputs of the forward passes, and their tags.
          rings: Of the inputs and tags, with the new ones.
          weights: Rings of the parameters; {} where none are kept.
          tick: The tick.
        """
        M, by_batch, k = self.config.delayed.micro_batches, self.config.delayed.weights == "batch", self.numbers()
        late, entered = jnp.asarray(lateness(self.config), tick.dtype)[k], self.entered(k, tick)
        forward = Pass(*new, _at(weights, entered // M) if by_batch else {})
        packet, tags = _at(rings, tick - late)
        return forward, Pass(packet, tags, _at(weights, ((entered if by_batch else tick) - late) // M))

    def _first_batch(self, k: Any, step: Array) -> Array:
        """The step in which the micro-batch of stage k's first backward pass of a step entered the network."""
        M = self.config.delayed.micro_batches
        return (step * M - 2 * (self.network.num_stages - 1) + k) // M

    def tick(
        self, state: TrainState, weights: Row, before: tuple[Carry, Row], new: tuple[Array, Array, Array]
    ) -> tuple[tuple[Carry, Row], tuple[dict[str, Array], Row, Array]]:
        """A tick of a step.

        Args:
          state: Before the step; its carry is not looked at.
          weights: Rings of the stages' parameters, with those of this step.
          before: What is under way, and the sums of the gradients of the step's ticks so far.
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
        inputs_ring, tags_ring = _put((carry.inputs, carry.input_tags), (inputs, tags), tick)
        passes = self.passes((inputs, tags), (inputs_ring, tags_ring), weights, tick)
        run = partial(self.run_stage, state=state, tick=tick)
        done: StageResult = self.on_stages(run, state, *passes, carry.backward)
        carry = replace(
            carry,
            forward=exchange.shift(done.output, S, forward=True),
            tags=exchange.shift(tags, S, forward=True),
            backward=exchange.shift(done.beside, S, forward=False),
            inputs=inputs_ring,
            input_tags=tags_ring,
        )
        assert done.real is not None
        return (carry, jax.tree.map(jnp.add, sums, done.grads)), (done.shares, done.stats, done.real)

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One step; its metrics are of the micro-batches that the last stage has, 0 for those that it has not."""
        M, by_batch = self.config.delayed.micro_batches, self.config.delayed.weights == "batch"
        whole = moving.column_batch(self.network, self.step_inputs, state, batch)
        micro = [value.reshape(-1, M, *value.shape[1:]).swapaxes(0, 1) for value in whole]  # [M, b, ..]
        weights = _put(state.carry.weights, state.stage_params, state.step) if state.carry.weights else {}
        zeros = jax.tree.map(lambda x: jnp.zeros((len(x), 2, x.shape[1]) if by_batch else x.shape), state.stage_params)
        ticks = state.step * M + jnp.arange(M, dtype=state.step.dtype)
        under_way = replace(state.carry, weights={}, gradients={})
        tick = partial(self.tick, state, weights)  # a loop of one would only copy what is under way
        (carry, sums), found = lax.scan(tick, (under_way, zeros), (*micro, ticks), unroll=M == 1)
        (shares, stats, real), sums = found, lax.psum(sums, "data")
        grads, gradients = self.by_batch(sums, state) if by_batch else (sums, state.carry.gradients)
        count = real.astype(float).sum(0)

        def mean(stats: Array) -> Array:
            return jnp.where(real[..., None], stats, 0.0).sum(0) / jnp.maximum(count, 1.0)[:, None]

        new_state = self.updated(state, grads, lax.pmean(jax.tree.map(mean, stats), "data"), count > 0)
        shares = jax.tree.map(lambda share: share.sum(0), shares)
        carry = replace(carry, weights=weights, gradients=gradients)
        return replace(new_state, carry=carry), self.metrics(grads, shares)[0]

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
        grads = _at(rings, due)
        return grads, _put(rings, jax.tree.map(jnp.zeros_like, grads), due[0])
