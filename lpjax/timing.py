"""Seconds of programs on this process's devices."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from lpjax import chain
from lpjax.chain import Mode, Shape, Unit, make_chain


def stopwatch(program: Callable[..., Any], *args: PyTree, repeats: int = 5) -> list[float]:
    """Wall-clock seconds of `repeats` calls, each until its results are there; the call before them is not counted."""
    jax.block_until_ready(program(*args))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(program(*args))
        seconds.append(time.perf_counter() - start)
    return seconds


class Seconds(NamedTuple):
    """Of one unit on one batch, medians.

    forward: its forward pass in training.  both: forward and backward pass.  without_input: the same without the
    gradient of its input, which a network's first unit has no use for.
    """

    forward: float
    both: float
    without_input: float


@dataclass(frozen=True)
class UnitTimer:
    """(unit, in_shape) -> `Seconds` on one device, each measured once.

    batch: examples.  repeats: of each measurement.  dtype, remat: see `chain.Chain`.  A unit that keeps the shape is
    measured as a scan of `row` of them, as it runs in a stage.
    """

    batch: int
    repeats: int = 5
    dtype: str | None = None
    remat: bool = False
    row: int = 3
    known: dict[tuple[Unit, Shape], Seconds] = field(default_factory=dict, compare=False)

    def __call__(self, unit: Unit, in_shape: Shape) -> Seconds:
        if (unit, in_shape) not in self.known:
            self.known[unit, in_shape] = self._measured(unit, in_shape)
        return self.known[unit, in_shape]

    def _measured(self, unit: Unit, in_shape: Shape) -> Seconds:
        one = make_chain([unit], in_shape)
        count = self.row if one.out_shape == in_shape else 1
        units = replace(make_chain([unit] * count, in_shape), dtype=self.dtype, remat=self.remat)
        params, stats = jax.jit(lambda key: chain.init(units, key))(jax.random.key(0))
        x = jax.random.normal(jax.random.key(1), (self.batch, *in_shape), float)

        def forward(params: PyTree, x: Array) -> tuple[Array, PyTree]:
            return chain.apply(units, params, stats, x, Mode(train=True))

        def both(params: PyTree, x: Array) -> PyTree:
            y, pullback, new = jax.vjp(forward, params, x, has_aux=True)
            return pullback(jnp.ones_like(y)), new

        def without_input(params: PyTree, x: Array) -> PyTree:
            (grads, _), new = both(params, x)
            return grads, new

        programs = forward, both, without_input
        return Seconds(
            *(statistics.median(stopwatch(jax.jit(f), params, x, repeats=self.repeats)) / count for f in programs)
        )
