"""python -m lpjax.export --config=FILE [--config.field=value ...] --workdir=RUN --output=DIR [--step=N]

Writes the composed network of a run's checkpoint, without AuxNet and with recalibrated batch-norm statistics, as a
model that can be used without lpjax (`model_file`).  Start it with the run's own configuration.

Exit codes: 0 done; 1 a fault of lpjax or of the system; 2 bad configuration, data, checkpoint or output folder.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import export
from jax.export import Exported
from jax.tree_util import keystr
from jaxtyping import Array, PyTree
from rich.console import Console

from lpjax import cli
from lpjax.config.load import from_config_dict
from lpjax.config.schema import Config
from lpjax.data import images
from lpjax.data.feed import Resident
from lpjax.export import fold, model_card, model_file
from lpjax.export.model_file import Description
from lpjax.methods import METHODS
from lpjax.methods.base import Method
from lpjax.network.network import composed
from lpjax.nn import chain
from lpjax.nn.chain import Mode
from lpjax.parallel import platform
from lpjax.state.train_state import TrainState
from lpjax.training import evaluate, resume
from lpjax.training.run import Run, prepare

PLATFORMS = ("cpu", "cuda", "tpu")

_OUTPUT = flags.DEFINE_string("output", None, "Folder for the model: a new one, or empty.")
_STEP = flags.DEFINE_integer("step", None, "Of the checkpoint; the last one if not given.")
_FOLD = flags.DEFINE_bool("fold_batch_norm", False, "Fold batch norms into the convolutions before them.")

Trees = tuple[PyTree, ...]
"""One tree a stage."""


def write(folder: Path, run: Run, params: Trees, stats: Trees, *, fold_batch_norm: bool = False, **known: Any) -> None:
    """Write a composed network (see `composed_trees`) to `folder`.

    known: of its state, for the card: `step`, `test_accuracy`.
    Raises ValueError where the folder is not free, or for a network that `jax.export` cannot export.
    """
    program = make_program(run, params, stats)
    if fold_batch_norm:
        params, stats, count = fold.fold(run.network, params, stats)
        program, unfolded = make_program(run, params, stats), program
        known["folded_batch_norms"] = count
        known["logits_changed_by"] = _largest_difference(run, program, unfolded)
    description = describe(run, **known)
    arrays = named_arrays(run, params, stats)
    model_file.write(folder, description, program, arrays, model_card.text(description, arrays))


def composed_trees(run: Run, state: TrainState) -> tuple[Trees, Trees]:
    """Parameters and recalibrated statistics of the composed network, in host memory."""
    assert run.feed is not None, "a dry run reads no data"
    state = evaluate.replicated(state, run.mesh)
    stats = evaluate.make_calibrate(run.network, run.config, run.mesh, run.step_inputs)(state, run.feed)
    return jax.device_get((run.network.params.unpack_all(state.stage_params), stats))


def make_program(run: Run, params: Trees, stats: Trees) -> Exported:
    """uint8 images [b, H, W, C] -> float32 logits [b, classes], for any b, as one program for all `PLATFORMS`."""
    params, stats = jax.tree.map(jnp.asarray, (params, stats))

    def one(image: Array) -> Array:
        """Logits of one image, so that a unit may ask for len(x): the b that `vmap` adds is a symbol, not a number."""
        x = run.step_inputs.normalised(image[None])
        return composed(run.network, params, stats, x, Mode(train=False))[0][0].astype(jnp.float32)

    shape = jax.ShapeDtypeStruct((*export.symbolic_shape("b"), *run.spec.image_shape), jnp.uint8)
    try:
        return export.export(jax.jit(jax.vmap(one)), platforms=PLATFORMS)(shape)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"model.function={run.config.model.function}: the network cannot be exported by jax.export for "
            f"{', '.join(PLATFORMS)}; change the unit at fault: {error}"
        ) from error


def named_arrays(run: Run, params: Trees, stats: Trees) -> dict[str, np.ndarray]:
    """The composed network's arrays by name.

    units.POSITION.PATH and units.POSITION.stats.PATH of each unit of the network; interfaces.POSITION.mean and .var of
    the standardisation before unit POSITION, where the network was cut.
    """
    arrays: dict[str, np.ndarray] = {}

    def add(prefix: str, tree: PyTree) -> None:
        for path, leaf in jax.tree.leaves_with_path(tree):
            arrays[f"{prefix}.{keystr(path, simple=True, separator='.')}"] = np.asarray(leaf)

    for stage, stage_params, stage_stats in zip(run.network.stages, params, stats, strict=True):
        units = zip(chain.unstack(stage, stage_params), chain.unstack(stage, stage_stats), strict=True)
        for position, (unit_params, unit_stats) in enumerate(units, stage.offset):
            if position in run.network.cuts and position > stage.offset:  # what `partition.split` put there
                add(f"interfaces.{position}", unit_stats)
            else:
                add(f"units.{position}", unit_params)
                add(f"units.{position}.stats", unit_stats)
    return arrays


def describe(run: Run, **known: Any) -> Description:
    """A model of this run; `known` goes into its provenance."""
    spec, config, (mean, std) = run.spec, asdict(run.config), run.moments
    del config["data"]["dir"], config["start"]["workdir"]  # places on this machine
    return Description(
        class_names=spec.class_names or tuple(map(str, range(spec.classes))),
        image_shape=spec.image_shape,
        crop=1.0 if isinstance(run.feed, Resident) else images.CENTRE_SHARE,  # small images are trained on whole
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        provenance={
            **known,
            "methods": [_in_words(METHODS[name], run.config) for name in run.config.all_methods],
            "num_train": spec.num_train,
            "num_test": spec.num_test,
            "config": config,
            "versions": platform.versions(),
        },
    )


def _in_words(method: Method, config: Config) -> str:
    """Such as "delayed gradients (arXiv:1804.10574), variant fdg"."""
    source = f" ({method.paper})" if method.paper else ""
    settings = "".join(f", {name.replace('_', ' ')} {value}" for name, value in method.settings(config).items())
    return f"{method.title}{source}{settings}"


def _largest_difference(run: Run, one: Exported, other: Exported) -> float:
    """Between the logits of two programs on a batch of training images."""
    assert run.feed is not None, "a dry run reads no data"
    batch = jax.device_get(next(run.feed.sample(1)).image)
    return float(np.abs(np.subtract(*(jax.jit(program.call)(batch) for program in (one, other)))).max())


def _restored(run: Run, workdir: Path, step: int | None) -> tuple[TrainState, int, float | None]:
    """The state of a checkpoint, its step, and its test accuracy if it was evaluated."""
    state, step, meta = resume.load(run, workdir, step)
    return state, step, (meta.get("evaluation") or {}).get("test_accuracy")


def run_cli(argv: list[str]) -> int:
    """Export the newest good checkpoint of a workdir, or the one asked for; returns the exit code."""
    console = Console(soft_wrap=not sys.stdout.isatty())
    errors = Console(stderr=True, soft_wrap=True, style="red", highlight=False, markup=False)
    try:
        fields, workdir = cli.parse(argv)
        config = from_config_dict(fields)
        if _OUTPUT.value is None:
            raise ValueError("--output is missing: expected a folder for the model, e.g. --output=model")
        if config.dry_run:
            raise ValueError("dry_run=True: the batch-norm statistics are found on training data; leave it out")
        output = Path(_OUTPUT.value)
        model_file.check_free(output)
        platform.provide_devices(config.mesh_shape[0] * config.mesh_shape[1])
        run = prepare(config)
        state, step, accuracy = _restored(run, workdir, _STEP.value)
        trees = composed_trees(run, state)
        write(output, run, *trees, fold_batch_norm=_FOLD.value, step=step, test_accuracy=accuracy)
    except (ValueError, OSError) as error:
        errors.print(f"lpjax: {error}")
        return cli.EXIT_BAD_INPUT
    except KeyboardInterrupt:
        errors.print("lpjax: interrupted; nothing was written")
        return cli.EXIT_INTERRUPTED
    console.print(
        f"{output}: the network of step {step}; try: python -m lpjax.predict --model={output} IMAGES", markup=False
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(sys.argv))
