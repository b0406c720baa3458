"""Optimisers."""

from dataclasses import dataclass
from typing import Literal

from lpjax.config.schema.limits import at_least, bounded


@dataclass(frozen=True)
class OptimizerConfig:
    """An optax optimiser and its schedule.

    Attributes:
      name: "sgd" (weight decay added to the gradient) or "adamw" (decoupled).
      learning_rate: Of the schedule's plateau.
      momentum: Of sgd.
      nesterov: Of sgd.
      b1: Of adamw: decay of its mean of gradients.
      b2: Of adamw: decay of its mean of their squares.
      weight_decay: Acts on kernels only, not on batch norm and biases.
      clip_norm: Maximal L2 norm of a gradient.  Unset: none.
      clip_over: "stage", each stage's by itself, or "network", all stages' together: by methods whose stages learn from
        the same batch in a step, and of the stages' optimiser alone.
      schedule: "constant", "cosine" (to 0 at the end of training) or "step" (times `step_factor` at each of
        `step_epochs`), all after a linear warm-up from 0.
      warmup_epochs: Of the warm-up.
      step_epochs: Of schedule "step".
      step_factor: Of schedule "step".
    """

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = bounded(0.1, above=0)
    momentum: float = bounded(0.9, at_least=0, below=1)
    nesterov: bool = True
    b1: float = bounded(0.9, at_least=0, below=1)
    b2: float = bounded(0.999, at_least=0, below=1)
    weight_decay: float = at_least(0, 5e-4)
    clip_norm: float | None = bounded(None, above=0, remedy="leave it unset not to clip")
    clip_over: Literal["stage", "network"] = "stage"
    schedule: Literal["constant", "step", "cosine"] = "cosine"
    warmup_epochs: float = at_least(0, 1.0)
    step_epochs: tuple[int, ...] = ()
    step_factor: float = 0.1
