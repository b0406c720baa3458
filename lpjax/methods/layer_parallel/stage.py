"""Forward and backward pass of one stage on its local loss: what all stages do at the same time.

Pure, and free of the mesh but for the names of the axes a batch is spread over; `step` runs it on devices.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from lpjax.config.schema import Config
from lpjax.methods.base import StageResult
from lpjax.methods.layer_parallel import lagrangian
from lpjax.network.network import Network
from lpjax.nn import chain, losses
from lpjax.nn.losses import Features, Interface, Multiplier, Targets
from lpjax.parallel.mesh import Stage

TRAIN = chain.Mode(train=True)


def stage_pass(
    network: Network,
    k: Stage,
    *,
    params: PyTree,
    stats: PyTree,
    lam: Features,
    target: Interface | None,
    multiplier: Multiplier | None,
    targets: Targets,
    aux: tuple[PyTree, PyTree],
    penalty_coef: Float[Array, ""] | float,
    config: Config,
    mode: chain.Mode = TRAIN,
) -> StageResult:
    """Forward and backward pass of stage k on its local loss: step 4.

    Args:
      network: The network.
      k: The stage.
      params: The stage's tree.
      stats: Likewise.
      lam: lambda_k [b, ...], the stage's input.
      target: lambda_{k+1}; None for the last stage.
      multiplier: kappa_{k+1}; None for the last stage and for zero.
      targets: Of the examples.
      aux: The AuxNet's parameters and statistics, one tree a row of equal pieces (`alike`).
      penalty_coef: beta.
      config: Read are `multiplier` (coarse_tail adds its tail), `aux.tail` and `batch_size`.
      mode: How the stage is applied.

    Returns:
      Trees, not packed; `output` is P_k and X_k (logits from the last stage).  `shares` are "loss" and, summed over the
      examples, "correct" (0 but for the last stage), "violation", psi(r_{k+1}), and "output", psi(X_k) (0 for the last
      stage).  `beside` is the gradient of "loss" with respect to the AuxNet (policy coarse_tail; otherwise ()).
    """
    own = network.stage(k)
    with_tail, how = config.multiplier == "coarse_tail", (mode._replace(keys=None), config.aux.tail)

    def local_loss(params: PyTree, lam: Features, aux_params: PyTree) -> tuple[Array, tuple[Array, PyTree]]:
        def tail_loss(x: Features) -> losses.PerExample:
            logits = network.tail_logits(k, aux_params, aux[1], x, *how)
            return targets.loss(logits)

        output, batch_stats = chain.apply(own, params, stats, lam, mode)
        if target is None:
            loss = targets.loss(output)
        else:
            loss = lagrangian.stage_loss(output, target, multiplier, penalty_coef, tail_loss if with_tail else None)
        return loss.sum() / config.batch_size, (output, batch_stats)

    gradients = jax.value_and_grad(local_loss, argnums=(0, 1, 2) if with_tail else (0, 1), has_aux=True)
    (loss, (output, batch_stats)), (grads, adjoint, *aux_grads) = gradients(params, lam, aux[0])
    return StageResult(
        shares={"loss": loss, **_sums(output, targets, target)},
        grads=grads,
        stats=batch_stats,
        output=(adjoint * (config.batch_size * losses.features(own.in_shape)), output),
        beside=aux_grads[0] if with_tail else (),
    )


def _sums(output: Features, targets: Targets, target: Interface | None) -> dict[str, Float[Array, ""]]:
    """What is summed over the examples of the metrics, 0 where the stage has none."""
    none = jnp.zeros(())
    if target is None:
        return {"correct": targets.correct(output).sum(), "violation": none, "output": none}
    violation = losses.psi(lagrangian.violation(target, output)).sum()
    return {"correct": none, "violation": violation, "output": losses.psi(output).sum()}
