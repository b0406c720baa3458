"""Classify images, or go on with a text, by an exported model.

    python -m lpjax.predict --model=DIR [--top=5] [--json | --csv] IMAGES...
    python -m lpjax.predict --model=DIR --prompt="def " [--bytes=200] [--temperature=1] [--top_k=K] [--seed=0]

Classes and probabilities of images by a model that `lpjax.export` wrote, on one device.  IMAGES are image files,
folders (all image files in them, however deep, hidden ones left out), patterns in quotes ("photos/*.jpg"), and - for
one image on stdin.  With --json a line is {"image": .., "classes": [{"class": .., "probability": ..}, ..]}, or
{"image": .., "error": ..}; with --csv there is a line image,class,probability,error a class, the likeliest first,
below a heading.  With --prompt the model, of text, goes on with that, byte by byte.

Exit codes: 0 done; 1 a fault of lpjax or of the system; 2 bad arguments or model, or an image that could not be read
(it is said which, and the others are done); 130 interrupted.
"""

import argparse
import codecs
import csv
import glob
import io
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from lpjax import cli
from lpjax.config.command_line import local_path
from lpjax.data.tree import LeftOut, image_files
from lpjax.errors import BadInput, bad_input, extra_packages
from lpjax.export import model_file, sample
from lpjax.export.model_file import Description, Model

BATCH = 32
MAX_BYTES, MAX_PIXELS = 64 * 2**20, 50_000_000
"""Of an image file, and of the image in it: what is read was perhaps made by someone else."""

Ranking = list[tuple[str, float]]
"""Classes and their probabilities, the likeliest first."""


@dataclass(frozen=True)
class ImageFile:
    """An image to classify.

    Attributes:
      name: As output shows it.
      path: Of the file; None for stdin.
      error: Why there is none.
    """

    name: str
    path: Path | None = None
    error: Exception | None = None


def find_images(argument: str, left_out: LeftOut) -> list[ImageFile]:
    """Find what an argument of the command stands for.

    Args:
      argument: A file, a folder, a pattern, or "-" for stdin.
      left_out: Is added what is no image in a folder.

    Returns:
      The images in the order of their names; one with an error where the argument stands for none.
    """
    if argument == "-":
        return [ImageFile(argument)]
    try:
        path = local_path(argument)
        if path.is_dir():
            return _in_folder(path, left_out)
        if glob.has_magic(argument) and not path.exists():
            names = sorted(glob.glob(str(path), recursive=True))
            if not names:
                raise BadInput(f"{argument}: no file matches this pattern; correct it")
            return [image for name in names for image in find_images(name, left_out)]
    except (ValueError, OSError) as error:
        return [ImageFile(argument, error=error)]
    return [ImageFile(argument, path)]


def _in_folder(folder: Path, left_out: LeftOut) -> list[ImageFile]:
    found = image_files(folder, left_out)
    if not found:
        reasons = "; ".join(left_out.in_words(folder))
        raise BadInput(f"{folder}: no image files in this folder{reasons and f' ({reasons})'}: expected some")
    return [ImageFile(str(path), path) for path in found]


def read_image(image: ImageFile, description: Description) -> UInt8[np.ndarray, "H W C"]:
    """An image file as the model takes it.

    Args:
      image: the file.
      description: of the model.

    Raises:
      BadInput: naming the file, where it is no image, or too large.
      OSError: where it cannot be read.
    """
    with extra_packages("reading image files", "export"):
        from lpjax.data import images
    if description.is_text:
        raise BadInput("the model is of text: give it --prompt=TEXT, and no image files")
    if description.image_shape[-1] not in (1, 3):
        raise BadInput(f"the model takes {description.image_shape[-1]} channels: image files have 1 or 3")
    if image.error:
        raise image.error
    if image.path is None:
        content = sys.stdin.buffer.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise BadInput(f"stdin: more than {MAX_BYTES:,} bytes; use a smaller image")
    else:
        if image.path.exists() and not image.path.is_file():
            raise BadInput(f"{image.name}: not a file: expected an image file")
        content = model_file.read(image.path, MAX_BYTES, "use a smaller image")
    try:
        shape, share = description.image_shape, description.crop
        return images.decode_foreign(content, shape, share=share, max_pixels=MAX_PIXELS)
    except images.DECODING_ERRORS as error:
        raise BadInput(
            f"{image.name}: {error}: expected a whole file in one of the formats {', '.join(images.FORMATS)} of at "
            f"most {MAX_PIXELS:,} pixels; convert or scale it"
        ) from error


def predict(model: Model, files: Sequence[ImageFile], top: int) -> Iterator[tuple[ImageFile, Ranking | Exception]]:
    """The likeliest classes of images.

    Args:
      model: that predicts.
      files: the images.
      top: how many classes.

    Yields:
      Each image, in order, with its classes, or with why there are none.
    """
    size = min(BATCH, len(files))  # of every batch, so that the model is compiled once
    for start in range(0, len(files), size):
        chunk = files[start : start + size]
        batch = np.zeros((size, *model.description.image_shape), np.uint8)
        failed: dict[int, Exception] = {}
        for i, file in enumerate(chunk):
            try:
                batch[i] = read_image(file, model.description)
            except (ValueError, OSError) as error:
                failed[i] = error
        logits = np.asarray(model.logits(batch), np.float64)
        for i, file in enumerate(chunk):
            if i not in failed and not np.isfinite(logits[i]).all():
                failed[i] = BadInput(f"{file.name}: the model's output is not finite; use another image or model")
            yield file, failed.get(i) or _ranking(logits[i], model.description.class_names, top)


def _ranking(logits: Float[np.ndarray, " classes"], names: Sequence[str], top: int) -> Ranking:
    """The `top` classes by a softmax of the logits."""
    likelihoods = np.exp(logits - logits.max())
    order = np.argsort(-logits, kind="stable")[:top]
    return [(names[i], float(likelihoods[i] / likelihoods.sum())) for i in order]


@cli.command()
@bad_input()
def main(argv: list[str]) -> int:
    """Print the classes of the image files, or the text; returns the exit code: 2 where a file could not be read.

    Args:
      argv: the command line without the program.
    """
    parser = argparse.ArgumentParser(prog="python -m lpjax.predict", description="Classes of images, or more text.")
    parser.add_argument("--model", required=True, help="folder that python -m lpjax.export wrote")
    parser.add_argument("--top", type=_positive, default=5, metavar="N", help="how many classes, 1 or more (5)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a line of JSON an image")
    form.add_argument("--csv", action="store_true", help="a line image,class,probability,error a class, and a heading")
    parser.add_argument("--prompt", metavar="TEXT", help="what a model of text goes on with")
    parser.add_argument("--bytes", type=_positive, default=200, metavar="N", help="how many, of text (200)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of text: 0 takes the likeliest byte (1)")
    parser.add_argument("--top_k", type=_positive, metavar="K", help="draw text from the K likeliest bytes (all)")
    parser.add_argument("--seed", type=int, default=0, help="of the text's draws (0)")
    parser.add_argument("images", nargs="*", metavar="IMAGES", help="files, folders, patterns, - for stdin")
    options = parser.parse_args(argv)
    if (options.prompt is None) == (not options.images):
        parser.error("expected IMAGES, or --prompt for a model of text")
    images_only, text_only = ("top", "json", "csv"), ("bytes", "temperature", "top_k", "seed")
    for name in text_only if options.prompt is None else images_only:
        if getattr(options, name) != parser.get_default(name):
            parser.error(f"--{name} is of {'text' if name in text_only else 'images'}: leave it out")
    if options.prompt is not None:
        return _go_on(model_file.load(local_path(options.model)), options)
    show = _as_csv if options.csv else _as_json if options.json else _as_text
    if options.csv:
        print("image,class,probability,error")
    code, left_out = 0, LeftOut()
    model = model_file.load(local_path(options.model))
    files = [file for argument in options.images for file in find_images(argument, left_out)]
    for file, result in predict(model, files, options.top):
        if isinstance(result, Exception):
            code = BadInput.exit_code
            print(f"lpjax: {cli.printable(result)}", file=sys.stderr)
        if text := show(file.name, result):
            print(text)
    for line in left_out.in_words(None):
        print(f"lpjax: {cli.printable(line)}", file=sys.stderr)
    return code


def _go_on(model: Model, options: argparse.Namespace) -> int:
    """Print the prompt and what comes behind it, each byte as soon as it is there."""
    prompt, settings = options.prompt.encode(errors="surrogateescape"), ("temperature", "top_k", "seed")
    made = sample.continued(model, prompt, options.bytes, **{name: getattr(options, name) for name in settings})
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for part in itertools.chain([prompt], (bytes([byte]) for byte in made)):
        shown = (c if c in "\n\t" else _shown(c) for c in decoder.decode(part))
        print("".join(shown), end="", flush=True)
    print(decoder.decode(b"", final=True))
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def _shown(name: str) -> str:
    """A file's name: as it is, so that it can be found again, but on a terminal without what commands it."""
    return cli.printable(name) if sys.stdout.isatty() else name


def _as_text(name: str, result: Ranking | Exception) -> str:
    if isinstance(result, Exception):
        return ""
    width = max(len(label) for label, _ in result)
    return "\n".join([_shown(name), *(f"  {label:{width}}  {probability:.4f}" for label, probability in result)])


def _as_json(name: str, result: Ranking | Exception) -> str:
    if isinstance(result, Exception):
        return json.dumps({"image": name, "error": str(result)})
    classes = [{"class": label, "probability": probability} for label, probability in result]
    return json.dumps({"image": name, "classes": classes})


def _as_csv(name: str, result: Ranking | Exception) -> str:
    rows = [("", "", result)] if isinstance(result, Exception) else [(*row, "") for row in result]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_shown(name), *map(cli.printable, row)] for row in rows)
    return text.getvalue().rstrip("\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
