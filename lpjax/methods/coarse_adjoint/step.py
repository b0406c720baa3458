"""Real inputs one step late, adjoints from the AuxNet: layer-parallel training without an exchange of examples.

In step t (K = 3; m: the batch of step m), all at the same time:

    stage 0   F_0(x_t),            G_2 G_1 and head behind it,  update  |
    stage 1   F_1(X_0 of t-1),     G_2 and head behind it,      update  | shift: X_k is stage k+1's input of step t+1
    stage 2   F_2(X_1 of t-2), phi,                             update  |

    l_k = phi(G_{K-1}(..G_{k+1}(X_k)), y),  X_k = F_k(lambda_k; W_k),  k < K-1;      l_{K-1} = phi(X_{K-1}, y)

lambda_{k+1} = X_k of the step before, held fixed.  The stages' losses are (3) of `lagrangian` with beta = 0: coarse
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

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.methods import moving
from lpjax.network import aux_net
from lpjax.network.network import Network
from lpjax.network.packing import Row
from lpjax.nn import chain, losses
from lpjax.nn.chain import Mode
from lpjax.parallel import exchange
from lpjax.parallel import mesh as meshes
from lpjax.state import optim, train_state
from lpjax.state.step_inputs import StepInputs
from lpjax.state.train_state import TrainState


@struct.dataclass
class Carry:
    """What is under way.  inputs, tags: [K, B, L], [K, B, 3], the stages' inputs of this step and whose they are."""

    inputs: PyTree
    tags: PyTree


def fits(config: Config, k: int) -> bool:
    """Whether G_k learns c_k beside stage k, and not from tails alone."""
    last = k == config.num_stages - 1
    if last and config.aux.tied:
        return False
    return k > 0 and (config.aux.task_weight if last else config.penalty.aux) != 0


class StageResult(NamedTuple):
    """What a stage makes of a step, in shapes that are the same for all stages.

    Shares of means over the batch: loss, of l_k; correct, of examples that the stage and its tail classify rightly;
    coarse_error and output, of psi(G_k(R lambda_k) - R X_k) and psi(R X_k), 0 where G_k does not learn that.
    real: whether there was a batch.  next_input: X_k, packed.
    """

    loss: Float[Array, ""]
    correct: Float[Array, ""]
    coarse_error: Float[Array, ""]
    output: Float[Array, ""]
    real: Bool[Array, ""]
    grads: Row
    stats: Row
    aux_grads: PyTree
    next_input: Float[Array, "b l"]


@dataclass(frozen=True, eq=False)
class Step:
    """One step of one device, and what is the same in every step."""

    network: Network
    config: Config
    step_inputs: StepInputs

    def run_stage(self, k: int, params: Row, stats: Row, carry: Carry, *, state: TrainState) -> StageResult:
        """Forward and backward pass of stage k with its tail, and of G_k beside it."""
        network, config, examples = self.network, self.config, moving.tagged(state, carry.tags)
        last = k == network.num_stages - 1
        mode = Mode(train=True, axes=("data",), keys=examples.keys)
        coarse_mode = mode._replace(keys=None)
        lam, old = moving.unpack(carry.inputs, network.interfaces[k]), network.stats.unpack(k, stats)
        beta = state.penalty_coef if config.penalty.aux is None else config.penalty.aux
        none = jnp.zeros(())

        def mean(values: losses.PerExample) -> Float[Array, ""]:
            return jnp.where(examples.real, values.sum(), 0.0) / config.batch_size

        def coarse_loss(aux_params: PyTree, output: Array) -> tuple[Array, Array, Array]:
            """c_k, and psi(G_k(R lambda_k) - R X_k) and psi(R X_k) where that is what G_k learns."""
            if not fits(config, k):
                return none, none, none
            piece = network.aux_tails[k]
            x = aux_net.skip(lam, piece.in_shape)
            coarse, _ = chain.apply(piece, aux_params[k], state.aux_stats[k], x, coarse_mode)
            if last:
                return config.aux.task_weight * mean(losses.task_loss(coarse, examples.labels)), none, none
            output = aux_net.skip(output, piece.out_shape)
            error = mean(losses.psi(coarse - output))
            return beta * error, error, mean(losses.psi(output))

        def local_loss(params: PyTree, aux_params: PyTree) -> tuple[Array, Any]:
            output, new = chain.apply(network.stages[k], params, old, lam, mode)
            logits = output
            if not last:
                tails, tail = network.aux_tails, config.aux.tail
                logits = aux_net.tail_logits(tails, aux_params, state.aux_stats, k + 1, output, coarse_mode, tail)
            loss = mean(losses.task_loss(logits, examples.labels))
            coarse, error, square = coarse_loss(aux_params, lax.stop_gradient(output))
            return loss + coarse, (loss, error, square, logits, output, new)

        gradients = jax.grad(local_loss, argnums=(0, 1), has_aux=True)
        grads, (loss, error, square, logits, output, new) = gradients(
            network.params.unpack(k, params), state.aux_params
        )
        return StageResult(
            loss=loss,
            correct=mean(losses.correct(logits, examples.labels).astype(float)),
            coarse_error=error,
            output=square,
            real=examples.real,
            grads=network.params.pack(grads[0]),
            stats=network.stats.pack(new),
            aux_grads=grads[1],
            next_input=jnp.zeros_like(carry.inputs) if last else moving.pack(network, output),
        )

    def tied(self, rows: Row) -> PyTree:
        """This device's share, zeros but for the last one, of the parameters of the AuxNet's last piece where that is
        made of units of the last stage.  rows: [slots, ..], of the device's stages."""
        last = lax.axis_index("stage") == self.config.mesh_shape[0] - 1
        params = self.network.tied_params(jax.tree.map(lambda row: row[-1], rows))
        return jax.tree.map(lambda leaf: jnp.where(last, leaf, 0.0), params)

    def with_tied(self, state: TrainState, params: PyTree) -> TrainState:
        """The state with all pieces of the AuxNet, these the last one's parameters.  In training nobody looks at the
        statistics of before."""
        _, stats = jax.eval_shape(lambda: chain.init(self.network.aux_net[-1], jax.random.key(0)))
        none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), stats)
        return replace(state, aux_params=(*state.aux_params, params), aux_stats=(*state.aux_stats, none))

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        """One step as one device sees it."""
        network, config, step_inputs, carry = self.network, self.config, self.step_inputs, state.carry
        S, K = config.mesh_shape[0], network.num_stages
        x, tags = moving.column_batch(step_inputs, state, batch)
        inputs, tags = (
            moving.with_new_batch(moving.pack(network, x), carry.inputs),
            moving.with_new_batch(tags, carry.tags),
        )

        complete = state
        if network.tied:
            share, pull_back = jax.vjp(self.tied, state.stage_params)
            complete = self.with_tied(state, lax.psum(share, "stage"))

        def run(k: int, *args: Any) -> StageResult:
            return self.run_stage(k, *args, state=complete)

        done: StageResult = meshes.on_stages(run, K, S, state.stage_params, state.stage_stats, Carry(inputs, tags))
        grads = lax.psum(done.grads, "data")
        aux_grads = lax.psum(jax.tree.map(lambda g: g.sum(0), done.aux_grads), meshes.ALL_AXES)
        if network.tied:
            *aux_grads, tied_grads = aux_grads
            grads, aux_grads = jax.tree.map(jnp.add, grads, *pull_back(tied_grads)), tuple(aux_grads)
        stage_params, stage_opt = optim.update_rows(step_inputs.optimizer, grads, state.stage_opt, state.stage_params)
        averaged = train_state.running_average(state.stage_stats, lax.pmean(done.stats, "data"))
        aux_params, aux_opt = optim.update(step_inputs.aux_optimizer, aux_grads, state.aux_opt, state.aux_params)
        new_state = replace(
            state,
            step=state.step + 1,
            stage_params=stage_params,
            stage_opt=stage_opt,
            stage_stats=moving.where_real(done.real, averaged, state.stage_stats),
            aux_params=aux_params,
            aux_opt=aux_opt,
            penalty_coef=step_inputs.penalty_coef(state.step + 1),
            carry=Carry(
                inputs=exchange.shift(done.next_input, S, forward=True),
                tags=exchange.shift(tags, S, forward=True),
            ),
        )
        squares = jnp.square(optim.row_norms(grads)) / config.mesh.data
        mine = jnp.stack([done.loss, done.correct, done.coarse_error, done.output, squares])
        loss, correct, coarse_error, output, squares = meshes.by_stage(mine, K)
        metrics = {
            "task_loss": loss[-1],
            "accuracy": correct[-1],
            "stage_loss": loss,
            "stage_accuracy": correct,
            "gradient_norm": jnp.sqrt(squares),
            "coarse_error": coarse_error / jnp.maximum(output, 1e-30),
        }
        return new_state, metrics
