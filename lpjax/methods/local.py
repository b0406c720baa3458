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
over 'data' of the gradients, psum over the mesh of the metrics; batch norm's over 'data'.
"""

import functools
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
from lpjax.methods.base import WIDTH, Age, Method, StageProgram, StepFunction
from lpjax.network.network import Network
from lpjax.network.packing import Packing, Row
from lpjax.nn import chain, losses
from lpjax.nn.chain import Chain, Mode, make_chain
from lpjax.nn.layers import STANDARDISE
from lpjax.nn.schedule import Item, Part
from lpjax.parallel import exchange
from lpjax.parallel import mesh as meshes
from lpjax.state import optim, train_state
from lpjax.state.step_inputs import StepInputs
from lpjax.state.train_state import Carried, TrainState


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


@functools.lru_cache(maxsize=32)
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
    step_inputs: StepInputs
    own: Classifiers

    def run_stage(self, k: int, params: Row, stats: Row, carry: Carry, *, state: TrainState) -> _Passes:
        """Forward and backward pass of stage k and its classifier on its input of this step."""
        network, own, examples = self.network, self.own, moving.tagged(state, carry.tags)
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
        network, config, step_inputs, carry = self.network, self.config, self.step_inputs, state.carry
        S, K = config.mesh_shape[0], network.num_stages
        x, tags = moving.column_batch(step_inputs, state, batch)
        carry = replace(
            carry,
            inputs=moving.with_new_batch(moving.pack(network, x), carry.inputs),
            tags=moving.with_new_batch(tags, carry.tags),
        )

        def run(k: int, *args: Any) -> _Passes:
            return self.run_stage(k, *args, state=state)

        operands = state.stage_params, state.stage_stats, replace(carry, opt=())
        done: _Passes = meshes.on_stages(run, K, S, *operands)
        grads, classifier_grads = lax.psum(done.grads, "data")
        stage_params, stage_opt = optim.update_rows(step_inputs.optimizer, grads, state.stage_opt, state.stage_params)
        params, opt = optim.update_rows(step_inputs.aux_optimizer, classifier_grads, carry.opt, carry.params)
        old = state.stage_stats, carry.stats
        averaged = train_state.running_average(old, lax.pmean(done.stats, "data"))
        stage_stats, stats = (moving.where_real(done.real, new, o) for o, new in zip(old, averaged, strict=True))
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
        metrics = {
            "task_loss": loss[-1],
            "accuracy": correct[-1] / config.batch_size,
            "stage_loss": loss,
            "gradient_norm": jnp.sqrt(squares),
        }
        return new_state, metrics


class Local(Method):
    """Local losses: every stage learns by the cross entropy of a classifier of its own."""

    name = "local"
    title = "decoupled greedy learning"
    paper = "arXiv:1901.08164"
    metrics = Method.metrics | {"stage_loss": "stage"}

    def make_step(self, network: Network, config: Config, mesh: Mesh, step_inputs: StepInputs) -> StepFunction:
        """A stage that no batch has reached yet (stage k in the first k steps) has loss 0."""
        step = Step(network, config, step_inputs, classifiers(network, config.local.blocks))
        return self.jit(step, network, config, mesh)

    def carry(self, network: Network, config: Config) -> Carried:
        """See `Carry`."""
        own = classifiers(network, config.local.blocks)

        def init(step_inputs: StepInputs, key: PRNGKeyArray) -> Carry:
            def of_stage(k: int) -> tuple[Row, Row]:
                params, stats = chain.init(own.chains[k], jax.random.fold_in(key, k))
                return own.params.pack(params), own.stats.pack(stats)

            params, stats = meshes.on_stages(of_stage, network.num_stages, config.mesh_shape[0])
            return Carry(
                *moving.empty(network, config), params, optim.init_rows(step_inputs.aux_optimizer, params), stats
            )

        packets = P("stage", "data")
        return Carried(Carry(packets, packets, meshes.STAGES, meshes.STAGES, meshes.STAGES), init, ("opt",))

    def ages(self, config: Config) -> list[list[Age]]:
        """A batch reaches stage k after k steps."""
        return [[Age(k, 0)] for k in range(config.num_stages)]

    def work(self, network: Network, config: Config) -> list[Item]:
        """No gradient crosses an interface."""
        own, (S, D), K = classifiers(network, config.local.blocks), config.mesh_shape, network.num_stages
        slots, column = K // S, config.batch_size // D
        plan = moving.plan_start(network, config, 2 * slots * moving.packet_bytes(network, config))
        for k, stage in enumerate(network.stages):
            plan.local(
                k // slots,
                Part(k, stage, ("weights",)),
                [Part(k, own.chains[k])] if own.chains[k].units else [],
                "classifier",
                micro=-k,
                examples=column,
                norm_axes=("data",),
            )
        moving.plan_update(plan, network, config, beside=(own.params, own.stats))
        moving.plan_shift(plan, network, config, column)
        moving.plan_tags(plan, config)
        plan.message("psum", meshes.ALL_AXES, 3 * WIDTH * K, "metrics")
        return plan.items

    def holds(self, network: Network, config: Config, num_examples: int) -> dict[str, int]:
        """Packets on their way, and the classifiers with their optimiser's state."""
        slots, own = network.num_stages // config.mesh_shape[0], classifiers(network, config.local.blocks)
        held = super().holds(network, config, num_examples)
        copies, more = (
            2 if config.aux_optimizer.name == "adamw" else 1,
            WIDTH * slots * sum(own.params.lengths.values()),
        )
        return held | {
            "parameters": held["parameters"] + more,
            "optimizer": held["optimizer"] + copies * more,
            "packets": slots * moving.packet_bytes(network, config),
        }

    def stage_program(
        self, k: int, network: Network, config: Config, step_inputs: StepInputs, state: TrainState, batch: Batch
    ) -> StageProgram:
        """See `Method`."""
        step = Step(network, config, step_inputs, classifiers(network, config.local.blocks))
        carry = moving.timed_packet(k, network, state, batch)
        rows = jax.tree.map(lambda row: row[k], (state.stage_params, state.stage_stats))

        def run(params: PyTree, stats: PyTree, carry: Carry, state: TrainState) -> PyTree:
            return step.run_stage(k, params, stats, carry, state=state)

        return StageProgram(run, (*rows, carry, state))
