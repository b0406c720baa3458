"""Estimated memory of a device, from the schedule of a step and what a method holds between steps."""

from collections.abc import Sequence

import numpy as np

from lpjax.config.schema import Config
from lpjax.methods import METHODS
from lpjax.network.network import Network
from lpjax.nn.count import activation_bytes
from lpjax.nn.schedule import Item, Work


def device_bytes(network: Network, config: Config, num_examples: int) -> dict[str, int]:
    """Estimated memory of the fullest device in a step, without compiling anything.

    Args:
      network: The network.
      config: The configuration.
      num_examples: Of the training set.

    Returns:
      Bytes by kind: those of `Method.holds`; gradients, as large as the parameters; activations, what forward passes
      keep for backward passes where that is most; packets, what the exchanges send and receive.
    """
    method = METHODS[config.method]
    held = method.holds(network, config, num_examples)
    items = method.work(network, config)
    activations, packets = max((_allocated(items, d) for d in range(config.mesh_shape[0])), key=sum)
    found = {"packets": 0, **held, "gradients": held["parameters"], "activations": activations}
    return found | {"packets": found["packets"] + packets}


def in_words(network: Network, config: Config, num_examples: int) -> str:
    """`device_bytes` for a person, and the size of stored multipliers over the whole mesh."""
    memory = device_bytes(network, config, num_examples)
    parts = ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in memory.items() if size)
    return f"estimated memory of a device: {sum(memory.values()) / 1e6:,.1f} MB ({parts})"


def _allocated(items: Sequence[Item], device: int) -> tuple[int, int]:
    """Bytes of activations and of packets on a device, where both together are most."""
    change = np.zeros((2, len(items) + 1), np.int64)
    for position, item in enumerate(items):
        if not isinstance(item, Work) or item.device != device:
            continue
        end = len(items) if item.until is None else item.until + 1
        kept = (0, item.keeps)
        if item.chain is not None and item.until is not None:
            kept = activation_bytes(item.chain, item.examples), item.keeps
        change[:, position] += kept
        change[:, end] -= kept
    alive = change.cumsum(1)
    activations, packets = alive[:, alive.sum(0).argmax()].tolist()
    return activations, packets
