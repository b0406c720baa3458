"""Losses, what they are of (`Task`), and the inner product of interfaces, as all methods use them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Task:
    """What a network learns to say of an example, and how that is counted: pure functions.

    The network's output for an example has the shape of its label and one axis more, the logits of the classes.

    Attributes:
      images: Whether examples are images, which are augmented and normalised; otherwise they are tokens.
      label_shape: (in_shape) -> shape of an example's label.
      loss: (output, labels, smoothing) -> task loss phi of each example, in nats, the mean of its predictions'.
      correct: (output, labels, top) -> share of each example's predictions that are right, see `correct`.
      predictions: (labels) -> how many predictions each example has, that a test's means are taken over.
      metrics: (mean loss of a prediction) -> what else is told of it, by name.
    """

    images: bool
    label_shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    loss: Callable[[Float[Array, "b ..."], Int[Array, "b ..."], float], PerExample]
    correct: Callable[[Float[Array, "b ..."], Int[Array, "b ..."], int], PerExample]
    predictions: Callable[[Int[Array, "b ..."]], PerExample]
    metrics: Callable[[float], dict[str, float]]


def _right(logits: Float[Array, "b classes"], labels: Int[Array, " b"], top: int) -> PerExample:
    """1 where `correct`, else 0."""
    return correct(logits, labels, top).astype(float)


def _labelled(labels: Int[Array, "b t"]) -> PerExample:
    """How many positions of each example have a label."""
    return (labels >= 0).astype(float).sum(1)


def _by_position(
    function: Callable[..., Array],
) -> Callable[[Float[Array, "b t classes"], Int[Array, "b t"], float], PerExample]:
    """The mean of a function of (logits, labels, setting) over an example's positions but those of label -1."""

    def mean(logits: Float[Array, "b t classes"], labels: Int[Array, "b t"], setting: float | int) -> PerExample:
        values = jax.vmap(lambda *rows: function(*rows, setting))(logits, jnp.maximum(labels, 0))
        return jnp.where(labels >= 0, values, 0.0).sum(1) / jnp.maximum(_labelled(labels), 1.0)

    return mean


CLASSIFICATION = Task(
    images=True,
    label_shape=lambda in_shape: (),
    loss=task_loss,
    correct=_right,
    predictions=lambda labels: jnp.ones(labels.shape),
    metrics=lambda loss: {},
)
"""One label an example."""

NEXT_TOKEN = Task(
    images=False,
    label_shape=lambda in_shape: in_shape,
    loss=_by_position(task_loss),
    correct=_by_position(_right),
    predictions=_labelled,
    metrics=lambda loss: {"perplexity": math.exp(min(loss, 700.0)), "bits_per_byte": loss / math.log(2)},
)
"""The next byte at each position of a text; -1 where there is none."""


class Targets(NamedTuple):
    """What a network learns to say of examples.

    Attributes:
      labels: Of the examples.
      smoothing: See `task_loss`.
      partners: Labels of the examples that they are mixed with; None without mixup.
      share: Of `labels` in the mixture, 0..1.
      task: What labels are.
    """

    labels: Int[Array, "b ..."]
    smoothing: float = 0.0
    partners: Int[Array, "b ..."] | None = None
    share: Float[Array, " b"] | None = None
    task: Task = CLASSIFICATION

    def _mixed(self, function: Callable[[Int[Array, "b ..."]], PerExample]) -> PerExample:
        """A function of the labels, of those that are mixed by their shares."""
        own = function(self.labels)
        if self.partners is None or self.share is None:
            return own
        return self.share * own + (1 - self.share) * function(self.partners)

    def loss(self, logits: Float[Array, "b ..."]) -> PerExample:
        """The task loss of each example."""
        return self._mixed(lambda labels: self.task.loss(logits, labels, self.smoothing))

    def correct(self, logits: Float[Array, "b ..."]) -> PerExample:
        """The share of each example's labels that have the largest logit; in a mixture times the label's share."""
        return self._mixed(lambda labels: self.task.correct(logits, labels, 1))
