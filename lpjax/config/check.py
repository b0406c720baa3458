"""Whether a configuration can be run, as far as that does not depend on the method.

Raises before anything is compiled or allocated.
"""

import itertools

from lpjax.config.schema import Config
from lpjax.config.schema.limits import too_small
from lpjax.errors import BadInput


def require(ok: bool, message: str) -> None:
    """Raises BadInput with the message unless ok."""
    if not ok:
        raise BadInput(message)


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
    for name, value, minimum in too_small(config):
        require(False, f"{name}={value}: expected at least {minimum}")
    require(config.seed >= 0, f"seed={config.seed}: expected at least 0")
    initial, maximum = config.penalty.initial, config.penalty.maximum
    require(
        initial is None or maximum is None or maximum >= initial,
        f"penalty.maximum={maximum}: expected at least penalty.initial={initial}",
    )
    share = config.aux.share
    require(share is None or share > 0, f"aux.share={share}: expected > 0; leave it unset to choose aux.width yourself")
    shrink = config.delayed.shrink
    require(0 < shrink <= 1, f"delayed.shrink={shrink}: expected 0 < shrink <= 1; 1 is none")
    factor = config.recovery.factor
    require(0 < factor < 1, f"recovery.factor={factor}: expected 0 < factor < 1, to make the step size smaller")
    first, last = config.watch.profile_first, config.watch.profile_last
    require(
        (first is None and last is None) or (first is not None and last is not None and 1 <= first <= last),
        f"watch.profile_first={first}, watch.profile_last={last}: expected steps 1 <= first <= last; set both, or none",
    )
    require(config.data.channels in (1, 3), f"data.channels={config.data.channels}: expected 3, or 1 for grey images")


def _check_optimizers(config: Config) -> None:
    for section, optimizer in (("optimizer", config.optimizer), ("aux_optimizer", config.aux_optimizer)):
        require(optimizer.learning_rate > 0, f"{section}.learning_rate={optimizer.learning_rate}: expected > 0")
        require(0 <= optimizer.momentum < 1, f"{section}.momentum={optimizer.momentum}: expected 0 <= momentum < 1")
        require(optimizer.weight_decay >= 0, f"{section}.weight_decay={optimizer.weight_decay}: expected >= 0")
        require(
            optimizer.clip_norm is None or optimizer.clip_norm > 0,
            f"{section}.clip_norm={optimizer.clip_norm}: expected > 0; leave it unset not to clip",
        )
        require(
            0 <= optimizer.warmup_epochs < config.num_epochs,
            f"{section}.warmup_epochs={optimizer.warmup_epochs}: expected from 0 to less than "
            f"num_epochs={config.num_epochs}; shorten the warm-up",
        )
        require(
            (optimizer.schedule == "step") == bool(optimizer.step_epochs),
            f"{section}.step_epochs={optimizer.step_epochs} with schedule={optimizer.schedule}: "
            f"step_epochs belong to schedule=step, which needs at least one",
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
        len(phases.epochs) == max(len(phases.methods) - 1, 0)
        and all(a < b for a, b in itertools.pairwise((0.0, *phases.epochs, float(config.num_epochs)))),
        f"phases.methods={phases.methods}, phases.epochs={phases.epochs}: expected the epoch at which each method but "
        f"the first begins, increasing, between 0 and num_epochs={config.num_epochs}",
    )
    require(
        not (phases.methods and start.optimizer),
        "start.optimizer=True with phases.methods: the other run's step would be in the middle of a phase; start from "
        "its weights alone, or name the phases' methods one run after the other",
    )
