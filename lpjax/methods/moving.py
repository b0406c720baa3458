"""What methods share whose batches move from stage to stage, one stage a step.

Stage k of a device has a packet: its input [b, ..] flattened and padded to the longest interface's, b the examples of
the stage's column, and `tags` [b, T]: label, position in the training set (-1 where no batch has arrived yet), the step
in which the batch entered the network, the other values of a label of several, and with mixup the partner's label.
"""

import abc
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Key, PyTree

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.methods import base
from lpjax.methods.stage_plan import packet_bytes, tag_values
from lpjax.network.network import Network
from lpjax.network.packing import Row
from lpjax.nn.chain import Mode, Shape
from lpjax.nn.losses import Interface, PerExample, Targets
from lpjax.parallel import exchange
from lpjax.parallel.mesh import Stage
from lpjax.state.step_inputs import StepInputs, example_keys, make_targets
from lpjax.state.train_state import Carried, TrainState

Tags = Int[Array, "b t"]
PACKETS = P("stage", "data")
"""How packets lie on the mesh, [K, B, ..]."""


class Tagged(NamedTuple):
    """The examples behind tags.

    Attributes:
      targets: Of the examples.
      keys: Their random keys.
      real: Whether there are any, a scalar.
    """

    targets: Targets
    keys: Key[Array, " b"]
    real: Array

    @property
    def mode(self) -> Mode:
        """How a stage is applied to them."""
        return Mode(train=True, axes=("data",), keys=self.keys)

    def total(self, values: PerExample) -> Float[Array, ""]:
        """Sum over the examples; 0 where there are none."""
        return jnp.where(self.real, values.sum(), 0.0)

    def scores(self, logits: Float[Array, "b ..."]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The task loss and the share of predictions that are right, sums over the examples."""
        return self.total(self.targets.loss(logits)), self.total(self.targets.correct(logits))


def pack(network: Network, x: Interface) -> Float[Array, "b l"]:
    """Make a packet of examples of an interface's shape."""
    return exchange.pack([x], len(x), network.packet_length)


def unpack(packet: Float[Array, "b l"], shape: Shape) -> Interface:
    """The inverse of `pack`, for an interface of this per-example shape."""
    return exchange.unpack(packet, [shape])[0]


def sent(network: Network, k: int, output: Interface) -> Float[Array, "b l"]:
    """The packet that stage k sends on: its output; zeros from the last stage."""
    last = k == network.num_stages - 1
    return jnp.zeros((len(output), network.packet_length)) if last else pack(network, output)


def make_tags(batch: Batch, step: Array | int) -> Tags:
    """The tags of a batch that enters the network in `step`."""
    labels, partner = batch.label.reshape(len(batch.index), -1), batch.partner_label
    whose = jnp.stack([batch.index, jnp.full_like(batch.index, step)], axis=1)
    partners = [] if partner is None else [partner[:, None]]
    return jnp.concatenate([labels[:, :1], whose, labels[:, 1:], *partners], axis=1)


def is_real(tags: Tags) -> Array:
    """Whether a batch has arrived, a scalar."""
    return tags[0, 1] >= 0


def tagged(network: Network, config: Config, state: TrainState, tags: Tags) -> Tagged:
    """Find the examples behind tags: targets, random keys, and whether there are any."""
    more = 2 + math.prod(network.label_shape)
    labels = jnp.concatenate([tags[:, :1], tags[:, 3:more]], axis=1).reshape(-1, *network.label_shape)
    keys = example_keys(state.key, tags[0, 2], tags[:, 1])
    partners = tags[:, more] if config.data.mixup else None
    return Tagged(make_targets(network.task, config, keys, labels, partners), keys, is_real(tags))


def column_batch(
    network: Network, step_inputs: StepInputs, state: TrainState, batch: Batch
) -> tuple[Float[Array, "b l"], Tags]:
    """A packet of the network's input, augmented, and the tags, of all examples of a device's stage column.

    Each device augments its own; two all_gathers over 'stage'.

    Args:
      network: The network.
      step_inputs: What a step is fed.
      state: Of this step.
      batch: The device's own examples.
    """
    x = step_inputs.network_input(batch, example_keys(state.key, state.step, batch.index))
    x, tags = (lax.all_gather(value, "stage", tiled=True) for value in (x, make_tags(batch, state.step)))
    return pack(network, x), tags


def with_new_batch(value: Array, arrived: Array) -> Array:
    """Put a new batch in stage 0's place.

    Args:
      value: [...], the new batch.
      arrived: [slots, ...], what the device's stages have.

    Returns:
      [slots, ...], `arrived` with `value` in stage 0's place.
    """
    first = lax.axis_index("stage") == 0
    return arrived.at[0].set(jnp.where(first, value, arrived[0]))


def empty(network: Network, config: Config) -> tuple[Float[Array, "k b l"], Int[Array, "k b t"]]:
    """Packets and tags [slots, b, ...] of a device's stages before any batch has arrived."""
    shape = network.num_stages // config.mesh_shape[0], config.batch_size // config.mesh.data
    return jnp.zeros((*shape, network.packet_length)), jnp.full((*shape, tag_values(network, config)), -1, jnp.int32)


def to_loss(
    run: Callable[[PyTree, Interface], tuple[Array, PyTree]], examples: Tagged, last: bool, batch_size: int
) -> Callable[[PyTree, Interface], tuple[Array, tuple[dict[str, Float[Array, ""]], PyTree]]]:
    """Stages as a function to be differentiated.

    Args:
      run: (params, lam) -> their output, and statistics.
      examples: That they are run on.
      last: Whether their output is the network's.
      batch_size: B.

    Returns:
      (params, lam) -> the output, or the loss where it is the network's; and `shares` of a `StageResult`, zeros but for
      the network's output, and the statistics.
    """

    def function(params: PyTree, lam: Interface) -> tuple[Array, tuple[dict[str, Float[Array, ""]], PyTree]]:
        output, stats = run(params, lam)
        if not last:
            return output, ({"loss": jnp.zeros(()), "correct": jnp.zeros(())}, stats)
        loss, correct = examples.scores(output)
        return loss / batch_size, ({"loss": loss / batch_size, "correct": correct}, stats)

    return function


def gradient_behind(network: Network, k: int, packet: Float[Array, "b l"]) -> Array:
    """The gradient at the output of stage k, from a packet of it; of the last stage at the loss, 1."""
    last = k == network.num_stages - 1
    return jnp.ones(()) if last else unpack(packet, network.interfaces[k + 1])


# ------------------------------------------------------------------ methods whose stages learn from losses of their own


@struct.dataclass
class Carry:
    """What is under way between steps.

    Attributes:
      inputs: [K, B, L], the stages' inputs of this step.
      tags: [K, B, T], whose they are.
    """

    inputs: PyTree
    tags: PyTree


class Step(base.Step):
    """One step of one device, and what is the same in every step."""

    @abc.abstractmethod
    def run_stage(self, k: Stage, params: Row, stats: Row, carry: PyTree, *, state: TrainState) -> base.StageResult:
        """The passes of stage k on its local loss.

        Args:
          k: The stage.
          params: Its row of parameters.
          stats: Its row of statistics.
          carry: Its input and tags, and what else is its own.
          state: What is replicated of it is read; see `complete`.
        """

    def complete(self, state: TrainState) -> TrainState:
        """The state as `run_stage` reads it, on a mesh of one device."""
        return state

    def arrived(self, state: TrainState, batch: Batch) -> PyTree:
        """The carry with this step's batch in the first stage's place."""
        x, tags = column_batch(self.network, self.step_inputs, state, batch)
        carry = state.carry
        return replace(carry, inputs=with_new_batch(x, carry.inputs), tags=with_new_batch(tags, carry.tags))

    def moved(self, carry: PyTree, outputs: Float[Array, "slots b l"]) -> PyTree:
        """The carry of the next step: every stage has the output of the one before, and its tags."""
        S = self.config.mesh_shape[0]
        inputs, tags = (exchange.shift(value, S, forward=True) for value in (outputs, carry.tags))
        return replace(carry, inputs=inputs, tags=tags)


class Moving(base.Method):
    """A method whose stages learn from losses of their own, each on the output that the one before had a step ago."""

    step: ClassVar[type[Step]]

    def carry(self, network: Network, config: Config) -> Carried:
        """What is under way between steps, see `Carry`."""
        return Carried(Carry(PACKETS, PACKETS), lambda step_inputs, key: Carry(*empty(network, config)))

    def ages(self, config: Config) -> list[list[base.Age]]:
        """How old the gradients are: a batch reaches stage k after k steps."""
        return [[base.Age(k, 0)] for k in range(config.num_stages)]

    def holds(self, network: Network, config: Config, num_examples: int) -> dict[str, int]:
        """Bytes between steps, with the packets on their way."""
        slots = network.num_stages // config.mesh_shape[0]
        return super().holds(network, config, num_examples) | {"packets": slots * packet_bytes(network, config)}

    def stage_program(
        self, k: int, network: Network, config: Config, step_inputs: StepInputs, state: TrainState, batch: Batch
    ) -> partial[base.StageResult]:
        """The passes of stage k on its local loss, on a packet of noise, as a program to be timed alone."""
        step = self.step(network, config, step_inputs)
        rows = state.stage_params, state.stage_stats, state.carry
        params, stats, carry = jax.tree.map(lambda row: row[k], rows)
        noise = jax.random.normal(jax.random.key(0), (len(batch.label), network.packet_length), float)

        def run(params: Row, stats: Row, carry: PyTree, state: TrainState) -> base.StageResult:
            return step.run_stage(Stage((k,), k), params, stats, carry, state=step.complete(state))

        return partial(run, params, stats, replace(carry, inputs=noise, tags=make_tags(batch, 0)), state)
