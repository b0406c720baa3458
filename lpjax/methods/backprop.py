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

With `optimizer.accumulate` n a device runs its examples in n micro-batches, one after the other, and keeps the
activations of one of them; gradients are summed.  **Batch norm sees a micro-batch**; without batch norm the numbers are
the same.  Micro-batch m has the examples m, m + n, m + 2n .. , on any mesh.

Collectives of a step: psum over the mesh of the gradients, loss and count; batch norm's pmeans, in each micro-batch.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.data.source import Spec
from lpjax.errors import require
from lpjax.methods import base
from lpjax.methods.base import WIDTH, Age, Metrics
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
    """Backprop's gradient of the mean loss, as a device sees it, accumulated where `optimizer.accumulate` says so.

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
    trees, old, n = network.params.unpack_all(params), network.stats.unpack_all(stats), config.optimizer.accumulate

    def gradient(keys: Array, batch: Batch) -> tuple[Row, Row, tuple[Array, Array]]:
        targets = make_targets(config, keys, batch.label, batch.partner_label)
        x, mode = step_inputs.network_input(batch, keys), Mode(train=True, axes=meshes.ALL_AXES, keys=keys)

        def loss(params: tuple[PyTree, ...]) -> tuple[Array, tuple[Array, tuple[PyTree, ...]]]:
            logits, batch_stats = composed(network, params, old, x, mode)
            return targets.loss(logits).sum() / config.batch_size, (targets.correct(logits).sum(), batch_stats)

        (task_loss, (correct, batch_stats)), grads = jax.value_and_grad(loss, has_aux=True)(trees)
        return network.params.pack_all(grads), network.stats.pack_all(batch_stats), (task_loss, correct)

    if n == 1:
        grads, new, scores = gradient(keys, batch)
    else:
        parts = jax.tree.map(lambda x: x.reshape(-1, n, *x.shape[1:]).swapaxes(0, 1), (keys, batch))
        none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, keys, batch))
        total, _ = lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, gradient(*part)), None), none, parts)
        grads, new, scores = total[0], jax.tree.map(lambda x: x / n, total[1]), total[2]
    grads, (task_loss, correct) = lax.psum((grads, scores), meshes.ALL_AXES)
    return grads, new, {"task_loss": task_loss, "accuracy": correct / config.batch_size}


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
    accumulates = True
    step = Step

    def settings(self, config: Config) -> dict[str, Any]:
        """The number of micro-batches, if there are several."""
        n = config.optimizer.accumulate
        return {"accumulate": n} if n > 1 else {}

    def check(self, config: Config, data: Spec | None = None) -> None:
        """Refuse a number of micro-batches that a device's examples cannot be cut into.

        Raises:
          BadInput: It does not divide them.
        """
        n, own = config.optimizer.accumulate, config.batch_size // math.prod(config.mesh_shape)
        require(
            own % n == 0,
            f"optimizer.accumulate={n}: expected a divisor of batch_size / (mesh.stage * mesh.data) = {own}, so that "
            f"micro-batches are equal; choose another number",
        )

    def ages(self, config: Config) -> list[list[Age]]:
        """How old the gradients are: of this step's micro-batches, at this step's weights."""
        n = config.optimizer.accumulate
        return [[Age(n - 1 - m, 0) for m in range(n)] for _ in range(config.num_stages)]

    def work(self, network: Network, config: Config) -> list[Item]:
        """The schedule of a step: both passes on each device's own examples, one all-reduce, the update.

        Of several micro-batches each adds to the gradients: three accesses.
        """
        plan, values = StagePlan(network, config), network.num_stages * network.params.length
        n = config.optimizer.accumulate
        plan.augment()
        for m in range(n):
            for d in plan.devices:
                plan.passes(d, network.parts(), "stage", micro=m, examples=plan.own // n, norm_axes=meshes.ALL_AXES)
        plan.message("psum", meshes.ALL_AXES, WIDTH * (values + 2), "gradients", count=len(network.params.lengths) + 2)
        more = 3 * n if n > 1 else 0
        plan.each("update", accesses=(optim.accesses(config.optimizer) + more) * values)
        return plan.items


class Serial(DataParallel):
    """Layer-serial backprop; on a larger mesh it is data-parallel."""

    name = "serial"
    title = "layer-serial backprop"
    devices = "one"
