"""Examples change hands: from the device that owns them to the stage that needs them, and back.

A stage column (the S devices of one data index) owns S slices of b examples.  The AuxNet runs on slices, a stage on
the whole column; so every device has, for each stage, a packet of its own b examples, and `all_to_all` over 'stage'
turns "all stages, my examples" into "my stages, all examples of the column":

    device s has        packets[k] for its b examples,  k = 0..K-1      [K, b, L]
    device s receives   packets of ITS K/S stages, for S*b examples     [K/S, S*b, L]

Examples stay in the order of the batch, so a column sees the same batch whatever S is.  One packet is a list of
arrays [b, ...] flattened and padded to the longest stage's.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lpjax.chain import Shape


def packet_length(shapes: Sequence[Shape]) -> int:
    """Values an example takes in a packet of arrays of these per-example shapes."""
    return sum(math.prod(shape) for shape in shapes)


def pack(parts: Sequence[Float[Array, "b ..."]], batch: int, length: int) -> Float[Array, "b l"]:
    """Arrays of one stage, each [b, ...], as one padded packet."""
    flat = jnp.concatenate([jnp.zeros((batch, 0)), *(part.reshape(batch, -1) for part in parts)], axis=1)
    return jnp.pad(flat, ((0, 0), (0, length - flat.shape[1])))


def unpack(packet: Float[Array, "b l"], shapes: Sequence[Shape]) -> list[Float[Array, "b ..."]]:
    """The arrays of a packet, given their per-example shapes."""
    parts, position = [], 0
    for shape in shapes:
        size = math.prod(shape)
        parts.append(packet[:, position : position + size].reshape(-1, *shape))
        position += size
    return parts


def to_stages(packets: Float[Array, "k b l"], num_devices: int) -> Float[Array, "slots column l"]:
    """Owners -> stages: one all_to_all over 'stage', of `num_devices` = S devices."""
    stages, batch, length = packets.shape
    packets = packets.reshape(num_devices, stages // num_devices, batch, length)
    packets = lax.all_to_all(packets, "stage", split_axis=0, concat_axis=0)  # [source, slot, b, l]
    return packets.swapaxes(0, 1).reshape(stages // num_devices, num_devices * batch, length)


def to_owners(packets: Float[Array, "slots column l"], num_devices: int) -> Float[Array, "k b l"]:
    """Stages -> owners, the inverse of `to_stages`: one all_to_all over 'stage'."""
    slots, column, length = packets.shape
    packets = packets.reshape(slots, num_devices, column // num_devices, length).swapaxes(0, 1)
    packets = lax.all_to_all(packets, "stage", split_axis=0, concat_axis=0)  # [stage device, slot, b, l]
    return packets.reshape(num_devices * slots, column // num_devices, length)
