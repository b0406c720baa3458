"""Real inputs one step late, adjoints from the AuxNet: layer-parallel training without an exchange of examples.

In step t (K = 3; m: the batch of step m), all at the same time:

    stage 0   F_0(x_t),            G_2 G_1 and head behind it,  update  |
    stage 1   F_1(X_0 of t-1),     G_2 and head behind it,      update  | shift: X_k is stage k+1's input of step t+1
    stage 2   F_2(X_1 of t-2), phi,                             update  |

    l_k = phi(G_{K-1}(..G_{k+1}(X_k)), y),  X_k = F_k(lambda_k; W_k),  k < K-1;      l_{K-1} = phi(X_{K-1}, y)

lambda_{k+1} = X_k of the step before, a constant.  The stages' losses are (3) of `lagrangian` with beta = 0: coarse
tails.  The auxiliary variables are not what an AuxNet emits but the stages' own outputs, so that a stage learns from
the inputs that it will have in the composed network, as in `methods.local`; the AuxNet is left with its other task, to
tell each stage what the stages behind it will make of its output.  For that G_k is to be like F_k.  Beside its stage it
sees the same input, and learns, on the grid R where tails use it (`aux_net.skip`; without a grid R = 1),

    c_k = beta_A psi(G_k(R lambda_k) - R X_k),  0 < k < K-1,  X_k held fixed
    c_{K-1} = w phi(G_{K-1}(R lambda_{K-1}), y)

as parareal's coarse propagator, beta_A = `penalty.aux` (beta, where that is None), w = `aux.task_weight`; and it learns
from all tails that it is part of.  With a weight of 0 for beta_A or w the piece is not run there at all: it learns from
tails alone.  G_0 is in no tail; it stays as it was.

With `aux.tied` the last piece G_{K-1} is made of units of the last stage, and of their weights of this step, which the
last device sends to all; the gradients of all tails there are added to the last stage's own.  So the end of the network
learns from the batches of all stages.  There is no c_{K-1} then.

Collectives of a step: two all_gathers over 'stage' (input and tags), with `aux.tied` a psum over it of the tied
weights; ppermutes over 'stage' of outputs and tags; psum over 'data' of the stages' gradients; psum over the mesh of
the AuxNet's and of the metrics; batch norm's over 'data'.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.methods import moving
from lpjax.methods.base import WIDTH, Method, Metrics, StageResult
from lpjax.methods.stage_plan import StagePlan
from lpjax.network import aux_net
from lpjax.network.network import Network
from lpjax.network.packing import Row
from lpjax.nn import chain, losses
from lpjax.nn.count import chain_arrays, chain_size
from lpjax.nn.schedule import Item, Part
from lpjax.parallel.mesh import ALL_AXES, Stage
from lpjax.state import optim
from lpjax.state.train_state import TrainState


def fits(config: Config, k: int) -> bool:
    """Whether G_k learns c_k beside stage k, and not from tails alone."""
    last = k == config.num_stages - 1
    if last and config.aux.tied:
        return False
    return k > 0 and (config.aux.task_weight if last else config.penalty.aux) != 0


class Step(moving.Step):
    """One step of one device."""

    def run_stage(self, k: Stage, params: Row, stats: Row, carry: moving.Carry, *, state: TrainState) -> StageResult:
        """Forward and backward pass of stage k with its tail, and of G_k beside it.

        Args:
          k: The stage.
          params: Its row of parameters.
          stats: Its row of statistics.
          carry: Its input and tags.
          state: With all pieces of the AuxNet, in rows (`alike`); read are these, the key and beta.

        Returns:
          `shares` of "loss" and "correct", of the stage and its tail, and, as means, of "coarse_error",
          psi(G_k(R lambda_k) - R X_k), and "output", psi(R X_k), both 0 where G_k does not learn that; `beside`: the
          gradient with respect to the AuxNet's parameters, a tree.
        """
        network, config = self.network, self.config
        examples = moving.tagged(network, config, state, carry.tags)
        last = k.like == network.num_stages - 1
        coarse_mode = examples.mode._replace(keys=None)
        lam, old = moving.unpack(carry.inputs, network.interfaces[k.like]), network.stats.unpack(k.like, stats)
        beta = state.penalty_coef if config.penalty.aux is None else config.penalty.aux
        none = jnp.zeros(())

        def mean(values: losses.PerExample) -> Array:
            return examples.total(values) / config.batch_size

        def coarse_loss(aux_params: PyTree, output: Array) -> tuple[Array, Array, Array]:
            """c_k, and psi(G_k(R lambda_k) - R X_k) and psi(R X_k) where that is what G_k learns."""
            if not fits(config, k.like):
                return none, none, none
            piece = network.aux_tails[k.like]
            x = aux_net.skip(lam, piece.in_shape)
            own_params, own_stats = network.aux_trees(k, aux_params, state.aux_stats)
            coarse, _ = chain.apply(piece, own_params, own_stats, x, coarse_mode)
            if last:
                return config.aux.task_weight * mean(examples.targets.loss(coarse)), none, none
            output = aux_net.skip(output, piece.out_shape)
            error = mean(losses.psi(coarse - output))
            return beta * error, error, mean(losses.psi(output))

        def local_loss(params: PyTree, aux_params: PyTree) -> tuple[Array, Any]:
            output, new = chain.apply(self.network.stage(k), params, old, lam, examples.mode)
            logits = output
            if not last:
                logits = network.tail_logits(k, aux_params, state.aux_stats, output, coarse_mode, config.aux.tail)
            loss, correct = examples.scores(logits)
            loss = loss / config.batch_size
            coarse, error, square = coarse_loss(aux_params, lax.stop_gradient(output))
            shares = {"loss": loss, "correct": correct, "coarse_error": error, "output": square}
            return loss + coarse, (shares, output, new)

        gradients = jax.grad(local_loss, argnums=(0, 1), has_aux=True)
        (grads, aux_grads), (shares, output, new) = gradients(network.params.unpack(k.like, params), state.aux_params)
        return StageResult(
            shares=shares,
            grads=network.params.pack(grads),
            stats=network.stats.pack(new),
            output=moving.sent(network, k.like, output),
            real=examples.real,
            beside=aux_grads,
        )

    def complete(self, state: TrainState) -> TrainState:
        """The state with all pieces of the AuxNet, in rows, on a mesh of one device."""
        return self.in_rows(self.with_tied(state, self.tied(state.stage_params)) if self.network.tied else state)

    def tied(self, rows: Row) -> PyTree:
        """This device's share of the parameters of the AuxNet's last piece, made of units of the last stage.

        Args:
          rows: [slots, ...], of the device's stages.

        Returns:
          The parameters on the last device, zeros on the others.
        """
        last = lax.axis_index("stage") == self.config.mesh_shape[0] - 1
        params = self.network.tied_params(jax.tree.map(lambda row: row[-1], rows))
        return jax.tree.map(lambda leaf: jnp.where(last, leaf, 0.0), params)

    def with_tied(self, state: TrainState, params: PyTree) -> TrainState:
        """The state with all pieces of the AuxNet.

        Args:
          state: With all pieces but the last.
          params: The last one's parameters.  Its statistics are zeros: in training nobody looks at those of before.
        """
        _, stats = jax.eval_shape(lambda: chain.init(self.network.aux_net[-1], jax.random.key(0)))
        none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), stats)
        return replace(state, aux_params=(*state.aux_params, params), aux_stats=(*state.aux_stats, none))

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One step.

        Metrics are task_loss and accuracy of the last stage; stage_loss and stage_accuracy of each with its tail;
        coarse_error, |G_k(R lambda_k) - R X_k|^2 / |R X_k|^2, 0 where the piece does not learn it, which is beside the
        first and the last stage, and without its weight.  A stage that no batch has reached yet (k in the first k
        steps) has zeros.
        """
        network, step_inputs, carry, complete = self.network, self.step_inputs, self.arrived(state, batch), state
        if network.tied:
            share, pull_back = jax.vjp(self.tied, state.stage_params)
            complete = self.with_tied(state, lax.psum(share, "stage"))
        done: StageResult = self.on_stages(partial(self.run_stage, state=self.in_rows(complete)), state, carry)
        grads = lax.psum(done.grads, "data")
        aux_grads = lax.psum(self.of_pieces(done.beside), ALL_AXES)
        if network.tied:
            *aux_grads, tied_grads = aux_grads
            grads, aux_grads = jax.tree.map(jnp.add, grads, *pull_back(tied_grads)), tuple(aux_grads)
        aux_params, aux_opt = optim.update(step_inputs.aux_optimizer, aux_grads, state.aux_opt, state.aux_params)
        new_state = replace(
            self.updated(state, grads, lax.pmean(done.stats, "data"), done.real),
            aux_params=aux_params,
            aux_opt=aux_opt,
            penalty_coef=step_inputs.penalty_coef(state.step + 1),
            carry=self.moved(carry, done.output),
        )
        metrics, by_stage = self.metrics(grads, done.shares)
        return new_state, metrics | {
            "stage_loss": by_stage["loss"],
            "stage_accuracy": by_stage["correct"] / self.config.batch_size,
            "coarse_error": by_stage["coarse_error"] / jnp.maximum(by_stage["output"], 1e-30),
        }


class CoarseAdjoint(moving.Moving):
    """Layer-parallel training on real inputs one step late, with the AuxNet's tails for adjoints."""

    name = "coarse_adjoint"
    title = "layer-parallel training on real inputs one step late, with adjoints of an AuxNet"
    aux_net = "tails"
    step = Step
    metrics = Method.metrics | dict.fromkeys(("stage_loss", "stage_accuracy", "coarse_error"), "stage")

    def resolve(self, config: Config) -> Config:
        """Fill in the first beta, read where `penalty.aux` is None: that of stages with a coarse tail."""
        initial = 0.1 if config.penalty.initial is None else config.penalty.initial
        return replace(config, penalty=replace(config.penalty, initial=initial))

    def work(self, network: Network, config: Config) -> list[Item]:
        """The schedule of a step, in which tied parameters are sent to every device."""
        plan, K, tails = StagePlan(network, config), network.num_stages, network.aux_tails
        plan.column_batch(2 * plan.slots)
        if network.tied:
            piece = network.aux_net[-1]
            plan.message("psum", "stage", WIDTH * chain_size(piece), "gradients", count=chain_arrays(piece))
        for k, ages in enumerate(self.ages(config)):
            behind = [Part(k, tails[i]) for i in aux_net.tail(K, k + 1, config.aux.tail) if tails]
            behind += [Part(k, tails[k])] if fits(config, k) else []
            plan.local_losses(k, ages, behind, "tail")
        plan.update()
        plan.update_aux()
        plan.shift()
        plan.shift_tags()
        plan.message("psum", ALL_AXES, 5 * WIDTH * K, "metrics")
        return plan.items
