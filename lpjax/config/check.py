"""Whether a configuration can be run: raises before anything is compiled or allocated."""

import difflib
import itertools
import operator
from dataclasses import replace

from lpjax.config.schema import Config, MeshConfig, PhasesConfig
from lpjax.errors import BadInput
from lpjax.methods import METHODS

AT_LEAST = {
    "num_stages": 1,
    "seed": 0,
    "num_epochs": 1,
    "num_steps": 1,
    "batch_size": 1,
    "log_every": 1,
    "diagnose_every": 0,
    "pipeline.micro_batches": 1,
    "local.blocks": 0,
    "mesh.stage": 1,
    "mesh.data": 1,
    "data.crop": 0,
    "data.cutout": 0,
    "data.image_size": 1,
    "data.shrink": 1,
    "data.train_examples": 1,
    "data.validation_examples": 1,
    "data.threads": 1,
    "data.prefetch": 1,
    "data.max_corrupt": 0,
    "aux.grid": 1,
    "aux.tail": 0,
    "aux.inner_steps": 1,
    "aux.task_weight": 0,
    "aux.adjoint_weight": 0,
    "aux.correction_step": 0,
    "penalty.initial": 0,
    "penalty.growth": 0,
    "penalty.aux": 0,
    "penalty.multiplier_rate": 0,
    "penalty.sweeps": 0,
    "eval.every_epochs": 0,
    "eval.calibration_batches": 1,
    "checkpoint.every_steps": 0,
    "checkpoint.keep": 1,
    "checkpoint.keep_best": 0,
    "recovery.times": 1,
    "start.step": 0,
    "watch.heartbeat_seconds": 0,
    "watch.stall_seconds": 0,
}
"""Fields that may not be smaller; an unset one may be what it is."""


def check(config: Config) -> None:
    """Raises ValueError where fields contradict each other or are out of range."""
    _check_methods(config)
    _check_ranges(config)
    _check_optimizers(config)
    _check_mesh(config)
    _check_combinations(config)
    for method in config.phases.methods:
        check(replace(config, method=method, mesh=MeshConfig(*config.mesh_shape), phases=PhasesConfig()))


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise BadInput(message)


def _check_methods(config: Config) -> None:
    for name, methods in (("method", (config.method,)), ("phases.methods", config.phases.methods)):
        for method in methods:
            close = difflib.get_close_matches(method, METHODS, n=1)
            _require(
                method in METHODS,
                f"{name}={method!r}: expected one of {', '.join(METHODS)}"
                + (f"; did you mean {close[0]}?" if close else ""),
            )


def _check_ranges(config: Config) -> None:
    for name, minimum in AT_LEAST.items():
        value = operator.attrgetter(name)(config)
        _require(value is None or value >= minimum, f"{name}={value}: expected at least {minimum}")
    _require(
        config.penalty.maximum is None or config.penalty.maximum >= config.initial_penalty_coef,
        f"penalty.maximum={config.penalty.maximum}: expected at least penalty.initial={config.initial_penalty_coef}",
    )
    share = config.aux.share
    _require(
        share is None or share > 0, f"aux.share={share}: expected > 0; leave it unset to choose aux.width yourself"
    )
    factor = config.recovery.factor
    _require(0 < factor < 1, f"recovery.factor={factor}: expected 0 < factor < 1, to make the step size smaller")
    first, last = config.watch.profile_first, config.watch.profile_last
    _require(
        (first is None and last is None) or (first is not None and last is not None and 1 <= first <= last),
        f"watch.profile_first={first}, watch.profile_last={last}: expected steps 1 <= first <= last; set both, or none",
    )
    _require(config.data.channels in (1, 3), f"data.channels={config.data.channels}: expected 3, or 1 for grey images")
    _require(
        0 < config.delayed.shrink <= 1, f"delayed.shrink={config.delayed.shrink}: expected 0 < shrink <= 1; 1 is none"
    )


def _check_optimizers(config: Config) -> None:
    for section, optimizer in (("optimizer", config.optimizer), ("aux_optimizer", config.aux_optimizer)):
        _require(optimizer.learning_rate > 0, f"{section}.learning_rate={optimizer.learning_rate}: expected > 0")
        _require(0 <= optimizer.momentum < 1, f"{section}.momentum={optimizer.momentum}: expected 0 <= momentum < 1")
        _require(optimizer.weight_decay >= 0, f"{section}.weight_decay={optimizer.weight_decay}: expected >= 0")
        _require(
            optimizer.clip_norm is None or optimizer.clip_norm > 0,
            f"{section}.clip_norm={optimizer.clip_norm}: expected > 0; leave it unset not to clip",
        )
        _require(
            0 <= optimizer.warmup_epochs < config.num_epochs,
            f"{section}.warmup_epochs={optimizer.warmup_epochs}: expected from 0 to less than "
            f"num_epochs={config.num_epochs}; shorten the warm-up",
        )
        _require(
            (optimizer.schedule == "step") == bool(optimizer.step_epochs),
            f"{section}.step_epochs={optimizer.step_epochs} with schedule={optimizer.schedule}: "
            f"step_epochs belong to schedule=step, which needs at least one",
        )


def _check_mesh(config: Config) -> None:
    stage, data = config.mesh_shape
    divisors = [s for s in range(1, config.num_stages + 1) if config.num_stages % s == 0]
    if config.staged:
        _require(
            config.num_stages % stage == 0,
            f"mesh.stage={stage}: expected a divisor of num_stages={config.num_stages}, so that every device holds "
            f"equally many stages; choose one of {divisors}",
        )
    _require(
        config.batch_size % (stage * data) == 0,
        f"batch_size={config.batch_size}: expected a multiple of mesh.stage * mesh.data = {stage} * {data} = "
        f"{stage * data}, so that every device owns equally many examples; the nearest above is "
        f"{-(-config.batch_size // (stage * data)) * stage * data}",
    )
    column, micro = config.batch_size // data, config.pipeline.micro_batches
    _require(
        config.method != "pipeline" or column % micro == 0,
        f"pipeline.micro_batches={micro}: expected a divisor of batch_size / mesh.data = {column}, so that "
        f"micro-batches are equal; choose another number",
    )


def _check_combinations(config: Config) -> None:
    _require(
        config.start.workdir is not None or (config.start.step is None and not config.start.optimizer),
        f"start.step={config.start.step}, start.optimizer={config.start.optimizer} without start.workdir: they choose "
        f"what is taken from another run; set start.workdir",
    )
    _require(
        not config.exchange.stale or config.penalty.sweeps == 0,
        f"exchange.stale=True with penalty.sweeps={config.penalty.sweeps}: a sweep waits for the stages, which is what "
        f"stale exchanges avoid; set one of them to its default",
    )
    phases = config.phases
    _require(
        len(phases.epochs) == max(len(phases.methods) - 1, 0)
        and all(a < b for a, b in itertools.pairwise((0.0, *phases.epochs, float(config.num_epochs)))),
        f"phases.methods={phases.methods}, phases.epochs={phases.epochs}: expected the epoch at which each method but "
        f"the first begins, increasing, between 0 and num_epochs={config.num_epochs}",
    )
    _require(
        not (phases.methods and config.start.optimizer),
        "start.optimizer=True with phases.methods: the other run's step would be in the middle of a phase; start from "
        "its weights alone, or name the phases' methods one run after the other",
    )
    _require(
        config.method != "layer_parallel"
        or config.multiplier != "per_example"
        or not (config.data.crop or config.data.flip or config.data.cutout),
        f"multiplier=per_example with data.crop={config.data.crop}, data.flip={config.data.flip}, "
        f"data.cutout={config.data.cutout}: a multiplier stored per example needs the example to be the same each "
        f"time; set data.crop=0, data.flip=False and data.cutout=0, or choose multiplier=mean or adjoint",
    )
    _require(
        config.method != "layer_parallel" or not config.aux.tied,
        "aux.tied=True with method=layer_parallel, whose AuxNet has a head of its own to learn with: choose "
        "method=coarse_adjoint, or leave aux.tied unset",
    )
    _require(
        config.multiplier != "adjoint" or config.aux.task_weight > 0,
        f"multiplier=adjoint with aux.task_weight={config.aux.task_weight}: the multiplier is the adjoint of the "
        f"AuxNet's own cross entropy, which must be trained; set aux.task_weight > 0",
    )
