"""The method, what it carries, and the schedule of its step."""

from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PRNGKeyArray

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.data.source import Spec
from lpjax.errors import require
from lpjax.methods import base, kept, moving
from lpjax.methods.base import WIDTH, Age, StageResult, stage_values
from lpjax.methods.delayed.carry import Carry, Pass, delay, lateness, micro_batch, row_lengths
from lpjax.methods.delayed.step import Step
from lpjax.methods.stage_plan import StagePlan, check_micro_batches, packet_bytes
from lpjax.network.network import Network
from lpjax.network.packing import Row
from lpjax.nn.schedule import Item
from lpjax.parallel import mesh as meshes
from lpjax.parallel.mesh import Stage
from lpjax.state.step_inputs import StepInputs
from lpjax.state.train_state import Carried, TrainState


class Delayed(base.Method):
    """Delayed gradients: backward passes that do not wait for the stages behind."""

    name = "delayed"
    title = "delayed gradients"
    paper = "arXiv:1804.10574, arXiv:1906.09108"
    step: ClassVar[type[Step]] = Step

    def settings(self, config: Config) -> dict[str, Any]:
        """The variant; the micro-batches, if there are several; the weights, if they are not "forward"."""
        own = config.delayed
        usual = {"micro_batches": 1, "weights": "forward", "keep": "inputs"}
        unusual = {name: getattr(own, name) for name, value in usual.items() if getattr(own, name) != value}
        return {"variant": own.variant} | unusual

    def check(self, config: Config, data: Spec | None = None) -> None:
        """Refuse a number of micro-batches that a stage column cannot be cut into, or that DDG has not.

        Raises:
          BadInput: Such a number, or other weights or kept activations in DDG.
        """
        own = config.delayed
        check_micro_batches("delayed", own.micro_batches, config)
        require(
            own.variant == "fdg" or (own.micro_batches, own.weights, own.keep) == (1, "forward", "inputs"),
            f"delayed.micro_batches={own.micro_batches}, delayed.weights={own.weights}, delayed.keep={own.keep} with "
            f"delayed.variant=ddg: expected 1, forward and inputs; set delayed.variant=fdg",
        )

    def carry(self, network: Network, config: Config) -> Carried:
        """What is under way between steps, see `Carry`."""
        depth, packets, rings = max(lateness(config)) + 1, moving.PACKETS, P("stage", None, "data")
        weighted = config.delayed.weights

        def init(step_inputs: StepInputs, key: PRNGKeyArray) -> Carry:
            packets, tags = (x[:, : micro_batch(config)] for x in moving.empty(network, config))
            lengths = network.params.lengths.items()
            weights = {kind: jnp.zeros((len(packets), delay(config) + 1, size)) for kind, size in lengths}
            rings = jnp.repeat(packets[:, None], depth, 1), jnp.repeat(tags[:, None], depth, 1)
            none: Row = {}
            sums = jax.tree.map(jnp.zeros_like, weights) if weighted == "batch" else none
            rows = kept.empty(row_lengths(network, config), len(packets), depth - 1)
            return Carry(packets, tags, packets, *rings, none if weighted == "newest" else weights, sums, rows)

        stages = meshes.STAGES
        specs = Carry(packets, packets, packets, rings, rings, stages, stages, rings)
        return Carried(specs, init, again=lambda inputs, state: self.step(network, config, inputs).kept_again(state))

    def ages(self, config: Config) -> list[list[Age]]:
        """In FDG a micro-batch reaches stage k after k ticks, in DDG at once; its gradient comes `lateness` later."""
        M, fdg, d = config.delayed.micro_batches, config.delayed.variant == "fdg", delay(config)

        def age(k: int, late: int, m: int) -> Age:
            if config.delayed.weights == "batch":
                return Age(d * M + M - 1 - m, d)
            newer = 0 if config.delayed.weights == "newest" else -((m - late) // M)
            return Age(M - 1 - m + k * fdg + late, newer)

        return [[age(k, late, m) for m in range(M)] for k, late in enumerate(lateness(config))]

    def work(self, network: Network, config: Config) -> list[Item]:
        """The schedule of a step; weights are copied to a ring and older ones are read from it: three accesses."""
        plan, K, fdg = StagePlan(network, config), network.num_stages, config.delayed.variant == "fdg"
        M, weights, values = config.delayed.micro_batches, config.delayed.weights, stage_values(network, config)
        examples, keeps = plan.column // M, config.delayed.keep == "activations"
        row = kept.size(row_lengths(network, config)) // WIDTH
        plan.column_batch(plan.slots)
        for k in range(0 if fdg else K - 1):
            plan.forward(k)
            plan.shift()
        for m in range(M):
            for k, late in enumerate(lateness(config)):
                micro = m - k * fdg - late
                if fdg and k < K - 1:
                    plan.forward(k, micro=m - k, examples=examples)
                if keeps and k < K - 1:
                    plan.backward_of(k, micro=micro, examples=examples)
                else:
                    plan.backward(k // plan.slots, [k], again=k < K - 1, micro=micro, examples=examples)
                self.work_beside(plan, k, micro, examples)
            if keeps:  # rows are put into the rings, and read from them
                plan.each("pack", accesses=4 * plan.slots * row)
            for _ in range(2):  # outputs (DDG: zeros) and gradients
                plan.shift(examples)
            plan.shift_tags(examples)
        ticks = 3 * M if M > 1 else 0  # a gradient is added to the sum
        more = 3 * (weights != "newest") + ticks + 5 * (weights == "batch")
        plan.update(more=more * values, sums=1 + (weights == "batch"))
        self.work_behind(plan)
        plan.message("psum", meshes.ALL_AXES, 3 * WIDTH * K, "metrics")
        return plan.items

    def work_beside(self, plan: StagePlan, k: int, micro: int, examples: int) -> None:
        """Add what is run beside the backward pass of stage k: nothing."""

    def work_behind(self, plan: StagePlan) -> None:
        """Add what comes behind the stages' update: nothing."""

    def holds(self, network: Network, config: Config, num_examples: int) -> dict[str, int]:
        """Bytes between steps, with the packets on their way and the rings of a device's stages."""
        slots, late = network.num_stages // config.mesh_shape[0], max(lateness(config))
        packet, weights = packet_bytes(network, config) // config.delayed.micro_batches, config.delayed.weights
        version, rows = WIDTH * stage_values(network, config), kept.size(row_lengths(network, config))
        held = {"packets": 2 * slots * packet, "rings of inputs": slots * (late + 1) * packet}
        held |= {"rings of activations": slots * late * rows} if rows else {}
        held |= {"rings of weights": (delay(config) + 1) * version} if weights != "newest" else {}
        held |= {"rings of gradients": (delay(config) + 1) * version} if weights == "batch" else {}
        return super().holds(network, config, num_examples) | held

    def stage_program(
        self, k: int, network: Network, config: Config, step_inputs: StepInputs, state: TrainState, batch: Batch
    ) -> partial[StageResult]:
        """The passes of stage k on two micro-batches of noise, as a program to be timed alone."""
        step, examples = self.step(network, config, step_inputs), micro_batch(config)
        params, stats = jax.tree.map(lambda row: row[k], (state.stage_params, state.stage_stats))
        noise = jax.random.normal(jax.random.key(0), (3, examples, network.packet_length), float)
        tags, rows = moving.make_tags(batch, 0)[:examples], kept.noise(row_lengths(network, config))

        def run(params: Row, stats: Row, noise: Array, tags: Array, rows: kept.Rows, state: TrainState) -> StageResult:
            forward, backward = Pass(noise[0], tags, {}, {}), Pass(noise[1], tags, {}, rows)
            passes = params, stats, forward, backward, noise[2]
            return step.run_stage(Stage((k,), k), *passes, state=step.complete(state), tick=state.step)

        return partial(run, params, stats, noise, tags, rows, state)
