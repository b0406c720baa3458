"""What decides a run's numbers: a checkpoint has it, and a run goes on from its own only."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from lpjax import methods
from lpjax.config.load import from_config_dict
from lpjax.config.schema import Config
from lpjax.training.run import Run
from lpjax.training.workdir import WorkdirError

_SECTIONS = ("checkpoint", "eval", "mesh", "recovery", "start", "watch")
_DATA = ("data.dir", "data.max_corrupt", "data.prefetch", "data.threads")
_CLASS_NAMES = "data set: class_names"
FREE = (*_SECTIONS, *_DATA, "diagnose_every", "dry_run", "log_every", "num_steps", "pipeline.keep")
"""Fields of the configuration (and sections) that a resumed run may change."""


def identity(run: Run) -> dict[str, Any]:
    """What decides a run's numbers, for its checkpoints.

    Returns:
      Names to values, in JSON's types.
    """
    known = ("image_shape", "classes", "class_names", "num_train", "num_test")
    found = {f"data set: {name}": getattr(run.spec, name) for name in known}
    found |= {"data set: sha256": run.spec.sha256} if run.spec.sha256 else {}
    found |= {"cuts": run.network.cuts, "precision": str(jnp.result_type(float)), **_generator()}
    return _deciding(run.config, found)


def _generator() -> dict[str, Any]:
    """The random generator, as the environment chooses it."""
    names = ("jax_default_prng_impl", "jax_threefry_partitionable")
    return {name.upper(): getattr(jax.config, name) for name in names}


def _flat(config: Config) -> dict[str, Any]:
    return flatten_dict(dataclasses.asdict(config), sep=".")


def _deciding(config: Config, more: dict[str, Any]) -> dict[str, Any]:
    """A configuration and `more`, without what is free and sections that no method of it reads, in JSON's types.

    The method of a run in phases is the phase's.
    """
    values = _flat(config) | more
    read = {section for name in config.all_methods for section in methods.METHODS[name].sections(config)}
    phase = ["method"] if config.phases.methods else []
    free = tuple(f"{name}." for name in (*FREE, *(methods.METHODS.keys() - read), *phase))
    return json.loads(json.dumps({name: value for name, value in values.items() if not f"{name}.".startswith(free)}))


def understood(saved: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's identity as this version of lpjax writes it.

    Functions have the names that they go by, what was unset is filled in as `methods.resolve` does, and a field that an
    earlier version did not have is at its default, which means what runs did without it.

    Args:
      saved: As it stands in the checkpoint.
    """
    saved = {"JAX_DEFAULT_PRNG_IMPL": "threefry2x32", "JAX_THREEFRY_PARTITIONABLE": True} | saved
    values = unflatten_dict({name.replace("model.arguments.", "model."): saved[name] for name in saved}, sep=".")
    known = {field.name: values[field.name] for field in dataclasses.fields(Config) if field.name in values}
    filled = methods.filled_in(from_config_dict(known))
    return _deciding(filled, {name: saved[name] for name in saved.keys() - _flat(filled)})


def other_classes(was: dict[str, Any], now: dict[str, Any]) -> str:
    """Of two identities the first class that differs, in words; "" where none does, or one does not have them."""
    names = was.get(_CLASS_NAMES), now.get(_CLASS_NAMES)
    return _difference(_CLASS_NAMES, *names) if all(names) and names[0] != names[1] else ""


def _difference(name: str, was: Any, now: Any) -> str:
    """One difference in words: of class names, the first that is another."""
    if name == _CLASS_NAMES and was and now:
        position = next((i for i, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), min(len(was), len(now)))
        name, was, now = f"class {position}", *((names[position : position + 1] or [None])[0] for names in (was, now))
    return f"{name}: {was!r} in the checkpoint, {now!r} now"


def check_same(saved: dict[str, Any], run: Run, workdir: Path) -> None:
    """Check that a checkpoint is of a run of the same numbers.

    Args:
      saved: The checkpoint's identity.
      run: The run.
      workdir: Where the checkpoint is.

    Raises:
      WorkdirError: It is of another run; lists what differs.
    """
    now = identity(run)
    saved = {_CLASS_NAMES: now[_CLASS_NAMES]} | understood(saved)  # which earlier versions did not keep
    names = sorted(name for name in saved.keys() | now.keys() if saved.get(name) != now.get(name))
    if names:
        listed = "; ".join(_difference(name, saved.get(name), now.get(name)) for name in names)
        raise WorkdirError(
            f"workdir={workdir} holds another run: {listed}. Give the new run another --workdir (with "
            f"--config.start.workdir={workdir} it starts from this one's weights), or --restart to move this one aside"
        )
