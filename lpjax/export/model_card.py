"""The model card: the README.md of a model folder."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lpjax.export.model_file import ARRAYS, CHECKSUMS, DESCRIPTION, PROGRAM, Description

_CARD = """\
# {function} on {data}

{summary}

| | |
|---|---|
| input | uint8 images [b, {height}, {width}, {channels}], 0..255, {colours}; any b |
| output | float32 logits [b, {classes}] |
| classes | {class_names} |
| parameters | {size:,} |
| test accuracy | {accuracy} |
| batch norm | {batch_norm} |

## Use

With `pip install jax flatbuffers`, on CPU, CUDA GPU or TPU, from this folder (`jax.export` of jax {jax} wrote the
program; newer versions are promised to read it for six months):

```python
import jax
import numpy as np
from jax import export

with open("{program}", "rb") as file:
    network = export.deserialize(bytearray(file.read()))
images = np.zeros((1, {height}, {width}, {channels}), np.uint8)
print(jax.nn.softmax(jax.jit(network.call)(images)))
```

On image files, with `pip install 'lpjax[export]'`:

```sh
python -m lpjax.predict --model=. IMAGE.png
```

It crops each image to its middle ({crop:.4g} of the largest box of {width}:{height}) and scales that to
{width}x{height}. Normalisation is part of the program; `{description}` says by what.

## Training

{training}

The whole configuration is in `{description}`, with the versions that exported it. The batch-norm statistics are
those of passes of the whole network over training images, as in the test.

## Files and limits

`{program}` is the program, parameters included. `{arrays}` holds the same parameters and statistics by name.
`sha256sum -c {sums}` finds damage. No file holds Python code or pickles, and `lpjax.predict` refuses a program
that could do more than compute. But JAX itself does not look (`export.deserialize` wants input one trusts), a forged
program may crash the native code that compiles it, and it may take any time and memory: run one that you do not trust
in a sandbox.

The network knows its {classes} classes only, and gives one of them to any image. Images unlike its training set,
{data}, were not tested.
"""


def text(description: Description, arrays: Mapping[str, np.ndarray]) -> str:
    """The model card, in Markdown.

    Args:
      description: of the model.
      arrays: its parameters and statistics by name.
    """
    known, config = description.provenance, description.provenance["config"]
    height, width, channels = description.image_shape
    arguments = ", ".join(f"{name}={value}" for name, value in config["model"]["arguments"].items())
    accuracy = known.get("test_accuracy")
    names = description.class_names
    return _CARD.format(
        function=config["model"]["function"].rpartition(":")[2],
        data=config["data"]["name"],
        summary=f"`{config['model']['function']}({arguments})`, trained with lpjax {known['versions']['lpjax']}.",
        height=height,
        width=width,
        channels=channels,
        colours="RGB" if channels == 3 else "grey" if channels == 1 else f"{channels} channels",
        classes=len(names),
        class_names=", ".join(names[:20]) + (f", .. ({len(names)} in all)" if len(names) > 20 else ""),
        size=sum(array.size for name, array in arrays.items() if _is_parameter(name)),
        accuracy="not known" if accuracy is None else f"{accuracy:.4f} on {known['num_test']:,} images",
        batch_norm=_batch_norm(known),
        crop=description.crop,
        training=_training(config, known),
        jax=known["versions"]["jax"],
        program=PROGRAM,
        arrays=ARRAYS,
        description=DESCRIPTION,
        sums=CHECKSUMS,
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
