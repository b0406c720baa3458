"""One step, and what it carries."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
from flax import struct
from jax import lax
from jaxtyping import Array, PyTree

from lpjax.data.batch import Batch
from lpjax.methods import moving
from lpjax.methods.base import Metrics, StageResult
from lpjax.methods.local.classifiers import Classifiers, classifiers
from lpjax.network.packing import Row
from lpjax.nn import chain, residues
from lpjax.parallel import exchange
from lpjax.parallel.mesh import Stage
from lpjax.state import optim, train_state
from lpjax.state.train_state import TrainState


@struct.dataclass
class Carry(moving.Carry):
    """What is under way between steps, and the classifiers.

    Attributes:
      params: Of the classifiers, rows as the stages' (`{kind: [K, length]}`).
      opt: Their optimiser state, likewise.
      stats: Their statistics, likewise.
      means: Their running means of the next stage's weights, likewise; {} where they have none.
      count: [K], of how many steps these are; () likewise.
    """

    params: PyTree
    opt: PyTree
    stats: PyTree
    means: PyTree
    count: PyTree


class Step(moving.Step):
    """One step of one device."""

    @property
    def own(self) -> Classifiers:
        """The stages' classifiers."""
        return classifiers(self.network, self.config.local)

    @property
    def kinds(self) -> tuple[tuple[int, ...], ...]:
        """Stages of a kind have equal classifiers, too."""
        return self.own.kinds

    def run_stage(self, k: Stage, params: Row, stats: Row, carry: Carry, *, state: TrainState) -> StageResult:
        """Forward and backward pass of stage k and its classifier on its input of this step."""
        network, own, examples = self.network, self.own, moving.tagged(self.network, self.config, state, carry.tags)
        old = network.stats.unpack(k.like, stats), own.stats.unpack(k.like, carry.stats)
        lam = moving.unpack(carry.inputs, network.interfaces[k.like])
        tau, B = self.config.local.residue, self.config.batch_size

        def local_loss(params: PyTree, classifier: PyTree) -> tuple[Array, Any]:
            apply = residues.apply if tau else chain.apply
            output, new, *sizes = apply(network.stage(k), params, old[0], lam, examples.mode)
            mode, tree = examples.mode._replace(keys=None), own.tree(k, classifier, carry.means)
            logits, new_classifier = chain.apply(own.chains[k.like], tree, old[1], output, mode)
            loss, correct = examples.scores(logits)
            loss = loss / B
            total = loss + tau * examples.total(sizes[0]) / B if tau else loss
            return total, (loss, output, correct, new, new_classifier)

        gradients = jax.grad(local_loss, argnums=(0, 1), has_aux=True)
        trees = network.params.unpack(k.like, params), own.params.unpack(k.like, carry.params)
        grads, (loss, output, correct, new, new_classifier) = gradients(*trees)
        return StageResult(
            shares={"loss": loss, "correct": correct},
            grads=network.params.pack(grads[0]),
            stats=network.stats.pack(new),
            output=moving.sent(network, k.like, output),
            real=examples.real,
            beside=(own.params.pack(grads[1]), own.stats.pack(new_classifier), own.first_unit(k, trees[0])),
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
        carry = self.averaged(carry, done.beside[2])
        metrics, by_stage = self.metrics(grads, done.shares)
        new_state = replace(self.updated(state, grads, stats, done.real), carry=carry)
        return new_state, metrics | {"stage_loss": by_stage["loss"]}

    def averaged(self, carry: Carry, sent: PyTree) -> Carry:
        """With the weights that each stage sent to the one before in its means: a ppermute over 'stage' an array."""
        if not carry.means:
            return carry
        S, decay = self.config.mesh_shape[0], self.config.local.decay
        arrived = jax.tree.map(lambda rows: exchange.shift(rows, S, forward=False), sent)
        means = train_state.weight_average(carry.means, arrived, decay, carry.count[0])
        return replace(carry, means=means, count=carry.count + 1)
