"""What coarse adjoints say of themselves: what is kept, the schedule of a step, a stage timed alone."""

from dataclasses import replace

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.methods import moving
from lpjax.methods.base import UPDATE, WIDTH, Age, Method, StageProgram, StepFunction
from lpjax.methods.coarse_adjoint.step import Carry, Step, fits
from lpjax.network import aux_net
from lpjax.network.network import Network
from lpjax.nn.count import chain_arrays, chain_size
from lpjax.nn.schedule import Item, Part, Plan
from lpjax.parallel import mesh as meshes
from lpjax.state.step_inputs import StepInputs
from lpjax.state.train_state import Carried, TrainState


def _tied_values(network: Network) -> int:
    """Parameters of the AuxNet that are the last stage's."""
    return sum(map(chain_size, network.aux_net)) - sum(map(chain_size, network.aux_own))


def plan_aux_update(plan: Plan, network: Network, config: Config) -> None:
    """The AuxNet's gradients are summed, and its parameters updated, on every device."""
    values, arrays = sum(map(chain_size, network.aux_own)), sum(map(chain_arrays, network.aux_net))
    if arrays:
        plan.message("psum", meshes.ALL_AXES, WIDTH * (values + _tied_values(network)), "gradients", count=arrays)
        for d in range(config.mesh_shape[0]):
            plan.work(d, "update", accesses=UPDATE * values)


class CoarseAdjoint(Method):
    """Layer-parallel training on real inputs one step late, with the AuxNet's tails for adjoints."""

    name = "coarse_adjoint"
    title = "layer-parallel training on real inputs one step late, with adjoints of an AuxNet"
    aux_net = "tails"
    step: type[Step] = Step
    metrics = Method.metrics | dict.fromkeys(("stage_loss", "stage_accuracy", "coarse_error"), "stage")

    def resolve(self, config: Config) -> Config:
        """beta, where `penalty.aux` is None, is that of stages with a coarse tail."""
        initial = 0.1 if config.penalty.initial is None else config.penalty.initial
        return replace(config, penalty=replace(config.penalty, initial=initial))

    def make_step(self, network: Network, config: Config, mesh: Mesh, step_inputs: StepInputs) -> StepFunction:
        """The jitted step.

        Its metrics: task_loss and accuracy of the last stage; stage_loss and stage_accuracy of each with its tail;
        coarse_error, |G_k(R lambda_k) - R X_k|^2 / |R X_k|^2, 0 where the piece does not learn it: beside the first and
        the last stage, and without its weight.  A stage that no batch has reached yet (k in the first k steps) has
        zeros.
        """
        return self.jit(self.step(network, config, step_inputs), network, config, mesh)

    def carry(self, network: Network, config: Config) -> Carried:
        """See `Carry`."""
        packets = P("stage", "data")
        return Carried(Carry(packets, packets), lambda step_inputs, key: Carry(*moving.empty(network, config)))

    def ages(self, config: Config) -> list[list[Age]]:
        """A batch reaches stage k after k steps."""
        return [[Age(k, 0)] for k in range(config.num_stages)]

    def work(self, network: Network, config: Config) -> list[Item]:
        """Tied parameters are sent to every device."""
        (S, D), K, tails = config.mesh_shape, network.num_stages, network.aux_tails
        slots, column = K // S, config.batch_size // D
        plan = moving.plan_start(network, config, 2 * slots * moving.packet_bytes(network, config))
        if tied := _tied_values(network):
            plan.message("psum", "stage", WIDTH * tied, "gradients", count=chain_arrays(network.aux_net[-1]))
        for k, stage in enumerate(network.stages):
            behind = [Part(k, tails[i]) for i in aux_net.tail(K, k + 1, config.aux.tail) if tails]
            if fits(config, k):
                behind.append(Part(k, tails[k]))
            own = Part(k, stage, ("weights",))
            plan.local(k // slots, own, behind, "tail", micro=-k, examples=column, norm_axes=("data",))
        moving.plan_update(plan, network, config)
        plan_aux_update(plan, network, config)
        moving.plan_shift(plan, network, config, column)
        moving.plan_tags(plan, config)
        plan.message("psum", meshes.ALL_AXES, 5 * WIDTH * K, "metrics")
        return plan.items

    def holds(self, network: Network, config: Config, num_examples: int) -> dict[str, int]:
        """Packets on their way."""
        slots = network.num_stages // config.mesh_shape[0]
        packets = slots * moving.packet_bytes(network, config)
        return super().holds(network, config, num_examples) | {"packets": packets}

    def stage_program(
        self, k: int, network: Network, config: Config, step_inputs: StepInputs, state: TrainState, batch: Batch
    ) -> StageProgram:
        """See `Method`."""
        step, carry = self.step(network, config, step_inputs), moving.timed_packet(k, network, state, batch)
        rows = jax.tree.map(lambda row: row[k], (state.stage_params, state.stage_stats))

        def run(params: PyTree, stats: PyTree, carry: Carry, state: TrainState) -> PyTree:
            if network.tied:
                state = step.with_tied(state, step.tied(state.stage_params))
            return step.run_stage(k, params, stats, carry, state=state)

        return StageProgram(run, (*rows, carry, state))
