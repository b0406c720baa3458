"""Optimisers."""

from dataclasses import dataclass
from typing import Literal

from lpjax.config.schema.limits import at_least, bounded


@dataclass(frozen=True)
class OptimizerConfig:
    """An optax optimiser and its schedule.

    Attributes:
      name: "sgd" (weight decay added to the gradient), "adamw" or "nadam" (decoupled; nadam is adamw with Nesterov's
        momentum, which with `b1` = 0.99 is the cure for delayed gradients of arXiv:2505.01099).
      learning_rate: Of the schedule's plateau.
      momentum: Of sgd.  A step is as long as 1 / (1 - momentum) of plain sgd: lower the learning rate with more of it.
      nesterov: Of sgd.
      b1: Of adamw and nadam: decay of their mean of gradients.
      b2: Of adamw and nadam: decay of their mean of their squares.
      weight_decay: Acts on kernels only, not on batch norm and biases.
      age_discount: p of the stages' optimiser: in step t of T a stage whose gradients are on average `age` updates old
        (`Age.weights` of its method) learns at the rate times (1 + age) ** -(p (1 - t/T)).  PipeMare's T1
        (arXiv:1910.05124) with p = 1, annealed over the whole training.
      accumulate: Equal parts of a device's batch, run one after the other; their gradients are summed, for one update.
        Batch norm sees a part.  For serial and data_parallel, whose devices then keep the activations of a part only.
      clip_norm: Maximal L2 norm of a gradient.  Unset: none.
      clip_over: "stage", each stage's by itself, or "network", all stages' together: by methods whose stages learn from
        the same batch in a step, and of the stages' optimiser alone.
      schedule: "constant", "cosine" (to 0 at the end of training) or "step" (times `step_factor` at each of
        `step_epochs`), all after a linear warm-up from 0.
      warmup_epochs: Of the warm-up.
      step_epochs: Of schedule "step".
      step_factor: Of schedule "step".
    """

    name: Literal["sgd", "adamw", "nadam"] = "sgd"
    learning_rate: float = bounded(0.1, above=0)
    momentum: float = bounded(0.9, at_least=0, below=1)
    nesterov: bool = True
    b1: float = bounded(0.9, at_least=0, below=1)
    b2: float = bounded(0.999, at_least=0, below=1)
    weight_decay: float = at_least(0, 5e-4)
    age_discount: float = at_least(0, 0.0)
    accumulate: int = at_least(1, 1)
    clip_norm: float | None = bounded(None, above=0, remedy="leave it unset not to clip")
    clip_over: Literal["stage", "network"] = "stage"
    schedule: Literal["constant", "step", "cosine"] = "cosine"
    warmup_epochs: float = at_least(0, 1.0)
    step_epochs: tuple[int, ...] = ()
    step_factor: float = 0.1
