"""Classify image files by an exported model.

    python -m lpjax.predict --model=DIR [--top=5] [--json] IMAGES...

Classes and probabilities of image files by a model that `lpjax.export` wrote, on one device.  With --json a line is
{"image": .., "classes": [{"class": .., "probability": ..}, ..]}, or {"image": .., "error": ..}.

Exit codes: 0 done; 1 a fault of lpjax or of the system; 2 bad arguments or model, or an image that could not be read
(it is said which, and the others are done); 130 interrupted.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from lpjax import cli
from lpjax.errors import BadInput, bad_input, extra_packages
from lpjax.export import model_file
from lpjax.export.model_file import Description, Model

BATCH = 32
MAX_BYTES, MAX_PIXELS = 64 * 2**20, 50_000_000
"""Of an image file, and of the image in it: what is read was perhaps made by someone else."""

Ranking = list[tuple[str, float]]
"""Classes and their probabilities, the likeliest first."""


def read_image(path: Path, description: Description) -> UInt8[np.ndarray, "H W C"]:
    """An image file as the model takes it.

    Args:
      path: of the file.
      description: of the model.

    Raises:
      BadInput: naming the file, where it is no image, or too large.
      OSError: where it cannot be read.
    """
    with extra_packages("reading image files", "export"):
        from lpjax.data import images
    if description.image_shape[-1] not in (1, 3):
        raise BadInput(f"the model takes {description.image_shape[-1]} channels: image files have 1 or 3")
    if path.exists() and not path.is_file():
        raise BadInput(f"{path}: not a file: expected an image file")
    content = model_file.read(path, MAX_BYTES, "use a smaller image")
    try:
        shape, share = description.image_shape, description.crop
        return images.decode_foreign(content, shape, share=share, max_pixels=MAX_PIXELS)
    except images.DECODING_ERRORS as error:
        raise BadInput(
            f"{path}: {error}: expected a whole file in one of the formats {', '.join(images.FORMATS)} of at most "
            f"{MAX_PIXELS:,} pixels; convert or scale it"
        ) from error


def predict(model: Model, paths: Sequence[Path], top: int) -> Iterator[tuple[Path, Ranking | Exception]]:
    """The likeliest classes of image files.

    Args:
      model: that predicts.
      paths: of the files.
      top: how many classes.

    Yields:
      Each path, in order, with its classes, or with why there are none.
    """
    size = min(BATCH, len(paths))  # of every batch, so that the model is compiled once
    for start in range(0, len(paths), size):
        chunk = paths[start : start + size]
        batch = np.zeros((size, *model.description.image_shape), np.uint8)
        failed: dict[int, Exception] = {}
        for i, path in enumerate(chunk):
            try:
                batch[i] = read_image(path, model.description)
            except (ValueError, OSError) as error:
                failed[i] = error
        logits = np.asarray(model.logits(batch), np.float64)
        for i, path in enumerate(chunk):
            if i not in failed and not np.isfinite(logits[i]).all():
                failed[i] = BadInput(f"{path}: the model's output is not finite; use another image or model")
            yield path, failed.get(i) or _ranking(logits[i], model.description.class_names, top)


def _ranking(logits: Float[np.ndarray, " classes"], names: Sequence[str], top: int) -> Ranking:
    """The `top` classes by a softmax of the logits."""
    likelihoods = np.exp(logits - logits.max())
    order = np.argsort(-logits, kind="stable")[:top]
    return [(names[i], float(likelihoods[i] / likelihoods.sum())) for i in order]


@cli.command()
@bad_input()
def main(argv: list[str]) -> int:
    """Print the classes of the image files; returns the exit code: 2 where a file or the model could not be read.

    Args:
      argv: the command line without the program.
    """
    parser = argparse.ArgumentParser(prog="python -m lpjax.predict", description="Classes of image files.")
    parser.add_argument("--model", type=Path, required=True, help="folder that python -m lpjax.export wrote")
    parser.add_argument("--top", type=_positive, default=5, metavar="N", help="how many classes, 1 or more (5)")
    parser.add_argument("--json", action="store_true", help="a line of JSON an image")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGES")
    options = parser.parse_args(argv)
    code = 0
    model = model_file.load(options.model)
    for path, result in predict(model, options.images, options.top):
        if isinstance(result, Exception):
            code = BadInput.exit_code
            print(f"lpjax: {cli.printable(result)}", file=sys.stderr)
        if options.json:
            print(_as_json(path, result))
        elif not isinstance(result, Exception):
            print(_as_text(path, result))
    return code


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def _as_text(path: Path, result: Ranking) -> str:
    width = max(len(name) for name, _ in result)
    return "\n".join([cli.printable(path), *(f"  {name:{width}}  {probability:.4f}" for name, probability in result)])


def _as_json(path: Path, result: Ranking | Exception) -> str:
    if isinstance(result, Exception):
        return json.dumps({"image": str(path), "error": str(result)})
    classes = [{"class": name, "probability": probability} for name, probability in result]
    return json.dumps({"image": str(path), "classes": classes})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
