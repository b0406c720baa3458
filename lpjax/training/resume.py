"""Where a run starts: at its first step, at its own last good checkpoint, or with what another run has learnt.

A run is resumed by the same command.  What decides its numbers (`identity`) must be what it was; what does not, such as
the mesh or how often it is tested, may change.
"""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from lpjax.config.command_line import local_path
from lpjax.methods import METHODS, phases
from lpjax.parallel import platform, processes
from lpjax.state import canonical
from lpjax.state.step_inputs import StepInputs
from lpjax.state.train_state import Stored, TrainState
from lpjax.training import checkpoint, identity
from lpjax.training.run import Run, with_method
from lpjax.training.workdir import WorkdirError

Say = Callable[[str], None]
_KEPT = "kept."


@dataclass(frozen=True, eq=False)
class Start:
    """What the first step of a process finds.

    Attributes:
      state: Of the run, on its devices.
      step: Steps done.
      feed: Where each process's training batches are; None for their beginning.
      meta: Of the checkpoint, see `lpjax.training.loop`; empty without one.
      kept: Arrays of the AuxNet for the checkpoints of a phase whose method has none, should a later one return to it.
    """

    state: TrainState
    step: int = 0
    feed: list[dict[str, Any]] | None = None
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    kept: canonical.Arrays = dataclasses.field(default_factory=dict)


def checkpoints(workdir: Path) -> Path:
    """The folder of a run's checkpoints."""
    return workdir / "checkpoints"


def find(run: Run, workdir: Path, say: Say) -> checkpoint.Saved | None:
    """Find the newest good checkpoint of a run's own workdir; damaged ones are said and set aside.

    Args:
      run: The run.
      workdir: Its folder.
      say: Prints a line.

    Returns:
      The checkpoint; None where there is none.

    Raises:
      WorkdirError: The workdir holds another run, its checkpoint is of a step after the run's last one, or every
        checkpoint is damaged.
    """
    folder, saved, problem = checkpoints(workdir), None, None
    if processes.is_writer():
        try:
            saved, damaged = checkpoint.newest_good(folder)
            for step, reason in damaged.items():
                target = checkpoint.set_aside(folder, step)
                say(f"the checkpoint of step {step} {reason}; moved to {target}")
        except ValueError as error:
            problem = str(error)
    step, problem = processes.broadcast([saved and saved.step, problem])  # one process looks for all
    if problem:
        raise WorkdirError(problem)
    if step is None:
        return None
    saved = saved or checkpoint.read(folder, step)
    identity.check_same(saved.meta["identity"], run, workdir)
    if saved.step > run.num_steps:
        raise WorkdirError(
            f"num_steps={run.num_steps}: the checkpoint in {workdir} is of step {saved.step}; expected at least that, "
            f"or another --workdir"
        )
    return saved


def begin(run: Run, saved: checkpoint.Saved | None, say: Say) -> Start:
    """Make the start of a run: from its own checkpoint if there is one, or by `config.start`.

    Args:
      run: The run, in its phase.
      saved: Its checkpoint.
      say: Prints a line.

    Raises:
      WorkdirError: `start.workdir` has no checkpoint that fits.
    """
    if saved is None:
        return Start(run.create()) if run.config.start.workdir is None else from_other(run, say)
    say(f"going on from the checkpoint of step {saved.step}")
    was, now = saved.meta["versions"], platform.versions()
    changed = ", ".join(f"{name} {was.get(name)} -> {now[name]}" for name in now if was.get(name) != now[name])
    if changed:
        say(f"the checkpoint was made with other versions ({changed}): the numbers may part by rounding")
    arrays = {name.removeprefix(_KEPT): value for name, value in saved.arrays.items()}
    state, fresh, left = restore(run, arrays)
    kept = [n for n in left if n.startswith(("aux.params.", "aux.stats.")) and run.config.phases.by != "epochs"]
    if saved.meta["method"] != run.config.method:  # another phase
        why = phases.reason(run.config.phases, phases.saved(saved.meta))
        say(f"from {saved.meta['method']} to {run.config.method} after step {saved.step}{why}")
        _say_news(fresh, [name for name in left if name not in kept], say)
        state = _at_step(run, state, saved)
    else:
        assert not fresh, f"not in the checkpoint: {fresh}"
    return Start(state, saved.step, saved.meta["feed"], saved.meta, {_KEPT + name: arrays[name] for name in kept})


def restore(run: Run, arrays: canonical.Arrays) -> tuple[TrainState, list[str], list[str]]:
    """Make a state of the arrays that the run has by the same name and shape, and of its own first values elsewhere.

    Args:
      run: The run.
      arrays: By name, of a checkpoint.

    Returns:
      The state, the names of its arrays with first values, and those of the arrays that were left over.
    """
    new = run.create()
    shardings = jax.tree.map(lambda leaf: leaf.sharding, new)
    first = _tree(run, new)
    jax.tree.map(lambda leaf: leaf.delete(), new)  # two states might not fit
    own = canonical.named(first)
    fits = {name for name, value in own.items() if name in arrays and arrays[name].shape == value.shape}
    leaves = [arrays[name].astype(value.dtype) if name in fits else value for name, value in own.items()]
    tree = jax.tree.unflatten(jax.tree.structure(first), leaves)
    if "ema" in tree["network"] and not any(name.startswith("network.ema.") for name in fits):
        tree["network"]["ema"] = tree["network"]["params"]  # an average starts at the weights that training starts at
    state = canonical.from_tree(tree, run.network, run.config.method, _stored(run))
    state, fresh, left = canonical.place(state, shardings), own.keys() - fits, arrays.keys() - fits
    carried, carry = METHODS[run.config.method].carry(run.network, run.config), _of_carry(own.keys())
    if carried and carried.again and _of_carry(fresh) and _of_carry(fits):  # on another mesh
        state = _carry_again(run, state, carried.again)
        fresh, left = fresh - carry, left - carry
    return state, sorted(fresh), sorted(left)


def _of_carry(names: Iterable[str]) -> set[str]:
    return {name for name in names if name.startswith("carry.")}


def _carry_again(run: Run, state: TrainState, again: Callable[[StepInputs, TrainState], PyTree]) -> TrainState:
    """A state with its carry as `Carried.again` has it."""
    specs = METHODS[run.config.method].specs(run.network, run.config)
    on_mesh = jax.shard_map(
        partial(again, run.step_inputs), mesh=run.mesh, in_specs=(specs,), out_specs=specs.carry, check_vma=False
    )
    return dataclasses.replace(state, carry=jax.jit(on_mesh)(state))


def from_other(run: Run, say: Say) -> Start:
    """Make the start of a new run from another one's checkpoint, by `config.start`.

    Args:
      run: The new run.
      say: Prints a line.

    Raises:
      WorkdirError: There is no such checkpoint, it is damaged, or of another network.
    """
    config = run.config.start
    workdir = local_path(config.workdir or "")
    saved = _read(workdir, config.step, "start.workdir")
    arrays = {name.removeprefix(_KEPT): value for name, value in saved.arrays.items()}
    state, fresh, left = restore(run, {n: a for n, a in arrays.items() if config.optimizer or _is_weight(n)})
    others = [name for name in (*fresh, *left) if name.startswith("network.params.")]
    if others:
        raise WorkdirError(
            f"start.workdir={workdir}: another network: {len(others)} arrays of parameters are not in both or are of "
            f"other shapes, such as {others[0]}; expected the same model ({run.config.model.function})"
        )
    was, now = identity.understood(saved.meta["identity"]), identity.identity(run)
    if run.given.standardise is None and was["standardise"] != now["standardise"]:
        raise WorkdirError(
            f"start.workdir={workdir}: another network: its interfaces have standardise={was['standardise']}, those of "
            f"this run {now['standardise']}, as it is unset and method={', '.join(run.config.all_methods)}; set "
            f"--config.standardise={was['standardise']} to go on with that network, {now['standardise']} to change it"
        )
    say(f"starting from step {saved.step} of {workdir}")
    if difference := identity.other_classes(was, now):
        say(f"its outputs were other classes ({difference}): they are learnt anew")
    _say_news([name for name in fresh if config.optimizer or _is_weight(name)], left, say)
    if not config.optimizer:
        return Start(state)
    state = _at_step(run, state, saved)
    same_data = all(was.get(name) == now[name] for name in ("batch_size", "data.name", "data set: num_train"))
    if not same_data:
        say("other data or batch size: the row of batches starts at its beginning")
    return Start(state, saved.step, saved.meta["feed"] if same_data else None)


def _at_step(run: Run, state: TrainState, saved: checkpoint.Saved) -> TrainState:
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
    return jax.tree.map(lambda x: jnp.full_like(x, count) if jnp.issubdtype(x.dtype, jnp.integer) else x, optimizer)


def _is_weight(name: str) -> bool:
    return name.startswith(("network.params", "network.stats", "aux.params", "aux.stats")) or ".stats." in name


def _read(workdir: Path, step: int | None, field: str = "workdir") -> checkpoint.Saved:
    """A run's checkpoint, or the newest good one, changing nothing on disk; `field` names the workdir in errors."""
    folder = checkpoints(workdir)
    try:
        saved = checkpoint.newest_good(folder)[0] if step is None else checkpoint.read(folder, step)
    except ValueError as error:
        there = ", ".join(map(str, checkpoint.steps(folder))) or "none"
        at = "" if step is None else f"the checkpoint of step {step} "
        raise WorkdirError(f"{folder}: {at}{error}; there are those of steps: {there}") from error
    if saved is None:
        raise WorkdirError(f"{field}={workdir}: expected a run's workdir, there is no checkpoint in {folder}")
    return saved


def _say_news(fresh: list[str], left: list[str], say: Say) -> None:
    """Say a line for each part of a state among the names of its arrays."""
    for names, what in ((fresh, "starts fresh"), (left, "of the other run is not in this one")):
        for part in dict.fromkeys(map(_part, names)):
            say(f"{part} {what}")


def _part(name: str) -> str:
    """The part of a state that an array belongs to, in words."""
    words = name.split(".")
    if words[0] == "interface":
        return f"{words[2].replace('stats', 'standardisation')} of the interface at unit {words[1]}"
    if words[0] == "aux":
        piece = next((word for word in words if "-" in word), "")
        return f"AuxNet {words[1]}" + (f" beside units {piece}" if piece else "")
    return " ".join(words[:2])


def load(run: Run, workdir: Path, step: int | None = None) -> tuple[TrainState, int, dict[str, Any]]:
    """Load a run's checkpoint, changing nothing on disk.

    Args:
      run: The run.
      workdir: Its folder.
      step: Which checkpoint.  Unset: the newest good one.

    Returns:
      The state, the step that it is of, and the meta.

    Raises:
      WorkdirError: There is no such checkpoint, it is damaged, or of another run.
    """
    saved = _read(workdir, step)
    identity.check_same(saved.meta["identity"], run, workdir)
    return restore(with_method(run, saved.meta["method"]), saved.arrays)[0], saved.step, saved.meta


def snapshot(run: Run, state: TrainState) -> canonical.Arrays:
    """The named arrays of a state, for a checkpoint, on every process.

    One collective a slice of what is sharded between processes.
    """
    return {name: np.array(value) for name, value in canonical.named(_tree(run, state)).items()}


def _stored(run: Run) -> Stored | None:
    """The multipliers that the run's method keeps."""
    return METHODS[run.config.method].stores(run.network, run.config, run.step_inputs.num_examples)


def _tree(run: Run, state: TrainState) -> dict[str, Any]:
    """A state of the run as `canonical` names it, in host memory."""
    count = run.step_inputs.num_examples
    return canonical.to_tree(canonical.fetch(state), run.network, run.config.method, _stored(run), count)
