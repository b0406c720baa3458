"""What methods share whose batches move from stage to stage, one stage a step.

Stage k of a device has a packet: its input [b, ..] flattened and padded to the longest interface's, b the examples of
the stage's column, and `tags` [b, 3]: label, position in the training set (-1 where no batch has arrived yet), and the
step in which the batch entered the network.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.methods.base import UPDATE, WIDTH
from lpjax.network.network import Network
from lpjax.network.packing import Packing, Row
from lpjax.nn.chain import Shape
from lpjax.nn.losses import Interface, features
from lpjax.nn.schedule import Plan
from lpjax.parallel import exchange
from lpjax.state.step_inputs import StepInputs, example_keys
from lpjax.state.train_state import TrainState

Tags = Int[Array, "b 3"]


class Tagged(NamedTuple):
    """The examples behind tags.

    Attributes:
      labels: Of the examples.
      keys: Their random keys.
      real: Whether there are any, a scalar.
    """

    labels: Int[Array, " b"]
    keys: Key[Array, " b"]
    real: Array


def length(network: Network) -> int:
    """L, values of an example's packet."""
    return max(exchange.packet_length([shape]) for shape in network.interfaces)


def pack(network: Network, x: Interface) -> Float[Array, "b l"]:
    """Something of an interface's shape as a packet."""
    return exchange.pack([x], len(x), length(network))


def unpack(packet: Float[Array, "b l"], shape: Shape) -> Interface:
    """The inverse of `pack`, for an interface of this per-example shape."""
    return exchange.unpack(packet, [shape])[0]


def column_batch(step_inputs: StepInputs, state: TrainState, batch: Batch) -> tuple[Interface, Tags]:
    """The network's input, augmented, and the tags of all examples of a device's stage column.

    Each device augments its own; two all_gathers over 'stage'.
    """
    x = step_inputs.network_input(batch, example_keys(state.key, state.step, batch.index))
    tags = jnp.stack([batch.label, batch.index, jnp.full_like(batch.index, state.step)], axis=1)
    return lax.all_gather(x, "stage", tiled=True), lax.all_gather(tags, "stage", tiled=True)


def with_new_batch(value: Array, arrived: Array) -> Array:
    """What the stages have, `arrived` [slots, ..], with `value` in stage 0's place."""
    first = lax.axis_index("stage") == 0
    return arrived.at[0].set(jnp.where(first, value, arrived[0]))


def tagged(state: TrainState, tags: Tags) -> Tagged:
    """The examples behind tags, with their random keys."""
    labels, index, step = tags.T
    return Tagged(labels, example_keys(state.key, step[0], index), index[0] >= 0)


def empty(network: Network, config: Config) -> tuple[Float[Array, "k b l"], Int[Array, "k b 3"]]:
    """Packets and tags of a device's stages before any batch has arrived."""
    slots, column = network.num_stages // config.mesh_shape[0], config.batch_size // config.mesh.data
    return jnp.zeros((slots, column, length(network))), jnp.full((slots, column, 3), -1, jnp.int32)


def where_real(real: Bool[Array, " slots"], new: Row, old: Row) -> Row:
    """Rows [slots, ..]: `new` where the stage had a batch, else `old`."""
    return jax.tree.map(lambda n, o: jnp.where(real[:, None], n, o), new, old)


def timed_packet(k: int, network: Network, state: TrainState, batch: Batch) -> Any:
    """The carry of stage k with a packet of noise that the examples of a batch are in: for `Method.stage_program`."""
    inputs = jax.random.normal(jax.random.key(0), (len(batch.label), length(network)), float)
    tags = jnp.stack([batch.label, batch.index, jnp.zeros_like(batch.index)], axis=1)
    return replace(jax.tree.map(lambda row: row[k], state.carry), inputs=inputs, tags=tags)


# ------------------------------------------------------------------------------------------------------------ schedule


def packet_bytes(network: Network, config: Config) -> int:
    """Of the packet of one stage of a column."""
    return WIDTH * config.batch_size // config.mesh.data * length(network)


def plan_start(network: Network, config: Config, keeps: int) -> Plan:
    """A schedule that begins with `column_batch`.

    Args:
      network: The network.
      config: The configuration.
      keeps: Bytes of the packets that a device has beside those that it carries.
    """
    plan, (S, D) = Plan(), config.mesh_shape
    own, image = config.batch_size // (S * D), features(network.chain.in_shape)
    for d in range(S):
        plan.work(d, "augment", accesses=4 * own * image)
    plan.message("all_gather", "stage", WIDTH * own * image, "exchange")
    plan.message("all_gather", "stage", 3 * WIDTH * own, "exchange")
    for d in range(S):
        plan.work(d, "pack", keeps=keeps)
    return plan


def plan_shift(plan: Plan, network: Network, config: Config, examples: int, *, next_step: bool = True) -> None:
    """`exchange.shift` of the packets of so many examples, which are written and read twice; none on one device."""
    if (S := config.mesh_shape[0]) > 1:
        values = examples * length(network)
        for d in range(S):
            plan.work(d, "pack", accesses=4 * values)
        plan.message("ppermute", "stage", WIDTH * values, "exchange", next_step=next_step)


def plan_tags(plan: Plan, config: Config) -> None:
    """`exchange.shift` of tags."""
    if config.mesh_shape[0] > 1:
        size = 3 * WIDTH * config.batch_size // config.mesh.data
        plan.message("ppermute", "stage", size, "exchange", next_step=True)


def plan_update(
    plan: Plan, network: Network, config: Config, *, beside: tuple[Packing, Packing] | None = None, more: int = 0
) -> None:
    """Gradients and statistics averaged over 'data', and the optimiser.

    Args:
      plan: The schedule.
      network: The network.
      config: The configuration.
      beside: How the parameters and statistics that each stage has beside its own are packed.
      more: Accesses beside the optimiser's.
    """
    slots = network.num_stages // config.mesh_shape[0]
    for own, other in zip((network.params, network.stats), beside or (None, None), strict=True):
        lengths = [*own.lengths.values(), *(other.lengths.values() if other else ())]
        plan.message("psum", "data", WIDTH * slots * sum(lengths), "gradients", count=len(lengths))
    values = slots * sum(sum(packing.lengths.values()) for packing in (network.params, *(beside or ())[:1]))
    for d in range(config.mesh_shape[0]):
        plan.work(d, "update", accesses=UPDATE * values + more)
