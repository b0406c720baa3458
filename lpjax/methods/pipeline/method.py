"""The method, and the schedule of its step."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
from jaxtyping import Array

from lpjax.config.schema import Config, MeshConfig
from lpjax.data.batch import Batch
from lpjax.data.source import Spec
from lpjax.methods import base, kept, moving
from lpjax.methods.base import WIDTH, Age, StageResult, stage_values
from lpjax.methods.pipeline.step import Step, keeps, places
from lpjax.methods.stage_plan import StagePlan, check_micro_batches, packet_bytes
from lpjax.network.network import Network
from lpjax.nn.schedule import Item
from lpjax.parallel import mesh as meshes
from lpjax.state.step_inputs import StepInputs
from lpjax.state.train_state import TrainState


class Pipeline(base.Method):
    """Pipelined backprop in rounds that all devices share."""

    name = "pipeline"
    title = "pipelined backprop"
    paper = "arXiv:1811.06965"
    step = Step

    def settings(self, config: Config) -> dict[str, Any]:
        """The number of micro-batches, which tells its runs apart, and what is kept, unless it is activations."""
        unusual = {"keep": "inputs"} if config.pipeline.keep == "inputs" else {}
        return {"micro_batches": config.pipeline.micro_batches} | unusual

    def advice(self, config: Config) -> str | None:
        """The bubble, and that with twice as many micro-batches."""
        S, M = config.mesh_shape[0], config.pipeline.micro_batches
        now, twice = (f"micro_batches={m}: bubble {100 * (S - 1) / (m + S - 1):.0f} %" for m in (M, 2 * M))
        return f"a pipeline of {S} devices waits; {now}; {twice}" if S > 1 else None

    def check(self, config: Config, data: Spec | None = None) -> None:
        """Refuse a number of micro-batches that a stage column cannot be cut into.

        Raises:
          BadInput: It does not divide the column's batch.
        """
        check_micro_batches("pipeline", config.pipeline.micro_batches, config)

    def ages(self, config: Config) -> list[list[Age]]:
        """How old the gradients are: of this step's micro-batches, at this step's weights."""
        M = config.pipeline.micro_batches
        return [[Age(M - 1 - m, 0) for m in range(M)] for _ in range(config.num_stages)]

    def work(self, network: Network, config: Config) -> list[Item]:
        """The schedule of a step, round by round.

        In each round a device adds to its gradients, micro-batch or none: three accesses.
        """
        plan, M = StagePlan(network, config), config.pipeline.micro_batches
        S, examples = len(plan.devices), plan.column // M
        stages = [range(d * plan.slots, (d + 1) * plan.slots) for d in plan.devices]
        plan.column_batch(1)
        row = 0
        if keeps(config):
            own = (kept.joined(kept.of_chain(network.stages[k], examples) for k in ks) for ks in stages[:-1])
            row = kept.size(kept.longest(own))
        plan.each("pack", keeps=packet_bytes(network, config) // M * (places(S, M) + 2))
        plan.each("keep", keeps=places(S, M) * row)
        for number in range(M + 2 * (S - 1)):
            for d in range(S - 1):
                if 0 <= (m := number - d) < M:
                    for k in stages[d]:
                        plan.forward(k, micro=m, examples=examples)
            for d in range(S):
                if not 0 <= (m := number - 2 * (S - 1) + d) < M:
                    continue
                if keeps(config) and d < S - 1:
                    for k in reversed(stages[d]):
                        plan.backward_of(k, micro=m, examples=examples)
                else:
                    plan.backward(d, stages[d], again=d < S - 1, micro=m, examples=examples)
            if keeps(config):  # rows are put into the rings, and read from them
                plan.each("pack", accesses=4 * row // WIDTH)
            for _ in range(2):  # outputs and gradients
                plan.shift(examples)
        plan.update(more=3 * (M + 2 * (S - 1)) * stage_values(network, config))
        plan.message("psum", meshes.ALL_AXES, WIDTH * network.num_stages, "metrics")
        plan.message("psum", meshes.ALL_AXES, 2 * WIDTH, "metrics", count=2)
        return plan.items

    def stage_program(
        self, k: int, network: Network, config: Config, step_inputs: StepInputs, state: TrainState, batch: Batch
    ) -> partial[StageResult]:
        """The passes of stage k on two micro-batches of noise, as a program to be timed alone."""
        K, examples = network.num_stages, len(batch.label) // config.pipeline.micro_batches
        step = Step(network, replace(config, mesh=MeshConfig(K, 1)), step_inputs)
        rows = jax.tree.map(lambda row: row[k : k + 1], (state.stage_params, state.stage_stats))
        own, tags = replace(state, stage_params=rows[0], stage_stats=rows[1]), moving.make_tags(batch, 0)[:examples]
        noise = jax.random.normal(jax.random.key(0), (3, examples, network.packet_length), float)
        lengths = kept.of_chain(network.stages[k], examples) if keeps(step.config) else dict[str, int]()

        def run(state: TrainState, noise: Array, tags: Array, before: kept.Rows) -> StageResult:
            done, back = step.run_backward(k, noise[0], tags, noise[1], before, state=state)
            if k == K - 1:
                return done
            return done._replace(output=(back, step.run_forward(k, noise[2], tags, state=state, lengths=lengths)))

        return partial(run, own, noise, tags, kept.noise(lengths))
