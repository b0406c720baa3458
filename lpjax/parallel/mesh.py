"""The ('stage', 'data') device mesh and how arrays lie on it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

from lpjax.errors import require

EXAMPLES = P(("data", "stage"))
"""Examples of a batch over the whole mesh: a column of stage devices (one 'data' index) owns consecutive ones."""
STAGES = P("stage")
"""Rows of stages: each device along 'stage' holds K/S of them, every 'data' index the same ones."""
TABLE = P(("stage", "data"))
"""Rows of a table too large for one device, over the whole mesh."""
REPLICATED = P()
ALL_AXES = ("stage", "data")


def make_mesh(stage: int, data: int) -> Mesh:
    """Make the mesh of the first stage * data devices; of all of them with several processes.

    Args:
      stage: Devices along 'stage'.
      data: Devices along 'data'.

    Raises:
      BadInput: There are fewer, or more with several processes; says what is there.
    """
    devices, size = jax.devices(), stage * data
    wanted = f"mesh.stage={stage} * mesh.data={data} = {size} devices"
    require(
        len(devices) >= size,
        f"{wanted}: {len(devices)} found ({devices[0].platform}, {devices[0].device_kind}); choose a smaller mesh: "
        f"mesh.stage may be any divisor of num_stages, down to 1",
    )
    require(
        jax.process_count() == 1 or len(devices) == size,
        f"{wanted}: {jax.process_count()} processes have {len(devices)}: expected a mesh of all of them; choose a "
        f"larger one (mesh.data), or fewer processes",
    )
    return jax.make_mesh((stage, data), ALL_AXES, axis_types=(AxisType.Auto,) * 2, devices=devices[:size])


def own_examples(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Positions in a batch, ascending, of the examples that lie on this process's devices."""
    parts = NamedSharding(mesh, EXAMPLES).addressable_devices_indices_map((batch_size,)).values()
    return np.sort(np.concatenate([np.arange(batch_size)[part] for part in parts]))


def on_stages(run: Callable[..., Any], num_stages: int, num_devices: int, *operands: PyTree) -> Any:
    """Run a function on each stage of this device.

    Under `shard_map`: device d has the K/S stages d*K/S .. (d+1)*K/S - 1, and a switch over the devices chooses which
    of them a slot is.

    Args:
      run: (k, `operands` of stage k) -> a tree of arrays, of the same shapes for all stages.
      num_stages: K.
      num_devices: S, devices along 'stage'.
      *operands: [slots, ...], of the device's stages.

    Returns:
      The results, stacked, [slots, ...].
    """
    results = []
    for slot in range(slots := num_stages // num_devices):
        mine = jax.tree.map(lambda leaf, slot=slot: leaf[slot], operands)
        branches = [partial(run, device * slots + slot) for device in range(num_devices)]
        index = lax.axis_index("stage") if num_devices > 1 else 0
        results.append(lax.switch(index, branches, *mine))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def by_stage(mine: Array, num_stages: int) -> Array:
    """Sum over the mesh by stage: one psum.

    Args:
      mine: [..., K/S], this device's share for its own stages.
      num_stages: K.

    Returns:
      [..., K], the sums, on every device.
    """
    place = lax.axis_index("stage") * mine.shape[-1]
    rows = lax.dynamic_update_slice_in_dim(jnp.zeros((*mine.shape[:-1], num_stages)), mine, place, axis=-1)
    return lax.psum(rows, ALL_AXES)


def jit_step(step: Callable[..., Any], mesh: Mesh, specs: PyTree) -> Callable[..., Any]:
    """Jit a device's step over the mesh; the state is donated.

    Args:
      step: (state, batch) -> (state, metrics), of one device.
      mesh: The mesh.
      specs: Partition specs of the state.
    """

    def train_step(state: PyTree, batch: PyTree) -> Any:  # a name for the compiled program
        return step(state, batch)

    sharded = jax.shard_map(
        train_step,
        mesh=mesh,
        in_specs=(specs, EXAMPLES),
        out_specs=(specs, REPLICATED),
        check_vma=False,  # the gradients' collectives are written out, not inferred
    )
    return jax.jit(sharded, donate_argnums=0)
