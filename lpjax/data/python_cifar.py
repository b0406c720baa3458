"""The python version of CIFAR-10 and CIFAR-100, as records of the binary version.

Its files are pickles, which can make a program call anything.  Here they call nothing: arrays are rebuilt by stand-ins
that keep what they are given, and whatever else a pickle asks for by name is refused.
"""

import io
import math
import pickle
from typing import Any

import numpy as np

from lpjax.errors import BadInput, require

FILES = {
    "cifar10": {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"], "names": "batches.meta"},
    "cifar100": {"train": ["train"], "test": ["test"], "names": "meta"},
}
"""Names of the files in the archive, by set."""

LABELS = {"cifar10": ["labels"], "cifar100": ["coarse_labels", "fine_labels"]}
"""Keys of the labels, in the order of a record's bytes."""

NAMES = {"cifar10": ["label_names"], "cifar100": ["coarse_label_names", "fine_label_names"]}
"""Keys of the classes' names, likewise."""


class _Type:
    """Stands in for a type of array elements."""

    def __init__(self, name: Any = b"", *_: Any) -> None:
        self.name = name.decode() if isinstance(name, bytes) else name

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like, which unsigned bytes do not have."""


class _Array:
    """Stands in for an array while it is read."""

    def __init__(self, *_: Any) -> None:
        self.value = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_columns, content = state
        require(isinstance(dtype, _Type) and dtype.name in ("u1", "|u1"), "an array is not of unsigned bytes")
        require(isinstance(content, bytes) and len(content) == math.prod(shape), "an array is not of its size")
        self.value = np.frombuffer(content, np.uint8).reshape(shape, order="F" if by_columns else "C")


def _encoded(text: str, encoding: str) -> bytes:
    """Bytes, as Python 3 writes them into a pickle of protocol 2."""
    return text.encode("latin1")


_STAND_INS = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("_codecs", "encode"): _encoded,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for what a pickle names."""
        require((module, name) in _STAND_INS, f"asks for {module}.{name}, which no CIFAR file does")
        return _STAND_INS[module, name]


def _contents(name: str, content: bytes) -> dict[str, Any]:
    """What a file holds, by the names of its entries.

    Raises:
      BadInput: It is not a pickle of arrays, bytes and plain containers.
    """
    try:
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}
    except Exception as error:  # of a damaged pickle there are as many kinds as there are ways to damage it
        raise BadInput(f"{name}: not a file of the python version ({error})") from error


def _records(name: str, content: bytes, labels: list[str]) -> bytes:
    """The records of a file of images: of each a byte for each label, and 3072 of pixels."""
    found = _contents(name, content)
    missing = [key for key in ("data", *labels) if key not in found]
    require(not missing, f"{name}: not a file of the python version (no {', '.join(missing)})")
    pixels = found["data"].value if isinstance(found["data"], _Array) else np.empty(0, np.uint8)
    count = len(found[labels[0]])
    require(pixels.shape == (count, 3072), f"{name}: data of shape {pixels.shape}: expected {(count, 3072)}")
    try:
        columns = [np.array(found[key], np.uint8).reshape(count, 1) for key in labels]
    except (ValueError, TypeError, OverflowError) as error:
        raise BadInput(f"{name}: labels that are not {count} numbers from 0 to 255 ({error})") from error
    return np.concatenate([*columns, pixels], 1).tobytes()


def as_binary(name: str, files: dict[str, bytes], layout: Any) -> dict[str, bytes]:
    """The files of the binary version, from those of the python version.

    Args:
      name: Of the set.
      files: The contents, by name.
      layout: Names of the binary version's files, as tensorflow-datasets has them.

    Raises:
      BadInput: One is damaged, or not what it should be; names it.
    """
    binary, known = {}, FILES[name]
    for split, targets in (("train", layout.train_files), ("test", layout.test_files)):
        for source, target in zip(known[split], targets, strict=True):
            binary[target] = _records(source, files[source], LABELS[name])
    meta = _contents(str(known["names"]), files[str(known["names"])])
    for key, target in zip(NAMES[name], layout.label_files, strict=True):
        binary[target] = b"\n".join(meta.get(key, ()))
    return binary
