"""Backprop: layer-serial on one device, the baseline, and synchronous data-parallel on several.

    serial
    device 0     F_0(x) F_1 .. F_{K-1}   phi   dF_{K-1} .. dF_1 dF_0   update                      T = T_f + T_b

    data_parallel: the whole network on every device, each with its part of the batch
    device 0     F_0 .. F_{K-1}(x_0)   dF_{K-1} .. dF_0   |            |  update
    device 1     F_0 .. F_{K-1}(x_1)   dF_{K-1} .. dF_0   | all-reduce |  update             T = (T_f + T_b) / N + ..
     ..                                                   |  of grad W |
    device N-1   F_0 .. F_{K-1}(..)    dF_{K-1} .. dF_0   |            |  update

    grad W = sum over devices of d/dW [ sum over its examples of phi(F_{K-1} o .. o F_0(x; W), y) ] / B

Batch norm is synchronised: its statistics are averaged over all devices (one pmean a layer), so N devices give the
numbers of one.  Every device holds all parameters and optimiser state.  The batch is split over both axes of the mesh.

Collectives of a step: psum over the mesh of the gradients, loss and count; batch norm's pmeans.
"""

from dataclasses import replace

import jax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.methods.base import UPDATE, WIDTH, Method, StepFunction
from lpjax.network.network import Network, composed
from lpjax.network.packing import Row
from lpjax.nn import losses
from lpjax.nn.chain import Mode
from lpjax.nn.schedule import Item, Plan
from lpjax.parallel import mesh as meshes
from lpjax.state import optim, train_state
from lpjax.state.step_inputs import StepInputs, example_keys
from lpjax.state.train_state import TrainState


def backprop(
    network: Network, config: Config, step_inputs: StepInputs, params: Row, stats: Row, keys: Array, batch: Batch
) -> tuple[Row, Row, dict[str, Array]]:
    """Backprop's gradient of the mean loss, as a device sees it.

    Collectives over the mesh: psum of gradients and metrics, batch norm's pmeans.

    Args:
      network: The network.
      config: The configuration.
      step_inputs: What a step is fed.
      params: Rows of all stages' parameters.
      stats: Rows of their statistics.
      keys: Of the device's examples.
      batch: The device's examples.

    Returns:
      The gradient and the batch statistics as rows, and {task_loss, accuracy}.
    """
    x = step_inputs.network_input(batch, keys)
    old = network.stats.unpack_all(stats)
    mode = Mode(train=True, axes=meshes.ALL_AXES, keys=keys)

    def loss(params: tuple[PyTree, ...]) -> tuple[Array, tuple[Array, tuple[PyTree, ...]]]:
        logits, batch_stats = composed(network, params, old, x, mode)
        correct = losses.correct(logits, batch.label).astype(float).sum()
        return losses.task_loss(logits, batch.label).sum() / config.batch_size, (correct, batch_stats)

    gradients = jax.value_and_grad(loss, has_aux=True)
    (task_loss, (correct, batch_stats)), grads = gradients(network.params.unpack_all(params))
    rows, task_loss, correct = lax.psum((network.params.pack_all(grads), task_loss, correct), meshes.ALL_AXES)
    metrics = {"task_loss": task_loss, "accuracy": correct / config.batch_size}
    return rows, network.stats.pack_all(batch_stats), metrics


class DataParallel(Method):
    """Synchronous data-parallel backprop."""

    name = "data_parallel"
    title = "data-parallel backprop"
    staged = False

    def make_step(self, network: Network, config: Config, mesh: Mesh, step_inputs: StepInputs) -> StepFunction:
        """See `Method`."""

        def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
            keys = example_keys(state.key, state.step, batch.index)
            params, opt = state.stage_params, state.stage_opt
            grads, stats, metrics = backprop(network, config, step_inputs, params, state.stage_stats, keys, batch)
            params, opt = optim.update_rows(step_inputs.optimizer, grads, opt, params)
            stats = train_state.running_average(state.stage_stats, stats)
            state = replace(state, step=state.step + 1, stage_params=params, stage_opt=opt, stage_stats=stats)
            return state, metrics | {"gradient_norm": optim.row_norms(grads)}

        return self.jit(step, network, config, mesh)

    def work(self, network: Network, config: Config) -> list[Item]:
        """See `Method`."""
        plan, (S, D) = Plan(), config.mesh_shape
        own = config.batch_size // (S * D)
        values = network.num_stages * sum(network.params.lengths.values())
        for d in range(S):
            plan.work(d, "augment", accesses=4 * own * losses.features(network.chain.in_shape))
            plan.passes(d, network.parts(), "stage", examples=own, norm_axes=meshes.ALL_AXES)
        plan.message("psum", meshes.ALL_AXES, WIDTH * (values + 2), "gradients", count=len(network.params.lengths) + 2)
        for d in range(S):
            plan.work(d, "update", accesses=UPDATE * values)
        return plan.items


class Serial(DataParallel):
    """Layer-serial backprop; on a larger mesh it is data-parallel."""

    name = "serial"
    title = "layer-serial backprop"
    devices = "one"
