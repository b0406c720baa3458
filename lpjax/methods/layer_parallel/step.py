"""The layer-parallel step: all stages run forward, backward and update at the same time.

        device (stage 0, data d)        device (stage 1, data d)     ...    device (stage K-1, data d)
     1  augment its 1/S of the column   its 1/S                             its 1/S
     2  AuxNet forward -> lambda_1..lambda_{K-1} on its 1/S of the column
     3  ---------------- all_to_all over 'stage': examples-sliced -> stage-sliced ----------------
     4  F_0(x), l_0, grad W_0           F_1(lambda_1), l_1, P_1             F_{K-1}(..), phi, P_{K-1}
     5  psum of grad W_k over 'data';  optimiser on the stage's own row
     6  ---------------- all_to_all back: P_j and X_{j-1} -> the owner of those examples ----------
     7  lambda^+, AuxNet backward on its 1/S, psum over the mesh, AuxNet optimiser;  multipliers

The drawing has S = K; with S devices along 'stage', S a divisor of K, each runs its K/S stages one after another.  In 4
`lax.switch` chooses a device's stages.  No collective over 'stage' may stand inside it (the devices would wait for
different ones, forever); batch norm's pmean over 'data' may, as all of a row take one branch.  The SUM of all devices'
losses is differentiated; a loss here is a device's share of the global mean: its examples' sum over B, the batch size.

With `config.exchange.stale` the stages work on the packets of the step before, lambda made by that step's AuxNet: 2 and
3 (this step's batch) and 4 to 7 (the last one's) do not wait for one another, so that a compiler with asynchronous
collectives can exchange while the stages compute.  The price is a second forward pass of the AuxNet in 7, on the batch
before by this step's weights, and memory for one batch more.

Collectives of one step, besides batch norm's: 2 all_to_all (2 more a sweep), 1 all_gather of tags (`moving`) over
'stage'; psum over 'data' of the stages' gradients and statistics (if D > 1); psum over the mesh of the AuxNet's
gradients, of the metrics, and of mean multipliers; for a per-example table those of `multiplier`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Float, PyTree

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.methods import base, moving
from lpjax.methods.base import Metrics, StageResult
from lpjax.methods.layer_parallel import aux_step, lagrangian, multiplier
from lpjax.methods.layer_parallel.stage import stage_pass
from lpjax.network.network import Network
from lpjax.network.packing import Row
from lpjax.nn import chain
from lpjax.nn.losses import Interface, Multiplier
from lpjax.parallel import mesh as meshes
from lpjax.parallel.exchange import Exchange
from lpjax.parallel.mesh import Stage
from lpjax.state import train_state
from lpjax.state.step_inputs import example_keys, make_targets
from lpjax.state.train_state import TrainState


@struct.dataclass
class Carry:
    """The batch under way between steps, with `exchange.stale`.

    Attributes:
      packets: [K, B, L], what the stages are to work on in the next step.
      tags: [K, B, T], whose it is (`moving`).
      owned: The same batch, [B, ...], as its owners have it.
    """

    packets: PyTree
    tags: PyTree
    owned: PyTree


class Owned(NamedTuple):
    """What the owner of b examples makes of them.

    Attributes:
      batch: The examples.
      run_aux: The AuxNet's forward pass on them by its parameters.
      aux: That of the state's.
      lam: The network's input and lambda_1 .. lambda_{K-1}.
      multipliers: See `multiplier.current`.
    """

    batch: Batch
    run_aux: Callable[[PyTree], aux_step.AuxPass]
    aux: aux_step.AuxPass
    lam: Sequence[Interface]
    multipliers: list[Multiplier] | None


class Step(base.Step):
    """One step of one device."""

    @functools.cached_property
    def exchange(self) -> Exchange:
        """What travels between owners and stages."""
        return make_exchange(self.network, self.config)

    def run_stage(
        self, k: Stage, params: Row, stats: Row, packet: Array, *, state: TrainState, examples: moving.Tagged
    ) -> StageResult:
        """Step 4 for stage k: unpack, `stage_pass`, pack.  Of `state` only what is replicated is read.

        The AuxNet's pieces are in rows (`alike`).
        """
        network, (lam, target, kappa) = self.network, self.exchange.unpacked(k.like, packet)
        if self.config.multiplier == "mean" and target is not None:
            kappa = k.of(state.multiplier)
        done = stage_pass(
            network,
            k,
            params=network.params.unpack(k.like, params),
            stats=network.stats.unpack(k.like, stats),
            lam=lam,
            target=target,
            multiplier=kappa,
            targets=examples.targets,
            aux=(state.aux_params, state.aux_stats),
            penalty_coef=state.penalty_coef,
            config=self.config,
            mode=examples.mode,
        )
        grads, rows = network.params.pack(done.grads), network.stats.pack(done.stats)
        return done._replace(grads=grads, stats=rows, output=self.exchange.reply(k.like, *done.output))

    def run_stage_forward(
        self, k: Stage, params: Row, stats: Row, packet: Float[Array, "b out"], *, examples: moving.Tagged
    ) -> Float[Array, "b home"]:
        """The reply of a forward pass alone, for a sweep (its adjoint is zero, and not read)."""
        lam = moving.unpack(packet, self.network.interfaces[k.like])  # what else is in the packet stands behind it
        trees = self.network.params.unpack(k.like, params), self.network.stats.unpack(k.like, stats)
        output, _ = chain.apply(self.network.stage(k), *trees, lam, examples.mode)
        return self.exchange.reply(k.like, jnp.zeros_like(lam), output)

    def sweep(self, state: TrainState, lam: Sequence[Interface], examples: moving.Tagged) -> list[Interface]:
        """One coarse correction sweep of the stages' inputs: (8) of `lagrangian`."""
        packets = replace(self.exchange, with_multiplier=False).send(lam, None)
        run = partial(self.run_stage_forward, examples=examples)
        _, outputs = self.exchange.receive(self.on_stages(run, state, packets))
        mode = chain.Mode(train=True, axes=meshes.ALL_AXES)

        def coarse(j: int, x: Array) -> Array:
            return chain.apply(self.network.aux_net[j], state.aux_params[j], state.aux_stats[j], x, mode)[0]

        pieces = [partial(coarse, j) for j in range(self.network.num_stages - 1)]
        return lagrangian.coarse_correction(pieces, lam, outputs)

    def own(self, state: TrainState, batch: Batch, step: Array) -> Owned:
        """Steps 1 and 2: the input that a device's examples were given in `step`, and the state's AuxNet on it."""
        network, config = self.network, self.config
        keys = example_keys(state.key, step, batch.index)
        x = self.step_inputs.network_input(batch, keys)
        targets = make_targets(network.task, config, keys, batch.label, batch.partner_label)
        run_aux = partial(aux_step.forward, network, config, stats=state.aux_stats, x=x, targets=targets)
        aux = run_aux(state.aux_params)
        return Owned(batch, run_aux, aux, (x, *aux.lam), multiplier.current(config, state, batch, aux))

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One step: K/S rows of the stages, b = B / (S D) examples; numbers as in the drawing.

        Metrics are task_loss and accuracy of the last stage on the inputs it was given; stage_loss, the local losses;
        relative_violation, |r_j|^2 / |X_{j-1}|^2; violation and output_square, mean squares of r_j and X_{j-1};
        multiplier_norm, root mean square; aux_task_loss, of the AuxNet's head; penalty_coef.  With `exchange.stale`
        they are of the step before, and 0 in the first step.
        """
        config, step_inputs = self.config, self.step_inputs
        mine = self.own(state, batch, state.step)  # 1, 2
        tags = lax.all_gather(moving.make_tags(batch, state.step), "stage", tiled=True)
        for _ in range(config.penalty.sweeps):
            mine = mine._replace(lam=self.sweep(state, mine.lam, moving.tagged(self.network, config, state, tags)))
        packets = self.exchange.send(mine.lam, mine.multipliers if self.exchange.with_multiplier else None)  # 3

        carry: Any = ()
        if config.exchange.stale:
            carry = Carry(packets, jnp.stack([tags] * len(packets)), batch)
            packets, tags = state.carry.packets, state.carry.tags[0]
            mine = self.own(state, state.carry.owned, tags[0, 2])
        examples = moving.tagged(self.network, config, state, tags)
        run = partial(self.run_stage, state=self.in_rows(state), examples=examples)
        done: StageResult = self.on_stages(run, state, packets)  # 4
        tail_grads = self.of_pieces(done.beside) if self.config.multiplier == "coarse_tail" else ()

        grads = lax.psum(done.grads, "data")  # 5
        new_state = self.updated(state, grads, lax.pmean(done.stats, "data"))

        adjoints, outputs = self.exchange.receive(done.output)  # 6

        corrected = aux_step.corrected_inputs(config, state, mine.aux, mine.multipliers, adjoints, outputs)  # 7
        aux_params, aux_opt = aux_step.fit(
            config, state, step_inputs.aux_optimizer, mine.run_aux, mine.aux, corrected, adjoints, tail_grads
        )
        violations = [lagrangian.violation(a, output) for a, output in zip(mine.lam[1:], outputs, strict=True)]
        new_state = replace(
            new_state,
            aux_params=aux_params,
            aux_opt=aux_opt,
            aux_stats=train_state.running_average(state.aux_stats, mine.aux.stats),
            multiplier=multiplier.updated(
                config, state, mine.batch, mine.multipliers, violations, step_inputs.num_examples
            ),
            penalty_coef=step_inputs.penalty_coef(state.step + 1),
            carry=carry,
        )
        metrics = self.all_metrics(done, grads, mine)
        if config.exchange.stale:  # in the first step no batch has arrived yet
            new_state = _learnt_if(examples.real, new_state, state)
            metrics = {name: jnp.where(examples.real, value, 0.0) for name, value in metrics.items()}
        return new_state, metrics | {"penalty_coef": state.penalty_coef}

    def all_metrics(self, done: StageResult, grads: Row, mine: Owned) -> Metrics:
        """The metrics of a step, but for beta, from every device's share: two psums over the mesh."""
        B, devices = self.config.batch_size, math.prod(self.config.mesh_shape)
        kappas = mine.multipliers or [jnp.zeros(1)] * (self.network.num_stages - 1)
        norms = jnp.array([jnp.square(kappa).mean() / devices for kappa in kappas])
        norms, aux_loss = lax.psum((norms, mine.aux.loss), meshes.ALL_AXES)
        metrics, by_stage = self.metrics(grads, done.shares)
        violation, output = by_stage["violation"][:-1], by_stage["output"][:-1]
        return metrics | {
            "stage_loss": by_stage["loss"],
            "relative_violation": violation / output,
            "violation": violation / B,
            "output_square": output / B,
            "multiplier_norm": jnp.sqrt(norms),
            "aux_task_loss": aux_loss,
        }


LEARNT = ("stage_params", "stage_opt", "stage_stats", "ema", "aux_params", "aux_opt", "aux_stats", "multiplier")
"""Fields of the state that a batch changes."""


def _learnt_if(real: Array, new: TrainState, old: TrainState) -> TrainState:
    """`new`, but with `old`'s parameters and the like where there was no batch."""

    def kept(new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(lambda n, o: jnp.where(real, n, o), new, old)

    return replace(new, **{name: kept(getattr(new, name), getattr(old, name)) for name in LEARNT})


def make_exchange(network: Network, config: Config) -> Exchange:
    """What travels between owners and stages under a configuration."""
    return Exchange(
        network.interfaces,
        config.mesh_shape[0],
        with_multiplier=config.multiplier in ("per_example", "adjoint"),
        dtype="bfloat16" if config.exchange.bfloat16 else None,
    )
