"""Multipliers on the mesh: where each policy of `lagrangian` finds them, and how the stored ones move.

The exact per-example multiplier of example i lives on one device; the batch that needs it may be on any.  Reading and
writing cost one gather of the indices and one collective of the batch's rows each, never one of the table.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.methods.layer_parallel import lagrangian
from lpjax.methods.layer_parallel.aux_step import AuxPass, own_adjoints
from lpjax.nn.losses import Interface, Multiplier
from lpjax.parallel.mesh import ALL_AXES, TABLE
from lpjax.state.train_state import TrainState

AXES: tuple[str, ...] = TABLE[0]


def current(config: Config, state: TrainState, batch: Batch, aux: AuxPass) -> list[Multiplier] | None:
    """kappa_1 .. kappa_{K-1} for the device's own examples, by the policy; None where they are zero."""
    if config.multiplier == "mean":
        return list(state.multiplier)
    if config.multiplier == "per_example":
        return [read(table, batch.index) for table in state.multiplier]
    if config.multiplier == "adjoint":
        return [-adjoint for adjoint in own_adjoints(config, aux)]
    return None


def updated(
    config: Config,
    state: TrainState,
    batch: Batch,
    multiplier: Sequence[Multiplier] | None,
    violations: Sequence[Interface],
    num_examples: int,
) -> tuple[Array, ...]:
    """What the policy stores after the step: update (7) of `lagrangian`, outside every gradient.

    Every example counts once a pass: it moves its own row by rho r, or the mean multiplier by rho r / N (one psum over
    the mesh an interface), N = `num_examples`.
    """
    rate, beta = config.penalty.multiplier_rate, state.penalty_coef
    if config.multiplier == "mean":
        shares = [lax.psum(r.sum(0), ALL_AXES) / num_examples for r in violations]
        pairs = zip(state.multiplier, shares, strict=True)
        return tuple(lagrangian.update_multiplier(kappa, r, beta, rate) for kappa, r in pairs)
    if config.multiplier == "per_example":
        assert multiplier is not None
        pairs = zip(multiplier, violations, strict=True)
        rows = [lagrangian.update_multiplier(kappa, r, beta, rate) for kappa, r in pairs]
        return tuple(write(table, batch.index, row) for table, row in zip(state.multiplier, rows, strict=True))
    return ()


def _local(index: Int[Array, " b"], rows: int) -> tuple[Int[Array, " B"], Array]:
    """Indices of the whole batch relative to this device's rows, and which of them it holds (one all_gather)."""
    everyone = lax.all_gather(index, AXES, tiled=True)
    local = everyone - lax.axis_index(AXES) * rows
    return local, (local >= 0) & (local < rows)


def read(table: Float[Array, "rows ..."], index: Int[Array, " b"]) -> Float[Array, "b ..."]:
    """Rows `index` of the table.  Collectives over the mesh: all_gather of indices, psum_scatter of the rows."""
    local, mine = _local(index, table.shape[0])
    mine = mine.reshape(-1, *(1,) * (table.ndim - 1))
    rows = jnp.where(mine, table[jnp.clip(local, 0, table.shape[0] - 1)], 0.0)
    return lax.psum_scatter(rows, AXES, tiled=True)


def write(
    table: Float[Array, "rows ..."], index: Int[Array, " b"], rows: Float[Array, "b ..."]
) -> Float[Array, "rows ..."]:
    """The table with rows `index` replaced.  Collectives over the mesh: all_gather of indices and of the rows."""
    local, mine = _local(index, table.shape[0])
    everyone = lax.all_gather(rows, AXES, tiled=True)
    return table.at[jnp.where(mine, local, table.shape[0])].set(everyone, mode="drop")
