"""What methods share whose batches move from stage to stage, one stage a step.

Stage k of a device has a packet: its input [b, ..] flattened and padded to the longest interface's, b the examples of
the stage's column, and `tags` [b, 3]: label, position in the training set (-1 where no batch has arrived yet), and the
step in which the batch entered the network.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.network.network import Network
from lpjax.network.packing import Row
from lpjax.nn.chain import Shape
from lpjax.nn.losses import Interface
from lpjax.parallel import exchange
from lpjax.state.step_inputs import Recipe, example_keys
from lpjax.state.train_state import TrainState

Tags = Int[Array, "b 3"]


class Tagged(NamedTuple):
    """The examples behind tags.  real: whether there are any, a scalar."""

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


def column_batch(recipe: Recipe, state: TrainState, batch: Batch) -> tuple[Interface, Tags]:
    """The network's input, augmented, and the tags of all examples of a device's stage column.

    Each device augments its own; two all_gathers over 'stage'.
    """
    x = recipe.network_input(batch, example_keys(state.key, state.step, batch.index))
    tags = jnp.stack([batch.label, batch.index, jnp.full_like(batch.index, state.step)], axis=1)
    return lax.all_gather(x, "stage", tiled=True), lax.all_gather(tags, "stage", tiled=True)


def entering(value: Array, arrived: Array) -> Array:
    """What the stages have, `arrived` [slots, ..], with `value` in stage 0's place."""
    first = lax.axis_index("stage") == 0
    return arrived.at[0].set(jnp.where(first, value, arrived[0]))


def opened(state: TrainState, tags: Tags) -> Tagged:
    """The examples behind tags, with their random keys."""
    labels, index, step = tags.T
    return Tagged(labels, example_keys(state.key, step[0], index), index[0] >= 0)


def empty(network: Network, config: Config, slots: int) -> tuple[Float[Array, "k b l"], Int[Array, "k b 3"]]:
    """Packets and tags of a device's stages before any batch has arrived."""
    column = config.batch_size // config.mesh.data
    return jnp.zeros((slots, column, length(network))), jnp.full((slots, column, 3), -1, jnp.int32)


def averaged(old: Row, new: Row, real: Bool[Array, " slots"]) -> Row:
    """Rows [slots, ..]: `new` where the stage had a batch."""
    return jax.tree.map(lambda o, n: jnp.where(real[:, None], n, o), old, new)
