"""The stages of a step as programs of their own: what `balance` cuts by, and `experiments.speedup` predicts from.

A program is the library's own code under `shard_map` on a mesh of one device, so a collective in it costs nothing.  It
has a stage column's examples, batch_size / D.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from lpjax.config.schema import MeshConfig
from lpjax.cost.timing import in_turns
from lpjax.data.batch import Batch
from lpjax.errors import BadInput
from lpjax.methods import coarse_adjoint, local, moving
from lpjax.methods.layer_parallel import step as layer_parallel
from lpjax.parallel import mesh as meshes
from lpjax.state import train_state
from lpjax.state.step_inputs import example_keys
from lpjax.training.run import Run

METHODS = ("layer_parallel", "coarse_adjoint", "local")
"""Whose stages are programs of one forward and one backward pass with what is computed beside it."""


def random_batch(run: Run, size: int, mesh: Mesh) -> Batch:
    """A batch of noise, spread over the mesh."""
    rng = np.random.default_rng(0)
    sharding = NamedSharding(mesh, meshes.EXAMPLES)
    return Batch(
        image=jax.device_put(rng.integers(0, 256, (size, *run.spec.image_shape), dtype=np.uint8), sharding),
        label=jax.device_put(rng.integers(0, run.spec.classes, size).astype(np.int32), sharding),
        index=jax.device_put(np.arange(size, dtype=np.int32), sharding),
    )


@dataclass(frozen=True)
class Program:
    """A compiled part of a step and the arrays it is timed on."""

    call: Callable[..., Any]
    args: tuple[PyTree, ...]

    def run(self) -> Any:
        """Its results."""
        return self.call(*self.args)


class StagePrograms:
    """Those of a run on one device."""

    def __init__(self, run: Run, device: jax.Device) -> None:
        self.run = run
        self.mesh = Mesh(np.array([[device]]), meshes.ALL_AXES, axis_types=(AxisType.Auto,) * 2)
        self.column = run.config.batch_size // run.config.mesh.data
        self.config = replace(run.config, mesh=MeshConfig(1, 1), batch_size=self.column)
        recipe = replace(run.recipe, num_examples=self.column)  # a table of multipliers has these, not the training set
        self.state = train_state.create(self.config, run.network, self.mesh, recipe)

    def program(self, part: Callable[..., Any], *args: PyTree) -> Program:
        """A part compiled for the device."""
        mapped = jax.shard_map(part, mesh=self.mesh, in_specs=P(), out_specs=P(), check_vma=False)
        args = jax.device_put(args, NamedSharding(self.mesh, P()))
        return Program(jax.jit(mapped).lower(*args).compile(), args)

    def stage(self, k: int) -> Program:
        """Forward and backward pass of stage k on its local loss, with what the method computes beside it and the
        packing of what it sends.  Raises ValueError for a method that is not one of `METHODS`."""
        run, state, batch = self.run, self.state, random_batch(self.run, self.column, self.mesh)
        step: Any
        packet: PyTree
        if self.config.method == "layer_parallel":
            exchange = layer_parallel.make_exchange(run.network, self.config)
            step = layer_parallel.Step(run.network, self.config, run.recipe, exchange)
            packet = jax.random.normal(jax.random.key(0), (self.column, exchange.outward_length), float)
        elif self.config.method in METHODS:
            if self.config.method == "coarse_adjoint":
                step = coarse_adjoint.Step(run.network, self.config, run.recipe)
            else:
                own = local.classifiers(run.network, self.config.local.blocks)
                step = local.Step(run.network, self.config, run.recipe, own)
            inputs = jax.random.normal(jax.random.key(0), (self.column, moving.length(run.network)), float)
            tags = jnp.stack([batch.label, batch.index, jnp.zeros_like(batch.index)], axis=1)
            packet = replace(jax.tree.map(lambda row: row[k], state.carry), inputs=inputs, tags=tags)
        else:
            raise BadInput(f"method={self.config.method}: expected one of {', '.join(METHODS)}")
        params, stats = jax.tree.map(lambda row: row[k], (state.stage_params, state.stage_stats))

        def part(params: PyTree, stats: PyTree, packet: PyTree, state: PyTree) -> PyTree:
            if self.config.method == "coarse_adjoint" and run.network.tied:
                state = step.with_tied(state, step.tied(state.stage_params))
            if self.config.method != "layer_parallel":
                return step.run_stage(k, params, stats, packet, state=state)
            keys = example_keys(state.key, state.step, batch.index)
            return step.run_stage(k, params, stats, packet, state=state, labels=batch.label, keys=keys)

        return self.program(part, params, stats, packet, state)


def stage_seconds(run: Run, repeats: int) -> list[float]:
    """Of the stages' programs on the first device, in turns, the least of each: what disturbs a machine only adds."""
    programs = StagePrograms(run, jax.devices()[0])
    stages = [programs.stage(k) for k in range(run.network.num_stages)]
    return [min(own) for own in in_turns([stage.run for stage in stages], repeats)]
