"""Forward and backward pass of one stage on its local loss: what all stages do at the same time.

Pure, and free of the mesh but for the names of the axes a batch is spread over; `methods.layer_parallel` runs it on
devices.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from lpjax.config.schema import Policy
from lpjax.methods.layer_parallel import lagrangian
from lpjax.methods.layer_parallel.lagrangian import InterfaceMultiplier
from lpjax.network import aux_net
from lpjax.network.network import Network
from lpjax.nn import chain, losses
from lpjax.nn.chain import Mode
from lpjax.nn.losses import Features, Interface


class StagePass(NamedTuple):
    """What one stage makes of one batch.

    loss: the stage's share of its mean local loss; for the last stage, of the task loss.
    correct: number of examples the last stage classifies rightly; 0 elsewhere.
    output: X_k (logits from the last stage).
    grads, stats: gradient of `loss` and batch statistics, trees of the stage.
    adjoint: P_k, gradient of the mean loss at the stage's input, per example, in the mean inner product.
    aux_grads: gradient of `loss` with respect to the AuxNet (policy coarse_tail; otherwise ()).
    """

    loss: Float[Array, ""]
    correct: Float[Array, ""]
    output: Array
    grads: PyTree
    stats: PyTree
    adjoint: Features
    aux_grads: PyTree


def stage_pass(
    network: Network,
    k: int,
    *,
    params: PyTree,
    stats: PyTree,
    lam: Features,
    target: Interface | None,
    multiplier: InterfaceMultiplier | None,
    labels: Int[Array, " b"],
    keys: Key[Array, " b"] | None = None,
    aux: tuple[PyTree, PyTree],
    penalty_coef: Float[Array, ""] | float,
    policy: Policy,
    tail: int | None,
    batch_size: int,
    axes: tuple[str, ...] = (),
) -> StagePass:
    """Forward and backward pass of stage k on its local loss: step 4.

    Args:
      params, stats: the stage's trees.
      lam: lambda_k [b, ...], the stage's input.
      target, multiplier: lambda_{k+1} and kappa_{k+1}; None for the last stage, and for a zero multiplier.
      keys: of the examples, for dropout; None for none.
      aux: parameters and statistics of the AuxNet, for the coarse tail.
      penalty_coef: beta.
      policy: of the multipliers; coarse_tail adds its tail to the loss.
      tail: pieces of a coarse tail before the last one, see `aux_net.tail`.
      batch_size: B, examples of the batch over the whole mesh.
      axes: mesh axes over which the stage's batch is spread; batch norm averages over them.
    """
    last = k == network.num_stages - 1
    mode = Mode(train=True, axes=axes, keys=keys)

    def tail_loss(aux_params: PyTree, output: Features) -> losses.PerExample:
        no_keys = mode._replace(keys=None)
        logits = aux_net.tail_logits(network.aux_tails, aux_params, aux[1], k + 1, output, no_keys, tail)
        return losses.task_loss(logits, labels)

    def local_loss(params: PyTree, lam: Features, aux_params: PyTree) -> tuple[Array, tuple[Array, PyTree]]:
        output, batch_stats = chain.apply(network.stages[k], params, stats, lam, mode)
        if target is None:
            loss = losses.task_loss(output, labels)
        else:
            tail = partial(tail_loss, aux_params) if policy == "coarse_tail" else None
            loss = lagrangian.stage_loss(output, target, multiplier, penalty_coef, tail)
        return loss.sum() / batch_size, (output, batch_stats)

    with_aux = policy == "coarse_tail"
    gradients = jax.value_and_grad(local_loss, argnums=(0, 1, 2) if with_aux else (0, 1), has_aux=True)
    (loss, (output, batch_stats)), (grads, adjoint, *aux_grads) = gradients(params, lam, aux[0])
    correct = losses.correct(output, labels).astype(float).sum() if last else jnp.zeros(())
    return StagePass(
        loss=loss,
        correct=correct,
        output=output,
        grads=grads,
        stats=batch_stats,
        adjoint=adjoint * (batch_size * losses.features(network.stages[k].in_shape)),
        aux_grads=aux_grads[0] if with_aux else (),
    )
