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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.methods import moving
from lpjax.methods.layer_parallel import aux_step, lagrangian, multiplier
from lpjax.methods.layer_parallel.stage import StageResult, stage_pass
from lpjax.network.network import Network
from lpjax.network.packing import Row
from lpjax.nn import chain, losses
from lpjax.nn.chain import Mode
from lpjax.nn.losses import Interface, Multiplier
from lpjax.parallel import mesh as meshes
from lpjax.parallel.exchange import Exchange
from lpjax.state import optim, train_state
from lpjax.state.step_inputs import StepInputs, example_keys
from lpjax.state.train_state import TrainState


@struct.dataclass
class Carry:
    """The batch under way between steps, with `exchange.stale`.

    Attributes:
      packets: [K, B, L], what the stages are to work on in the next step.
      tags: [K, B, 3], whose it is (`moving`).
      owned: The same batch, [B, ...], as its owners have it.
    """

    packets: PyTree
    tags: PyTree
    owned: PyTree


class Owned(NamedTuple):
    """What the owner of b examples makes of them.

    Attributes:
      batch: The examples.
      x: The network's input.
      aux: The AuxNet's forward pass at x.
      multipliers: See `multiplier.current`.
    """

    batch: Batch
    x: Interface
    aux: aux_step.AuxPass
    multipliers: list[Multiplier] | None


@dataclass(frozen=True, eq=False)
class Step:
    """One step of one device, and what is the same in every step.

    Attributes:
      network: The network.
      config: The configuration.
      step_inputs: What a step is fed.
      exchange: What travels between owners and stages.
    """

    network: Network
    config: Config
    step_inputs: StepInputs
    exchange: Exchange

    def on_stages(self, run: Callable[..., Any], *operands: PyTree) -> Any:
        """See `mesh.on_stages`."""
        return meshes.on_stages(run, self.network.num_stages, self.exchange.num_devices, *operands)

    def run_stage(
        self,
        k: int,
        params: Row,
        stats: Row,
        packet: Float[Array, "b l"],
        *,
        state: TrainState,
        labels: Int[Array, " b"],
        keys: Key[Array, " b"],
    ) -> StageResult:
        """Step 4 for stage k: unpack, `stage_pass`, pack.  Of `state` only what is replicated is read."""
        network = self.network
        lam, target, kappa = self.exchange.unpacked(k, packet)
        if self.config.multiplier == "mean" and target is not None:
            kappa = state.multiplier[k]
        done = stage_pass(
            network,
            k,
            params=network.params.unpack(k, params),
            stats=network.stats.unpack(k, stats),
            lam=lam,
            target=target,
            multiplier=kappa,
            labels=labels,
            keys=keys,
            aux=(state.aux_params, state.aux_stats),
            penalty_coef=state.penalty_coef,
            config=self.config,
            axes=("data",),
        )
        none = jnp.zeros(())
        return StageResult(
            loss=done.loss,
            correct=done.correct,
            violation=none if target is None else losses.psi(lagrangian.violation(target, done.output)).sum(),
            output=none if target is None else losses.psi(done.output).sum(),
            grads=network.params.pack(done.grads),
            stats=network.stats.pack(done.stats),
            reply=self.exchange.reply(k, done.adjoint, done.output),
            aux_grads=done.aux_grads,
        )

    def run_stage_forward(
        self, k: int, params: Row, stats: Row, packet: Float[Array, "b l"], *, keys: Key[Array, " b"]
    ) -> Float[Array, "b l"]:
        """The reply of a forward pass alone, for a sweep (its adjoint is zero, and not read)."""
        lam, _, _ = self.exchange.unpacked(k, packet)
        trees = self.network.params.unpack(k, params), self.network.stats.unpack(k, stats)
        mode = Mode(train=True, axes=("data",), keys=keys)
        output, _ = chain.apply(self.network.stages[k], *trees, lam, mode)
        return self.exchange.reply(k, jnp.zeros_like(lam), output)

    def sweep(self, state: TrainState, lam: Sequence[Interface], keys: Key[Array, " column"]) -> list[Interface]:
        """One coarse correction sweep of the stages' inputs: (8) of `lagrangian`."""
        packets = replace(self.exchange, with_multiplier=False).send(lam, None)
        _, outputs = self.exchange.receive(
            self.on_stages(partial(self.run_stage_forward, keys=keys), state.stage_params, state.stage_stats, packets)
        )
        mode = Mode(train=True, axes=meshes.ALL_AXES)

        def coarse(j: int, x: Array) -> Array:
            return chain.apply(self.network.aux_net[j], state.aux_params[j], state.aux_stats[j], x, mode)[0]

        pieces = [partial(coarse, j) for j in range(self.network.num_stages - 1)]
        return lagrangian.coarse_correction(pieces, lam, outputs)

    def own(self, state: TrainState, batch: Batch, step: Array) -> Owned:
        """Steps 1 and 2: the input that a device's examples were given in `step`, and the state's AuxNet on it."""
        config = self.config
        x = self.step_inputs.network_input(batch, example_keys(state.key, step, batch.index))
        aux = aux_step.forward(self.network, config, state.aux_params, state.aux_stats, x, batch.label)
        return Owned(batch, x, aux, multiplier.current(config, state, batch, aux))

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        """One step as one device sees it: K/S rows of the stages, b = B / (S D) examples; numbers as in the drawing."""
        network, config, step_inputs = self.network, self.config, self.step_inputs
        mine = self.own(state, batch, state.step)  # 1, 2
        tags = jnp.stack([batch.label, batch.index, jnp.full_like(batch.index, state.step)], axis=1)
        tags = lax.all_gather(tags, "stage", tiled=True)
        lam: Sequence[Interface] = (mine.x, *mine.aux.lam)
        for _ in range(config.penalty.sweeps):
            lam = self.sweep(state, lam, moving.tagged(state, tags).keys)
        packets = self.exchange.send(lam, mine.multipliers if self.exchange.with_multiplier else None)  # 3

        carry: Any = ()
        if config.exchange.stale:
            carry = Carry(packets, jnp.stack([tags] * len(packets)), batch)
            packets, tags = state.carry.packets, state.carry.tags[0]
            mine = self.own(state, state.carry.owned, tags[0, 2])
            lam = (mine.x, *mine.aux.lam)
        batch, x, aux, multipliers = mine
        labels, keys, real = moving.tagged(state, tags)
        run_stage = partial(self.run_stage, state=state, labels=labels, keys=keys)
        done: StageResult = self.on_stages(run_stage, state.stage_params, state.stage_stats, packets)  # 4

        grads = lax.psum(done.grads, "data")  # 5
        stage_params, stage_opt = optim.update_rows(step_inputs.optimizer, grads, state.stage_opt, state.stage_params)
        stage_stats = train_state.running_average(state.stage_stats, lax.pmean(done.stats, "data"))

        adjoints, outputs = self.exchange.receive(done.reply)  # 6

        corrected = aux_step.corrected_inputs(config, state, aux, multipliers, adjoints, outputs)  # 7
        aux_params, aux_opt = aux_step.fit(
            network, config, state, step_inputs.aux_optimizer, x, batch.label, aux, corrected, adjoints, done.aux_grads
        )
        violations = [lagrangian.violation(a, output) for a, output in zip(lam[1:], outputs, strict=True)]
        new_state = replace(
            state,
            step=state.step + 1,
            stage_params=stage_params,
            stage_opt=stage_opt,
            stage_stats=stage_stats,
            aux_params=aux_params,
            aux_opt=aux_opt,
            aux_stats=train_state.running_average(state.aux_stats, aux.stats),
            multiplier=multiplier.updated(config, state, batch, multipliers, violations, step_inputs.num_examples),
            penalty_coef=step_inputs.penalty_coef(state.step + 1),
            carry=carry,
        )
        metrics = self.metrics(done, grads, multipliers, aux.loss)
        if config.exchange.stale:  # in the first step no batch has arrived yet
            new_state, metrics = _learnt_if(real, new_state, state), _seen_if(real, metrics)
        return new_state, metrics | {"penalty_coef": state.penalty_coef}

    def metrics(
        self, done: StageResult, grads: Row, multipliers: list[Multiplier] | None, aux_loss: Array
    ) -> dict[str, Array]:
        """The metrics of `make_step`, but for beta, from every device's share: two psums over the mesh."""
        B, K = self.config.batch_size, self.network.num_stages
        S, D = self.config.mesh_shape
        squares = jnp.square(optim.row_norms(grads)) / D  # they are already summed over 'data'
        mine = jnp.stack([done.loss, done.correct, done.violation, done.output, squares])
        norms = jnp.array([jnp.square(kappa).mean() / (S * D) for kappa in multipliers or [jnp.zeros(1)] * (K - 1)])
        norms, aux_loss = lax.psum((norms, aux_loss), meshes.ALL_AXES)
        loss, correct, violation, output, squares = meshes.by_stage(mine, K)
        return {
            "task_loss": loss[-1],
            "accuracy": correct[-1] / B,
            "stage_loss": loss,
            "gradient_norm": jnp.sqrt(squares),
            "relative_violation": violation[:-1] / output[:-1],
            "violation": violation[:-1] / B,
            "output_square": output[:-1] / B,
            "multiplier_norm": jnp.sqrt(norms),
            "aux_task_loss": aux_loss,
        }


LEARNT = ("stage_params", "stage_opt", "stage_stats", "aux_params", "aux_opt", "aux_stats", "multiplier")
"""Fields of the state that a batch changes."""


def _learnt_if(real: Array, new: TrainState, old: TrainState) -> TrainState:
    """`new`, but with `old`'s parameters and the like where there was no batch."""
    kept = {
        name: jax.tree.map(lambda n, o: jnp.where(real, n, o), getattr(new, name), getattr(old, name))
        for name in LEARNT
    }
    return replace(new, **kept)


def _seen_if(real: Array, metrics: dict[str, Array]) -> dict[str, Array]:
    """`metrics`, but 0 where there was no batch."""
    return {name: jnp.where(real, value, 0.0) for name, value in metrics.items()}


def make_exchange(network: Network, config: Config) -> Exchange:
    """What travels between owners and stages under a configuration."""
    return Exchange(
        network.interfaces,
        config.mesh_shape[0],
        with_multiplier=config.multiplier in ("per_example", "adjoint"),
        dtype="bfloat16" if config.exchange.bfloat16 else None,
    )
