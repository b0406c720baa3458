"""Seconds of programs on this process's devices: of calls, of units of a network, of the stages of a step.

A stage's program is the library's own code under `shard_map` on a mesh of one device, so a collective in it costs
nothing.  It has a stage column's examples, batch_size / D.  `balance` cuts by such programs, and `experiments speedup`
predicts from them.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jaxtyping import Array, PyTree

from lpjax.config.schema import MeshConfig
from lpjax.data.batch import Batch
from lpjax.methods import METHODS
from lpjax.nn import chain
from lpjax.parallel import mesh as meshes
from lpjax.training.run import Run


def stopwatch(program: Callable[..., Any], *args: PyTree, repeats: int = 5) -> list[float]:
    """Measure wall-clock seconds of calls, each until its results are there.

    Args:
      program: What is called.
      *args: Its arguments.
      repeats: Calls that are counted; one before them is not.

    Returns:
      Seconds of each call.
    """

    def seconds() -> float:
        start = time.perf_counter()
        jax.block_until_ready(program(*args))
        return time.perf_counter() - start

    return [seconds() for _ in range(1 + repeats)][1:]


def interleaved(programs: Sequence[Callable[[], Any]], repeats: int = 5) -> list[list[float]]:
    """Measure several programs by `stopwatch`, interleaved: a machine whose speed changes changes it for all.

    Each time there is a call that is not counted: since its last one, others have had a program's memory, which the
    allocator may have given back, and to get it again from the system takes long.

    Args:
      programs: What is called.
      repeats: Calls of each that are counted.

    Returns:
      Of each program the seconds of its calls.
    """
    rounds = [[stopwatch(program, repeats=1)[0] for program in programs] for _ in range(repeats)]
    return [list(own) for own in zip(*rounds, strict=True)]


class Seconds(NamedTuple):
    """Seconds of one unit on one batch, medians.

    Attributes:
      forward: Its forward pass in training.
      both: Forward and backward pass.
      without_input: The same without the gradient of its input, which a network's first unit has no use for.
    """

    forward: float
    both: float
    without_input: float


@dataclass(frozen=True)
class UnitTimer:
    """Measures (unit, in_shape, examples) -> `Seconds` on one device, each once.

    A unit that keeps the shape is measured as a scan of `row` of them, as it runs in a stage.  All but the first unit
    are interleaved with that one, or with a slower one that came after it, and measured as multiples of what it took:
    times of units that were measured minutes apart on a machine whose speed changes would not compare.

    Attributes:
      repeats: Of each measurement.
      dtype: Of activations, see `chain.Chain`.
      remat: See `chain.Chain`.
      row: How many equal units are measured together.
      known: What was measured.
      first: The program that the others are measured beside, and what it took.
    """

    repeats: int = 5
    dtype: str | None = None
    remat: bool = False
    row: int = 3
    known: dict[tuple[chain.UnitLike, chain.Shape, int], Seconds] = field(default_factory=dict, compare=False)
    first: list[tuple[Callable[[], Any], float]] = field(default_factory=list, compare=False)

    def __call__(self, unit: chain.UnitLike, in_shape: chain.Shape, examples: int) -> Seconds:
        """Seconds of a unit, measured when it is first asked for."""
        key = unit, in_shape, examples
        if key not in self.known:
            self.known[key] = self._measured(*key)
        return self.known[key]

    def _measured(self, unit: chain.UnitLike, in_shape: chain.Shape, examples: int) -> Seconds:
        one = chain.make_chain([unit], in_shape)
        count = self.row if one.out_shape == in_shape else 1
        units = replace(chain.make_chain([unit] * count, in_shape), dtype=self.dtype, remat=self.remat)
        params, stats = jax.jit(lambda key: chain.init(units, key))(jax.random.key(0))
        x = jax.random.normal(jax.random.key(1), (examples, *in_shape), float)

        def forward(params: PyTree, x: Array) -> tuple[Array, PyTree]:
            return chain.apply(units, params, stats, x, chain.Mode(train=True))

        def both(params: PyTree, x: Array) -> PyTree:
            y, pullback, new = jax.vjp(forward, params, x, has_aux=True)
            return pullback(jnp.ones_like(y)), new

        def without_input(params: PyTree, x: Array) -> PyTree:
            (grads, _), new = both(params, x)
            return grads, new

        programs = [partial(jax.jit(f), params, x) for f in (forward, both, without_input)]
        if not self.first:
            medians = [statistics.median(own) for own in interleaved(programs, self.repeats)]
            self.first.append((programs[1], medians[1]))
        else:
            beside, took = self.first[0]
            *timed, now = interleaved([*programs, beside], self.repeats)
            medians = [took * statistics.median(a / b for a, b in zip(own, now, strict=True)) for own in timed]
            if medians[1] > took:  # what takes long compares better
                self.first[0] = programs[1], medians[1]
        return Seconds(*(seconds / count for seconds in medians))


# ------------------------------------------------------------------------------------------------------------- stages


Program = Callable[[], Any]
"""A compiled part of a step, called on the arrays that it is timed on."""


def random_batch(run: Run, size: int, mesh: Mesh) -> Batch:
    """Make a batch of noise, spread over the mesh.

    Args:
      run: For the shape of its images and its number of classes.
      size: Examples.
      mesh: The mesh.
    """
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (size, *run.spec.image_shape), dtype=np.uint8)
    label = rng.integers(0, run.spec.classes, (size, *run.network.label_shape)).astype(np.int32)
    return jax.device_put(Batch(image, label, np.arange(size, dtype=np.int32)), NamedSharding(mesh, meshes.EXAMPLES))


class StagePrograms:
    """The stages of a run as programs on one device.

    Args:
      run: The run.
      device: The device.
    """

    def __init__(self, run: Run, device: jax.Device) -> None:
        self.run, self.method = run, METHODS[run.config.method]
        self.mesh = Mesh(np.array([[device]]), meshes.ALL_AXES, axis_types=(AxisType.Auto,) * 2)
        self.column = run.config.batch_size // run.config.mesh.data
        self.config = replace(run.config, mesh=MeshConfig(1, 1), batch_size=self.column)
        # A table of multipliers has a column's examples, not the training set.
        step_inputs = replace(run.step_inputs, num_examples=self.column)
        self.state = self.method.make_create(run.network, self.config, self.mesh, step_inputs)()

    def program(self, part: Callable[..., Any], *args: PyTree) -> Program:
        """Compile a part of a step for the device.

        Args:
          part: A function of arrays, run under `shard_map`.
          *args: The arrays.
        """
        whole = meshes.REPLICATED
        mapped = jax.shard_map(part, mesh=self.mesh, in_specs=whole, out_specs=whole, check_vma=False)
        args = jax.device_put(args, NamedSharding(self.mesh, whole))
        return partial(jax.jit(mapped).lower(*args).compile(), *args)

    def stage(self, k: int) -> Program:
        """Compile stage k's part of a step.

        It is the forward and backward pass on the local loss, with what the method computes beside it and the packing
        of what it sends.

        Args:
          k: The stage.

        Raises:
          ValueError: The method has no such programs (`Method.stage_program`).
        """
        make, batch = self.method.stage_program, random_batch(self.run, self.column, self.mesh)
        if make is None:
            raise ValueError(f"method={self.method.name}: a stage of it is no program of its own: expected another one")
        made = make(k, self.run.network, self.config, self.run.step_inputs, self.state, batch)
        return self.program(made.func, *made.args)


def stage_seconds(run: Run, repeats: int) -> list[float]:
    """Measure the stages' programs on the first device, interleaved, for all micro-batches of a step.

    Args:
      run: The run.
      repeats: Of each measurement.

    Returns:
      Seconds, the least of each stage, as a disturbance only adds.
    """
    programs = StagePrograms(run, jax.devices()[0])
    stages = [programs.stage(k) for k in range(run.network.num_stages)]
    micro_batches = map(len, programs.method.ages(run.config))
    return [count * min(own) for count, own in zip(micro_batches, interleaved(stages, repeats), strict=True)]
