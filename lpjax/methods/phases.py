"""Methods one after another: when the one at work is left for the next one.

    by "epochs"         as `phases.epochs` says
    by an indicator     after `phases.patience` measurements in a row beyond `phases.threshold`, but not before
                        `phases.least_epochs` of the phase; for the next method, and from the last for the first

An indicator is measured of the method at work, every `phases.every` steps: a metric's mean over the stages, or the
interfaces, that have it.  A method that has no such metric is not left.  What was measured since a phase began, and
nothing else, decides when it ends; a checkpoint has it (`Phase`), so that a run that goes on takes the same decisions.
"""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, NamedTuple

from lpjax.config.schema import Config
from lpjax.config.schema.run import PhasesConfig
from lpjax.errors import require
from lpjax.methods.base import Method


class Indicator(NamedTuple):
    """What tells that a method should be left.

    Attributes:
      metric: Its name.
      beyond: (value, threshold) -> whether that speaks for leaving.
      words: What `beyond` is.
      diagnosed: Whether it is of a diagnosed step, of any method, and not of every step of some.
      some: Whether only some stages have it; it is 0 of the others, which its mean leaves out.
    """

    metric: str
    beyond: Callable[[float, float], bool]
    words: str
    diagnosed: bool = False
    some: bool = False


INDICATORS = {
    "cosine": Indicator("gradient_cosine", operator.lt, "below", diagnosed=True),
    "violation": Indicator("relative_violation", operator.gt, "above"),
    "coarse_error": Indicator("coarse_error", operator.gt, "above", some=True),
}
"""What `phases.by` can be, beside "epochs"."""


@dataclass(frozen=True)
class Phase:
    """A phase that ends by an indicator, and what was measured in it.

    Attributes:
      number: Position of the method at work in `phases.methods`.
      began: Steps done before it.
      measured: (step, value) of each measurement of the phase.
      because: The value that the phase before it was left for; None for the first phase.
    """

    number: int = 0
    began: int = 0
    measured: tuple[tuple[int, float], ...] = ()
    because: float | None = None


def saved(meta: Mapping[str, Any]) -> Phase:
    """The phase of a checkpoint, by its meta; the first one where it has none."""
    known = meta.get("phase", {})
    return Phase(**known | {"measured": tuple(map(tuple, known.get("measured", ())))})


def value(settings: PhasesConfig, metrics: Mapping[str, Any]) -> float | None:
    """The indicator in the metrics of a step, in JSON's types; None where they do not have it."""
    indicator = INDICATORS[settings.by]
    found = [own for own in metrics.get(indicator.metric, ()) if own or not indicator.some]
    return fmean(found) if found else None


def after(phase: Phase, settings: PhasesConfig, step: int, value: float, steps_per_epoch: int) -> Phase:
    """The phase to go on in after a measurement: the same one, or a new one.

    Args:
      phase: That the measurement is of.
      settings: By an indicator.
      step: After which it was measured.
      value: Of the indicator.
      steps_per_epoch: Of the training.
    """
    measured, indicator = (*phase.measured, (step, value)), INDICATORS[settings.by]
    last, threshold = measured[-settings.patience :], settings.threshold or 0.0
    leaves = len(last) == settings.patience and all(indicator.beyond(own, threshold) for _, own in last)
    if leaves and step - phase.began >= settings.least_epochs * steps_per_epoch:
        return Phase((phase.number + 1) % len(settings.methods), step, because=value)
    return replace(phase, measured=measured)


def reason(settings: PhasesConfig, phase: Phase) -> str:
    """Why a phase began, in words for the end of a line; "" where that was its time."""
    if phase.because is None:
        return ""
    several = f", {settings.patience} times in a row" if settings.patience > 1 else ""
    return f": {settings.by} {phase.because:.3g}, {INDICATORS[settings.by].words} {settings.threshold:g}{several}"


def check(config: Config, methods: Mapping[str, Method]) -> None:
    """Check that the methods of the phases can be left by the indicator.

    Args:
      config: The configuration.
      methods: By name.

    Raises:
      BadInput: They cannot, or settings contradict each other.
    """
    own, by, threshold = config.phases, config.phases.by, config.phases.threshold
    if by == "epochs":
        for name in ("threshold", "patience", "least_epochs", "every"):
            chosen = getattr(own, name)
            require(
                chosen == getattr(PhasesConfig, name),
                f"phases.{name}={chosen} with phases.by=epochs: it is of an indicator; set phases.by to one of "
                f"{', '.join(INDICATORS)}, or leave it out",
            )
        return
    require(
        len(own.methods) > 1,
        f"phases.by={by} with phases.methods={own.methods}: expected two methods or more, as one is left for the next",
    )
    low, high = (-1.0, 1.0) if by == "cosine" else (0.0, math.inf)
    require(
        threshold is not None and low < threshold < high,
        f"phases.threshold={threshold} with phases.by={by}: expected a number > {low:g}"
        f"{f' and < {high:g}' if by == 'cosine' else ''}, {INDICATORS[by].words} which a method is left",
    )
    metric = INDICATORS[by].metric
    for name in own.methods[:-1] if not INDICATORS[by].diagnosed else ():
        axis = methods[name].metrics.get(metric)
        require(
            axis is not None,
            f"phases.by={by} with method={name}, which has no {metric} and would never be left: expected methods that "
            f"have it, but for the last; put it last, or set phases.by=cosine, which is measured of any method",
        )
        require(
            axis != "interface" or config.num_stages > 1,
            f"phases.by={by} with num_stages=1, so that there is no interface: expected at least 2 stages",
        )
    if by == "coarse_error":  # 0 where no piece learns it, and no method would be left
        require(
            config.num_stages > 2,
            f"phases.by={by} with num_stages={config.num_stages}: expected at least 3, as it is 0 beside the first and "
            f"the last stage; choose more stages, or phases.by=cosine",
        )
        require(
            config.penalty.aux != 0,
            f"phases.by={by} with penalty.aux=0, so that no piece learns to have a small one: expected more than 0; "
            f"correct penalty.aux, or set phases.by=cosine",
        )
