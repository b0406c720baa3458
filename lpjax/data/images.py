"""Image files to arrays: decoding, the random resized crop of training, the centre crop of testing."""

import io
import math
import os
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from lpjax.config.schema import DataConfig
from lpjax.data.source import ImageFiles, channel_moments
from lpjax.errors import BadInput
from lpjax.nn.chain import Shape

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge in pixels."""

CENTRE_SHARE = 224 / 256
"""Share of the shorter side that the centre crop keeps; 224 of 256 pixels is customary."""

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded.  Pillow knows more, some of which it hands to other programs, such as EPS to Ghostscript."""

GROUND = 255
"""Grey value that shows through where an image is transparent: white, as on most pages."""

TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}  # fmt: skip
"""From EXIF's orientation to what shows the image upright."""

SAMPLED_FILES = 1000
"""Training images that mean and standard deviation are estimated from, and whether the set is in colour."""

DECODING_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for a file that is not an image, damaged, or absurdly large."""


# Damaged EXIF: of a file that is not named, on every reading.
warnings.filterwarnings("ignore", message="(Corrupt EXIF|Metadata Warning|Truncated File Read)", category=UserWarning)


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """A random box of 8 to 100 % of an image's area and aspect 3:4 to 4:3 (Inception, arXiv:1409.4842).

    After ten that do not fit into the image it is the largest square in the middle.
    """
    for _ in range(10):
        area = rng.uniform(0.08, 1.0) * width * height
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return float(left), float(top), float(left + w), float(top + h)
    return centre_box(width, height, share=1.0)


def centre_box(width: int, height: int, *, share: float = CENTRE_SHARE, aspect: float = 1.0) -> Box:
    """The box in the middle of an image.

    Args:
      width: Of the image.
      height: Of the image.
      share: Of the sides of the largest such box.
      aspect: Its width over its height.
    """
    h = share * min(height, width / aspect)
    w = aspect * h
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def decode(file: bytes, *, size: int, channels: int, rng: np.random.Generator | None) -> np.ndarray:
    """The pixels of an image file as a viewer shows it: a random resized crop, or without `rng` the centre crop.

    Returns:
      uint8 [size, size, channels].

    Raises:
      OSError, SyntaxError, ValueError, Image.DecompressionBombError: It cannot be decoded (`DECODING_ERRORS`).
    """
    with _open(file) as image:
        return _cropped(image, (size, size, channels), centre_box if rng is None else partial(random_box, rng=rng))


def decode_foreign(file: bytes, shape: Shape, *, share: float, max_pixels: int) -> np.ndarray:
    """The pixels of an untrusted image file: the centre crop of the aspect asked for.

    Args:
      file: The file's bytes.
      shape: [H, W, C] of the result.
      share: See `centre_box`.
      max_pixels: A larger image is refused before it is decoded.

    Returns:
      uint8 [H, W, C].

    Raises:
      OSError, SyntaxError, ValueError, Image.DecompressionBombError: It cannot be decoded (`DECODING_ERRORS`).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Pillow's limit is another
        image = _open(file)
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise Image.DecompressionBombError(f"{width}x{height} pixels, more than {max_pixels:,}")
        return _cropped(image, shape, partial(centre_box, share=share, aspect=shape[1] / shape[0]))


def _cropped(image: Image.Image, shape: Shape, box: Callable[[int, int], Box]) -> np.ndarray:
    """A box of an image not yet decoded, as a viewer shows it, resized to uint8 `shape`, [H, W, C].

    Args:
      image: Its first frame is taken.
      shape: Of the result.
      box: From the width and height of the upright image.
    """
    height, width, channels = shape
    turn = _turn(image)
    lies = turn in (5, 6, 7, 8)
    full_width, full_height = image.size[::-1] if lies else image.size
    left, top, right, bottom = box(full_width, full_height)
    mode = "RGB" if channels == 3 else "L"
    # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, where the crop is to be made smaller than that anyway.
    needed = math.ceil(width * full_width / (right - left)), math.ceil(height * full_height / (bottom - top))
    image.draft(mode, needed[::-1] if lies else needed)
    opaque = _opaque(image).convert(mode)
    upright = opaque.transpose(TURNS[turn]) if turn in TURNS else opaque
    scale_x, scale_y = upright.size[0] / full_width, upright.size[1] / full_height
    scaled = (left * scale_x, top * scale_y, right * scale_x, bottom * scale_y)
    return np.asarray(upright.resize((width, height), Image.Resampling.BILINEAR, box=scaled)).reshape(shape)


def _turn(image: Image.Image) -> int:
    """EXIF's orientation, 1 where there is none; Pillow turns TIFF itself."""
    try:
        return 1 if image.format == "TIFF" else int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF, which viewers pass over, makes Pillow raise what it likes
        return 1


def _opaque(image: Image.Image) -> Image.Image:
    """The image decoded, on `GROUND` where it is transparent."""
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image
    colours = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colours.size, (GROUND, GROUND, GROUND, 255)), colours)


def is_grey(file: bytes) -> bool:
    """Whether an image file has one channel only.

    Raises:
      OSError, SyntaxError, ValueError, Image.DecompressionBombError: It cannot be decoded (`DECODING_ERRORS`).
    """
    with _open(file) as image:
        return Image.getmodebase(image.mode) == "L"


def sampled_moments(files: ImageFiles, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Estimate mean and standard deviation of each channel from `SAMPLED_FILES` training images.

    Args:
      files: Of the training split.
      config: Size and channels of the images.

    Returns:
      Two arrays [C], of images scaled to 0..1.

    Raises:
      BadInput: No image can be decoded, or all are grey where colour is wanted.
    """
    moments, grey = [], []
    for i in np.unique(np.linspace(0, len(files) - 1, SAMPLED_FILES).astype(int)).tolist():
        try:
            file, _ = files[i]
            pixels = decode(file, size=config.image_size, channels=config.channels, rng=None)
        except DECODING_ERRORS as error:  # a damaged file is for training to count
            damage = error
            continue
        moments.append(channel_moments(pixels[None]))
        grey.append(is_grey(file))
    if not moments:
        raise BadInput(
            f"{files.name(i)}: {damage}; nor can any other of the files looked at be decoded: expected image files; "
            f"replace them"
        ) from damage
    if config.channels == 3 and all(grey):
        raise BadInput(
            f"{files.name(0)}: grey, as all files looked at: expected colour for data.channels=3; set "
            f"data.channels=1, or use colour images"
        )
    means, stds = np.moveaxis(np.array(moments), 1, 0)
    mean = means.mean(0)
    return mean, np.sqrt((stds**2 + (means - mean) ** 2).mean(0))


def is_image(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as one of `FORMATS` does.

    Raises:
      PermissionError: It may not be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its size, say: it is looked at closely when it is decoded
            Image.open(path, formats=FORMATS).close()
    except PermissionError:
        raise
    except UnidentifiedImageError:
        return False
    except DECODING_ERRORS:
        return True
    return True


def _open(file: bytes) -> Image.Image:
    """The image, its pixels not yet decoded."""
    try:
        image = Image.open(io.BytesIO(file), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise BadInput("not an image file") from error  # Pillow's own message is of an address in memory
    if image.mode[0] in "IF":  # Pillow would cut off what is brighter than 255
        raise BadInput(f"pixels of more than 8 bits (Pillow's mode {image.mode}): expected 8; convert the file")
    return image
