"""A trained network as a folder that holds no code and can be used without lpjax.

    model.stablehlo      the network as a program, as `jax.export` writes it, parameters and normalisation within:
                         uint8 images [b, H, W, C] -> float32 logits [b, classes], for any b, on one device; of text
                         uint8 bytes [b, T] -> float32 logits [b, T, classes]
    model.safetensors    the parameters and statistics by name
    model.json           the `Description`
    SHA256SUMS           of these three, for `sha256sum -c` too
    README.md            the card, for people; it may be edited

`load` neither imports nor unpickles anything a folder names.  It refuses a program that could do more than compute: one
with custom calls (into any function a library registered), infeeds, or effects.  What is left to trust: JAX and XLA
parse and compile the program in native code, which a forged one can crash (one in a hundred with flipped bits did), and
it takes the time and memory it takes.  The sums tell damage, not forgery.
"""

import functools
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export
from jaxtyping import Array, Float, UInt8

from lpjax.cli import printable
from lpjax.data.subset import MAX_NAME, MAX_WINDOW
from lpjax.errors import BadInput, extra_packages
from lpjax.export import program as programs
from lpjax.nn.chain import Shape

PROGRAM, ARRAYS, DESCRIPTION = "model.stablehlo", "model.safetensors", "model.json"
CHECKSUMS, CARD = "SHA256SUMS", "README.md"
FORMAT = "lpjax model 1"
MAX_BYTES = {PROGRAM: 2**31, DESCRIPTION: 2**24, CHECKSUMS: 2**12}
"""Of what is read into memory.  The program's container cannot hold more than 2 GiB."""

MAX_SIDE = 2**13
_LOOKED_AT = 2**24
_REMEDY = "copy the folder again, or export the model again"
_EXPORT_PACKAGES = "an exported model", "export"


@dataclass(frozen=True)
class Description:
    """What there is to know of a model.

    Attributes:
      class_names: one a class.
      image_shape: [H, W, C]; of text [T].
      crop: share of the shorter side of an image file that the crop in its middle keeps, to be scaled to [H, W].
      mean: [C], of images scaled to 0..1, that the program normalises by; of text [].
      std: [C], likewise.
      provenance: where the model is from, in JSON's types.
    """

    class_names: tuple[str, ...]
    image_shape: Shape
    crop: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    provenance: Mapping[str, Any]

    @property
    def is_text(self) -> bool:
        """Whether the model is of text, otherwise of images."""
        return len(self.image_shape) == 1

    @property
    def output_shape(self) -> Shape:
        """Of an example's logits."""
        return (*self.image_shape, len(self.class_names)) if self.is_text else (len(self.class_names),)


def _check_description(values: Mapping[str, Any]) -> None:
    """Refuse fields that are not as `Description` says, with tuples for JSON's lists."""

    def require(ok: bool, name: str, expected: str) -> None:
        if not ok:
            raise BadInput(f"{name}={str(values[name])[:MAX_NAME]!r}: expected {expected}")

    def are(name: str, kind: Callable[[Any], bool]) -> bool:
        return isinstance(values[name], tuple) and all(map(kind, values[name]))

    shape, largest = values["image_shape"], {1: MAX_WINDOW, 3: MAX_SIDE}
    ok = are("image_shape", lambda size: type(size) is int and size >= 1)
    ok = ok and len(shape) in largest and max(shape) <= largest[len(shape)]
    sizes = f"height, width and channels, 1 to {MAX_SIDE} each, or the length of a text, 1 to {MAX_WINDOW}"
    require(ok, "image_shape", sizes)
    # Names reach a terminal, where a control character is a command.
    ok = are("class_names", lambda name: isinstance(name, str) and name == printable(name) and len(name) <= MAX_NAME)
    require(ok and len(values["class_names"]) > 0, "class_names", f"printable names of at most {MAX_NAME} characters")
    require(_is_number(values["crop"]) and 0 < values["crop"] <= 1, "crop", "a share, from above 0 to 1")
    channels = 0 if len(values["image_shape"]) == 1 else values["image_shape"][-1]
    for name in ("mean", "std"):
        require(are(name, _is_number) and len(values[name]) == channels, name, f"{channels} finite numbers")
    require(isinstance(values["provenance"], Mapping), "provenance", "an object")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


@dataclass(frozen=True, eq=False)
class Model:
    """A model that was loaded.

    Attributes:
      description: what there is to know of it.
      program: as `jax.export` has it.
    """

    description: Description
    program: export.Exported

    @functools.cached_property
    def logits(self) -> Any:
        """uint8 images [b, H, W, C] or bytes [b, T] -> float32 logits [b, *output_shape], compiled once per b."""

        def logits(examples: UInt8[Array, "b ..."]) -> Float[Array, "b ..."]:
            return self.program.call(examples)

        return jax.jit(logits)


def check_free(folder: Path) -> None:
    """Refuse a folder in which writing a model would overwrite something.

    Raises:
      BadInput: unless there is no such folder, or an empty one.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise BadInput(f"{folder}: exists: expected no such folder, or an empty one; choose another, or remove it")


def write(
    folder: Path, description: Description, program: export.Exported, arrays: Mapping[str, np.ndarray], card: str
) -> None:
    """Write a model, whole or not at all.

    Args:
      folder: a new one, or an empty one.
      description: what there is to know of the model.
      program: as `jax.export` has it.
      arrays: parameters and statistics by name.
      card: the model card, in Markdown.

    Raises:
      BadInput: where the folder is not free or `load` would refuse the model.
    """
    folder = folder.resolve()
    check_free(folder)
    _check_description(asdict(description))
    programs.check(program, description.image_shape, description.output_shape)
    with extra_packages(*_EXPORT_PACKAGES):
        from safetensors.numpy import save

        serialised = programs.without_debug_info(program).serialize()
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        (partial / PROGRAM).write_bytes(serialised)
        (partial / ARRAYS).write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
        values = {"format": FORMAT} | asdict(description)
        (partial / DESCRIPTION).write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")
        sums = [f"{_sha256(partial / name)}  {name}\n" for name in (PROGRAM, ARRAYS, DESCRIPTION)]
        (partial / CHECKSUMS).write_text("".join(sums))
        (partial / CARD).write_text(card)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load(folder: Path) -> Model:
    """Load a model, which may be from someone else.

    Args:
      folder: that `write` wrote.

    Raises:
      BadInput: naming the file at fault, where one is damaged or not what it should be.
      OSError: likewise, where one is missing.
    """
    _verify_checksums(folder)
    path = folder / DESCRIPTION
    try:
        description = _parse(_read(path))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: {error}; {_REMEDY}") from error
    path = folder / PROGRAM
    with extra_packages(*_EXPORT_PACKAGES):
        import flatbuffers  # noqa: F401 - JAX imports it late
    try:
        program = export.deserialize(bytearray(_read(path)))
        programs.check(program, description.image_shape, description.output_shape)
    except Exception as error:  # a damaged file raises whatever the parser met
        raise BadInput(f"{path}: {error}; {_REMEDY}") from error
    return Model(description, program)


def _parse(text: bytes) -> Description:
    def no_constant(name: str) -> None:
        raise BadInput(f"{name}: expected finite numbers")

    values = json.loads(text, parse_constant=no_constant)
    expected = {"format", *(field.name for field in fields(Description))}
    if not isinstance(values, dict) or set(values) != expected:
        raise BadInput(f"expected an object with the fields {', '.join(sorted(expected))}")
    if values.pop("format") != FORMAT:
        raise BadInput(f"another format: expected {FORMAT!r}; use the version of lpjax that wrote it")
    plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    _check_description(plain)
    return Description(**plain)


def _verify_checksums(folder: Path) -> None:
    """Refuse the first file that is not the one whose sum was written."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder: expected one that python -m lpjax.export wrote")
    sums = _read(folder / CHECKSUMS)
    if sums.startswith(b"version https://git-lfs"):
        raise BadInput(f"{folder / CHECKSUMS}: {_damage(folder / CHECKSUMS, ())}")
    text = sums.decode(errors="replace")
    found = re.findall(
        r"^([0-9a-f]{64}) [ *](?:\./)?(.*?)\r?$|^SHA256 \((.*)\) = ([0-9a-f]{64})\r?$", text, re.MULTILINE
    )
    lines = [f"{digest or other}  {name or tagged}" for digest, name, tagged, other in found]
    if not lines:
        raise BadInput(f"{folder / CHECKSUMS}: no sums: expected lines of sha256sum; {_REMEDY}")
    for name in (PROGRAM, ARRAYS, DESCRIPTION):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing; {_REMEDY}")
        if f"{_sha256(folder / name)}  {name}" not in lines:
            raise BadInput(f"{folder / name}: {_damage(folder / name, lines)}")


def _damage(path: Path, lines: Sequence[str]) -> str:
    """What became of a file whose sum is not among those of `CHECKSUMS`, and what to do."""
    with path.open("rb") as file:
        begin = file.read(_LOOKED_AT)
    if begin.startswith(b"version https://git-lfs"):
        return "a pointer of git-lfs, not the file: do git lfs pull, or copy the file itself"
    for what, restored in (("to CR LF", begin.replace(b"\r\n", b"\n")), ("to LF", begin.replace(b"\n", b"\r\n"))):
        whole = len(begin) < _LOOKED_AT and restored != begin
        if whole and f"{hashlib.sha256(restored).hexdigest()}  {path.name}" in lines:
            return f"its line ends were changed {what}, as git does with core.autocrlf; copy the folder as binary files"
    state = "empty: copied in part" if not begin else f"damaged, or copied in part ({path.stat().st_size:,} bytes)"
    return f"{state}: its SHA-256 is not the one in {CHECKSUMS}; {_REMEDY}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {_REMEDY}")
    return read(path, MAX_BYTES[path.name], _REMEDY)


def read(path: Path, most: int, remedy: str) -> bytes:
    """Read a file of at most so many bytes.

    Args:
      path: of the file.
      most: bytes.
      remedy: what to do about a larger one, for the message.

    Raises:
      BadInput: where it is larger.
      OSError: where it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise BadInput(f"{path}: {path.stat().st_size:,} bytes: expected at most {most:,}; {remedy}")
    return content
