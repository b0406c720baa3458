"""Forward and backward pass of one stage on its local loss: what all stages do at the same time.

Pure, and free of the mesh but for the names of the axes a batch is spread over; `step` runs it on devices.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from lpjax.config.schema import Config
from lpjax.methods.layer_parallel import lagrangian
from lpjax.network import aux_net
from lpjax.network.network import Network
from lpjax.network.packing import Row
from lpjax.nn import chain, losses
from lpjax.nn.chain import Mode
from lpjax.nn.losses import Features, Interface, Multiplier


class StagePass(NamedTuple):
    """What one stage makes of one batch.

    Attributes:
      loss: The stage's share of its mean local loss; for the last stage, of the task loss.
      correct: Number of examples the last stage classifies rightly; 0 elsewhere.
      output: X_k (logits from the last stage).
      grads: Gradient of `loss`, a tree of the stage.
      stats: Batch statistics, a tree of the stage.
      adjoint: P_k, gradient of the mean loss at the stage's input, per example, in the mean inner product.
      aux_grads: Gradient of `loss` with respect to the AuxNet (policy coarse_tail; otherwise ()).
    """

    loss: Float[Array, ""]
    correct: Float[Array, ""]
    output: Array
    grads: PyTree
    stats: PyTree
    adjoint: Features
    aux_grads: PyTree


class StageResult(NamedTuple):
    """`StagePass` in shapes that are the same for all stages, so that `lax.switch` can return it.

    Attributes:
      loss: The stage's share of its mean local loss; for the last stage, of the task loss.
      correct: Number of examples the last stage classifies rightly; 0 elsewhere.
      violation: Sum over examples of psi(r_{k+1}); 0 for the last stage.
      output: Sum over examples of psi(X_k); 0 for the last stage.
      grads: Gradient with respect to the stage's parameters, packed.
      stats: Its batch statistics, packed.
      reply: P_k and X_k, packed for the owners of the examples.
      aux_grads: Gradient of `loss` with respect to the AuxNet (policy coarse_tail; otherwise ()).
    """

    loss: Float[Array, ""]
    correct: Float[Array, ""]
    violation: Float[Array, ""]
    output: Float[Array, ""]
    grads: Row
    stats: Row
    reply: Float[Array, "b l"]
    aux_grads: PyTree


def stage_pass(
    network: Network,
    k: int,
    *,
    params: PyTree,
    stats: PyTree,
    lam: Features,
    target: Interface | None,
    multiplier: Multiplier | None,
    labels: Int[Array, " b"],
    keys: Key[Array, " b"] | None = None,
    aux: tuple[PyTree, PyTree],
    penalty_coef: Float[Array, ""] | float,
    config: Config,
    axes: tuple[str, ...] = (),
) -> StagePass:
    """Forward and backward pass of stage k on its local loss: step 4.

    Args:
      network: The network.
      k: The stage.
      params: The stage's tree.
      stats: The stage's tree.
      lam: lambda_k [b, ...], the stage's input.
      target: lambda_{k+1}; None for the last stage.
      multiplier: kappa_{k+1}; None for the last stage and for zero.
      labels: Of the examples.
      keys: Likewise, for dropout; None for none.
      aux: The AuxNet's parameters and statistics.
      penalty_coef: beta.
      config: Read are `multiplier` (coarse_tail adds its tail), `aux.tail` and `batch_size`.
      axes: Mesh axes over which the stage's batch is spread; batch norm averages over them.
    """
    mode = Mode(train=True, axes=axes, keys=keys)
    with_tail = config.multiplier == "coarse_tail"

    def tail_loss(aux_params: PyTree, output: Features) -> losses.PerExample:
        how = mode._replace(keys=None), config.aux.tail
        return losses.task_loss(aux_net.tail_logits(network.aux_tails, aux_params, aux[1], k + 1, output, *how), labels)

    def local_loss(params: PyTree, lam: Features, aux_params: PyTree) -> tuple[Array, tuple[Array, PyTree]]:
        output, batch_stats = chain.apply(network.stages[k], params, stats, lam, mode)
        if target is None:
            loss = losses.task_loss(output, labels)
        else:
            tail = partial(tail_loss, aux_params) if with_tail else None
            loss = lagrangian.stage_loss(output, target, multiplier, penalty_coef, tail)
        return loss.sum() / config.batch_size, (output, batch_stats)

    gradients = jax.value_and_grad(local_loss, argnums=(0, 1, 2) if with_tail else (0, 1), has_aux=True)
    (loss, (output, batch_stats)), (grads, adjoint, *aux_grads) = gradients(params, lam, aux[0])
    return StagePass(
        loss=loss,
        correct=losses.correct(output, labels).astype(float).sum() if target is None else jnp.zeros(()),
        output=output,
        grads=grads,
        stats=batch_stats,
        adjoint=adjoint * (config.batch_size * losses.features(network.stages[k].in_shape)),
        aux_grads=aux_grads[0] if with_tail else (),
    )
