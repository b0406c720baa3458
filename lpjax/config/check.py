"""Whether a configuration can be run, as far as that does not depend on the method.

Raises before anything is compiled or allocated.
"""

import difflib
import itertools
from collections.abc import Collection

from lpjax.config.schema import Config
from lpjax.config.schema.limits import out_of_bounds
from lpjax.errors import BadInput, require


def require_one_of(field: str, value: object, choices: Collection[str], otherwise: str = "") -> None:
    """Raises BadInput, with the nearest one, unless the value of a field is one of the choices.

    Args:
      field: Its name.
      value: Its value.
      choices: What it may be.
      otherwise: What it may be besides, for the message.
    """
    if value not in choices:
        close = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise BadInput(f"{field}={value!r}: expected one of {', '.join(choices)}{otherwise}{hint}")


def check(config: Config, *, staged: bool) -> None:
    """Raises BadInput where fields contradict each other or are out of range.

    Args:
      config: With `mesh.stage` filled in.
      staged: Whether each device along 'stage' holds its own stages only.
    """
    _check_ranges(config)
    _check_optimizers(config)
    _check_phases(config)
    (stage, data), K = config.mesh_shape, config.num_stages
    require(
        not staged or K % stage == 0,
        f"mesh.stage={stage}: expected a divisor of num_stages={K}, so that every device holds equally many stages; "
        f"choose one of {[s for s in range(1, K + 1) if K % s == 0]}",
    )
    require(
        config.batch_size % (stage * data) == 0,
        f"batch_size={config.batch_size}: expected a multiple of mesh.stage * mesh.data = {stage} * {data} = "
        f"{stage * data}, so that every device owns equally many examples; the nearest above is "
        f"{-(-config.batch_size // (stage * data)) * stage * data}",
    )


def _check_ranges(config: Config) -> None:
    for message in out_of_bounds(config):
        raise BadInput(message)
    require(0 <= config.seed < 2**32, f"seed={config.seed}: expected 0 to {2**32 - 1}; choose another")
    initial, maximum = config.penalty.initial, config.penalty.maximum
    require(
        initial is None or maximum is None or maximum >= initial,
        f"penalty.maximum={maximum}: expected at least penalty.initial={initial}",
    )
    first, last = config.watch.profile_first, config.watch.profile_last
    require(
        (first is None and last is None) or (first is not None and last is not None and 1 <= first <= last),
        f"watch.profile_first={first}, watch.profile_last={last}: expected steps 1 <= first <= last; set both, or none",
    )
    require(config.data.channels in (1, 3), f"data.channels={config.data.channels}: expected 3, or 1 for grey images")


def _check_optimizers(config: Config) -> None:
    for section, optimizer in (("optimizer", config.optimizer), ("aux_optimizer", config.aux_optimizer)):
        require(
            (optimizer.schedule == "step") == bool(optimizer.step_epochs),
            f"{section}.step_epochs={optimizer.step_epochs} with schedule={optimizer.schedule}: "
            f"step_epochs belong to schedule=step, which needs at least one",
        )
        require(
            optimizer.clip_over == "stage" or optimizer.clip_norm is not None,
            f"{section}.clip_over={optimizer.clip_over} without {section}.clip_norm: expected the largest norm that a "
            f"gradient may have; set {section}.clip_norm",
        )
    for name, usual in (("age_discount", 0), ("accumulate", 1)):
        value = getattr(config.aux_optimizer, name)
        require(
            value == usual,
            f"aux_optimizer.{name}={value}: expected {usual}, it is of the stages' optimiser; leave it out",
        )
    require(
        config.aux_optimizer.clip_over == "stage",
        "aux_optimizer.clip_over=network: an AuxNet is clipped as a whole, a local classifier by itself; leave it out",
    )


def _check_phases(config: Config) -> None:
    """Of methods one after another, and of what a run starts from."""
    start, phases = config.start, config.phases
    require(
        start.workdir is not None or (start.step is None and not start.optimizer),
        f"start.step={start.step}, start.optimizer={start.optimizer} without start.workdir: they choose what is taken "
        f"from another run; set start.workdir",
    )
    require(
        not phases.epochs or phases.by == "epochs",
        f"phases.epochs={phases.epochs} with phases.by={phases.by}: expected none, as that says when a method is left; "
        f"leave them out",
    )
    require(
        len(phases.epochs) == (max(len(phases.methods) - 1, 0) if phases.by == "epochs" else 0)
        and all(a < b for a, b in itertools.pairwise((0.0, *phases.epochs, float(config.num_epochs)))),
        f"phases.methods={phases.methods}, phases.epochs={phases.epochs}: expected the epoch at which each method but "
        f"the first begins, increasing, between 0 and num_epochs={config.num_epochs}",
    )
    require(
        not (phases.methods and start.optimizer),
        "start.optimizer=True with phases.methods: the other run's step would be in the middle of a phase; start from "
        "its weights alone, or name the phases' methods one run after the other",
    )
