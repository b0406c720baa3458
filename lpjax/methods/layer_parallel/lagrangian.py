r"""The constrained problem, its Lagrangian, and every rule that follows from it.

    min over W of phi(F_{K-1}(lambda_{K-1}), y)   subject to   lambda_j = F_{j-1}(lambda_{j-1}),   j = 1..K-1

Symbols (all arrays are per batch; b examples, "..." the axes of an interface, [H, W, C] of a map; n features in all):

    lambda_j  input of stage j, the auxiliary variable          [b, ...]       `lam`
    X_k       F_k(lambda_k), what stage k really produced       [b, ...]       `output`
    r_j       lambda_j - X_{j-1}, the violation                 [b, ...]       `violation`
    kappa_j   Lagrange multiplier of r_j = 0                    [...] or [b, ...]   `multiplier`
    beta      penalty coefficient                               scalar         `penalty_coef`
    <u, v>    inner product over features: (1/n) sum_i u_i v_i  [b]
    psi(r)    <r, r>, the penalty of a violation                [b]
    phi       cross entropy                                     [b]

The inner product is the MEAN over features, and every gradient with respect to an interface (the adjoint P, the
gradient of psi) is taken in it: grad f = n * df/dlambda, so that grad psi = 2 r.  Multipliers, adjoints and penalties
of interfaces of unlike size then compare, and coefficients keep their meaning when the width changes.  (lambda is never
the multiplier here, though much of the literature uses it so.)

    augmented Lagrangian   L   = phi + sum_j [ <kappa_j, r_j> + beta psi(r_j) ];    kappa = 0: the penalty method    (1)
    local loss, k < K-1    l_k = beta psi(lambda_{k+1} - X_k) - <kappa_{k+1}, X_k>,      l_{K-1} = phi(X_{K-1}, y)   (2)
    coarse tail, k < K-1   l_k = beta psi(lambda_{k+1} - X_k) + phi(G_{K-1}(..G_{k+1}(X_k)), y)                      (3)
    adjoint                P_j = grad of l_j with respect to lambda_j                                                (4)
    correction             lambda_j^+ = lambda_j - eta (P_j + kappa_j + beta grad psi(r_j))                          (5)
    AuxNet fit             min over omega of sum_j 1/2 <A_j - lambda_j^+, A_j - lambda_j^+>,  lambda^+ held fixed    (6)
    multiplier update      kappa_j <- kappa_j + rho r_j,   rho = 2 beta for the classical method                     (7)
    coarse correction      lambda_{j+1} <- G_j(lambda_j) + X_j - G_j(lambda_j^old),   lambda_0 = x                   (8)
    adjoint matching       min over omega of sum_j |D_j - P_j|^2 / |P_j|^2,   P held fixed                           (9)
                           D_j = grad of phi(A(x), y) with respect to lambda_j

Every l_k needs only lambda_k, lambda_{k+1} and kappa_{k+1}: all stages are evaluated at the same time.  One gradient
step of (6) with eta = 1 is the chain rule dL/domega.

Source: (1), (2) and (6) arXiv:2112.05387; (5) and (7) the standard method of multipliers (Hestenes 1969, Powell 1969);
(8) the parareal method (Lions, Maday, Turinici 2001); (3), (9) and the policy `adjoint` are lpjax's own; (9) is the
idea of synthetic gradients (Jaderberg et al., arXiv:1608.05343) for a network that has a loss of its own.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from lpjax.nn.losses import Features, Interface, Multiplier, PerExample, inner, psi


def violation(lam: Features, output: Features) -> Features:
    """The violation of a stage's constraint, r = lambda - X."""
    return lam - output


def psi_gradient(r: Features) -> Features:
    """Gradient of the penalty of a violation: grad psi(r) = 2 r in the mean inner product."""
    return 2.0 * r


def stage_loss(
    output: Features,
    target: Features,
    multiplier: Multiplier | None,
    penalty_coef: Float[Array, ""] | float,
    tail_loss: Callable[[Features], PerExample] | None = None,
) -> PerExample:
    """Local loss of a stage that is not the last: (2), or (3) when the loss of a coarse tail is given.

    Args:
      output: X_k.
      target: lambda_{k+1}, a constant.
      multiplier: kappa_{k+1}, a constant; None is zero.
      penalty_coef: beta.
      tail_loss: X_k -> phi of the AuxNet's remaining pieces at X_k.
    """
    loss = penalty_coef * psi(violation(target, output))
    if multiplier is not None:
        loss = loss - inner(multiplier, output)
    if tail_loss is not None:
        loss = loss + tail_loss(output)
    return loss


def correction(
    lam: Features,
    adjoint: Features,
    multiplier: Multiplier | None,
    r: Features,
    penalty_coef: Float[Array, ""] | float,
    step_size: float,
) -> Features:
    """Correct an auxiliary variable by (5).

    Args:
      lam: lambda_j.
      adjoint: P_j.
      multiplier: kappa_j; None is zero.
      r: lambda_j - X_{j-1}.
      penalty_coef: beta.
      step_size: eta.

    Returns:
      lambda_j^+.
    """
    gradient = adjoint + penalty_coef * psi_gradient(r)
    if multiplier is not None:
        gradient = gradient + jnp.broadcast_to(multiplier, gradient.shape)
    return lam - step_size * gradient


def fit_gradient(aux_lam: Features, corrected: Features) -> Features:
    """Gradient of the AuxNet fit (6) with respect to A_j, per example, in the mean inner product."""
    return aux_lam - corrected


def update_multiplier(
    multiplier: Multiplier, r: Multiplier, penalty_coef: Float[Array, ""] | float, rate: float
) -> Multiplier:
    """Update a multiplier by (7).

    Args:
      multiplier: kappa_j.
      r: Of the multiplier's shape: an example's violation, or the mean over the batch.
      penalty_coef: beta.
      rate: rho = 2 beta * rate.
    """
    return multiplier + 2.0 * penalty_coef * rate * r


def coarse_correction(
    pieces: Sequence[Callable[[Array], Array]],
    lam: Sequence[Interface],
    outputs: Sequence[Interface],
) -> list[Interface]:
    """Correct the stages' inputs by one sweep (8) from the left.

    lambda_1 is exact after one sweep, all of them after K-1.

    Args:
      pieces: G_0 .. G_{K-2}.
      lam: The inputs lambda_0 = x, .., lambda_{K-1} at which the stages were run.
      outputs: X_0 .. X_{K-2} at those inputs.

    Returns:
      The new lambda_0, .., lambda_{K-1}.
    """
    corrected = [lam[0]]
    for piece, old, output in zip(pieces, lam, outputs, strict=False):
        # The difference first: where nothing moved it is exactly zero, and lambda is exactly the stage's output.
        corrected.append((piece(corrected[-1]) - piece(old)) + output)
    return corrected
