"""The model card: the README.md of a model folder, from the template card.md."""

from collections.abc import Mapping
from importlib import resources
from typing import Any

import numpy as np

from lpjax.export.model_file import Description


def text(description: Description, arrays: Mapping[str, np.ndarray]) -> str:
    """The model card, in Markdown.

    Args:
      description: of the model.
      arrays: its parameters and statistics by name.
    """
    known, config = description.provenance, description.provenance["config"]
    height, width, channels = description.image_shape
    model, names, accuracy = config["model"], description.class_names, known.get("test_accuracy")
    card = resources.files("lpjax.export").joinpath("card.md").read_text()
    return card.format(
        title=model["function"].rpartition(":")[2],
        function=model["function"],
        arguments=", ".join(f"{name}={value}" for name, value in model["arguments"].items()),
        lpjax=known["versions"]["lpjax"],
        jax=known["versions"]["jax"],
        data=config["data"]["name"],
        height=height,
        width=width,
        channels=channels,
        colours={1: "grey", 3: "RGB"}.get(channels, f"{channels} channels"),
        classes=len(names),
        class_names=", ".join(names[:20]) + (f", .. ({len(names)} in all)" if len(names) > 20 else ""),
        size=sum(array.size for name, array in arrays.items() if _is_parameter(name)),
        accuracy="not known" if accuracy is None else f"{accuracy:.4f} on {known['num_test']:,} images",
        batch_norm=_batch_norm(known),
        crop=description.crop,
        training=_training(config, known),
    )


def _is_parameter(name: str) -> bool:
    return name.startswith("units.") and name.split(".")[2] != "stats"


def _batch_norm(known: Mapping[str, Any]) -> str:
    if "folded_batch_norms" not in known:
        return "as trained, not folded"
    return (
        f"{known['folded_batch_norms']} folded into the convolutions before them (others come after an addition, or "
        f"before their convolution); logits of training images changed by {known['logits_changed_by']:.1e} at most"
    )


def _training(config: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    method = ", then ".join(known["methods"])
    optimizer = config["optimizer"]
    return (
        f"By {method}, {config['num_stages']} stages: step {known.get('step', 'not known')} of a run of "
        f"{config['num_epochs']} epochs in batches of {config['batch_size']}, {optimizer['name']} with learning rate "
        f"{optimizer['learning_rate']:g} ({optimizer['schedule']}) and weight decay {optimizer['weight_decay']:g}, "
        f"seed {config['seed']}."
    )
