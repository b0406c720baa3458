"""Losses and the inner product of interfaces, as all methods use them."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

PerExample = Float[Array, " b"]


Features = Float[Array, "b *n"]


Multiplier = Float[Array, "..."]


# The same where one signature speaks of several interfaces, whose shapes differ:
Interface = Float[Array, "b ..."]


def features(shape: Sequence[int]) -> int:
    """The number n of features of an interface of per-example shape `shape`."""
    return math.prod(shape)


def inner(u: Multiplier, v: Features) -> PerExample:
    """Inner product of interfaces, <u, v>: the mean of u v over all axes but the first."""
    return (jnp.broadcast_to(u, v.shape) * v).mean(tuple(range(1, v.ndim)))


def psi(r: Features) -> PerExample:
    """Penalty of a violation: its mean square over features."""
    return inner(r, r)


def task_loss(logits: Float[Array, "b classes"], labels: Int[Array, " b"], smoothing: float = 0.0) -> PerExample:
    """Task loss phi of each example: cross entropy in nats.

    Args:
      logits: Of the network.
      labels: Of the examples.
      smoothing: Share of each label that is spread evenly over all classes (arXiv:1512.00567).
    """
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if not smoothing:
        return loss
    return (1 - smoothing) * loss - smoothing * jax.nn.log_softmax(logits).mean(-1)


def correct(logits: Float[Array, "b classes"], labels: Int[Array, " b"], top: int = 1) -> Bool[Array, " b"]:
    """Whether the label's logit is among the `top` largest.

    Of equal logits the first one counts as larger, so that equal logits are right as often as a guess.  NaN counts as
    larger than all others, and is never right.
    """
    own = jnp.take_along_axis(logits, labels[:, None], 1)
    before = jnp.arange(logits.shape[-1], dtype=labels.dtype)[None] < labels[:, None]
    above = ~(logits <= own) | ((logits == own) & before)
    return above.sum(-1) < top


class Targets(NamedTuple):
    """What a classifier learns to say of examples.

    Attributes:
      labels: Of the examples.
      smoothing: See `task_loss`.
      partners: Labels of the examples that they are mixed with; None without mixup.
      share: Of `labels` in the mixture, 0..1.
    """

    labels: Int[Array, " b"]
    smoothing: float = 0.0
    partners: Int[Array, " b"] | None = None
    share: Float[Array, " b"] | None = None

    def _mixed(self, function: Callable[[Int[Array, " b"]], PerExample]) -> PerExample:
        """A function of the labels, of those that are mixed by their shares."""
        own = function(self.labels)
        if self.partners is None or self.share is None:
            return own
        return self.share * own + (1 - self.share) * function(self.partners)

    def loss(self, logits: Float[Array, "b classes"]) -> PerExample:
        """The task loss of each example."""
        return self._mixed(lambda labels: task_loss(logits, labels, self.smoothing))

    def correct(self, logits: Float[Array, "b classes"]) -> PerExample:
        """1 for each example whose label has the largest logit, 0 for others; in a mixture the label's share."""
        return self._mixed(lambda labels: correct(logits, labels).astype(float))
