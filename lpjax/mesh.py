"""The ('stage', 'data') device mesh and how arrays lie on it."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

EXAMPLES = P(("data", "stage"))
"""Examples of a batch over the whole mesh: a column of stage devices (one 'data' index) owns consecutive ones."""
STAGES = P("stage")
"""Rows of stages: each device along 'stage' holds K/S of them, every 'data' index the same ones."""
TABLE = P(("stage", "data"))
"""Rows of a table too large for one device, over the whole mesh."""
REPLICATED = P()
ALL_AXES = ("stage", "data")


def make_mesh(stage: int, data: int) -> Mesh:
    """Mesh of the first stage * data devices.

    Raises ValueError when there are fewer, saying what is there.
    """
    devices = jax.devices()
    if len(devices) < stage * data:
        raise ValueError(
            f"mesh.stage={stage} * mesh.data={data} = {stage * data} devices: {len(devices)} found "
            f"({devices[0].platform}, {devices[0].device_kind}); choose a smaller mesh: mesh.stage may be any divisor "
            f"of num_stages, down to 1"
        )
    return jax.make_mesh(
        (stage, data), ALL_AXES, axis_types=(AxisType.Auto, AxisType.Auto), devices=devices[: stage * data]
    )


def shardings(mesh: Mesh, specs: PyTree) -> PyTree:
    """`NamedSharding`s for a tree of partition specs."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda leaf: isinstance(leaf, P))
