"""The stages of a step as programs of their own: what `balance` cuts by, and `experiments speedup` predicts from.

A program is the library's own code under `shard_map` on a mesh of one device, so a collective in it costs nothing.  It
has a stage column's examples, batch_size / D.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from lpjax.config.schema import MeshConfig
from lpjax.cost.timing import interleaved
from lpjax.data.batch import Batch
from lpjax.methods import METHODS
from lpjax.parallel import mesh as meshes
from lpjax.training.run import Run


def random_batch(run: Run, size: int, mesh: Mesh) -> Batch:
    """Make a batch of noise, spread over the mesh.

    Args:
      run: For the shape of its images and its number of classes.
      size: Examples.
      mesh: The mesh.
    """
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (size, *run.spec.image_shape), dtype=np.uint8)
    label = rng.integers(0, run.spec.classes, size).astype(np.int32)
    return jax.device_put(Batch(image, label, np.arange(size, dtype=np.int32)), NamedSharding(mesh, meshes.EXAMPLES))


@dataclass(frozen=True)
class Program:
    """A compiled part of a step and the arrays it is timed on.

    Attributes:
      call: The compiled part.
      args: The arrays.
    """

    call: Callable[..., Any]
    args: tuple[PyTree, ...]

    def run(self) -> Any:
        """Call it; returns its results."""
        return self.call(*self.args)


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
        self.state = self.method.create(run.network, self.config, self.mesh, step_inputs)

    def program(self, part: Callable[..., Any], *args: PyTree) -> Program:
        """Compile a part of a step for the device.

        Args:
          part: A function of arrays, run under `shard_map`.
          *args: The arrays.
        """
        mapped = jax.shard_map(part, mesh=self.mesh, in_specs=P(), out_specs=P(), check_vma=False)
        args = jax.device_put(args, NamedSharding(self.mesh, P()))
        return Program(jax.jit(mapped).lower(*args).compile(), args)

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
        return self.program(made.run, *made.args)


def stage_seconds(run: Run, repeats: int) -> list[float]:
    """Measure the stages' programs on the first device, interleaved.

    Args:
      run: The run.
      repeats: Of each measurement.

    Returns:
      Seconds, the least of each stage, as a disturbance only adds.
    """
    programs = StagePrograms(run, jax.devices()[0])
    stages = [programs.stage(k) for k in range(run.network.num_stages)]
    return [min(own) for own in interleaved([stage.run for stage in stages], repeats)]
