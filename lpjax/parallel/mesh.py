"""The ('stage', 'data') device mesh and how arrays lie on it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

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


class Stage(NamedTuple):
    """The stage that a program is traced for: one, or any of a kind.

    Attributes:
      kind: Stages that differ in their values alone, so that one program serves all of them.
      number: Which of them it is: an int where that is known when the program is traced.
    """

    kind: tuple[int, ...]
    number: int | Array

    @property
    def like(self) -> int:
        """A stage of the same units and shapes."""
        return self.kind[0]

    def of(self, values: Sequence[Any]) -> Any:
        """The stage's own one of K values; those of a kind are numbers or arrays of one shape."""
        if isinstance(self.number, int):
            return values[self.number]
        index = jnp.searchsorted(jnp.asarray(self.kind, jnp.int32), self.number)
        return jnp.stack([jnp.asarray(values[k]) for k in self.kind])[index]


def on_stages(run: Callable[..., Any], kinds: Sequence[tuple[int, ...]], num_devices: int, *operands: PyTree) -> Any:
    """Run a function on each stage of this device.

    Under `shard_map`: device d has the K/S stages d*K/S .. (d+1)*K/S - 1.  The program has `run` once a kind of stage:
    on several devices a switch chooses which one a slot is, on one device a loop goes over the stages of a kind.

    Args:
      run: (`Stage`, its `operands`) -> a tree of arrays, of the same shapes for all stages.
      kinds: Stages 0 .. K-1 by kind, see `Stage`.
      num_devices: S, devices along 'stage'.
      *operands: [slots, ...], of the device's stages.

    Returns:
      The results, stacked, [slots, ...].
    """
    num_stages = sum(map(len, kinds))
    if num_devices == 1:
        return _one_after_another(run, kinds, *operands)
    results, slots = [], num_stages // num_devices
    for slot in range(slots):
        mine = jax.tree.map(lambda leaf, slot=slot: leaf[slot], operands)
        here = [tuple(k for k in kind if k % slots == slot) for kind in kinds]
        here = [kind for kind in here if kind]
        number = lax.axis_index("stage") * slots + slot
        branches = [partial(run, Stage(kind, kind[0] if len(kind) == 1 else number)) for kind in here]
        which = [next(i for i, kind in enumerate(here) if k in kind) for k in range(slot, num_stages, slots)]
        results.append(lax.switch(jnp.asarray(which)[lax.axis_index("stage")], branches, *mine))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def _one_after_another(run: Callable[..., Any], kinds: Sequence[tuple[int, ...]], *operands: PyTree) -> Any:
    """`on_stages` on one device."""
    results = []
    for kind in kinds:
        rows = jax.tree.map(lambda leaf, kind=kind: leaf[np.array(kind)], operands)
        if len(kind) == 1:
            done = run(Stage(kind, kind[0]), *jax.tree.map(lambda row: row[0], rows))
            results.append(jax.tree.map(lambda leaf: leaf[None], done))
        else:
            results.append(
                lax.map(lambda own, kind=kind: run(Stage(kind, own[0]), *own[1]), (jnp.asarray(kind, jnp.int32), rows))
            )
    order = np.argsort([k for kind in kinds for k in kind])
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[order], *results)


def own_stages(values: Array, slots: int) -> Array:
    """Of values [K, ..] those of this device's stages, [slots, ..]; all where it holds all of them."""
    place = lax.axis_index("stage") * slots if slots < len(values) else 0
    return lax.dynamic_slice_in_dim(values, place, slots)


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
