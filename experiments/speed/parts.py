"""The parts of a step as programs of their own, on what one device has of them: what `speedup` times.

A collective in them costs nothing, on a mesh of one device; what it costs is measured apart (`link`).  With S devices
along 'stage' and D along 'data' augmentation, AuxNet and packing have B / (S D) examples, a stage has B / D.
"""

import statistics
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

from experiments.speed.prediction import schedule_of
from lpjax.config.schema import MeshConfig
from lpjax.cost.timing import Program, StagePrograms, random_batch, stopwatch
from lpjax.data.batch import Batch
from lpjax.methods.layer_parallel import aux_step, multiplier, step
from lpjax.nn.losses import Targets
from lpjax.parallel import mesh as meshes
from lpjax.state import optim
from lpjax.state.step_inputs import example_keys
from lpjax.training.run import Run


class Parts(StagePrograms):
    """Programs of a run's step on one device of S along 'stage', whatever its own mesh has, and D along 'data'."""

    def __init__(self, run: Run, device: jax.Device, num_devices: int = 1) -> None:
        super().__init__(run, device)
        self.S, self.D = num_devices, run.config.mesh.data

    def schedule(self) -> dict[str, Any]:
        """Of a step on that mesh, see `prediction.schedule_of`."""
        return schedule_of(self.run.network, replace(self.run.config, mesh=MeshConfig(self.S, self.D)))

    def augment(self, size: int) -> tuple[Program, Batch]:
        """Images of a batch of `size` made the network's input, and the batch."""
        batch, state = random_batch(self.run, size, self.mesh), self.state
        keys = partial(example_keys, state.key, state.step)
        return self.program(lambda own: self.run.step_inputs.network_input(own, keys(own.index)), batch), batch

    def update(self, aux_net: bool) -> Program:
        """The update of a device's stages, or of the AuxNet."""
        state, inputs, slots = self.state, self.run.step_inputs, self.run.network.num_stages // self.S
        if aux_net:
            own = inputs.aux_optimizer
            return self.program(lambda p, opt: optim.update(own, p, opt, p), state.aux_params, state.aux_opt)
        rows = jax.tree.map(lambda row: row[:slots], (state.stage_params, state.stage_opt))
        return self.program(lambda p, opt: optim.update_rows(inputs.optimizer, p, opt, p), *rows)

    def aux_net(self, size: int) -> dict[str, Program]:
        """Of `size` examples: data, aux_forward (with what finds the multipliers), aux_all (forward pass, correction,
        fit and its optimiser step), correction, and packing: send and receive."""
        run, state = self.run, self.state
        config = replace(self.config, batch_size=size)
        data, batch = self.augment(size)
        x, targets = data(), Targets(batch.label, config.data.label_smoothing)
        exchange = step.make_exchange(run.network, config)
        features = [jnp.ones((size, *shape)) for shape in run.network.interfaces[1:]]
        replies = jnp.ones((run.network.num_stages, size, exchange.homeward_length))

        def forward(params: PyTree, stats: PyTree, x: Array) -> PyTree:
            done = aux_step.forward(run.network, config, params, stats, x, targets)
            return done.lam, done.loss, done.stats, multiplier.current(config, state, batch, done)

        def everything(state: PyTree, x: Array, adjoints: list[Array], outputs: list[Array]) -> PyTree:
            aux = partial(aux_step.forward, run.network, config, stats=state.aux_stats, x=x, targets=targets)
            done = aux(state.aux_params)
            kappa = multiplier.current(config, state, batch, done)
            corrected = aux_step.corrected_inputs(config, state, done, kappa, adjoints, outputs)
            optimizer = run.step_inputs.aux_optimizer
            return done.lam, aux_step.fit(config, state, optimizer, aux, done, corrected, adjoints, state.aux_params)

        def correction(lam: list[Array], adjoints: list[Array], outputs: list[Array]) -> PyTree:
            done = aux_step.AuxPass(tuple(lam), jnp.zeros(()), lambda *_: ((), ()), ())
            return aux_step.corrected_inputs(config, state, done, None, adjoints, outputs)

        kappa = features if exchange.with_multiplier else None
        return {
            "data": data,
            "aux_forward": self.program(forward, state.aux_params, state.aux_stats, x),
            "aux_all": self.program(everything, state, x, features, features),
            "correction": self.program(correction, features, features, features),
            "send": self.program(partial(exchange.send, multiplier=kappa), [x, *features]),
            "receive": self.program(exchange.receive, replies),
        }

    def all(self) -> dict[str, Program]:
        """The parts of a device's step; serial_data and serial_aux_all: of one device that has the whole batch."""
        B, kind = self.run.config.batch_size, self.method.aux_net
        own = B // (self.S * self.D)
        programs = {"optimizer": self.update(aux_net=False), "serial_data": self.augment(B)[0]}
        if kind == "inputs":
            programs |= self.aux_net(own) | {"serial_aux_all": self.aux_net(B)["aux_all"]}
        else:
            programs["data"] = self.augment(own)[0]
        if kind == "tails":
            programs["aux_optimizer"] = self.update(aux_net=True)
        return programs | {f"stage {k}": self.stage(k) for k in range(self.run.network.num_stages)}


def link(count: int, repeats: int) -> dict[str, float]:
    """Latency, seconds, and bandwidth, bytes a second that a device sends, of an all_to_all of `count` devices."""
    mesh, axis = meshes.make_mesh(count, 1), P("stage")

    def seconds(size: int) -> float:
        """Where each device sends `size` bytes to others."""
        x = jax.device_put(jnp.zeros((count * count, size // (4 * (count - 1)))), NamedSharding(mesh, axis))
        move = jax.shard_map(exchange, mesh=mesh, in_specs=axis, out_specs=axis)
        return statistics.median(stopwatch(jax.jit(move), x, repeats=repeats))

    def exchange(x: Array) -> Array:
        return lax.all_to_all(x, "stage", 0, 0, tiled=True)

    small, large = 1 << 12, 1 << 25
    latency = seconds(small)
    return {"latency": latency, "bandwidth": (large - small) / max(seconds(large) - latency, 1e-9)}
