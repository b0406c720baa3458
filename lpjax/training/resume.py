"""Where a run starts: at its first step, at its own last good checkpoint, or with what another run has learnt.

A run is resumed by the same command.  What decides its numbers (`identity`) must be what it was; what does not, such as
the mesh or how often it is tested, may change.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from lpjax import methods
from lpjax.config import named
from lpjax.config.load import from_config_dict
from lpjax.config.schema import Config
from lpjax.methods import METHODS
from lpjax.parallel import platform, processes
from lpjax.state import canonical
from lpjax.state.canonical import Arrays
from lpjax.state.train_state import Stored, TrainState
from lpjax.training import checkpoint
from lpjax.training.checkpoint import Saved
from lpjax.training.run import Run, with_method
from lpjax.training.workdir import WorkdirError

FREE = (
    "checkpoint",
    "data.dir",
    "data.max_corrupt",
    "data.prefetch",
    "data.threads",
    "diagnose_every",
    "dry_run",
    "eval",
    "log_every",
    "mesh",
    "num_steps",
    "recovery",
    "start",
    "watch",
)
"""Fields of the configuration (and sections) that a resumed run may change."""

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Start:
    """What the first step of a process finds.

    step: steps done.  feed: where each process's training batches are, or None for their beginning.
    meta: of the checkpoint, see `train`; empty without one.
    """

    state: TrainState
    step: int = 0
    feed: list[dict[str, Any]] | None = None
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


def checkpoints(workdir: Path) -> Path:
    """The folder of a run's checkpoints."""
    return workdir / "checkpoints"


def identity(run: Run) -> dict[str, Any]:
    """What decides a run's numbers, as JSON has it: names to values."""
    free = tuple(f"{name}." for name in FREE)
    config = {name: value for name, value in _flat(dataclasses.asdict(run.config)) if not f"{name}.".startswith(free)}
    spec = {
        f"data set: {name}": getattr(run.spec, name) for name in ("image_shape", "classes", "num_train", "num_test")
    }
    if run.config.phases.methods:
        del config["method"]  # it is the phase's
    found = {**config, **spec, "cuts": run.network.cuts, "precision": str(jnp.result_type(float))}
    return json.loads(json.dumps(found))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def understood(saved: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's identity as this version of lpjax writes it.

    Functions have the names that they go by, what was unset is filled in as `methods.resolve` does, and a field that an
    earlier version did not have is at its default, which means what runs did without it.
    """
    functions = {name: named.canonical_name(saved[name]) for name in ("model.function", "aux.function")}
    saved = dict(_flat(dataclasses.asdict(Config()))) | saved | functions
    values: dict[str, Any] = {}
    for name, value in saved.items():
        *sections, field = name.removeprefix("model.arguments.").split(".")
        section = values
        for part in ["model"] if name.startswith("model.arguments.") else sections:
            section = section.setdefault(part, {})
        section[field] = value
    known = {name: value for name, value in values.items() if hasattr(Config, name) or name in Config.__annotations__}
    filled = dict(_flat(dataclasses.asdict(methods.filled_in(from_config_dict(known)))))
    saved = {name: filled.get(name) if value is None else value for name, value in saved.items()}
    free = tuple(f"{name}." for name in FREE)
    return json.loads(json.dumps({n: value for n, value in saved.items() if not f"{n}.".startswith(free)}))


def check_same(saved: dict[str, Any], run: Run, workdir: Path) -> None:
    """Raises WorkdirError listing what was otherwise when the checkpoint was made."""
    saved, now = understood(saved), identity(run)
    names = sorted(name for name in saved.keys() | now.keys() if saved.get(name) != now.get(name))
    if names:
        listed = "; ".join(f"{name}: {saved.get(name)!r} in the checkpoint, {now.get(name)!r} now" for name in names)
        raise WorkdirError(
            f"workdir={workdir} holds another run: {listed}. Give the new run another --workdir (with "
            f"--config.start.workdir={workdir} it starts from this one's weights), or --restart to move this one aside"
        )


def find(run: Run, workdir: Path, say: Say) -> Saved | None:
    """The newest good checkpoint of a run's own workdir, if there is any; damaged ones are said and set aside.

    One process looks, and all take the step it found.  Raises WorkdirError where the workdir holds another run or every
    checkpoint is damaged.
    """
    folder, saved = checkpoints(workdir), None
    found: dict[str, Any] = {}
    if processes.is_writer():
        try:
            saved, damaged = checkpoint.newest_good(folder)
            for step, reason in damaged.items():
                target = checkpoint.set_aside(folder, step)
                say(f"the checkpoint of step {step} {reason}; moved to {target}")
            found = {"step": saved and saved.step}
        except ValueError as error:
            found = {"error": str(error)}
    found = processes.broadcast(found)
    if "error" in found:
        raise WorkdirError(found["error"])
    if found["step"] is None:
        return None
    saved = saved or checkpoint.read(folder, found["step"])
    check_same(saved.meta["identity"], run, workdir)
    if saved.step > run.num_steps:
        raise WorkdirError(
            f"num_steps={run.num_steps}: the checkpoint in {workdir} is of step {saved.step}; expected at least that, "
            f"or another --workdir"
        )
    return saved


def begin(run: Run, saved: Saved | None, say: Say) -> Start:
    """The start of a run: from its own checkpoint if there is one, or by `config.start`.

    Raises WorkdirError where `start.workdir` has no checkpoint that fits.
    """
    if saved is None:
        return Start(run.create()) if run.config.start.workdir is None else from_other(run, say)
    versions = {
        name: (was, now)
        for name, now in platform.versions().items()
        if (was := saved.meta["versions"].get(name)) != now
    }
    say(f"going on from the checkpoint of step {saved.step}")
    if versions:
        changed = ", ".join(f"{name} {was} -> {now}" for name, (was, now) in versions.items())
        say(f"the checkpoint was made with other versions ({changed}): the numbers may part by rounding")
    state, fresh, left = restore(run, saved.arrays)
    if saved.meta["method"] != run.config.method:  # another phase
        say(f"from {saved.meta['method']} to {run.config.method} after step {saved.step}")
        _say_news(fresh, left, say)
        state = _at_step(run, state, saved)
    else:
        assert not fresh, f"not in the checkpoint: {fresh}"
    return Start(state, saved.step, saved.meta["feed"], saved.meta)


def restore(run: Run, arrays: Arrays) -> tuple[TrainState, list[str], list[str]]:
    """A state of the arrays that the run has by the same name and shape, and of its own first values for the others.

    Returns it with the names of those others, and of the arrays that were left over.
    """
    new = run.create()
    shardings = jax.tree.map(lambda leaf: leaf.sharding, new)
    first = _tree(run, new)
    jax.tree.map(lambda leaf: leaf.delete(), new)  # two states might not fit
    own = canonical.named(first)
    fits = {name for name, value in own.items() if name in arrays and arrays[name].shape == value.shape}
    leaves = [arrays[name].astype(value.dtype) if name in fits else value for name, value in own.items()]
    tree = jax.tree.unflatten(jax.tree.structure(first), leaves)
    state = canonical.from_tree(tree, run.network, run.config.method, _stored(run))
    return canonical.place(state, shardings), sorted(own.keys() - fits), sorted(arrays.keys() - fits)


def from_other(run: Run, say: Say) -> Start:
    """A new run that starts from another one's checkpoint, by `config.start`."""
    config = run.config.start
    workdir = Path(config.workdir or "")
    folder = checkpoints(workdir)
    saved = _read(folder, config.step)
    if saved is None:
        raise WorkdirError(f"start.workdir={workdir}: expected a run's workdir, there is no checkpoint in {folder}")
    kept = saved.arrays if config.optimizer else {n: a for n, a in saved.arrays.items() if _is_weight(n)}
    state, fresh, left = restore(run, kept)
    others = [name for name in (*fresh, *left) if name.startswith("network.params.")]
    if others:
        raise WorkdirError(
            f"start.workdir={workdir}: another network: {len(others)} arrays of parameters are not in both or are of "
            f"other shapes, such as {others[0]}; expected the same model ({run.config.model.function})"
        )
    was, now = understood(saved.meta["identity"]), identity(run)
    if run.given.standardise is None and was["standardise"] != now["standardise"]:
        raise WorkdirError(
            f"start.workdir={workdir}: another network: its interfaces have standardise={was['standardise']}, those of "
            f"this run {now['standardise']}, as it is unset and method={', '.join(run.config.all_methods)}; set "
            f"--config.standardise={was['standardise']} to go on with that network, {now['standardise']} to change it"
        )
    say(f"starting from step {saved.step} of {workdir}")
    _say_news([name for name in fresh if config.optimizer or _is_weight(name)], left, say)
    if not config.optimizer:
        return Start(state)
    state = _at_step(run, state, saved)
    same_data = all(was.get(name) == now[name] for name in ("batch_size", "data.name", "data set: num_train"))
    if not same_data:
        say("other data or batch size: the row of batches starts at its beginning")
    return Start(state, saved.step, saved.meta["feed"] if same_data else None)


def _at_step(run: Run, state: TrainState, saved: Saved) -> TrainState:
    """A state of another method's checkpoint with what goes by the step as this method would have it."""
    count = saved.step * run.config.aux.inner_steps
    state = dataclasses.replace(state, penalty_coef=jax.jit(run.step_inputs.penalty_coef)(state.step))
    if not any(name.startswith("aux.params.") for name in saved.arrays):
        state = dataclasses.replace(state, aux_opt=_counted(state.aux_opt, count))
    carried = METHODS[run.config.method].carry(run.network, run.config)
    if carried and not any(name.startswith(f"carry.{run.config.method}-") for name in saved.arrays):
        own = {name: _counted(getattr(state.carry, name), count) for name in carried.optimizers}
        state = dataclasses.replace(state, carry=dataclasses.replace(state.carry, **own))
    return state


def _counted(optimizer: PyTree, count: int) -> PyTree:
    """An optimiser's state with its counters set: the AuxNet's schedule is of the run's steps, whenever it joins."""

    def counted(leaf: jax.Array) -> jax.Array:
        return jnp.full_like(leaf, count) if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf

    return jax.tree.map(counted, optimizer)


def _is_weight(name: str) -> bool:
    return name.startswith(("network.params", "network.stats", "aux.params", "aux.stats")) or ".stats." in name


def _read(folder: Path, step: int | None) -> Saved | None:
    """A checkpoint, or the newest good one, changing nothing on disk."""
    try:
        if step is None:
            return checkpoint.newest_good(folder)[0]
        return checkpoint.read(folder, step)
    except ValueError as error:
        there = ", ".join(map(str, checkpoint.steps(folder))) or "none"
        at = "" if step is None else f"the checkpoint of step {step} "
        raise WorkdirError(f"{folder}: {at}{error}; there are those of steps: {there}") from error


def _say_news(fresh: list[str], left: list[str], say: Say) -> None:
    for text in (*_news(fresh, "starts fresh"), *_news(left, "of the other run is not in this one")):
        say(text)


def _news(names: list[str], what: str) -> list[str]:
    """A line for each part of a state among the names of its arrays."""
    parts: dict[str, None] = {}
    for name in names:
        words = name.split(".")
        if words[0] == "interface":
            parts[f"{words[2].replace('stats', 'standardisation')} of the interface at unit {words[1]}"] = None
        elif words[0] == "aux":
            piece = next((word for word in words if "-" in word), "")
            parts[f"AuxNet {words[1]}" + (f" beside units {piece}" if piece else "")] = None
        else:
            parts[" ".join(words[:2])] = None
    return [f"{part} {what}" for part in parts]


def load(run: Run, workdir: Path, step: int | None = None) -> tuple[TrainState, int, dict[str, Any]]:
    """State, step and meta of a run's checkpoint (unset step: the newest good one), changing nothing on disk.

    Raises WorkdirError where there is none, it is damaged, or of another run.
    """
    folder = checkpoints(workdir)
    saved = _read(folder, step)
    if saved is None:
        raise WorkdirError(f"workdir={workdir}: expected a run's workdir, there is no checkpoint in {folder}")
    check_same(saved.meta["identity"], run, workdir)
    state, _, _ = restore(with_method(run, saved.meta["method"]), saved.arrays)
    return state, saved.step, saved.meta


def snapshot(run: Run, state: TrainState) -> Arrays:
    """The named arrays of a state, on every process: one collective a slice of what is sharded between processes."""
    return {name: np.array(value) for name, value in canonical.named(_tree(run, state)).items()}


def _stored(run: Run) -> Stored | None:
    """The multipliers that the run's method keeps."""
    return METHODS[run.config.method].stores(run.network, run.config, run.step_inputs.num_examples)


def _tree(run: Run, state: TrainState) -> dict[str, Any]:
    """A state of the run as `canonical` names it, in host memory."""
    count = run.step_inputs.num_examples
    return canonical.to_tree(canonical.fetch(state), run.network, run.config.method, _stored(run), count)
