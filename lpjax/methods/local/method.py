"""The method, what it carries, and the schedule of its step."""

from dataclasses import fields
from typing import Any

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from lpjax.config.schema import Config
from lpjax.data.source import Spec
from lpjax.errors import require
from lpjax.methods import moving
from lpjax.methods.base import WIDTH, Method
from lpjax.methods.local.classifiers import check, classifiers
from lpjax.methods.local.step import Carry, Step
from lpjax.methods.stage_plan import StagePlan
from lpjax.network.network import Network
from lpjax.network.packing import PackedChains
from lpjax.nn import residues
from lpjax.nn.schedule import Item
from lpjax.parallel import mesh as meshes
from lpjax.state import optim
from lpjax.state.step_inputs import StepInputs
from lpjax.state.train_state import Carried


class Local(moving.Moving):
    """Local losses: every stage learns by the cross entropy of a classifier of its own."""

    name = "local"
    title = "decoupled greedy learning"
    paper = "arXiv:1901.08164"
    metrics = Method.metrics | {"stage_loss": "stage"}
    step = Step

    def settings(self, config: Config) -> dict[str, Any]:
        """Those of the section `local` that are not at their defaults."""
        own = config.local
        return {f.name: getattr(own, f.name) for f in fields(own) if getattr(own, f.name) != f.default}

    def check(self, config: Config, data: Spec | None = None) -> None:
        """Refuse to sample no units.

        Raises:
          BadInput: `local.blocks` is 0 where they are sampled.
        """
        check(config.local)

    def carry(self, network: Network, config: Config) -> Carried:
        """What is under way between steps, and the classifiers, see `Carry`."""
        own = classifiers(network, config.local)
        require(
            not config.local.residue or any(map(residues.is_residual, network.chain.units)),
            f"local.residue={config.local.residue}: no unit of the network has residues: expected residual blocks; set "
            f"local.residue=0, or give its blocks a function `with_residue`",
        )

        def init(step_inputs: StepInputs, key: PRNGKeyArray) -> Carry:
            params, stats, means = own.init_all(key, config.mesh_shape[0])
            opt = optim.init_rows(step_inputs.aux_optimizer, params)
            count = jnp.zeros(network.num_stages // config.mesh_shape[0], jnp.int32) if means else ()
            return Carry(*moving.empty(network, config), params, opt, stats, means, count)

        return Carried(Carry(moving.PACKETS, moving.PACKETS, *[meshes.STAGES] * 5), init, ("opt",))

    def work(self, network: Network, config: Config) -> list[Item]:
        """The schedule of a step, in which no gradient crosses an interface."""
        plan, own = StagePlan(network, config), classifiers(network, config.local)
        plan.column_batch(2 * plan.slots)
        for k, ages in enumerate(self.ages(config)):
            kept = WIDTH * residues.features(network.stages[k]) if config.local.residue and not config.remat else 0
            plan.local_losses(k, ages, own.parts(k), "classifier", keeps=kept)
        means = own.means
        plan.update(PackedChains(own.chains, own.params, own.stats), more=3 * plan.slots * means.length)
        if means.length and len(plan.devices) > 1:
            plan.message("ppermute", "stage", WIDTH * means.length, "exchange", count=len(means.lengths))
        plan.shift()
        plan.shift_tags()
        plan.message("psum", meshes.ALL_AXES, 3 * WIDTH * network.num_stages, "metrics")
        return plan.items

    def holds(self, network: Network, config: Config, num_examples: int) -> dict[str, int]:
        """Bytes between steps, with the packets on their way, the classifiers, their optimiser's state and means."""
        slots, own = network.num_stages // config.mesh_shape[0], classifiers(network, config.local)
        sizes, more = super().holds(network, config, num_examples), WIDTH * slots * own.params.length
        sizes["parameters"] += more
        sizes["optimizer"] += optim.kept_values(config.aux_optimizer) * more
        means = WIDTH * slots * own.means.length
        return sizes | ({"running means": means} if means else {})
