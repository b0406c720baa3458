"""Decoupled greedy learning: every stage has a small classifier of its own and learns by its cross entropy alone.

    DGL  Belilovsky, Eickenberg, Oyallon, "Decoupled Greedy Learning of CNNs", arXiv:1901.08164

In step t (K = 3; m: the batch of step m), all at the same time:

    stage 0   F_0(x_t),            C_0, dC_0 dF_0, update  |
    stage 1   F_1(X_0 of t-1),     C_1, dC_1 dF_1, update  | shift: X_k is stage k+1's input of step t+1
    stage 2   F_2(X_1 of t-2), phi,         dF_2,  update  |

    l_k = phi(C_k(F_k(lambda_k; W_k)), y),  k < K-1;      l_{K-1} = phi(F_{K-1}(lambda_{K-1}; W_{K-1}), y)

lambda_{k+1} = F_k(lambda_k) of the step before, held fixed: no gradient crosses an interface.  This is the paper's
asynchronous form with a buffer of one batch: a stage learns from inputs made by weights of one step ago each.

The classifier C_k is `local.blocks` units like the stage's own last one and the network's head; it is trained by
`aux_optimizer`, lives on its stage's device, and is thrown away.

Collectives of a step: two all_gathers over 'stage' (input and tags); ppermutes over 'stage' of outputs and tags; psum
over 'data' of the gradients, psum over the mesh of the figures; batch norm's over 'data'.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.errors import BadInput
from lpjax.methods import moving
from lpjax.network.network import Network
from lpjax.network.packing import Packing, Row
from lpjax.nn import chain, losses
from lpjax.nn.chain import Chain, Mode, make_chain
from lpjax.nn.layers import STANDARDISE
from lpjax.parallel import exchange
from lpjax.parallel import mesh as meshes
from lpjax.state import optim, train_state
from lpjax.state.step_inputs import Recipe
from lpjax.state.train_state import TrainState


@struct.dataclass
class Carry:
    """What is under way, and the classifiers.

    inputs, tags: [K, B, L], [K, B, 3], the stages' inputs of this step and whose they are.
    params, opt, stats: of the classifiers, rows as the stages' ({kind: [K, length]}).
    """

    inputs: PyTree
    tags: PyTree
    params: PyTree
    opt: PyTree
    stats: PyTree


@dataclass(frozen=True, eq=False)
class Classifiers:
    """The stages' classifiers, none (a chain of no units) for the last, and how they are packed into rows."""

    chains: tuple[Chain, ...]
    params: Packing
    stats: Packing


def classifiers(network: Network, blocks: int) -> Classifiers:
    """Classifiers of a network's stages.

    Raises ValueError where the network's head does not take what a stage puts out.
    """
    chains = []
    head = network.chain.units[-1]
    for k, stage in enumerate(network.stages[:-1]):
        shapes = zip(stage.units, stage.shapes[:-1], stage.shapes[1:], strict=True)
        alike = [u for u, before, after in shapes if before == after == stage.out_shape and u != STANDARDISE]
        try:
            made = make_chain([*alike[-1:] * blocks, head], stage.out_shape)
        except ValueError as error:
            raise BadInput(
                f"method=local: the network's head does not fit behind stage {k}: {error}; choose other cuts"
            ) from error
        if made.out_shape != network.chain.out_shape:
            raise BadInput(
                f"method=local: the network's head behind stage {k} gives {made.out_shape}: expected "
                f"{network.chain.out_shape}, logits; let the head pool its input, or choose other cuts"
            )
        chains.append(replace(made, dtype=stage.dtype, remat=stage.remat))
    chains.append(make_chain([], network.chain.out_shape))
    trees = [jax.eval_shape(lambda key, c=c: chain.init(c, key), jax.random.key(0)) for c in chains]
    return Classifiers(tuple(chains), Packing.of([p for p, _ in trees]), Packing.of([s for _, s in trees]))


def lags(config: Config) -> list[int]:
    """How many steps ago the batch of each stage's gradient entered the network."""
    return list(range(config.num_stages))


def carry_specs(config: Config) -> Carry:
    """Where the carry lies on the mesh."""
    return Carry(P("stage", "data"), P("stage", "data"), meshes.STAGES, meshes.STAGES, meshes.STAGES)


def init_carry(network: Network, config: Config, recipe: Recipe, key: PRNGKeyArray) -> Carry:
    """New classifiers, and nothing under way."""
    S, own = config.mesh_shape[0], classifiers(network, config.local.blocks)

    def init(k: int) -> tuple[Row, Row]:
        params, stats = chain.init(own.chains[k], jax.random.fold_in(key, k))
        return own.params.pack(params), own.stats.pack(stats)

    params, stats = meshes.on_stages(init, network.num_stages, S)
    packets, tags = moving.empty(network, config, network.num_stages // S)
    return Carry(packets, tags, params, optim.init_rows(recipe.aux_optimizer, params), stats)


class _Passes(NamedTuple):
    """What a stage makes of a step, in shapes that are the same for all stages."""

    loss: Float[Array, ""]
    correct: Float[Array, ""]
    real: Array
    grads: tuple[Row, Row]
    stats: tuple[Row, Row]
    output: Float[Array, "b l"]


@dataclass(frozen=True, eq=False)
class Step:
    """One step of one device, and what is the same in every step."""

    network: Network
    config: Config
    recipe: Recipe
    own: Classifiers

    def run_stage(self, k: int, params: Row, stats: Row, carry: Carry, *, state: TrainState) -> _Passes:
        """Forward and backward pass of stage k and its classifier on its input of this step."""
        network, own, examples = self.network, self.own, moving.opened(state, carry.tags)
        mode = Mode(train=True, axes=("data",), keys=examples.keys)
        old = network.stats.unpack(k, stats), own.stats.unpack(k, carry.stats)
        lam = moving.unpack(carry.inputs, network.interfaces[k])

        def local_loss(params: PyTree, classifier: PyTree) -> tuple[Array, tuple[Array, Array, Any]]:
            output, new = chain.apply(network.stages[k], params, old[0], lam, mode)
            logits, new_classifier = chain.apply(own.chains[k], classifier, old[1], output, mode._replace(keys=None))
            loss = jnp.where(examples.real, losses.task_loss(logits, examples.labels).sum(), 0.0)
            correct = jnp.where(examples.real, losses.correct(logits, examples.labels).astype(float).sum(), 0.0)
            return loss / self.config.batch_size, (output, correct, (new, new_classifier))

        gradients = jax.value_and_grad(local_loss, argnums=(0, 1), has_aux=True)
        trees = network.params.unpack(k, params), own.params.unpack(k, carry.params)
        (loss, (output, correct, new)), grads = gradients(*trees)
        last = k == network.num_stages - 1
        return _Passes(
            loss=loss,
            correct=correct,
            real=examples.real,
            grads=(network.params.pack(grads[0]), own.params.pack(grads[1])),
            stats=(network.stats.pack(new[0]), own.stats.pack(new[1])),
            output=jnp.zeros_like(carry.inputs) if last else moving.pack(network, output),
        )

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        """One step as one device sees it."""
        network, config, recipe, carry = self.network, self.config, self.recipe, state.carry
        S, K = config.mesh_shape[0], network.num_stages
        x, tags = moving.column_batch(recipe, state, batch)
        carry = replace(
            carry,
            inputs=moving.entering(moving.pack(network, x), carry.inputs),
            tags=moving.entering(tags, carry.tags),
        )

        def run(k: int, *args: Any) -> _Passes:
            return self.run_stage(k, *args, state=state)

        operands = state.stage_params, state.stage_stats, replace(carry, opt=())
        done: _Passes = meshes.on_stages(run, K, S, *operands)
        grads, classifier_grads = lax.psum(done.grads, "data")
        stage_params, stage_opt = optim.update_rows(recipe.optimizer, grads, state.stage_opt, state.stage_params)
        params, opt = optim.update_rows(recipe.aux_optimizer, classifier_grads, carry.opt, carry.params)
        old = state.stage_stats, carry.stats
        averaged = train_state.running_average(old, lax.pmean(done.stats, "data"))
        stage_stats, stats = (moving.averaged(o, new, done.real) for o, new in zip(old, averaged, strict=True))
        new_state = replace(
            state,
            step=state.step + 1,
            stage_params=stage_params,
            stage_opt=stage_opt,
            stage_stats=stage_stats,
            carry=Carry(
                inputs=exchange.shift(done.output, S, forward=True),
                tags=exchange.shift(carry.tags, S, forward=True),
                params=params,
                opt=opt,
                stats=stats,
            ),
        )
        squares = jnp.square(optim.row_norms(grads)) / config.mesh.data
        loss, correct, squares = meshes.by_stage(jnp.stack([done.loss, done.correct, squares]), K)
        figures = {
            "task_loss": loss[-1],
            "accuracy": correct[-1] / config.batch_size,
            "stage_loss": loss,
            "gradient_norm": jnp.sqrt(squares),
        }
        return new_state, figures


def make_step(
    network: Network, config: Config, mesh: Mesh, recipe: Recipe
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """The jitted step (state, batch) -> (state, figures); the state is donated.

    Figures: task_loss [] and accuracy [] of the last stage; stage_loss [K], the local losses; gradient_norm [K].  A
    stage that no batch has reached yet (stage k in the first k steps) has loss 0.
    """
    step = Step(network, config, recipe, classifiers(network, config.local.blocks))
    return meshes.jit_step(step, mesh, train_state.specs(config))
