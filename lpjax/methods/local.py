"""Decoupled greedy learning: every stage has a small classifier of its own and learns by its cross entropy alone.

    DGL  Belilovsky, Eickenberg, Oyallon, "Decoupled Greedy Learning of CNNs", arXiv:1901.08164

In step t (K = 3; m: the batch of step m), all at the same time:

    stage 0   F_0(x_t),            C_0, dC_0 dF_0, update  |
    stage 1   F_1(X_0 of t-1),     C_1, dC_1 dF_1, update  | shift: X_k is stage k+1's input of step t+1
    stage 2   F_2(X_1 of t-2), phi,         dF_2,  update  |

    l_k = phi(C_k(F_k(lambda_k; W_k)), y),  k < K-1;      l_{K-1} = phi(F_{K-1}(lambda_{K-1}; W_{K-1}), y)

lambda_{k+1} = F_k(lambda_k) of the step before, a constant: no gradient crosses an interface.  This is the paper's
asynchronous form with a buffer of one batch: a stage learns from inputs made by weights of one step ago each.  The
classifier C_k is `local.blocks` units like the stage's own last one and the network's head; it is trained by
`aux_optimizer`, lives on its stage's device, and is thrown away.

Collectives of a step: two all_gathers over 'stage' (input and tags); ppermutes over 'stage' of outputs and tags; psum
over 'data' of the gradients, psum over the mesh of the metrics; batch norm's over 'data'.
"""

import functools
from dataclasses import replace
from functools import partial

import jax
from flax import struct
from jax import lax
from jaxtyping import Array, PRNGKeyArray, PyTree

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.errors import BadInput
from lpjax.methods import moving
from lpjax.methods.base import WIDTH, Method, Metrics, StageResult
from lpjax.methods.stage_plan import StagePlan
from lpjax.network.network import Network
from lpjax.network.packing import PackedChains, Row
from lpjax.nn import chain
from lpjax.nn.layers import STANDARDISE
from lpjax.nn.schedule import Item, Part
from lpjax.parallel import mesh as meshes
from lpjax.parallel.mesh import Stage
from lpjax.state import optim, train_state
from lpjax.state.step_inputs import StepInputs
from lpjax.state.train_state import Carried, TrainState


@struct.dataclass
class Carry(moving.Carry):
    """What is under way between steps, and the classifiers.

    Attributes:
      params: Of the classifiers, rows as the stages' (`{kind: [K, length]}`).
      opt: Their optimiser state, likewise.
      stats: Their statistics, likewise.
    """

    params: PyTree
    opt: PyTree
    stats: PyTree


@functools.lru_cache(maxsize=32)
def classifiers(network: Network, blocks: int) -> PackedChains:
    """Make the classifiers of a network's stages.

    Args:
      network: The network.
      blocks: Units like the stage's own last one in each classifier, before the network's head.

    Returns:
      One a stage; one of no units for the last.

    Raises:
      BadInput: The network's head does not take what a stage puts out, or makes no logits of it.
    """
    chains = []
    head = network.chain.units[-1]
    for k, stage in enumerate(network.stages[:-1]):
        shapes = zip(stage.units, stage.shapes[:-1], stage.shapes[1:], strict=True)
        alike = [u for u, before, after in shapes if before == after == stage.out_shape and u != STANDARDISE]
        try:
            made = chain.make_chain([*alike[-1:] * blocks, head], stage.out_shape)
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
    chains.append(chain.make_chain([], network.chain.out_shape))
    return PackedChains.of(chains)


class Step(moving.Step):
    """One step of one device."""

    @property
    def own(self) -> PackedChains:
        """The stages' classifiers."""
        return classifiers(self.network, self.config.local.blocks)

    def run_stage(self, k: Stage, params: Row, stats: Row, carry: Carry, *, state: TrainState) -> StageResult:
        """Forward and backward pass of stage k and its classifier on its input of this step."""
        network, own, examples = self.network, self.own, moving.tagged(self.config, state, carry.tags)
        old = network.stats.unpack(k.like, stats), own.stats.unpack(k.like, carry.stats)
        lam = moving.unpack(carry.inputs, network.interfaces[k.like])

        def local_loss(params: PyTree, classifier: PyTree) -> tuple[Array, tuple[Array, Array, PyTree, PyTree]]:
            output, new = chain.apply(self.network.stage(k), params, old[0], lam, examples.mode)
            mode = examples.mode._replace(keys=None)
            logits, new_classifier = chain.apply(own.chains[k.like], classifier, old[1], output, mode)
            loss, correct = examples.scores(logits)
            return loss / self.config.batch_size, (output, correct, new, new_classifier)

        gradients = jax.value_and_grad(local_loss, argnums=(0, 1), has_aux=True)
        trees = network.params.unpack(k.like, params), own.params.unpack(k.like, carry.params)
        (loss, (output, correct, new, new_classifier)), grads = gradients(*trees)
        return StageResult(
            shares={"loss": loss, "correct": correct},
            grads=network.params.pack(grads[0]),
            stats=network.stats.pack(new),
            output=moving.sent(network, k.like, output),
            real=examples.real,
            beside=(own.params.pack(grads[1]), own.stats.pack(new_classifier)),
        )

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One step; a stage that no batch has reached yet (stage k in the first k steps) has loss 0."""
        carry, run = self.arrived(state, batch), partial(self.run_stage, state=state)
        done = self.on_stages(run, state, replace(carry, opt=()))
        grads, classifier_grads = lax.psum((done.grads, done.beside[0]), "data")
        stats, classifier_stats = lax.pmean((done.stats, done.beside[1]), "data")
        params, opt = optim.update_rows(self.step_inputs.aux_optimizer, classifier_grads, carry.opt, carry.params)
        averaged = train_state.running_average(carry.stats, classifier_stats, done.real)
        carry = replace(self.moved(carry, done.output), params=params, opt=opt, stats=averaged)
        metrics, by_stage = self.metrics(grads, done.shares)
        new_state = replace(self.updated(state, grads, stats, done.real), carry=carry)
        return new_state, metrics | {"stage_loss": by_stage["loss"]}


class Local(moving.Moving):
    """Local losses: every stage learns by the cross entropy of a classifier of its own."""

    name = "local"
    title = "decoupled greedy learning"
    paper = "arXiv:1901.08164"
    metrics = Method.metrics | {"stage_loss": "stage"}
    step = Step

    def carry(self, network: Network, config: Config) -> Carried:
        """What is under way between steps, and the classifiers, see `Carry`."""
        own = classifiers(network, config.local.blocks)

        def init(step_inputs: StepInputs, key: PRNGKeyArray) -> Carry:
            def init_stage(k: Stage) -> tuple[Row, Row]:
                return own.init(k, jax.random.fold_in(key, k.number))

            params, stats = meshes.on_stages(init_stage, network.kinds, config.mesh_shape[0])
            opt = optim.init_rows(step_inputs.aux_optimizer, params)
            return Carry(*moving.empty(network, config), params, opt, stats)

        return Carried(Carry(moving.PACKETS, moving.PACKETS, *[meshes.STAGES] * 3), init, ("opt",))

    def work(self, network: Network, config: Config) -> list[Item]:
        """The schedule of a step, in which no gradient crosses an interface."""
        plan, own = StagePlan(network, config), classifiers(network, config.local.blocks)
        plan.column_batch(2 * plan.slots)
        for k, ages in enumerate(self.ages(config)):
            behind = [Part(k, own.chains[k])] if own.chains[k].units else []
            plan.local_losses(k, ages, behind, "classifier")
        plan.update(own)
        plan.shift()
        plan.shift_tags()
        plan.message("psum", meshes.ALL_AXES, 3 * WIDTH * network.num_stages, "metrics")
        return plan.items

    def holds(self, network: Network, config: Config, num_examples: int) -> dict[str, int]:
        """Bytes between steps, with the packets on their way and the classifiers with their optimiser's state."""
        slots, own = network.num_stages // config.mesh_shape[0], classifiers(network, config.local.blocks)
        sizes, more = super().holds(network, config, num_examples), WIDTH * slots * own.params.length
        sizes["parameters"] += more
        sizes["optimizer"] += (2 if config.aux_optimizer.name == "adamw" else 1) * more
        return sizes
