"""A trained network as a model folder: its program, its arrays by name, and its description."""

from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Float, PyTree, UInt8

from lpjax.config.schema import Config
from lpjax.data import images
from lpjax.errors import BadInput
from lpjax.export import fold, model_file
from lpjax.export.fold import Trees
from lpjax.methods import METHODS
from lpjax.methods.base import Method
from lpjax.network.network import composed
from lpjax.nn import chain
from lpjax.parallel import platform
from lpjax.state import canonical
from lpjax.state.train_state import TrainState
from lpjax.training import evaluate
from lpjax.training.run import Run

PLATFORMS = ("cpu", "cuda", "tpu")


def write(
    folder: Path, run: Run, params: Trees, stats: Trees, *, fold_batch_norm: bool = False, **provenance: Any
) -> None:
    """Write a composed network as a model folder.

    Args:
      folder: a new one, or an empty one.
      run: that the network is of.
      params: of the composed network, see `composed_trees`.
      stats: of its batch norms and standardisations, see there.
      fold_batch_norm: whether to fold batch norms into the convolutions before them, see `fold`.
      **provenance: what is known of the parameters, for the card: `step`, `test_accuracy`, `ema`.

    Raises:
      BadInput: where the folder is not free, or for a network that `jax.export` cannot export.
    """
    program = make_program(run, params, stats)
    if fold_batch_norm:
        params, stats, count = fold.fold(run.network, params, stats)
        unfolded, program = program, make_program(run, params, stats)
        batch = jax.device_get(next(run.data.sample(1)).image)
        before, after = (jax.jit(made.call)(batch) for made in (unfolded, program))
        provenance |= {"folded_batch_norms": count, "logits_changed_by": float(np.abs(after - before).max())}
    description = describe(run, **provenance)
    arrays = named_arrays(run, params, stats)
    model_file.write(folder, description, program, arrays, card(description, arrays))


def composed_trees(run: Run, state: TrainState) -> tuple[Trees, Trees]:
    """The parameters of the composed network and its recalibrated batch-norm statistics, in host memory.

    Args:
      run: that the state is of; its training images are read.
      state: from training.

    Returns:
      The parameters and the statistics, each one tree a stage.
    """
    state = evaluate.replicated(state, run.mesh)
    stats = evaluate.make_calibrate(run.network, run.config, run.mesh, run.step_inputs)(state, run.data)
    return jax.device_get((run.network.params.unpack_all(state.stage_params), stats))


def make_program(run: Run, params: Trees, stats: Trees) -> export.Exported:
    """The composed network as one program for all `PLATFORMS`.

    Args:
      run: that the network is of.
      params: its parameters.
      stats: its statistics.

    Returns:
      uint8 images [b, H, W, C] -> float32 logits [b, classes], for any b; normalisation is part of it.  Of text uint8
      bytes [b, T] -> float32 logits [b, T, classes].

    Raises:
      BadInput: where `jax.export` cannot export the network.
    """
    params, stats = jax.tree.map(jnp.asarray, (params, stats))

    def logits(image: UInt8[Array, "..."]) -> Float[Array, "..."]:
        """Of one example, so that a unit may ask for len(x): the b that `vmap` adds is a symbol, not a number."""
        x = run.step_inputs.normalised(image[None])
        return composed(run.network, params, stats, x, chain.Mode(train=False))[0][0].astype(jnp.float32)

    shape = jax.ShapeDtypeStruct((*export.symbolic_shape("b"), *run.spec.image_shape), jnp.uint8)
    try:
        return export.export(jax.jit(jax.vmap(logits)), platforms=PLATFORMS)(shape)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise BadInput(
            f"model.function={run.config.model.function}: the network cannot be exported by jax.export for "
            f"{', '.join(PLATFORMS)}; change the unit at fault: {error}"
        ) from error


def named_arrays(run: Run, params: Trees, stats: Trees) -> dict[str, np.ndarray]:
    """The composed network's arrays by name.

    Args:
      run: that the network is of.
      params: its parameters.
      stats: its statistics.

    Returns:
      units.POSITION.PATH and units.POSITION.stats.PATH of each unit of the network; interfaces.POSITION.mean and .var
      of the standardisation before unit POSITION, where the network was cut.
    """
    trees: dict[str, PyTree] = {}
    for stage, stage_params, stage_stats in zip(run.network.stages, params, stats, strict=True):
        units = zip(chain.unstack(stage, stage_params), chain.unstack(stage, stage_stats), strict=True)
        for position, (unit_params, unit_stats) in enumerate(units, int(stage.offset)):
            if position in run.network.cuts and position > stage.offset:  # what `partition.split` put there
                trees[f"interfaces.{position}"] = unit_stats
            else:
                trees |= {f"units.{position}": unit_params, f"units.{position}.stats": unit_stats}
    return canonical.named(trees)


def describe(run: Run, **provenance: Any) -> model_file.Description:
    """What a model folder says of a run's network.

    Args:
      run: with its configuration, data set and normalisation.
      **provenance: more of where the parameters are from.
    """
    spec, config, (mean, std) = run.spec, asdict(run.config), run.moments if run.spec.task.images else ((), ())
    del config["data"]["dir"], config["start"]["workdir"]  # places on this machine
    return model_file.Description(
        class_names=spec.class_names or tuple(map(str, range(spec.classes))),
        image_shape=spec.image_shape,
        crop=images.CENTRE_SHARE if spec.cropped else 1.0,  # small images are trained on whole
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        provenance={
            **provenance,
            "methods": [_in_words(METHODS[name], run.config) for name in run.config.all_methods],
            "num_train": spec.num_train,
            "num_test": spec.num_test,
            **({"data_sha256": spec.sha256} if spec.sha256 else {}),
            "config": config,
            "versions": platform.versions(),
        },
    )


def _in_words(method: Method, config: Config) -> str:
    """Such as "delayed gradients (arXiv:1804.10574), variant fdg"."""
    source = f" ({method.paper})" if method.paper else ""
    settings = "".join(f", {name.replace('_', ' ')} {value}" for name, value in method.settings(config).items())
    return f"{method.title}{source}{settings}"


# ---------------------------------------------------------------------------------------------------------- model card


def card(description: model_file.Description, arrays: Mapping[str, np.ndarray]) -> str:
    """The model card, in Markdown.

    Args:
      description: of the model.
      arrays: its parameters and statistics by name.
    """
    known, config = description.provenance, description.provenance["config"]
    names, accuracy, channels = description.class_names, known.get("test_accuracy"), description.image_shape[-1]
    examples, batch_norm = "windows of text" if description.is_text else "images", "as trained, not folded"
    if "folded_batch_norms" in known:
        batch_norm = (
            f"{known['folded_batch_norms']} folded into the convolutions before them (others come after an addition, "
            f"or before their convolution); logits of training images changed by {known['logits_changed_by']:.1e} at "
            f"most"
        )
    name = "text_card.md" if description.is_text else "card.md"
    template = resources.files("lpjax.export").joinpath(name).read_text()
    return template.format(
        config=config,
        versions=known["versions"],
        shape=description.image_shape,
        crop=description.crop,
        title=config["model"]["function"].rpartition(":")[2],
        arguments=", ".join(f"{name}={value}" for name, value in config["model"]["arguments"].items()),
        colours={1: "grey", 3: "RGB"}.get(channels, f"{channels} channels"),
        classes=len(names),
        class_names=", ".join(names[:20]) + (f", .. ({len(names)} in all)" if len(names) > 20 else ""),
        size=sum(a.size for name, a in arrays.items() if name.startswith("units.") and name.split(".")[2] != "stats"),
        accuracy="not known" if accuracy is None else f"{accuracy:.4f} on {known['num_test']:,} {examples}",
        batch_norm=batch_norm,
        methods=", then ".join(known["methods"]),
        step=known.get("step", "not known"),
        weights=f" Moving average of the weights, decay {config['ema_decay']:g}." if known.get("ema") else "",
    )
