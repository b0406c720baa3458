"""Image files to arrays: decoding, the random resized crop of training, the centre crop of testing."""

import io
import math

import numpy as np
from PIL import Image, UnidentifiedImageError

Box = tuple[float, float, float, float]
DECODING_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for a file that is not an image, damaged, or absurdly large."""


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """(left, top, right, bottom) of 8 to 100 % of an image's area and aspect 3:4 to 4:3 (Inception, arXiv:1409.4842);
    after ten misses the centre square."""
    for _ in range(10):
        area = rng.uniform(0.08, 1.0) * width * height
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return float(left), float(top), float(left + w), float(top + h)
    return centre_box(width, height, share=1.0)


def centre_box(width: int, height: int, *, share: float = 224 / 256) -> Box:
    """The square in the middle whose side is `share` of the image's shorter side: 224 of 256 by the custom."""
    side = share * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def decode(file: bytes, *, size: int, channels: int, rng: np.random.Generator | None) -> np.ndarray:
    """uint8 [size, size, channels] of an image file: a random resized crop, or without `rng` the centre crop.

    Raises one of DECODING_ERRORS.
    """
    with _open(file) as image:
        width, height = image.size
        box = centre_box(width, height) if rng is None else random_box(width, height, rng)
        mode = "RGB" if channels == 3 else "L"
        # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, where the crop is to be made smaller than that anyway.
        needed = math.ceil(size * width / (box[2] - box[0])), math.ceil(size * height / (box[3] - box[1]))
        image.draft(mode, needed)
        scale_x, scale_y = image.size[0] / width, image.size[1] / height
        scaled = (box[0] * scale_x, box[1] * scale_y, box[2] * scale_x, box[3] * scale_y)
        opaque = image.convert("RGBA") if image.mode == "P" else image  # Pillow warns of a transparent palette
        cropped = opaque.convert(mode).resize((size, size), Image.Resampling.BILINEAR, box=scaled)
        return np.asarray(cropped).reshape(size, size, channels)


def is_grey(file: bytes) -> bool:
    """Whether an image file has one channel only.  Raises one of DECODING_ERRORS."""
    with _open(file) as image:
        return Image.getmodebase(image.mode) == "L"


def _open(file: bytes) -> Image.Image:
    """The image, its pixels undecoded."""
    try:
        image = Image.open(io.BytesIO(file))
    except UnidentifiedImageError as error:
        raise ValueError("not an image file") from error  # Pillow's own message is of an address in memory
    if image.mode[0] in "IF":  # Pillow would cut off what is brighter than 255
        raise ValueError(f"pixels of more than 8 bits (Pillow's mode {image.mode}): expected 8; convert the file")
    return image
