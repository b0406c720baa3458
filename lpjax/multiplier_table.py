"""Rows of a table sharded over the mesh, for the examples of a batch that is sharded over the same mesh.

The exact per-example multiplier of example i lives on one device; the batch that needs it may be on any.  Reading and
writing cost one gather of the indices and one collective of the batch's rows each, never one of the table.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from lpjax.mesh import TABLE

AXES: tuple[str, ...] = TABLE[0]


def _local(index: Int[Array, " b"], rows: int) -> tuple[Int[Array, " B"], Array]:
    """Indices of the whole batch relative to this device's rows, and which of them it holds (one all_gather)."""
    everyone = lax.all_gather(index, AXES, tiled=True)
    local = everyone - lax.axis_index(AXES) * rows
    return local, (local >= 0) & (local < rows)


def read(table: Float[Array, "rows h w c"], index: Int[Array, " b"]) -> Float[Array, "b h w c"]:
    """Rows `index` of the table.  Collectives over the mesh: all_gather of indices, psum_scatter of the rows."""
    local, mine = _local(index, table.shape[0])
    rows = jnp.where(mine[:, None, None, None], table[jnp.clip(local, 0, table.shape[0] - 1)], 0.0)
    return lax.psum_scatter(rows, AXES, tiled=True)


def write(
    table: Float[Array, "rows h w c"], index: Int[Array, " b"], rows: Float[Array, "b h w c"]
) -> Float[Array, "rows h w c"]:
    """The table with rows `index` replaced.  Collectives over the mesh: all_gather of indices and of the rows."""
    local, mine = _local(index, table.shape[0])
    everyone = lax.all_gather(rows, AXES, tiled=True)
    return table.at[jnp.where(mine, local, table.shape[0])].set(everyone, mode="drop")
