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

import jax
from jax import lax
from jaxtyping import Array, PyTree

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.methods import base
from lpjax.methods.base import UPDATE, WIDTH, Metrics
from lpjax.methods.stage_plan import StagePlan
from lpjax.network.network import Network, composed
from lpjax.network.packing import Row
from lpjax.nn.chain import Mode
from lpjax.nn.schedule import Item
from lpjax.parallel import mesh as meshes
from lpjax.state import optim
from lpjax.state.step_inputs import StepInputs, example_keys, make_targets
from lpjax.state.train_state import TrainState


def backprop(
    network: Network, config: Config, step_inputs: StepInputs, params: Row, stats: Row, keys: Array, batch: Batch
) -> tuple[Row, Row, Metrics]:
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
      The gradient and the batch statistics as rows, and the metrics task_loss (nats) and accuracy (0..1).
    """
    x, targets = step_inputs.network_input(batch, keys), make_targets(config, keys, batch.label, batch.partner_label)
    old = network.stats.unpack_all(stats)
    mode = Mode(train=True, axes=meshes.ALL_AXES, keys=keys)

    def loss(params: tuple[PyTree, ...]) -> tuple[Array, tuple[Array, tuple[PyTree, ...]]]:
        logits, batch_stats = composed(network, params, old, x, mode)
        return targets.loss(logits).sum() / config.batch_size, (targets.correct(logits).sum(), batch_stats)

    gradients = jax.value_and_grad(loss, has_aux=True)
    (task_loss, (correct, batch_stats)), grads = gradients(network.params.unpack_all(params))
    rows, task_loss, correct = lax.psum((network.params.pack_all(grads), task_loss, correct), meshes.ALL_AXES)
    metrics = {"task_loss": task_loss, "accuracy": correct / config.batch_size}
    return rows, network.stats.pack_all(batch_stats), metrics


class Step(base.Step):
    """One step of one device."""

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Backprop's gradient, and the update by it."""
        keys = example_keys(state.key, state.step, batch.index)
        rows = state.stage_params, state.stage_stats
        grads, stats, metrics = backprop(self.network, self.config, self.step_inputs, *rows, keys, batch)
        return self.updated(state, grads, stats), metrics | {"gradient_norm": optim.row_norms(grads)}


class DataParallel(base.Method):
    """Synchronous data-parallel backprop: the whole network on every device, each with its part of the batch."""

    name = "data_parallel"
    title = "data-parallel backprop"
    staged = False
    step = Step

    def work(self, network: Network, config: Config) -> list[Item]:
        """The schedule of a step: both passes on each device's own examples, one all-reduce, the update."""
        plan, values = StagePlan(network, config), network.num_stages * network.params.length
        plan.augment()
        for d in plan.devices:
            plan.passes(d, network.parts(), "stage", examples=plan.own, norm_axes=meshes.ALL_AXES)
        plan.message("psum", meshes.ALL_AXES, WIDTH * (values + 2), "gradients", count=len(network.params.lengths) + 2)
        plan.each("update", accesses=UPDATE * values)
        return plan.items


class Serial(DataParallel):
    """Layer-serial backprop; on a larger mesh it is data-parallel."""

    name = "serial"
    title = "layer-serial backprop"
    devices = "one"
