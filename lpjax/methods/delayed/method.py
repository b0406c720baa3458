"""The method, what it carries, and the schedule of its step."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import PRNGKeyArray

from lpjax.config.schema import Config
from lpjax.data.source import Spec
from lpjax.errors import require
from lpjax.methods import base, moving
from lpjax.methods.base import WIDTH, Age, stage_values
from lpjax.methods.delayed.step import Carry, Step, delay, lateness
from lpjax.methods.stage_plan import StagePlan, check_micro_batches, packet_bytes
from lpjax.network.network import Network
from lpjax.network.packing import Row
from lpjax.nn.schedule import Item
from lpjax.parallel import mesh as meshes
from lpjax.state.step_inputs import StepInputs
from lpjax.state.train_state import Carried


class Delayed(base.Method):
    """Delayed gradients: backward passes that do not wait for the stages behind."""

    name = "delayed"
    title = "delayed gradients"
    paper = "arXiv:1804.10574, arXiv:1906.09108"
    step = Step

    def settings(self, config: Config) -> dict[str, Any]:
        """The variant; the micro-batches, if there are several; the weights, if they are not "forward"."""
        own = config.delayed
        unusual = {"micro_batches": own.micro_batches} if own.micro_batches > 1 else {}
        return {"variant": own.variant} | unusual | ({"weights": own.weights} if own.weights != "forward" else {})

    def check(self, config: Config, data: Spec | None = None) -> None:
        """Refuse a number of micro-batches that a stage column cannot be cut into, or that DDG has not.

        Raises:
          BadInput: Such a number, or other weights in DDG.
        """
        own = config.delayed
        check_micro_batches("delayed", own.micro_batches, config)
        require(
            own.variant == "fdg" or (own.micro_batches, own.weights) == (1, "forward"),
            f"delayed.micro_batches={own.micro_batches}, delayed.weights={own.weights} with delayed.variant=ddg: "
            f"expected 1 and forward; set delayed.variant=fdg",
        )

    def carry(self, network: Network, config: Config) -> Carried:
        """What is under way between steps, see `Carry`."""
        depth, packets, rings = max(lateness(config)) + 1, moving.PACKETS, P("stage", None, "data")
        kept = config.delayed.weights

        def init(step_inputs: StepInputs, key: PRNGKeyArray) -> Carry:
            column = config.batch_size // config.mesh.data
            packets, tags = (x[:, : column // config.delayed.micro_batches] for x in moving.empty(network, config))
            rows = network.params.lengths.items()
            weights = {kind: jnp.zeros((len(packets), delay(config) + 1, size)) for kind, size in rows}
            rings = jnp.repeat(packets[:, None], depth, 1), jnp.repeat(tags[:, None], depth, 1)
            none: Row = {}
            sums = jax.tree.map(jnp.zeros_like, weights) if kept == "batch" else none
            return Carry(packets, tags, packets, *rings, none if kept == "newest" else weights, sums)

        stages = meshes.STAGES
        return Carried(Carry(packets, packets, packets, rings, rings, stages, stages), init)

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
        M, kept, values = config.delayed.micro_batches, config.delayed.weights, stage_values(network, config)
        examples = plan.column // M
        plan.column_batch(plan.slots)
        for k in range(0 if fdg else K - 1):
            plan.forward(k)
            plan.shift()
        for m in range(M):
            for k, late in enumerate(lateness(config)):
                if fdg and k < K - 1:
                    plan.forward(k, micro=m - k, examples=examples)
                micro = m - k * fdg - late
                plan.backward(k // plan.slots, [k], again=k < K - 1, micro=micro, examples=examples)
            for _ in range(2):  # outputs (DDG: zeros) and gradients
                plan.shift(examples)
            plan.shift_tags(examples)
        ticks = 3 * M if M > 1 else 0  # a gradient is added to the sum
        more = 3 * (kept != "newest") + ticks + 5 * (kept == "batch")
        plan.update(more=more * values, sums=1 + (kept == "batch"))
        plan.message("psum", meshes.ALL_AXES, 3 * WIDTH * K, "metrics")
        return plan.items

    def holds(self, network: Network, config: Config, num_examples: int) -> dict[str, int]:
        """Bytes between steps, with the packets on their way and the rings of inputs, of weights and of gradients."""
        slots, ticks = network.num_stages // config.mesh_shape[0], max(lateness(config)) + 1
        packet, kept = packet_bytes(network, config) // config.delayed.micro_batches, config.delayed.weights
        version = WIDTH * stage_values(network, config)
        held = {"packets": 2 * slots * packet, "rings of inputs": slots * ticks * packet}
        held |= {"rings of weights": (delay(config) + 1) * version} if kept != "newest" else {}
        held |= {"rings of gradients": (delay(config) + 1) * version} if kept == "batch" else {}
        return super().holds(network, config, num_examples) | held
