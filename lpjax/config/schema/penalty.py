"""The penalty and the multipliers."""

from dataclasses import dataclass
from typing import Literal, get_args

from lpjax.config.schema.limits import at_least

Policy = Literal["none", "mean", "per_example", "adjoint", "coarse_tail"]
"""Where the multipliers of layer_parallel come from.

none         kappa = 0: the penalty method.
mean         one [...] tensor an interface, updated by the batch mean of (7): enforces E[r_j] = 0.
per_example  one [N, ...] table an interface, the exact method; the examples must not be augmented.
adjoint      kappa_j = - grad of phi(A(x), y) with respect to lambda_j: the multiplier of a KKT point, estimated by the
             AuxNet's own adjoint, recomputed at each step and never stored.
coarse_tail  the non-linear form of `adjoint`: kappa = 0 and local loss (3), the AuxNet's tail seeing the real output.
"""
POLICIES: tuple[str, ...] = get_args(Policy)


@dataclass(frozen=True)
class PenaltyConfig:
    """beta and what goes with it: (2), (5), (7) and (8) of `lpjax.methods.layer_parallel.lagrangian`.

    Attributes:
      initial: beta of the stages' local losses in the first epoch.  Unset: 0.1 where stages have a coarse tail, and so
        the loss, to follow; otherwise 1, since a linear multiplier needs a penalty strong enough to hold the stage
        where its slope is meant.
      growth: beta = min(maximum, initial * growth ** epoch).
      maximum: Of beta.  Unset: none.
      aux: beta in the correction of the auxiliary variables; the AuxNet does better when it follows the stages more
        than they follow it.  None, in a config file, is the stages' own: the exact Lagrangian.  With coarse_adjoint the
        weight of a piece's fit to its stage; 0 spares it.
      multiplier_rate: rho / (2 beta) of the multiplier update, once a pass over the training set; 1 is the classical
        method of multipliers.
      sweeps: Coarse correction sweeps of the stages' inputs before each step; after num_stages - 1 they are exact.
    """

    initial: float | None = at_least(0, None)
    growth: float = at_least(0, 1.0)
    maximum: float | None = None
    aux: float | None = at_least(0, 1.0)
    multiplier_rate: float = at_least(0, 1.0)
    sweeps: int = at_least(0, 0)
