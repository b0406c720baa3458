"""Parts of transformers (arXiv:1706.03762): attention, norms, pre-norm blocks and heads, for text and for images.

A block is

    x <- x + attention(norm(x)),    x <- x + feed_forward(norm(x))

Weights are drawn with variance 1 / fan_in; of those that end a branch, 1 / (2 blocks) of that (arXiv:1904.10509),
and of a head 1 / width of that.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lpjax.errors import require
from lpjax.nn import layers
from lpjax.nn.chain import Mode, Shape

ROTARY_BASE = 10_000.0
"""Slowest wave length of the rotation, over 2 pi tokens."""


def rotated(x: Float[Array, "b t n h"]) -> Float[Array, "b t n h"]:
    """Rotate each pair of values (i, i + h/2) of a head by an angle that grows with the position."""
    half = x.shape[-1] // 2
    frequency = ROTARY_BASE ** (-jnp.arange(half, dtype=float) / half)
    angle = jnp.arange(x.shape[1], dtype=float)[:, None] * frequency[None]
    cosine, sine = (function(angle).astype(x.dtype)[None, :, None] for function in (jnp.cos, jnp.sin))
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cosine - b * sine, a * sine + b * cosine], axis=-1)


def attention(
    query: Float[Array, "b t n h"], key: Float[Array, "b t n h"], value: Float[Array, "b t n h"], *, causal: bool
) -> Float[Array, "b t n h"]:
    """Attention to all positions; if `causal`, to those up to one's own.

    By `jax.nn.dot_product_attention`, whose softmax is in single precision; in double precision by hand.
    """
    if query.dtype != jnp.float64:
        return jax.nn.dot_product_attention(query, key, value, is_causal=causal)
    logits = jnp.einsum("btnh,bsnh->bnts", query, key) / query.shape[-1] ** 0.5
    if causal:
        logits = jnp.where(jnp.tril(jnp.ones(logits.shape[-2:], bool))[None, None], logits, -jnp.inf)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(logits), value)


def init_norm(width: int, *, bias: bool) -> dict[str, Array]:
    """Parameters of `norm`."""
    return {"scale": jnp.ones(width)} | ({"bias": jnp.zeros(width)} if bias else {})


def norm(params: dict[str, Array], x: Float[Array, "b t c"], epsilon: float) -> Float[Array, "b t c"]:
    """Layer norm (arXiv:1607.06450) at each position; without a bias among `params` RMS norm (arXiv:1910.07467)."""
    y, bias = layers.at_least_float32(x), params.get("bias")
    y = y if bias is None else y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + epsilon) * params["scale"][None, None]
    return (y if bias is None else y + bias[None, None]).astype(x.dtype)


def init_linear(
    key: PRNGKeyArray, channels: int, features: int, variance: float = 1.0, *, bias: bool
) -> dict[str, Array]:
    """Parameters of `linear`: a kernel of this variance / channels."""
    kernel = jax.random.normal(key, (channels, features), float) * (variance / channels) ** 0.5
    return {"kernel": kernel} | ({"bias": jnp.zeros(features)} if bias else {})


def linear(params: dict[str, Array], x: Float[Array, "*b c"]) -> Float[Array, "*b f"]:
    """x @ kernel, + bias where there is one."""
    return layers.linear(params, x) if "bias" in params else x @ params["kernel"].astype(x.dtype)


@dataclass(frozen=True)
class Block:
    """Attention and a feed-forward layer, each behind a norm and beside a shortcut.

    Attributes:
      heads: Of the attention.
      size: Values of a head.
      hidden: Values of the feed-forward layer at a position.
      activation: Of the feed-forward layer: "gelu" (by tanh), "exact_gelu", or "swiglu" (arXiv:2002.05202).
      dropout: Probability that a value of what a branch adds is set to 0, in training.
      depth: Blocks of the network.
      causal: Whether a position sees no later one.
      rotary: Whether positions are told by rotation of queries and keys (arXiv:2104.09864); `size` is even.
      bias: Whether layers and norms have biases, see `norm`.
      epsilon: Of the norms.
    """

    heads: int
    size: int
    hidden: int
    activation: str
    dropout: float
    depth: int
    causal: bool = True
    rotary: bool = True
    bias: bool = False
    epsilon: float = 1e-6
    name = property(lambda self: f"block-{self.heads}x{self.size}-{self.activation}-{self.hidden}")

    def init(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
        """Layers of both branches, and their norms."""
        width, inside, gated = in_shape[-1], self.heads * self.size, self.activation == "swiglu"
        keys, last, bias = jax.random.split(key, 4), 0.5 / self.depth, self.bias
        return {
            "attention_norm": init_norm(width, bias=bias),
            "attention_in": init_linear(keys[0], width, 3 * inside, bias=bias),
            "attention_out": init_linear(keys[1], inside, width, last, bias=bias),
            "forward_norm": init_norm(width, bias=bias),
            "forward_in": init_linear(keys[2], width, (2 if gated else 1) * self.hidden, bias=bias),
            "forward_out": init_linear(keys[3], self.hidden, width, last, bias=bias),
        }, {}

    def apply(self, params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, dict]:
        """Both branches, one after the other."""
        x = x + layers.dropout(self._attention(params, x), self.dropout, mode, layer=0)
        return x + layers.dropout(self._forward(params, x), self.dropout, mode, layer=1), stats

    def _attention(self, params: dict, x: Array) -> Array:
        y = linear(params["attention_in"], norm(params["attention_norm"], x, self.epsilon))
        query, key, value = jnp.split(y.reshape(*y.shape[:2], 3 * self.heads, self.size), 3, axis=2)
        if self.rotary:
            query, key = rotated(query), rotated(key)
        y = attention(query, key, value, causal=self.causal)
        return linear(params["attention_out"], y.reshape(*y.shape[:2], -1))

    def _forward(self, params: dict, x: Array) -> Array:
        y = linear(params["forward_in"], norm(params["forward_norm"], x, self.epsilon))
        if self.activation == "swiglu":
            gate, value = jnp.split(y, 2, axis=-1)
            y = jax.nn.silu(gate) * value
        else:
            y = jax.nn.gelu(y, approximate=self.activation == "gelu")
        return linear(params["forward_out"], y)

    def narrowed(self, width: float) -> "Block":
        """The block with this share of its heads and hidden values, at least one, for pieces of an AuxNet."""
        heads, hidden = (max(1, round(width * count)) for count in (self.heads, self.hidden))
        return replace(self, heads=heads, hidden=hidden)


@dataclass(frozen=True)
class Head:
    """A norm, and the logits.

    Attributes:
      classes: Number of logits.
      pooling: Of what they are: "mean", of all positions; "class", of the first one; None, of each.
      bias: See `Block`.
      epsilon: Of the norm.
    """

    classes: int
    pooling: str | None = None
    bias: bool = False
    epsilon: float = 1e-6
    name = property(lambda self: f"{self.pooling}-head-{self.classes}" if self.pooling else f"head-{self.classes}")

    def init(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
        """A linear layer, and the norm."""
        width = in_shape[-1]
        own = init_linear(key, width, self.classes, 1 / width, bias=self.bias)
        return {"norm": init_norm(width, bias=self.bias), "linear": own}, {}

    def apply(self, params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, dict]:
        """[b, t, width] -> [b, t, classes], or [b, classes], in single precision at least."""
        x = layers.at_least_float32(x[:, :1] if self.pooling == "class" else x)
        y = norm(params["norm"], x, self.epsilon)
        return linear(params["linear"], y if self.pooling is None else y.mean(1)), stats


def check_sizes(*, width: int, heads: int, dropout: float, rotary: bool = False, **sizes: int) -> None:
    """Refuse arguments of a network out of range.

    Args:
      width: Values at a position.
      heads: Of each block.
      dropout: Of what a branch adds.
      rotary: See `Block`.
      **sizes: Other sizes by name.

    Raises:
      BadInput: One of them is.
    """
    for name, size in {"width": width, "heads": heads, **sizes}.items():
        require(
            isinstance(size, int) and size > 0,
            f"model.{name}={size!r}: expected a whole number of at least 1; correct it",
        )
    if rotary:
        require(
            width % (2 * heads) == 0,
            f"model.width={width}: expected a multiple of 2 * model.heads = {2 * heads}, so that heads can be rotated",
        )
    require(width % heads == 0, f"model.width={width}: expected a multiple of model.heads={heads}; change one of them")
    require(0 <= dropout < 1, f"model.dropout={dropout}: expected 0 to below 1")
