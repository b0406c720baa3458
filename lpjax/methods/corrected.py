"""Delayed gradients whose age the tails of an AuxNet make up for: parareal's correction, of adjoints.

Micro-batches go forward and backward as in `methods.delayed` (FDG), every pass at the newest weights.  When a gradient
comes back to stage k, the stage's weights are newer than those of its forward pass: on the same input lambda_k its
output is no longer lambda_{k+1}, which the stage behind has seen.  By what the gradient changes between the two points,
the AuxNet's tail estimates.  With T_j(x) = phi(G_{K-1}(..G_j(R x)), y), R the way to the grid (`aux_net.skip`):

    stage K-1  P = d phi / d X_{K-1}
    stage k    X_k = F_k(lambda_k; W_k),  P = (sent by stage k+1) + grad T_{k+1}(X_k)
    all        dW_k and Q are P, pulled back through F_k at lambda_k;  Q - grad T_k(lambda_k) is sent to stage k-1

Where the weights stand still, X_k = lambda_{k+1}: the two gradients of a tail cancel, and the stages' are exact,
whatever the AuxNet is.  It learns from the losses T_{k+1}(X_k), k < K-1.

A step is that of delayed gradients, and beside each stage's backward pass both passes of two tails: at its output, with
gradients with respect to the AuxNet, and at its input.

Collectives of a step: those of `methods.delayed`, and a psum over the mesh of the AuxNet's gradients.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from lpjax.config.schema import Config
from lpjax.config.schema.methods import DelayedConfig
from lpjax.data.batch import Batch
from lpjax.data.source import Spec
from lpjax.errors import require
from lpjax.methods import delayed, moving
from lpjax.methods.base import Age, StageResult, StepFunction
from lpjax.methods.delayed.carry import Pass
from lpjax.methods.delayed.step import Step as DelayedStep
from lpjax.methods.stage_plan import StagePlan, check_micro_batches
from lpjax.network import aux_net
from lpjax.network.network import Network
from lpjax.network.packing import Row
from lpjax.nn.losses import Interface
from lpjax.nn.schedule import Item, Part
from lpjax.parallel.mesh import ALL_AXES, Stage
from lpjax.state import optim
from lpjax.state.step_inputs import StepInputs
from lpjax.state.train_state import Carried, TrainState


def as_delayed(config: Config) -> Config:
    """The configuration with the settings of delayed gradients that this method has."""
    return replace(config, delayed=DelayedConfig(micro_batches=config.corrected.micro_batches, weights="newest"))


class Step(DelayedStep):
    """One step of one device."""

    def complete(self, state: TrainState) -> TrainState:
        """The state with equal pieces of the AuxNet in rows."""
        return self.in_rows(state)

    def nothing_beside(self, state: TrainState) -> PyTree:
        """Zeros, of the gradients with respect to the AuxNet."""
        slots = len(self.numbers())
        return (jax.tree.map(lambda leaf: jnp.zeros((slots, *leaf.shape)), state.aux_params),)

    def with_beside(self, state: TrainState, beside: PyTree) -> TrainState:
        """The AuxNet's update, by a step's sum of its gradients."""
        grads = lax.psum(self.of_pieces(beside[0]), ALL_AXES)
        params, opt = optim.update(self.step_inputs.aux_optimizer, grads, state.aux_opt, state.aux_params)
        return replace(state, aux_params=params, aux_opt=opt)

    def tail_loss(
        self, state: TrainState, interface: Array | int, begins: list[int], examples: moving.Tagged
    ) -> Callable[[PyTree, Interface], Array]:
        """(AuxNet's parameters, x) -> this device's share of the loss T_j(x), j the interface, one of `begins`."""
        network, mode = self.network, examples.mode._replace(keys=None)

        def loss(params: PyTree, x: Interface) -> Array:
            tails, length = network.aux_tails, self.config.aux.tail
            logits = aux_net.tail_logits(tails, params, state.aux_stats, interface, x, mode, length, begins)
            return examples.scores(logits)[0] / self.config.batch_size

        return loss

    def run_stage(
        self,
        k: Stage,
        params: Row,
        stats: Row,
        forward: Pass,
        backward: Pass,
        gradient: Array,
        *,
        state: TrainState,
        tick: Array,
    ) -> StageResult:
        """Stage k's passes of a tick; `beside` has the gradient with respect to the AuxNet, too."""
        network, config, last = self.network, self.config, k.like == self.network.num_stages - 1
        output, rows, _ = self.forward(state, k, params, stats, forward.packet, forward.tags)
        examples = moving.tagged(network, config, state, backward.tags)
        tree, lam = self.trees(k, params, backward.packet)
        again, pullback, (shares, new) = jax.vjp(self.function(k, stats, examples), tree, lam, has_aux=True)
        behind = moving.gradient_behind(network, k.like, gradient)
        if last:
            aux_grads = jax.tree.map(jnp.zeros_like, state.aux_params)
        else:
            tail = self.tail_loss(state, k.number + 1, [stage + 1 for stage in k.kind], examples)
            aux_grads, coarse = jax.grad(tail, argnums=(0, 1))(state.aux_params, again)
            behind = behind + coarse
        found, adjoint = pullback(behind)
        sent = jnp.zeros_like(output)
        if k.like > 0:
            tail = self.tail_loss(state, k.number, list(k.kind), examples)
            sent = moving.pack(network, adjoint - jax.grad(tail, argnums=1)(state.aux_params, lam))
        return StageResult(
            shares=shares,
            grads=network.params.pack(found),
            stats=network.stats.pack(new),
            output=output,
            real=examples.real,
            beside=(sent, rows, aux_grads),
        )


class Corrected(delayed.Delayed):
    """Delayed gradients that the tails of an AuxNet bring up to date."""

    name = "corrected"
    title = "delayed gradients, corrected by an AuxNet"
    paper = ""
    aux_net = "tails"
    step = Step

    def settings(self, config: Config) -> dict[str, Any]:
        """The number of micro-batches."""
        return {"micro_batches": config.corrected.micro_batches}

    def check(self, config: Config, data: Spec | None = None) -> None:
        """Refuse a number of micro-batches that a stage column cannot be cut into, and tied tails.

        Raises:
          BadInput: Such a number, or `aux.tied`.
        """
        check_micro_batches(self.name, config.corrected.micro_batches, config)
        require(
            not config.aux.tied,
            f"aux.tied=True with method={self.name}: expected tails with weights of their own; leave it out",
        )

    def make_step(self, network: Network, config: Config, mesh: Mesh, step_inputs: StepInputs) -> StepFunction:
        """As of any method, of the settings of delayed gradients."""
        return super().make_step(network, as_delayed(config), mesh, step_inputs)

    def carry(self, network: Network, config: Config) -> Carried:
        """What is under way between steps, as in `methods.delayed`."""
        return super().carry(network, as_delayed(config))

    def ages(self, config: Config) -> list[list[Age]]:
        """How old the gradients are: those of delayed gradients."""
        return super().ages(as_delayed(config))

    def holds(self, network: Network, config: Config, num_examples: int) -> dict[str, int]:
        """Bytes between steps: those of delayed gradients, and the AuxNet."""
        return super().holds(network, as_delayed(config), num_examples)

    def work(self, network: Network, config: Config) -> list[Item]:
        """The schedule of a step: that of delayed gradients, with the tails and the AuxNet's update."""
        return super().work(network, as_delayed(config))

    def work_beside(self, plan: StagePlan, k: int, micro: int, examples: int) -> None:
        """Add the passes of the tails at the output and at the input of stage k."""
        K, tails, config = plan.network.num_stages, plan.network.aux_tails, plan.config
        for j, gradients in ((k + 1, ("input", "weights")), (k, ("input",))):
            if 0 < j < K:
                parts = [Part(k, tails[i], gradients) for i in aux_net.tail(K, j, config.aux.tail)]
                plan.passes(k // plan.slots, parts, "tail", **plan.what | {"micro": micro, "examples": examples})

    def work_behind(self, plan: StagePlan) -> None:
        """Add the AuxNet's update."""
        plan.update_aux()

    def stage_program(
        self, k: int, network: Network, config: Config, step_inputs: StepInputs, state: TrainState, batch: Batch
    ) -> partial[StageResult]:
        """The passes of stage k with its tails, as a program to be timed alone."""
        return super().stage_program(k, network, as_delayed(config), step_inputs, state, batch)
