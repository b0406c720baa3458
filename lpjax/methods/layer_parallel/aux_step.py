"""The AuxNet's part of a step: its forward pass, the correction of what it emitted, and its fit to the correction.

Runs on the device's own examples (steps 2 and 7 of `methods.layer_parallel`).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, PyTree

from lpjax.config.schema import Config
from lpjax.methods.layer_parallel import lagrangian
from lpjax.network import aux_net
from lpjax.network.network import Network
from lpjax.nn import losses
from lpjax.nn.chain import Mode
from lpjax.nn.losses import Interface, Multiplier, Targets
from lpjax.parallel.mesh import ALL_AXES
from lpjax.state import optim
from lpjax.state.train_state import TrainState


class AuxPass(NamedTuple):
    """The AuxNet's forward pass on a device's own examples.

    Attributes:
      lam: lambda_1 .. lambda_{K-1}.
      loss: This device's share of the AuxNet's own mean cross entropy.
      pullback: (gradients at lambda_1 .., weight of `loss`) -> gradients at (parameters, lambda_1 .. lambda_{K-1}).
      stats: Batch statistics, one tree a piece.
    """

    lam: tuple[Interface, ...]
    loss: Float[Array, ""]
    pullback: Callable[[tuple[Interface, ...], float], tuple[PyTree, tuple[Interface, ...]]]
    stats: PyTree


def forward(network: Network, config: Config, params: PyTree, stats: PyTree, x: Interface, targets: Targets) -> AuxPass:
    """Run the AuxNet forward: step 2.

    Args:
      network: The network.
      config: The configuration.
      params: The AuxNet's parameters.
      stats: Its running statistics.
      x: The network's input [b, ...].
      targets: Of the examples.
    """
    if not network.aux_net:  # K = 1
        return AuxPass((), jnp.zeros(()), lambda lam_grads, weight: ((), ()), ())
    mode = Mode(train=True, axes=ALL_AXES)

    def run(params: PyTree, shifts: tuple[Interface, ...]) -> tuple[Any, PyTree]:
        lam, logits, batch_stats = aux_net.apply(network.aux_net, params, stats, x, shifts, mode)
        return (lam, targets.loss(logits).sum() / config.batch_size), batch_stats

    no_shift = tuple(jnp.zeros((len(x), *shape)) for shape in network.interfaces[1:])
    (lam, loss), pullback, batch_stats = jax.vjp(run, params, no_shift, has_aux=True)
    return AuxPass(lam, loss, lambda lam_grads, weight: pullback((lam_grads, jnp.asarray(weight, float))), batch_stats)


def corrected_inputs(
    config: Config,
    state: TrainState,
    aux: AuxPass,
    multiplier: list[Multiplier] | None,
    adjoints: list[Interface],
    outputs: list[Interface],
) -> list[Interface]:
    """What the AuxNet should have emitted: the correction (5).

    It starts from what the AuxNet did emit, also when sweeps corrected the stages' inputs: its constraint is to meet
    the stages' outputs, and a distance to swept inputs would outweigh the adjoint.

    Args:
      config: The configuration.
      state: Its beta is read.
      aux: What the AuxNet emitted.
      multiplier: kappa_1 .. kappa_{K-1}; None where they are zero.
      adjoints: P_1 .. P_{K-1}.
      outputs: X_0 .. X_{K-2}.

    Returns:
      lambda_1^+ .. lambda_{K-1}^+, each [b, ...].
    """
    beta = state.penalty_coef if config.penalty.aux is None else config.penalty.aux
    kappas: Sequence[Multiplier | None] = multiplier or [None] * len(outputs)
    violations = map(lagrangian.violation, aux.lam, outputs)
    rows = zip(aux.lam, adjoints, kappas, violations, strict=True)
    return [lagrangian.correction(*row, beta, config.aux.correction_step) for row in rows]


def adjoint_mismatch_gradient(
    config: Config, run: Callable[[PyTree], AuxPass], params: PyTree, adjoints: list[Interface]
) -> PyTree:
    """Gradient of (9) with respect to the AuxNet's parameters, through its backward pass; this device's share.

    One psum over the mesh, of the adjoints' mean squares.

    Args:
      config: The configuration.
      run: The AuxNet's forward pass by its parameters.
      params: The AuxNet's parameters.
      adjoints: P_1 .. P_{K-1}, constants.
    """
    scales = lax.psum([losses.inner(p, p).sum() for p in adjoints], ALL_AXES)

    def mismatch(params: PyTree) -> Float[Array, ""]:
        pairs = zip(own_adjoints(config, run(params)), adjoints, scales, strict=True)
        missed = [losses.psi(a - p).sum() / jnp.maximum(scale, 1e-30) for a, p, scale in pairs]
        return config.aux.adjoint_weight * jnp.stack(missed).sum()

    return jax.grad(mismatch)(params)


def own_adjoints(config: Config, aux: AuxPass) -> list[Interface]:
    """D_1 .. D_{K-1}: gradients of the AuxNet's own cross entropy at what it emitted, in the mean inner product."""
    _, adjoints = aux.pullback(jax.tree.map(jnp.zeros_like, aux.lam), 1.0)
    return [config.batch_size * losses.features(p.shape[1:]) * p for p in adjoints]


def fit(
    config: Config,
    state: TrainState,
    optimizer: optax.GradientTransformation,
    run: Callable[[PyTree], AuxPass],
    aux: AuxPass,
    corrected: list[Interface],
    adjoints: list[Interface],
    tail_grads: PyTree,
) -> tuple[PyTree, PyTree]:
    """Fit the AuxNet to the correction by `inner_steps` of (6): step 7.

    Its gradient adds its own cross entropy, (9) with `config.aux.adjoint_weight`, and, with coarse tails, `tail_grads`.
    One psum over the mesh an inner step, and one more for (9).

    Args:
      config: The configuration.
      state: The AuxNet's parameters and optimiser state are read.
      optimizer: Of the AuxNet.
      run: The AuxNet's forward pass by its parameters.
      aux: That of the state's.
      corrected: lambda_1^+ .. lambda_{K-1}^+, the same in all inner steps.
      adjoints: P_1 .. P_{K-1}.
      tail_grads: What the tail losses of this device's stages ask of the AuxNet; likewise the same.

    Returns:
      The AuxNet's parameters and optimiser state.
    """
    params, opt = state.aux_params, state.aux_opt
    for inner_step in range(config.aux.inner_steps if params else 0):
        if inner_step > 0:
            aux = run(params)
        toward = tuple(
            lagrangian.fit_gradient(a, target) / (config.batch_size * losses.features(target.shape[1:]))
            for a, target in zip(aux.lam, corrected, strict=True)
        )
        grads, _ = aux.pullback(toward, config.aux.task_weight)
        if config.aux.adjoint_weight > 0:
            grads = jax.tree.map(jnp.add, grads, adjoint_mismatch_gradient(config, run, params, adjoints))
        if config.multiplier == "coarse_tail":
            grads = jax.tree.map(jnp.add, grads, tail_grads)
        params, opt = optim.update(optimizer, lax.psum(grads, ALL_AXES), opt, params)
    return params, opt
