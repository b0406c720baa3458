"""What layer-parallel training says of itself: its settings, what it keeps, its schedule."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import PRNGKeyArray, PyTree

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.data.source import Spec
from lpjax.errors import require
from lpjax.methods.base import WIDTH, Age, Method, StageProgram, StepFunction
from lpjax.methods.layer_parallel.plan import plan_step
from lpjax.methods.layer_parallel.step import Carry, Step, make_exchange
from lpjax.network.network import Network
from lpjax.nn.losses import features
from lpjax.nn.schedule import Item
from lpjax.parallel import mesh as meshes
from lpjax.state.step_inputs import StepInputs, example_keys
from lpjax.state.train_state import Carried, Stored, TrainState, table_rows


class LayerParallel(Method):
    """Layer-parallel training, where an AuxNet generates the stages' inputs."""

    name = "layer_parallel"
    title = "layer-parallel training with an AuxNet"
    paper = "arXiv:2112.05387"
    aux_net = "inputs"
    metrics = (
        Method.metrics
        | {"stage_loss": "stage", "aux_task_loss": "", "penalty_coef": ""}
        | dict.fromkeys(("relative_violation", "violation", "output_square", "multiplier_norm"), "interface")
    )

    def resolve(self, config: Config) -> Config:
        """Fill in the first beta, by the policy of the multipliers."""
        initial = config.penalty.initial
        if initial is None:
            initial = 0.1 if config.multiplier == "coarse_tail" else 1.0
        return replace(config, penalty=replace(config.penalty, initial=initial))

    def settings(self, config: Config) -> dict[str, Any]:
        """The policy of the multipliers, which tells its runs apart."""
        return {"multiplier": config.multiplier}

    def check(self, config: Config, data: Spec | None = None) -> None:
        """Refuse settings that contradict each other or the data set.

        Args:
          config: With all fields filled in.
          data: The data set, once it is known.

        Raises:
          BadInput: Per-example multipliers of examples that are augmented or cropped; sweeps with stale exchanges; tied
            pieces; multipliers by the adjoint of an AuxNet that does not learn the task.
        """
        data_config, per_example = config.data, config.multiplier == "per_example"
        require(
            not per_example or not (data_config.crop or data_config.flip or data_config.cutout),
            f"multiplier=per_example with data.crop={data_config.crop}, data.flip={data_config.flip}, "
            f"data.cutout={data_config.cutout}: a multiplier stored per example needs the example to be the same each "
            f"time; set data.crop=0, data.flip=False and data.cutout=0, or choose multiplier=mean or adjoint",
        )
        require(
            not (per_example and data and data.cropped),
            f"multiplier=per_example with data.name={data_config.name}, whose images are cropped at random: a "
            f"multiplier stored per example needs the example to be the same each time; choose another multiplier",
        )
        require(
            not config.exchange.stale or config.penalty.sweeps == 0,
            f"exchange.stale=True with penalty.sweeps={config.penalty.sweeps}: a sweep waits for the stages, which is "
            f"what stale exchanges avoid; set one of them to its default",
        )
        require(
            not config.aux.tied,
            "aux.tied=True with method=layer_parallel, whose AuxNet has a head of its own to learn with: choose "
            "method=coarse_adjoint, or leave aux.tied unset",
        )
        require(
            config.multiplier != "adjoint" or config.aux.task_weight > 0,
            f"multiplier=adjoint with aux.task_weight={config.aux.task_weight}: the multiplier is the adjoint of the "
            f"AuxNet's own cross entropy, which must be trained; set aux.task_weight > 0",
        )

    def make_step(self, network: Network, config: Config, mesh: Mesh, step_inputs: StepInputs) -> StepFunction:
        """The jitted step.

        Returns:
          (state, batch) -> (state, metrics).  Metrics are task_loss and accuracy of the last stage on the inputs it was
            given; stage_loss, the local losses; relative_violation, |r_j|^2 / |X_{j-1}|^2; violation and output_square,
            mean squares of r_j and X_{j-1}; multiplier_norm, root mean square; aux_task_loss, of the AuxNet's head;
            penalty_coef.  With `exchange.stale` they are of the step before, and 0 in the first step.
        """
        step = Step(network, config, step_inputs, make_exchange(network, config))
        return self.jit(step, network, config, mesh)

    def carry(self, network: Network, config: Config) -> Carried | None:
        """What is under way between steps with `exchange.stale`, see `Carry`; None without."""
        if not config.exchange.stale:
            return None
        (S, D), packets = config.mesh_shape, P("stage", "data")
        slots, column = network.num_stages // S, config.batch_size // D

        def init(step_inputs: StepInputs, key: PRNGKeyArray) -> Carry:
            nothing = Batch(
                image=jnp.zeros((column // S, *network.interfaces[0]), jnp.uint8),
                label=jnp.zeros(column // S, jnp.int32),
                index=jnp.zeros(column // S, jnp.int32),
            )
            empty = jnp.zeros((slots, column, make_exchange(network, config).outward_length))
            return Carry(empty, jnp.full((slots, column, 3), -1, jnp.int32), nothing)

        return Carried(Carry(packets, packets, meshes.EXAMPLES), init)

    def stores(self, network: Network, config: Config, num_examples: int) -> Stored | None:
        """The multipliers that the policy stores: one an interface, one an interface and example, or None."""
        if config.multiplier not in ("mean", "per_example"):
            return None
        S, D = config.mesh_shape
        rows = table_rows(num_examples, S * D) if config.multiplier == "per_example" else None
        return Stored(network.interfaces[1:], rows)

    def ages(self, config: Config) -> list[list[Age]]:
        """How old the gradients are: with `exchange.stale` the batch is of the step before."""
        return [[Age(int(config.exchange.stale), 0)] for _ in range(config.num_stages)]

    def work(self, network: Network, config: Config) -> list[Item]:
        """The schedule of a step, see `plan`."""
        return plan_step(network, config)

    def holds(self, network: Network, config: Config, num_examples: int) -> dict[str, int]:
        """Bytes between steps, with the stored multipliers, and with `exchange.stale` the packets on their way."""
        (S, D), sizes = config.mesh_shape, super().holds(network, config, num_examples)
        if stored := self.stores(network, config, num_examples):
            rows = 1 if stored.rows is None else stored.rows // (S * D)
            sizes["multipliers"] = WIDTH * rows * sum(map(features, stored.shapes))
        if config.exchange.stale:
            own = config.batch_size // (S * D)
            sizes["packets"] = WIDTH * network.num_stages * own * make_exchange(network, config).outward_length
        return sizes

    def stage_program(
        self, k: int, network: Network, config: Config, step_inputs: StepInputs, state: TrainState, batch: Batch
    ) -> StageProgram:
        """The passes of stage k on its local loss, as a program to be timed alone."""
        exchange = make_exchange(network, config)
        step = Step(network, config, step_inputs, exchange)
        packet: Any = jax.random.normal(jax.random.key(0), (len(batch.label), exchange.outward_length), float)
        rows = jax.tree.map(lambda row: row[k], (state.stage_params, state.stage_stats))

        def run(params: PyTree, stats: PyTree, packet: PyTree, state: TrainState, batch: Batch) -> PyTree:
            keys = example_keys(state.key, state.step, batch.index)
            return step.run_stage(k, params, stats, packet, state=state, labels=batch.label, keys=keys)

        return StageProgram(run, (*rows, packet, state, batch))
