"""Synchronous data-parallel backprop: the whole network on every device, each with its part of the batch.

    device 0     F_0 .. F_{K-1}(x_0)   dF_{K-1} .. dF_0   |            |  update
    device 1     F_0 .. F_{K-1}(x_1)   dF_{K-1} .. dF_0   | all-reduce |  update             T = (T_f + T_b) / N + ..
     ..                                                   |  of grad W |
    device N-1   F_0 .. F_{K-1}(..)    dF_{K-1} .. dF_0   |            |  update

    grad W = sum over devices of d/dW [ sum over its examples of phi(F_{K-1} o .. o F_0(x; W), y) ] / B

Batch norm is synchronised: its statistics are averaged over all devices (one pmean a layer), so N devices give the
numbers of one.  Every device holds all parameters and optimiser state.  The batch is split over both axes of the mesh.

Collectives of a step: psum over the mesh of the gradients, loss and count; batch norm's pmeans.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.network.network import Network, composed
from lpjax.network.packing import Row
from lpjax.nn import losses
from lpjax.nn.chain import Mode
from lpjax.parallel import mesh as meshes
from lpjax.state import optim, train_state
from lpjax.state.step_inputs import Recipe, example_keys
from lpjax.state.train_state import TrainState


def backprop(
    network: Network, config: Config, recipe: Recipe, params: Row, stats: Row, keys: Array, batch: Batch
) -> tuple[Row, Row, dict[str, Array]]:
    """Backprop's gradient of the mean loss, the batch statistics, and {task_loss, accuracy}, as a device sees it.

    keys: of its examples.  Collectives over the mesh: psum of gradients and figures, batch norm's pmeans.
    """
    x = recipe.network_input(batch, keys)
    old = network.stats.unpack_all(stats)
    mode = Mode(train=True, axes=meshes.ALL_AXES, keys=keys)

    def loss(params: tuple[PyTree, ...]) -> tuple[Array, tuple[Array, tuple[PyTree, ...]]]:
        logits, batch_stats = composed(network, params, old, x, mode)
        correct = losses.correct(logits, batch.label).astype(float).sum()
        return losses.task_loss(logits, batch.label).sum() / config.batch_size, (correct, batch_stats)

    gradients = jax.value_and_grad(loss, has_aux=True)
    (task_loss, (correct, batch_stats)), grads = gradients(network.params.unpack_all(params))
    rows, task_loss, correct = lax.psum((network.params.pack_all(grads), task_loss, correct), meshes.ALL_AXES)
    figures = {"task_loss": task_loss, "accuracy": correct / config.batch_size}
    return rows, network.stats.pack_all(batch_stats), figures


def make_step(
    network: Network, config: Config, mesh: Mesh, recipe: Recipe
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """The jitted backprop step (state, batch) -> (state, figures); the state is donated and replicated.

    Figures: task_loss [], accuracy [], gradient_norm [K].
    """
    step = partial(_device_step, network, config, recipe)
    return meshes.jit_step(step, mesh, meshes.REPLICATED)


def _device_step(
    network: Network, config: Config, recipe: Recipe, state: TrainState, batch: Batch
) -> tuple[TrainState, dict[str, Array]]:
    keys = example_keys(state.key, state.step, batch.index)
    rows, stats, figures = backprop(network, config, recipe, state.stage_params, state.stage_stats, keys, batch)
    stage_params, stage_opt = optim.update_rows(recipe.optimizer, rows, state.stage_opt, state.stage_params)
    new_state = replace(
        state,
        step=state.step + 1,
        stage_params=stage_params,
        stage_opt=stage_opt,
        stage_stats=train_state.running_average(state.stage_stats, stats),
    )
    return new_state, figures | {"gradient_norm": optim.row_norms(rows)}
