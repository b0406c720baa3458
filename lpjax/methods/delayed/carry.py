"""What is under way between steps of delayed gradients."""

from typing import NamedTuple

import jax
from flax import struct
from jax import lax
from jaxtyping import Array, Float, PyTree

from lpjax.config.schema import Config
from lpjax.methods import kept, moving
from lpjax.network.network import Network
from lpjax.network.packing import Row


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
      kept: Rings `{name: [K, H-1, length]}` of what forward passes keep for backward passes; position t mod H-1 is of
        tick t.  Of D devices along 'data' each has rows of its own, one behind the other.
    """

    forward: PyTree
    tags: PyTree
    backward: PyTree
    inputs: PyTree
    input_tags: PyTree
    weights: PyTree
    gradients: PyTree
    kept: PyTree


class Pass(NamedTuple):
    """What a stage's forward or backward pass is run on.

    Attributes:
      packet: The stage's input.
      tags: Whose it is.
      weights: The stage's parameters; {} for those of the step.
      kept: What the forward pass of a backward pass kept; {} where that is computed again.
    """

    packet: Float[Array, "... b l"]
    tags: moving.Tags
    weights: Row
    kept: kept.Rows


def lateness(config: Config) -> list[int]:
    """How many ticks after its forward pass each stage has a micro-batch's backward pass, [K]."""
    once = 2 if config.delayed.variant == "fdg" else 1
    return [once * (config.num_stages - 1 - k) for k in range(config.num_stages)]


def delay(config: Config) -> int:
    """d, the most steps from a micro-batch's forward pass in a stage to its backward pass."""
    return -(-max(lateness(config)) // config.delayed.micro_batches)


def micro_batch(config: Config) -> int:
    """b, the examples of a micro-batch on a device."""
    return config.batch_size // config.mesh.data // config.delayed.micro_batches


def row_lengths(network: Network, config: Config) -> dict[str, int]:
    """The lengths of rows, see `kept`, for what any stage but the last keeps of a micro-batch; {} to keep nothing."""
    stages = network.stages[:-1] if config.delayed.keep == "activations" else ()
    return kept.longest(kept.of_chain(stage, micro_batch(config)) for stage in stages)


def at(ring: PyTree, positions: Array) -> PyTree:
    """What stands in rings [slots, positions, ..] at one position a slot, counted without end."""
    one = jax.vmap(lambda x, position: lax.dynamic_index_in_dim(x, position, keepdims=False))
    return jax.tree.map(lambda x: one(x, positions % x.shape[1]), ring)


def put(ring: PyTree, new: PyTree, position: Array) -> PyTree:
    """Rings [slots, positions, ..] with `new`, [slots, ..], at a position, counted without end."""

    def one(x: Array, new: Array) -> Array:
        return lax.dynamic_update_index_in_dim(x, new[:, None], position % x.shape[1], 1)

    return jax.tree.map(one, ring, new)
