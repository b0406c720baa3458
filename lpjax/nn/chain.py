"""A network is a chain of units; a stage of the network is a piece of that chain.

A unit is a pure pair of functions with explicit batch-norm statistics:

    init(key, in_shape)              -> params, stats
    apply(params, stats, x, mode)    -> y, stats

`in_shape` and every shape kept here are those of ONE example (no batch axis).  In training `apply` normalises by the
statistics of the batch it was given and returns those raw statistics; whoever called it decides how they are averaged
(a running average in training, a plain mean in recalibration).  Otherwise it uses the statistics it was given.  A unit
without statistics returns what it was given.

Terminology: a "unit" is the smallest piece a cut may separate, usually one residual block.  A "run" is a row of equal
units that keep the shape; its parameters are stacked and it is executed by one `lax.scan`, so the compile time of a
chain depends on how many different runs it has, not on its depth.  Units are equal when they are the same pair of
functions: write `[block] * 18`, not eighteen calls that build a block.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from lpjax.errors import BadInput

Shape = tuple[int, ...]


class Mode(NamedTuple):
    """How a chain is applied.

    train: normalise by the batch's own statistics (and return them) instead of by the given ones.
    axes: mesh axes that share the batch: batch statistics are averaged over them (`lax.pmean`, one collective a layer).
    keys: random keys [b], one an example; None where nothing is random (tests, the AuxNet).
    position: of the unit in the network, set by `apply`; with `keys` it makes the unit's randomness the same wherever
        the unit and the example are computed.
    """

    train: bool
    axes: tuple[str, ...] = ()
    keys: Key[Array, " b"] | None = None
    position: Int[Array, ""] | int = 0


@dataclass(frozen=True)
class Unit:
    """One indivisible piece of a network: see the module's docstring for the contract of `init` and `apply`."""

    name: str
    init: Callable[[PRNGKeyArray, Shape], tuple[PyTree, PyTree]]
    apply: Callable[[PyTree, PyTree, Array, Mode], tuple[Array, PyTree]]


@dataclass(frozen=True)
class Run:
    """`count` equal units in a row that all map `in_shape` to `out_shape`; `first` is the position of the first one."""

    unit: Unit
    first: int
    count: int
    in_shape: Shape


@dataclass(frozen=True)
class Chain:
    """Units applied one after another.

    units: the units, in order.
    shapes: per-example shapes, one more than units: `shapes[i]` enters unit i, `shapes[-1]` leaves the chain.
    offset: position of the first unit in the whole network; parameters are keyed by position, so that cutting a
        network elsewhere does not change how it is initialised.
    dtype: of the activations inside the chain, such as "bfloat16"; None: of its input.  Parameters, statistics and
        what enters and leaves the chain stay as they are.
    remat: keep only the input of each unit for the backward pass and compute the unit again (`jax.checkpoint`).
    """

    units: tuple[Unit, ...]
    shapes: tuple[Shape, ...]
    offset: int = 0
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
    def runs(self) -> tuple[Run, ...]:
        """The units grouped into runs that one `lax.scan` each can execute."""
        runs: list[Run] = []
        for i, unit in enumerate(self.units):
            last = runs[-1] if runs else None
            if last and last.unit == unit and last.in_shape == self.shapes[i] == self.shapes[i + 1]:
                runs[-1] = Run(unit, last.first, last.count + 1, last.in_shape)
            else:
                runs.append(Run(unit, i, 1, self.shapes[i]))
        return tuple(runs)

    def piece(self, start: int, stop: int) -> "Chain":
        """Units start..stop-1 as a chain of their own."""
        return replace(
            self, units=self.units[start:stop], shapes=self.shapes[start : stop + 1], offset=self.offset + start
        )

    def then(self, *units: Unit) -> "Chain":
        """This chain followed by `units`."""
        tail = make_chain(units, self.out_shape)
        return replace(self, units=self.units + tail.units, shapes=self.shapes + tail.shapes[1:])


def make_chain(units: Sequence[Unit], in_shape: Shape) -> Chain:
    """Chain of `units` on examples of `in_shape`; shapes are found by abstract evaluation, nothing is computed.

    Raises ValueError naming the unit that does not accept the shape before it.
    """
    shapes = [tuple(in_shape)]
    for position, unit in enumerate(units):
        try:
            shapes.append(_out_shape(unit, shapes[-1]))
        except (TypeError, ValueError) as error:
            raise BadInput(
                f"unit {position} ({unit.name}) does not accept examples of shape {shapes[-1]}; expected a unit that "
                f"takes what the unit before it returns; check it and its neighbour: {error}"
            ) from error
    return Chain(tuple(units), tuple(shapes))


@functools.cache
def _out_shape(unit: Unit, in_shape: Shape) -> Shape:
    def output(key: PRNGKeyArray, x: Array) -> Array:
        return unit.apply(*unit.init(key, in_shape), x, Mode(train=True))[0]

    out = jax.eval_shape(output, jax.random.key(0), jax.ShapeDtypeStruct((2, *in_shape), jnp.result_type(float)))
    return tuple(out.shape[1:])


def init(chain: Chain, key: PRNGKeyArray) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
    """Parameters and statistics of a chain: one tree a run, every leaf with a leading axis of length `run.count`.

    Unit i draws from `fold_in(key, chain.offset + i)`.
    """

    def init_run(run: Run) -> tuple[PyTree, PyTree]:
        positions = chain.offset + run.first + jnp.arange(run.count)
        keys = jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)
        return jax.vmap(lambda k: run.unit.init(k, run.in_shape))(keys)

    trees = [init_run(run) for run in chain.runs]
    return tuple(params for params, _ in trees), tuple(stats for _, stats in trees)


def unstack(chain: Chain, trees: tuple[PyTree, ...]) -> list[PyTree]:
    """One tree a unit, from trees of one a run as `init` lays them out."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree)
            for run, tree in zip(chain.runs, trees, strict=True) for i in range(run.count)]  # fmt: skip


def stack(chain: Chain, units: Sequence[PyTree], xp: Any = np) -> tuple[PyTree, ...]:
    """The inverse of `unstack`.  xp: `jax.numpy` to compute with it; otherwise in host memory."""
    return tuple(
        jax.tree.map(lambda *leaves: xp.stack(leaves), *units[run.first : run.first + run.count]) for run in chain.runs
    )


def apply(
    chain: Chain, params: tuple[PyTree, ...], stats: tuple[PyTree, ...], x: Float[Array, "b ..."], mode: Mode
) -> tuple[Float[Array, "b ..."], tuple[PyTree, ...]]:
    """Forward pass of a chain, [b, *in_shape] -> [b, *out_shape], and its statistics (see the module's docstring)."""
    outside, x = x.dtype, x.astype(chain.dtype or x.dtype)
    new_stats: list[Any] = []
    for run, run_params, run_stats in zip(chain.runs, params, stats, strict=True):

        def step(x: Array, unit: tuple[PyTree, PyTree, Array], run: Run = run) -> tuple[Array, PyTree]:
            params, stats, position = unit
            return run.unit.apply(params, stats, x, mode._replace(position=position))

        if chain.remat:  # inside a scan nothing could be merged with its second computation anyway
            step = jax.checkpoint(step, prevent_cse=run.count == 1)
        units = run_params, run_stats, chain.offset + run.first + jnp.arange(run.count)
        if run.count == 1:  # a scan of length one would only hide the unit from XLA
            x, out = step(x, jax.tree.map(lambda leaf: leaf[0], units))
            new_stats.append(jax.tree.map(lambda leaf: leaf[None], out))
        else:
            x, out = lax.scan(step, x, units, length=run.count)
            new_stats.append(out)
    return x.astype(outside), tuple(new_stats)
