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

With `serial.deep_supervision` w the loss is

    phi(F_{K-1} o .. o F_0(x), y) + w sum over k < K-1 of phi(C_k(F_k o .. o F_0(x)), y),

C_k a classifier behind stage k as `local` makes them: Lee, Xie, Gallagher, Zhang, Tu, "Deeply-Supervised Nets",
arXiv:1409.5185 (their w falls over training).  The classifiers are thrown away.

Collectives of a step: psum over the mesh of the gradients, loss and count; batch norm's pmeans, in each micro-batch.
"""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, PRNGKeyArray, PyTree

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.data.source import Spec
from lpjax.errors import require
from lpjax.methods import base
from lpjax.methods.base import WIDTH, Age, Metrics
from lpjax.methods.local.classifiers import Classifiers, check, classifiers
from lpjax.methods.stage_plan import StagePlan
from lpjax.network.network import Network, stage_outputs
from lpjax.network.packing import Row
from lpjax.nn.chain import Mode
from lpjax.nn.losses import features
from lpjax.nn.schedule import Item
from lpjax.parallel import mesh as meshes
from lpjax.state import optim
from lpjax.state.step_inputs import StepInputs, example_keys, make_targets
from lpjax.state.train_state import Carried, TrainState, running_average


@struct.dataclass
class Carry:
    """The classifiers of deep supervision.

    Attributes:
      params: Rows as the stages' (`{kind: [K, length]}`).
      opt: Their optimiser state, likewise.
      stats: Their statistics, likewise.
    """

    params: PyTree
    opt: PyTree
    stats: PyTree


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
    (grads,), (new,), metrics = supervised(network, config, step_inputs, (params,), (stats,), keys, batch)
    return grads, new, metrics


def supervised(
    network: Network,
    config: Config,
    step_inputs: StepInputs,
    params: tuple[Row, ...],
    stats: tuple[Row, ...],
    keys: Array,
    batch: Batch,
) -> tuple[tuple[Row, ...], tuple[Row, ...], Metrics]:
    """`backprop`; where rows of the stages' classifiers are behind those of the stages, their losses are added."""
    own, n = classifiers(network, config.local) if len(params) > 1 else None, config.optimizer.accumulate
    packed: tuple[Any, ...] = (network, own) if own else (network,)
    trees = tuple(p.params.unpack_all(rows) for p, rows in zip(packed, params, strict=True))
    old = tuple(p.stats.unpack_all(rows) for p, rows in zip(packed, stats, strict=True))

    def gradient(keys: Array, batch: Batch) -> tuple[tuple[Row, ...], tuple[Row, ...], tuple[Array, Array]]:
        targets = make_targets(network.task, config, keys, batch.label, batch.partner_label)
        x, mode = step_inputs.network_input(batch, keys), Mode(train=True, axes=meshes.ALL_AXES, keys=keys)

        def loss(params: tuple[PyTree, ...]) -> tuple[Array, tuple[tuple[Array, Array], tuple[PyTree, ...]]]:
            outputs, new = stage_outputs(network, params[0], old[0], x, mode)
            logits, new_stats = outputs[-1], [new]
            total = task_loss = targets.loss(logits).sum() / config.batch_size
            if own:
                at_ends, new = own.logits(params[1], old[1], outputs, mode)
                weight = config.serial.deep_supervision / config.batch_size
                total += weight * sum(targets.loss(y).sum() for y in at_ends)
                new_stats.append(new)
            return total, ((task_loss, targets.correct(logits).sum()), tuple(new_stats))

        (_, (scores, new)), grads = jax.value_and_grad(loss, has_aux=True)(trees)
        grads = tuple(p.params.pack_all(tree) for p, tree in zip(packed, grads, strict=True))
        return grads, tuple(p.stats.pack_all(tree) for p, tree in zip(packed, new, strict=True)), scores

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
        keys, carry = example_keys(state.key, state.step, batch.index), state.carry
        params: tuple[Row, ...] = (state.stage_params, carry.params) if carry else (state.stage_params,)
        stats: tuple[Row, ...] = (state.stage_stats, carry.stats) if carry else (state.stage_stats,)
        rows = params, stats, keys
        grads, stats, metrics = supervised(self.network, self.config, self.step_inputs, *rows, batch)
        if carry:
            own, opt = optim.update_rows(self.step_inputs.aux_optimizer, grads[1], carry.opt, carry.params)
            carry = Carry(own, opt, running_average(carry.stats, stats[1]))
        state = replace(self.updated(state, grads[0], stats[0]), carry=carry)
        return state, metrics | {"gradient_norm": optim.row_norms(grads[0])}


class DataParallel(base.Method):
    """Synchronous data-parallel backprop: the whole network on every device, each with its part of the batch."""

    name = "data_parallel"
    title = "data-parallel backprop"
    staged = False
    accumulates = True
    step = Step

    def sections(self, config: Config) -> tuple[str, ...]:
        """With deep supervision that of the classifiers, too."""
        return ("serial", "local") if config.serial.deep_supervision else ("serial",)

    def settings(self, config: Config) -> dict[str, Any]:
        """The number of micro-batches, if there are several, and the weight of deep supervision, if there is some."""
        n, weight = config.optimizer.accumulate, config.serial.deep_supervision
        return ({"accumulate": n} if n > 1 else {}) | ({"deep_supervision": weight} if weight else {})

    def check(self, config: Config, data: Spec | None = None) -> None:
        """Refuse micro-batches that a device's examples cannot be cut into, and what cannot be had.

        Raises:
          BadInput: They do not divide them; or there is one stage, or a classifier that only `local` can train; or its
            phase is to end by the cosine of its gradient with itself.
        """
        n, own = config.optimizer.accumulate, config.batch_size // math.prod(config.mesh_shape)
        require(
            own % n == 0,
            f"optimizer.accumulate={n}: expected a divisor of batch_size / (mesh.stage * mesh.data) = {own}, so that "
            f"micro-batches are equal; choose another number",
        )
        phases, weight = config.phases, config.serial.deep_supervision
        require(
            phases.by != "cosine" or weight > 0 or self.name not in phases.methods[:-1],
            f"phases.by=cosine with phases.methods={phases.methods}: the gradient of {self.name} is backprop's, their "
            f"cosine is 1, and it would never be left; put it last, or leave it by phases.epochs",
        )
        if weight:
            check(config.local)
            require(
                config.num_stages > 1,
                f"serial.deep_supervision={weight} with num_stages=1: expected at least 2, as classifiers are at the "
                f"ends of all stages but the last; choose more stages",
            )
            require(
                config.local.classifier != "momentum",
                f"serial.deep_supervision={weight} with local.classifier=momentum: expected own or sampled, as all "
                f"gradients are exact; choose one of these",
            )
            require(
                not config.local.residue or "local" in config.all_methods,
                f"serial.deep_supervision={weight} with local.residue={config.local.residue}: expected 0, as it has no "
                f"losses of residues; leave it out",
            )

    def carry(self, network: Network, config: Config) -> Carried | None:
        """The classifiers of deep supervision."""
        if not config.serial.deep_supervision:
            return None
        own = classifiers(network, config.local)

        def init(step_inputs: StepInputs, key: PRNGKeyArray) -> Carry:
            params, stats, _ = own.init_all(key, 1)
            return Carry(params, optim.init_rows(step_inputs.aux_optimizer, params), stats)

        return Carried(meshes.REPLICATED, init, ("opt",))

    def ages(self, config: Config) -> list[list[Age]]:
        """How old the gradients are: of this step's micro-batches, at this step's weights."""
        n = config.optimizer.accumulate
        return [[Age(n - 1 - m, 0) for m in range(n)] for _ in range(config.num_stages)]

    def work(self, network: Network, config: Config) -> list[Item]:
        """The schedule of a step: both passes on each device's own examples, one all-reduce, the update.

        Of several micro-batches each adds to the gradients: three accesses.
        """
        plan, n, K = StagePlan(network, config), config.optimizer.accumulate, network.num_stages
        trained = [(network.params, optim.accesses(config.optimizer))]
        own = classifiers(network, config.local) if config.serial.deep_supervision else None
        if own:
            trained.append((own.params, optim.accesses(config.aux_optimizer)))
        plan.augment()
        for m in range(n):
            for d in plan.devices:
                _passes(plan, own, d, micro=m, examples=plan.own // n, norm_axes=meshes.ALL_AXES)
        values, count = K * sum(p.length for p, _ in trained), sum(len(p.lengths) for p, _ in trained)
        plan.message("psum", meshes.ALL_AXES, WIDTH * (values + 2), "gradients", count=count + 2)
        more = 3 * n if n > 1 else 0
        plan.each("update", accesses=K * sum((accesses + more) * p.length for p, accesses in trained))
        return plan.items

    def holds(self, network: Network, config: Config, num_examples: int) -> dict[str, int]:
        """Bytes between steps, with the classifiers of deep supervision and their optimiser's state."""
        sizes = super().holds(network, config, num_examples)
        if config.serial.deep_supervision:
            more = WIDTH * network.num_stages * classifiers(network, config.local).params.length
            sizes["parameters"] += more
            sizes["optimizer"] += optim.kept_values(config.aux_optimizer) * more
        return sizes


def _passes(plan: StagePlan, own: Classifiers | None, d: int, **what: Any) -> None:
    """Add both passes of device d; a classifier's are behind its stage, whose backward pass needs what they find."""
    kept = []
    for k, chain, _ in plan.network.parts():
        kept.append([plan.work(d, "stage", stage=k, chain=chain, **what)])
        if own and own.parts(k):
            plan.passes(d, own.parts(k), "classifier", **what)
            kept[k].append(plan.work(d, "keep", stage=k, keeps=WIDTH * what["examples"] * features(chain.out_shape)))
    for k, chain, gradients in reversed(plan.network.parts()):
        done = plan.work(d, "stage", stage=k, chain=chain, gradients=gradients, **what)
        for position in kept[k]:
            plan.keep(position, done)


class Serial(DataParallel):
    """Layer-serial backprop; on a larger mesh it is data-parallel."""

    name = "serial"
    title = "layer-serial backprop"
    devices = "one"
