"""Layer-serial backprop of the same network: the baseline, and the composed network's forward pass.

The composed network F_{K-1} o .. o F_0 on the real image, without AuxNet, is what every accuracy reported as the
network's refers to.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from lpjax import chain, lagrangian, optim, train_state
from lpjax import mesh as meshes
from lpjax.chain import Mode
from lpjax.config import Config
from lpjax.data.feed import Batch
from lpjax.network import Network
from lpjax.recipe import Recipe, example_keys
from lpjax.train_state import TrainState


def composed(
    network: Network, params: tuple[PyTree, ...], stats: tuple[PyTree, ...], x: Float[Array, "b ..."], mode: Mode
) -> tuple[Float[Array, "b classes"], tuple[PyTree, ...]]:
    """Logits of the composed network, and its statistics; `params` and `stats` are one tree a stage."""
    new_stats = []
    for stage, stage_params, stage_stats in zip(network.stages, params, stats, strict=True):
        x, out = chain.apply(stage, stage_params, stage_stats, x, mode)
        new_stats.append(out)
    return x, tuple(new_stats)


def make_step(
    network: Network, config: Config, mesh: Mesh, recipe: Recipe
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """The jitted backprop step (state, batch) -> (state, figures); the state is donated and replicated.

    The batch is split over every device of the mesh, batch norm sees all of it, and gradients are summed by one psum.
    Figures: task_loss [], accuracy [], gradient_norm [K].
    """
    sharded = jax.shard_map(
        partial(_device_step, network, config, recipe),
        mesh=mesh,
        in_specs=(meshes.REPLICATED, meshes.EXAMPLES),
        out_specs=meshes.REPLICATED,
        check_vma=False,  # the gradients' collectives are written out, not inferred
    )
    return jax.jit(sharded, donate_argnums=0)


def _device_step(
    network: Network, config: Config, recipe: Recipe, state: TrainState, batch: Batch
) -> tuple[TrainState, dict[str, Array]]:
    keys = example_keys(state.key, state.step, batch.index)
    x = recipe.network_input(batch, keys)
    stats = network.stats.unpack_all(state.stage_stats)
    mode = Mode(train=True, axes=meshes.ALL_AXES, keys=keys)

    def loss(params: tuple[PyTree, ...]) -> tuple[Array, tuple[Array, tuple[PyTree, ...]]]:
        logits, batch_stats = composed(network, params, stats, x, mode)
        correct = lagrangian.correct(logits, batch.label).astype(float).sum()
        return lagrangian.task_loss(logits, batch.label).sum() / config.batch_size, (correct, batch_stats)

    gradients = jax.value_and_grad(loss, has_aux=True)
    (task_loss, (correct, batch_stats)), grads = gradients(network.params.unpack_all(state.stage_params))
    rows, task_loss, correct = lax.psum((network.params.pack_all(grads), task_loss, correct), meshes.ALL_AXES)
    stage_params, stage_opt = optim.update_rows(recipe.optimizer, rows, state.stage_opt, state.stage_params)
    new_state = replace(
        state,
        step=state.step + 1,
        stage_params=stage_params,
        stage_opt=stage_opt,
        stage_stats=train_state.running_average(state.stage_stats, network.stats.pack_all(batch_stats)),
    )
    figures = {
        "task_loss": task_loss,
        "accuracy": correct / config.batch_size,
        "gradient_norm": optim.row_norms(rows),
    }
    return new_state, figures
