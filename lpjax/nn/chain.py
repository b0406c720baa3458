"""A network is a chain of units; a stage of the network is a piece of that chain.

A unit is a pure pair of functions with explicit batch-norm statistics, and a name (`UnitLike`):

    init(key, in_shape)              -> params, stats
    apply(params, stats, x, mode)    -> y, stats

`in_shape` and every shape kept here are those of ONE example (no batch axis).  In training `apply` normalises by the
statistics of the batch it was given and returns those raw statistics; whoever called it decides how they are averaged
(a running average in training, a plain mean in recalibration).  Otherwise it uses the statistics it was given.  A unit
without statistics returns what it was given.

Terminology: a "unit" is the smallest piece a cut may separate, usually one residual block.  A "repeat" is a row of
equal units that keep the shape; its parameters are stacked and it is executed by one `lax.scan`, so the compile time of
a chain depends on how many repeats it has, not on its depth.  Units are equal when their class and settings are equal.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from lpjax.errors import BadInput

Shape = tuple[int, ...]


class Mode(NamedTuple):
    """How a chain is applied.

    Attributes:
      train: Normalise by the batch's own statistics (and return them) instead of by the given ones.
      axes: Mesh axes that share the batch: batch statistics are averaged over them (`lax.pmean`, one collective a
        layer).
      keys: Random keys [b], one an example; None where nothing is random (tests, the AuxNet).
      position: Of the unit in the network, set by `apply`; with `keys` it makes the unit's randomness the same wherever
        the unit and the example are computed.
    """

    train: bool
    axes: tuple[str, ...] = ()
    keys: Key[Array, " b"] | None = None
    position: Int[Array, ""] | int = 0


@runtime_checkable
class UnitLike(Hashable, Protocol):
    """What chains are made of: any hashable object with a name, `init` and `apply`.

    Write a frozen dataclass whose fields are the unit's settings, or a `Unit` of two functions.  See the module's
    docstring for the contract.
    """

    @property
    def name(self) -> str:
        """The unit in tables and error messages, such as "block-16/2"."""

    def init(self, key: PRNGKeyArray, in_shape: Shape, /) -> tuple[PyTree, PyTree]:
        """Parameters and statistics of a unit that is given examples of `in_shape`."""

    def apply(self, params: PyTree, stats: PyTree, x: Array, mode: Mode, /) -> tuple[Array, PyTree]:
        """Output [b, ..] for x [b, *in_shape], and statistics."""


@dataclass(frozen=True)
class Unit:
    """A unit made of two functions; units of the same name and functions are equal.

    Attributes:
      name: As tables and error messages print it.
      init: (key, in_shape) -> params, stats.
      apply: (params, stats, x, mode) -> y, stats.
    """

    name: str
    init: Callable[[PRNGKeyArray, Shape], tuple[PyTree, PyTree]]
    apply: Callable[[PyTree, PyTree, Array, Mode], tuple[Array, PyTree]]


@dataclass(frozen=True)
class Repeat:
    """Equal units in a row, which one `lax.scan` executes.

    Attributes:
      unit: The unit.
      first: Position in the chain of the first one.
      count: How many there are; more than one map `in_shape` to itself.
      in_shape: Of an example.
    """

    unit: UnitLike
    first: int
    count: int
    in_shape: Shape


@dataclass(frozen=True)
class Chain:
    """Units applied one after another.

    Attributes:
      units: The units, in order.
      shapes: Per-example shapes, one more than units: `shapes[i]` enters unit i, `shapes[-1]` leaves the chain.
      offset: Position of the first unit in the whole network (traced where a program serves several chains); parameters
        are keyed by position, so that cutting a network elsewhere does not change how it is initialised.
      dtype: Of the activations inside the chain, such as "bfloat16"; None: of its input.  Parameters, statistics and
        what enters and leaves the chain stay as they are.
      remat: Keep only the input of each unit for the backward pass and compute the unit again (`jax.checkpoint`).
    """

    units: tuple[UnitLike, ...]
    shapes: tuple[Shape, ...]
    offset: Int[Array, ""] | int = 0
    dtype: str | None = None
    remat: bool = False

    @property
    def in_shape(self) -> Shape:
        """Of an example that enters the chain."""
        return self.shapes[0]

    @property
    def out_shape(self) -> Shape:
        """Of an example that leaves it."""
        return self.shapes[-1]

    @functools.cached_property
    def repeats(self) -> tuple[Repeat, ...]:
        """The units, equal ones in a row taken together."""
        repeats: list[Repeat] = []
        for i, unit in enumerate(self.units):
            last = repeats[-1] if repeats else None
            if last and last.unit == unit and last.in_shape == self.shapes[i] == self.shapes[i + 1]:
                repeats[-1] = replace(last, count=last.count + 1)
            else:
                repeats.append(Repeat(unit, i, 1, self.shapes[i]))
        return tuple(repeats)

    def piece(self, start: int, stop: int) -> "Chain":
        """Units start..stop-1 as a chain of their own."""
        return replace(
            self, units=self.units[start:stop], shapes=self.shapes[start : stop + 1], offset=self.offset + start
        )

    def then(self, *units: UnitLike) -> "Chain":
        """This chain followed by `units`."""
        tail = make_chain(units, self.out_shape)
        return replace(self, units=self.units + tail.units, shapes=self.shapes + tail.shapes[1:])


def make_chain(units: Sequence[UnitLike], in_shape: Shape) -> Chain:
    """Chain units for examples of one shape; further shapes are found by abstract evaluation, nothing is computed.

    Args:
      units: The units, in order.
      in_shape: Of an example that enters the first one.

    Returns:
      The chain.

    Raises:
      ValueError: A unit does not accept the shape before it; it is named.
    """
    shapes = [tuple(in_shape)]
    for position, unit in enumerate(units):
        try:
            shapes.append(_out_shape(unit, shapes[-1]))
        except BadInput as error:
            said = str(error).removeprefix(f"{unit.name}: ")
            raise BadInput(f"unit {position} ({unit.name}), for examples of shape {shapes[-1]}: {said}") from error
        except (TypeError, ValueError) as error:
            raise BadInput(
                f"unit {position} ({unit.name}) does not accept examples of shape {shapes[-1]}; expected a unit that "
                f"takes what the unit before it returns; check it and its neighbour: {error}"
            ) from error
    return Chain(tuple(units), tuple(shapes))


@functools.cache
def _out_shape(unit: UnitLike, in_shape: Shape) -> Shape:
    key, x = jax.random.key(0), jax.ShapeDtypeStruct((2, *in_shape), jnp.result_type(float))
    trees = jax.eval_shape(lambda key: unit.init(key, in_shape), key)
    for path, leaf in jax.tree.leaves_with_path(trees):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"its value {jax.tree_util.keystr(path[1:])} is {leaf.dtype}, expected floating point: what is not "
                f"trained belongs into the unit's settings or its apply, as a constant"
            )
    out = jax.eval_shape(lambda params, stats, x: unit.apply(params, stats, x, Mode(train=True))[0], *trees, x)
    if not isinstance(out, jax.ShapeDtypeStruct):
        raise ValueError(f"it returns {jax.tree.structure(out)}, expected one array")
    return tuple(out.shape[1:])


def init(chain: Chain, key: PRNGKeyArray) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
    """Draw a chain's parameters.

    Args:
      chain: The chain.
      key: Unit i draws from `fold_in(key, chain.offset + i)`; equal units may draw differently.

    Returns:
      Parameters and statistics: one tree a repeat, every leaf with a leading axis of length `repeat.count`.
    """

    def init_repeat(repeat: Repeat) -> tuple[PyTree, PyTree]:
        positions = chain.offset + repeat.first + jnp.arange(repeat.count)
        keys = jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)
        units = chain.units[repeat.first : repeat.first + repeat.count]
        if all(unit is repeat.unit for unit in units):
            return jax.vmap(lambda k: repeat.unit.init(k, repeat.in_shape))(keys)
        trees = [unit.init(k, repeat.in_shape) for unit, k in zip(units, keys, strict=True)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    trees = [init_repeat(repeat) for repeat in chain.repeats]
    return tuple(params for params, _ in trees), tuple(stats for _, stats in trees)


def unstack(chain: Chain, trees: tuple[PyTree, ...]) -> list[PyTree]:
    """One tree a unit, from trees of one a repeat as `init` lays them out."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree)
            for repeat, tree in zip(chain.repeats, trees, strict=True) for i in range(repeat.count)]  # fmt: skip


def stack(chain: Chain, units: Sequence[PyTree], xp: Any = np) -> tuple[PyTree, ...]:
    """The inverse of `unstack`.

    Args:
      chain: The chain.
      units: One tree a unit.
      xp: `jax.numpy` to compute with it; otherwise in host memory.

    Returns:
      One tree a repeat.
    """
    return tuple(
        jax.tree.map(lambda *leaves: xp.stack(leaves), *units[repeat.first : repeat.first + repeat.count])
        for repeat in chain.repeats
    )


def apply(
    chain: Chain, params: tuple[PyTree, ...], stats: tuple[PyTree, ...], x: Float[Array, "b ..."], mode: Mode
) -> tuple[Float[Array, "b ..."], tuple[PyTree, ...]]:
    """Forward pass of a chain.

    Args:
      chain: The chain.
      params: As `init` returns them.
      stats: Likewise.
      x: Examples, [b, *in_shape].
      mode: Training or not; its `position` is set for each unit.

    Returns:
      The output [b, *out_shape], and the statistics (see the module's docstring).
    """
    outside, x = x.dtype, x.astype(chain.dtype or x.dtype)
    new_stats: list[Any] = []
    for repeat, repeat_params, repeat_stats in zip(chain.repeats, params, stats, strict=True):

        def step(x: Array, unit: tuple[PyTree, PyTree, Array], repeat: Repeat = repeat) -> tuple[Array, PyTree]:
            params, stats, position = unit
            y, out = repeat.unit.apply(params, stats, x, mode._replace(position=position))
            # A unit may compute in another type: what is between units has the chain's.
            return y.astype(x.dtype), jax.tree.map(lambda new, old: new.astype(old.dtype), out, stats)

        if chain.remat:  # inside a scan nothing could be merged with its second computation anyway
            step = jax.checkpoint(step, prevent_cse=repeat.count == 1)
        units = repeat_params, repeat_stats, chain.offset + repeat.first + jnp.arange(repeat.count)
        if repeat.count == 1:  # a scan of length one would only hide the unit from XLA
            x, out = step(x, jax.tree.map(lambda leaf: leaf[0], units))
            new_stats.append(jax.tree.map(lambda leaf: leaf[None], out))
        else:
            x, out = lax.scan(step, x, units, length=repeat.count)
            new_stats.append(out)
    return x.astype(outside), tuple(new_stats)
