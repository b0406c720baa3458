"""Multipliers on the mesh: where each policy of `lagrangian` finds them, and how the stored ones move.

The exact per-example multiplier of example i lives on one device; the batch that needs it may be on any.  Reading and
writing cost one gather of the indices and one collective of the batch's rows each, never one of the table.
"""

from collections.abc import Sequence
from functools import partial

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
    """Find the multipliers of the device's own examples, by the policy.

    Args:
      config: The configuration.
      state: Its stored multipliers are read.
      batch: The device's own examples.
      aux: The AuxNet's forward pass on these.

    Returns:
      kappa_1 .. kappa_{K-1}, each [...] or [b, ...]; None where they are zero.
    """
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
    the mesh an interface).

    Args:
      config: The configuration.
      state: Its beta and stored multipliers are read.
      batch: The device's own examples.
      multiplier: kappa_1 .. kappa_{K-1} of these, see `current`.
      violations: The violations r_1 .. r_{K-1} of these, each [b, ...].
      num_examples: N, of the training set.

    Returns:
      What is stored, one array an interface; () where nothing is.
    """
    move = partial(lagrangian.update_multiplier, penalty_coef=state.penalty_coef, rate=config.penalty.multiplier_rate)
    if config.multiplier == "mean":
        shares = [lax.psum(r.sum(0), ALL_AXES) / num_examples for r in violations]
        return tuple(map(move, state.multiplier, shares))
    if config.multiplier == "per_example":
        assert multiplier is not None
        rows = map(move, multiplier, violations)
        return tuple(write(table, batch.index, row) for table, row in zip(state.multiplier, rows, strict=True))
    return ()


def _local(index: Int[Array, " b"], rows: int) -> tuple[Int[Array, " B"], Array]:
    """Indices of the whole batch relative to this device's rows, and which of them it holds (one all_gather)."""
    everyone = lax.all_gather(index, AXES, tiled=True)
    local = everyone - lax.axis_index(AXES) * rows
    return local, (local >= 0) & (local < rows)


def read(table: Float[Array, "rows ..."], index: Int[Array, " b"]) -> Float[Array, "b ..."]:
    """Read rows of the table.

    Collectives over the mesh: all_gather of indices, psum_scatter of the rows.

    Args:
      table: The device's own rows.
      index: Which rows of the whole table.
    """
    local, mine = _local(index, table.shape[0])
    mine = mine.reshape(-1, *(1,) * (table.ndim - 1))
    rows = jnp.where(mine, table[jnp.clip(local, 0, table.shape[0] - 1)], 0.0)
    return lax.psum_scatter(rows, AXES, tiled=True)


def write(
    table: Float[Array, "rows ..."], index: Int[Array, " b"], rows: Float[Array, "b ..."]
) -> Float[Array, "rows ..."]:
    """Replace rows of the table.

    Collectives over the mesh: all_gather of indices and of the rows.

    Args:
      table: The device's own rows.
      index: Which rows of the whole table.
      rows: What they become.

    Returns:
      The device's own rows.
    """
    local, mine = _local(index, table.shape[0])
    everyone = lax.all_gather(rows, AXES, tiled=True)
    return table.at[jnp.where(mine, local, table.shape[0])].set(everyone, mode="drop")
