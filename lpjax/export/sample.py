"""Text that a model of bytes goes on with."""

from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Float

from lpjax.errors import BadInput, require
from lpjax.export.model_file import Model


def next_byte(logits: Float[np.ndarray, " vocabulary"], temperature: float, top_k: int | None, key: jax.Array) -> int:
    """Draw a byte.

    Args:
      logits: Of the bytes.
      temperature: That they are divided by; 0 for the likeliest byte.
      top_k: How many of the likeliest bytes are drawn from; None: all.
      key: Of the draw.
    """
    kept = np.argsort(-logits, kind="stable")[: top_k or len(logits)]
    if temperature == 0:
        return int(kept[0])
    return int(kept[jax.random.categorical(key, logits[kept] / temperature)])


def continued(
    model: Model, prompt: bytes, count: int, *, temperature: float = 1.0, top_k: int | None = None, seed: int = 0
) -> Iterator[int]:
    """Go on with a prompt, byte by byte, each from the last T bytes before it; T is the model's window.

    Args:
      model: Of text.
      prompt: At least one byte.
      count: Bytes to make.
      temperature: See `next_byte`.
      top_k: Likewise.
      seed: Of the draws.

    Returns:
      The bytes, each made when it is asked for.

    Raises:
      BadInput: The model is not of text, or an argument is out of range; later, its output is not finite.
    """
    require(model.description.is_text, "--prompt with a model of images: expected a model of text; name image files")
    require(len(prompt) > 0, "--prompt: empty: expected at least one byte to go on with")
    require(temperature >= 0, f"--temperature={temperature}: expected at least 0, which takes the likeliest byte")
    require(0 <= seed < 2**32, f"--seed={seed}: expected 0 to {2**32 - 1}; choose another")
    return _made(model, bytearray(prompt), count, temperature, top_k, seed)


def _made(model: Model, text: bytearray, count: int, temperature: float, top_k: int | None, seed: int) -> Iterator[int]:
    (window,) = model.description.image_shape
    key = jax.random.key(seed)
    for i in range(count):
        last = text[-window:]
        tokens = np.zeros((1, window), np.uint8)  # what stands behind the last byte changes nothing before it
        tokens[0, : len(last)] = last
        logits = np.asarray(model.logits(tokens), np.float64)[0, len(last) - 1]
        if not np.isfinite(logits).all():
            raise BadInput("the model's output is not finite; use another model")
        text.append(next_byte(logits, temperature, top_k, jax.random.fold_in(key, i)))
        yield text[-1]
