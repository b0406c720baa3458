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
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped

from lpjax.nn.chain import Shape
from lpjax.nn.losses import Interface, Multiplier


@dataclass(frozen=True)
class Exchange:
    """What travels between the owners of examples and the stages.

    Attributes:
      interfaces: Per-example shapes of lambda_0 .. lambda_{K-1}.
      num_devices: S, devices along 'stage'.
      with_multiplier: Whether a per-example multiplier travels with the auxiliary variables.
      dtype: Values are rounded to it on their way, such as "bfloat16"; None: not at all.
    """

    interfaces: tuple[Shape, ...]
    num_devices: int
    with_multiplier: bool
    dtype: str | None = None

    def outward(self, k: int) -> list[Shape]:
        """Shapes of what stage k is sent: lambda_k, then lambda_{k+1} and kappa_{k+1} where they exist."""
        target = self.interfaces[k + 1 : k + 2]
        return [self.interfaces[k], *target, *(target if self.with_multiplier else ())]

    def homeward(self, k: int) -> list[Shape]:
        """Shapes of what stage k sends back: P_k (none at the image) and X_k (none from the last stage)."""
        return [*(self.interfaces[k : k + 1] if k > 0 else ()), *self.interfaces[k + 1 : k + 2]]

    def send(self, lam: Sequence[Interface], multiplier: Sequence[Multiplier] | None) -> Float[Array, "slots column l"]:
        """Send what the owners have to the stages: one all_to_all.

        Args:
          lam: lambda_0 .. lambda_{K-1} of this device's examples.
          multiplier: kappa_1 .. kappa_{K-1} of these; None where none travels.

        Returns:
          Packets of this device's stages.
        """
        packets = []
        for k in range(len(lam)):
            parts = [*lam[k : k + 2], *(multiplier[k : k + 1] if multiplier is not None else ())]
            packets.append(pack(parts, len(lam[0]), self.outward_length))
        return self._moved(to_stages, jnp.stack(packets))

    def unpacked(self, k: int, packet: Float[Array, "b l"]) -> tuple[Interface, Interface | None, Multiplier | None]:
        """Unpack a packet that reached stage k.

        Args:
          k: The stage.
          packet: Of its examples.

        Returns:
          lambda_k, lambda_{k+1} and kappa_{k+1}; None for what the packet has not.
        """
        lam, *rest = unpack(packet, self.outward(k))
        target, multiplier = [*rest, None, None][:2]
        return lam, target, multiplier

    def reply(self, k: int, adjoint: Interface, output: Float[Array, "b ..."]) -> Float[Array, "b l"]:
        """The packet that stage k sends back.

        Args:
          k: The stage.
          adjoint: P_k.
          output: X_k.
        """
        parts = [*([adjoint] if k > 0 else []), *([output] if k < len(self.interfaces) - 1 else [])]
        return pack(parts, len(adjoint), self.homeward_length)

    def receive(self, replies: Float[Array, "slots column l"]) -> tuple[list[Interface], list[Interface]]:
        """Send the stages' replies to the owners of the examples: one all_to_all.

        Args:
          replies: Of this device's stages.

        Returns:
          Adjoints P_1 .. P_{K-1} and outputs X_0 .. X_{K-2} of this device's examples.
        """
        home = self._moved(to_owners, replies)
        parts = [unpack(home[k], self.homeward(k)) for k in range(len(self.interfaces))]
        return [part[0] for part in parts[1:]], [part[-1] for part in parts[:-1]]

    def _moved(self, move: Callable[[Array, int], Array], packets: Array) -> Array:
        return move(packets.astype(self.dtype or packets.dtype), self.num_devices).astype(packets.dtype)

    @property
    def outward_length(self) -> int:
        """Values of a packet to a stage, for one example."""
        return max(packet_length(self.outward(k)) for k in range(len(self.interfaces)))

    @property
    def homeward_length(self) -> int:
        """Values of a packet from a stage, for one example."""
        return max(packet_length(self.homeward(k)) for k in range(len(self.interfaces)))


def packet_length(shapes: Sequence[Shape]) -> int:
    """Values an example takes in a packet of arrays of these per-example shapes."""
    return sum(math.prod(shape) for shape in shapes)


def pack(parts: Sequence[Float[Array, "b ..."]], batch: int, length: int) -> Float[Array, "b l"]:
    """Put arrays of one stage into one padded packet.

    Args:
      parts: The arrays.
      batch: b.
      length: l, values of an example's packet.
    """
    flat = jnp.concatenate([jnp.zeros((batch, 0)), *(part.reshape(batch, -1) for part in parts)], axis=1)
    return jnp.pad(flat, ((0, 0), (0, length - flat.shape[1])))


def unpack(packet: Float[Array, "b l"], shapes: Sequence[Shape]) -> list[Float[Array, "b ..."]]:
    """The arrays of a packet, given their per-example shapes."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    parts = jnp.split(packet, ends, axis=1)[:-1]  # less the padding
    return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]


def to_stages(packets: Float[Array, "k b l"], num_devices: int) -> Float[Array, "slots column l"]:
    """Move packets from owners to stages: one all_to_all over 'stage', of `num_devices` = S devices."""
    stages, batch, length = packets.shape
    packets = packets.reshape(num_devices, stages // num_devices, batch, length)
    packets = lax.all_to_all(packets, "stage", split_axis=0, concat_axis=0)  # [source, slot, b, l]
    return packets.swapaxes(0, 1).reshape(stages // num_devices, num_devices * batch, length)


def to_owners(packets: Float[Array, "slots column l"], num_devices: int) -> Float[Array, "k b l"]:
    """Move packets from stages to owners, the inverse of `to_stages`: one all_to_all over 'stage'."""
    slots, column, length = packets.shape
    packets = packets.reshape(slots, num_devices, column // num_devices, length).swapaxes(0, 1)
    packets = lax.all_to_all(packets, "stage", split_axis=0, concat_axis=0)  # [stage device, slot, b, l]
    return packets.reshape(num_devices * slots, column // num_devices, length)


def shift(packets: Shaped[Array, "slots ..."], num_devices: int, *, forward: bool) -> Shaped[Array, "slots ..."]:
    """Move what each stage has to the next one or to the one before; zeros come in at the end.

    One ppermute over 'stage' of one slot.

    Args:
      packets: Of this device's stages.
      num_devices: S.
      forward: Whether to the next stage.
    """
    edge = packets[-1:] if forward else packets[:1]
    step = 1 if forward else -1
    pairs = [(s, s + step) for s in range(num_devices) if 0 <= s + step < num_devices]
    edge = lax.ppermute(edge, "stage", pairs) if pairs else jnp.zeros_like(edge)
    kept = packets[:-1] if forward else packets[1:]
    return jnp.concatenate([edge, kept] if forward else [kept, edge])
