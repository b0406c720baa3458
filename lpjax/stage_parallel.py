"""The layer-parallel step: all stages run forward, backward and update at the same time.

    device (stage 0, data d)        device (stage 1, data d)     ...    device (stage K-1, data d)
 1  augment its 1/S of the column   its 1/S                             its 1/S
 2  AuxNet forward -> lambda_1..lambda_{K-1} on its 1/S of the column
 3  ---------------- all_to_all over 'stage': examples-sliced -> stage-sliced ----------------
 4  F_0(x), l_0, grad W_0           F_1(lambda_1), l_1, P_1             F_{K-1}(..), phi, P_{K-1}
 5  psum of grad W_k over 'data';  optimiser on the stage's own row
 6  ---------------- all_to_all back: P_j and X_{j-1} -> the owner of those examples ----------
 7  lambda^+, AuxNet backward on its 1/S, psum over the mesh, AuxNet optimiser;  multipliers

This is METHOD section 6 with S devices along 'stage', S from 1 to K: each holds K/S stages and runs them one after
another.  In 4, `lax.switch` makes a device run only its own stages.  No collective over 'stage' may stand inside it (the
devices would wait for different ones, forever); batch norm's pmean over 'data' may, as all of a row take one branch.

Collectives of one step, besides batch norm's: 2 all_to_all (2 more a sweep), 1 all_gather of labels over 'stage';
psum over 'data' of the stages' gradients and statistics (if D > 1); psum over the mesh of the AuxNet's gradients, of
the figures, and of mean multipliers; for a per-example table those of `multiplier_table`.

Everything is differentiated per device as the gradient of the SUM of all devices' losses, so a loss here is a
device's share of the global mean: its examples' sum over B, the global batch size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from lpjax import aux_net, chain, exchange, lagrangian, mesh as meshes, multiplier_table, optim, train_state
from lpjax.chain import Mode, Shape
from lpjax.config import Config
from lpjax.lagrangian import Interface, InterfaceMultiplier
from lpjax.network import Network
from lpjax.packing import Row
from lpjax.stage import stage_pass
from lpjax.train_state import Batch, TrainState

Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


class _StageResult(NamedTuple):
    """`StagePass` in shapes that are the same for all stages, so that a `lax.switch` can return it.

    violation, output: sums over examples of psi(r_{k+1}) and of psi(X_k); 0 for the last stage.
    packet: [P_k (k > 0), X_k (k < K-1)] for the owners of the examples, [b, L].
    """

    loss: Float[Array, ""]
    correct: Float[Array, ""]
    violation: Float[Array, ""]
    output: Float[Array, ""]
    grads: Row
    stats: Row
    packet: Float[Array, "b l"]
    aux_grads: PyTree


@dataclass(frozen=True, eq=False)
class _Device:
    """What is the same in every step of a device: network, configuration, layout of packets.

    num_devices: S.  num_examples: N, of the training set.
    """

    network: Network
    config: Config
    num_devices: int
    num_examples: int

    @property
    def slots(self) -> int:
        """K/S, the stages of one device."""
        return self.network.num_stages // self.num_devices

    @property
    def interfaces(self) -> tuple[Shape, ...]:
        return self.network.interfaces

    @property
    def sends_multiplier(self) -> bool:
        return self.config.multiplier in ("per_example", "adjoint")

    def outward(self, k: int) -> list[Shape]:
        """Parts of the packet to stage k: lambda_k, then lambda_{k+1} and a per-example kappa_{k+1} where they exist."""
        following = self.interfaces[k + 1 : k + 2]
        return [self.interfaces[k], *following, *(following if self.sends_multiplier else ())]

    def homeward(self, k: int) -> list[Shape]:
        """Parts of the packet from stage k: P_k and X_k where they are of use."""
        return [*(self.interfaces[k : k + 1] if k > 0 else ()), *self.interfaces[k + 1 : k + 2]]

    def send(self, lam: tuple[Interface, ...], multiplier: list[InterfaceMultiplier] | None) -> Float[Array, "slots column l"]:
        """Step 3.  `lam` is lambda_0 .. lambda_{K-1}, `multiplier` kappa_1 .. kappa_{K-1} if per example."""
        length = max(exchange.packet_length(self.outward(k)) for k in range(len(lam)))
        packets = []
        for k in range(len(lam)):
            parts = [*lam[k : k + 2], *(multiplier[k : k + 1] if multiplier is not None else ())]
            packets.append(exchange.pack(parts, len(lam[0]), length))
        return exchange.to_stages(jnp.stack(packets), self.num_devices)

    @property
    def homeward_length(self) -> int:
        return max(exchange.packet_length(self.homeward(k)) for k in range(self.network.num_stages))

    def receive(self, packets: Float[Array, "slots column l"]) -> tuple[list[Interface], list[Interface]]:
        """Step 6: adjoints P_1 .. P_{K-1} and outputs X_0 .. X_{K-2} of this device's own examples."""
        home = exchange.to_owners(packets, self.num_devices)
        parts = [exchange.unpack(home[k], self.homeward(k)) for k in range(self.network.num_stages)]
        adjoints = [part[0] for part in parts[1:]]
        outputs = [part[-1] for part in parts[:-1]]
        return adjoints, outputs

    def on_stages(self, run: Callable[..., Any], *operands: PyTree) -> Any:
        """`run(k, *operands of stage k)` for each stage k of this device, stacked; operands lead with its slots.

        Device d holds stages d*slots .. (d+1)*slots - 1: a switch over the devices chooses which of them a slot is.
        """
        results = []
        for slot in range(self.slots):
            mine = jax.tree.map(lambda leaf, slot=slot: leaf[slot], operands)
            branches = [partial(run, device * self.slots + slot) for device in range(self.num_devices)]
            if len(branches) == 1:
                results.append(branches[0](*mine))
            else:
                results.append(lax.switch(lax.axis_index("stage"), branches, *mine))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

    def run_stage(
        self,
        k: int,
        params: Row,
        stats: Row,
        packet: Float[Array, "b l"],
        *,
        labels: Int[Array, " b"],
        shared_multiplier: tuple[InterfaceMultiplier, ...],
        aux: tuple[PyTree, PyTree],
        penalty_coef: Float[Array, ""],
    ) -> _StageResult:
        """Step 4 for one stage of this device: unpack, `stage_pass`, pack."""
        network, last = self.network, k == self.network.num_stages - 1
        lam, *rest = exchange.unpack(packet, self.outward(k))
        target = rest[0] if rest else None
        multiplier = rest[1] if len(rest) > 1 else shared_multiplier[k] if shared_multiplier and not last else None
        done = stage_pass(
            network,
            k,
            params=network.params.unpack(k, params),
            stats=network.stats.unpack(k, stats),
            lam=lam,
            target=target,
            multiplier=multiplier,
            labels=labels,
            aux=aux,
            penalty_coef=penalty_coef,
            policy=self.config.multiplier,
            batch_size=self.config.batch_size,
            axes=("data",),
        )
        return _StageResult(
            loss=done.loss,
            correct=done.correct,
            violation=lagrangian.psi(lagrangian.violation(target, done.output)).sum() if not last else jnp.zeros(()),
            output=lagrangian.psi(done.output).sum() if not last else jnp.zeros(()),
            grads=network.params.pack(done.grads),
            stats=network.stats.pack(done.stats),
            packet=self._pack_home(k, done.adjoint, done.output),
            aux_grads=done.aux_grads,
        )

    def _pack_home(self, k: int, adjoint: Interface, output: Array) -> Float[Array, "b l"]:
        parts = [*([adjoint] if k > 0 else []), *([output] if k < self.network.num_stages - 1 else [])]
        return exchange.pack(parts, len(adjoint), self.homeward_length)

    def run_stage_forward(self, k: int, params: Row, stats: Row, packet: Float[Array, "b l"]) -> Float[Array, "b l"]:
        """The packet of a forward pass alone, for a sweep (its adjoint is not read)."""
        lam = exchange.unpack(packet, self.outward(k))[0]
        trees = self.network.params.unpack(k, params), self.network.stats.unpack(k, stats)
        output, _ = chain.apply(self.network.stages[k], *trees, lam, Mode(train=True, axes=("data",)))
        return self._pack_home(k, jnp.zeros_like(lam), output)

    def sweep(self, state: TrainState, lam: tuple[Interface, ...]) -> tuple[Interface, ...]:
        """One coarse correction sweep of the stages' inputs: (8) of `lagrangian`."""
        packets = self.on_stages(self.run_stage_forward, state.stage_params, state.stage_stats, self.send(lam, None))
        _, outputs = self.receive(packets)
        mode = Mode(train=True, axes=meshes.ALL_AXES)

        def coarse(j: int, x: Interface) -> Interface:
            return chain.apply(self.network.aux_net[j], state.aux_params[j], state.aux_stats[j], x, mode)[0]

        pieces = [partial(coarse, j) for j in range(self.network.num_stages - 1)]
        return tuple(lagrangian.coarse_correction(pieces, lam, outputs))


class _AuxPass(NamedTuple):
    """The AuxNet's forward pass on a device's own examples.

    lam: lambda_1 .. lambda_{K-1}.  loss: this device's share of the AuxNet's own mean cross entropy.
    pullback: (gradients at lambda_1 .., weight of `loss`) -> gradients at (parameters, lambda_1 .. lambda_{K-1}).
    """

    lam: tuple[Interface, ...]
    loss: Float[Array, ""]
    pullback: Callable[[tuple[Interface, ...], float], tuple[PyTree, tuple[Interface, ...]]]
    stats: PyTree


def _aux_forward(device: _Device, params: PyTree, state: TrainState, x: Interface, labels: Array) -> _AuxPass:
    """Step 2 (with `state`'s statistics, at `params`)."""
    network, batch_size = device.network, device.config.batch_size
    if not network.aux_net:  # K = 1
        return _AuxPass((), jnp.zeros(()), lambda lam_grads, weight: ((), ()), ())
    mode = Mode(train=True, axes=meshes.ALL_AXES)

    def run(params: PyTree, shifts: tuple[Interface, ...]) -> tuple[Any, PyTree]:
        lam, logits, stats = aux_net.apply(network.aux_net, params, state.aux_stats, x, shifts, mode)
        return (lam, lagrangian.task_loss(logits, labels).sum() / batch_size), stats

    no_shift = tuple(jnp.zeros((len(x), *shape)) for shape in network.interfaces[1:])
    (lam, loss), pullback, stats = jax.vjp(run, params, no_shift, has_aux=True)
    return _AuxPass(lam, loss, lambda lam_grads, weight: pullback((lam_grads, jnp.asarray(weight, float))), stats)


def make_step(
    network: Network,
    config: Config,
    mesh: Mesh,
    *,
    num_examples: int,
    prepare: Callable[[Batch, Array, Array], Interface],
    optimizer: optax.GradientTransformation,
    aux_optimizer: optax.GradientTransformation,
    penalty_coef: Callable[[Array], Array],
) -> Step:
    """The jitted layer-parallel step (state, batch) -> (state, figures); the state is donated.

    Args:
      num_examples: of the training set.
      prepare: (batch, key, step) -> the network's input, augmented and normalised, for the device's examples.
      penalty_coef: beta as a function of the step.

    Figures, replicated: task_loss [] and accuracy [] of the last stage on the inputs it was given; stage_loss [K], the
    local losses; gradient_norm [K]; relative_violation [K-1], |r_j|^2 / |X_{j-1}|^2; violation and output_square
    [K-1], mean squares of r_j and X_{j-1}; multiplier_norm [K-1], root mean square; aux_task_loss [], of the AuxNet's
    head; penalty_coef [].
    """
    device = _Device(network, config, num_devices=mesh.shape["stage"], num_examples=num_examples)
    specs = train_state.specs(config)
    body = partial(
        _device_step,
        device,
        prepare=prepare,
        optimizer=optimizer,
        aux_optimizer=aux_optimizer,
        next_penalty_coef=penalty_coef,
    )
    sharded = jax.shard_map(
        body,
        mesh=mesh,
        in_specs=(specs, meshes.EXAMPLES),
        out_specs=(specs, meshes.REPLICATED),
        check_vma=False,  # the gradients' collectives are written out above, not inferred
    )
    return jax.jit(sharded, donate_argnums=0)


def _device_step(
    device: _Device,
    state: TrainState,
    batch: Batch,
    *,
    prepare: Callable[[Batch, Array, Array], Interface],
    optimizer: optax.GradientTransformation,
    aux_optimizer: optax.GradientTransformation,
    next_penalty_coef: Callable[[Array], Array],
) -> tuple[TrainState, dict[str, Array]]:
    """One step as one device sees it: K/S rows of the stages, b = B / (S D) examples.  Numbers as in the drawing."""
    config = device.config
    x = prepare(batch, state.key, state.step)  # 1
    labels = lax.all_gather(batch.label, "stage", tiled=True)

    aux = _aux_forward(device, state.aux_params, state, x, batch.label)  # 2
    multiplier = _multiplier(device, state, batch, aux)
    lam = (x, *aux.lam)
    for _ in range(config.penalty.sweeps):
        lam = device.sweep(state, lam)

    packets = device.send(lam, multiplier if device.sends_multiplier else None)  # 3
    run_stage = partial(
        device.run_stage,
        labels=labels,
        shared_multiplier=state.multiplier if config.multiplier == "mean" else (),
        aux=(state.aux_params, state.aux_stats),
        penalty_coef=state.penalty_coef,
    )
    done: _StageResult = device.on_stages(run_stage, state.stage_params, state.stage_stats, packets)  # 4

    grads = lax.psum(done.grads, "data")  # 5
    stage_params, stage_opt = optim.update_rows(optimizer, grads, state.stage_opt, state.stage_params)
    stage_stats = train_state.running_average(state.stage_stats, lax.pmean(done.stats, "data"))

    adjoints, outputs = device.receive(done.packet)  # 6

    corrected = _corrected(config, state, aux, multiplier, adjoints, outputs)  # 7
    aux_params, aux_opt = _fit_aux(device, state, batch, x, aux, corrected, done.aux_grads, aux_optimizer)
    violations = [lagrangian.violation(a, output) for a, output in zip(lam[1:], outputs, strict=True)]
    new_state = state.replace(
        step=state.step + 1,
        stage_params=stage_params,
        stage_opt=stage_opt,
        stage_stats=stage_stats,
        aux_params=aux_params,
        aux_opt=aux_opt,
        aux_stats=train_state.running_average(state.aux_stats, aux.stats),
        multiplier=_updated_multiplier(device, state, batch, multiplier, violations),
        penalty_coef=next_penalty_coef(state.step + 1),
    )
    return new_state, _figures(device, state, done, grads, multiplier, aux.loss)


def _multiplier(device: _Device, state: TrainState, batch: Batch, aux: _AuxPass) -> list[InterfaceMultiplier] | None:
    """kappa_1 .. kappa_{K-1} for the device's own examples, by the policy; None where they are zero."""
    policy, scale = device.config.multiplier, device.config.batch_size
    if policy == "mean":
        return list(state.multiplier)
    if policy == "per_example":
        return [multiplier_table.read(table, batch.index) for table in state.multiplier]
    if policy == "adjoint":
        _, adjoints = aux.pullback(jax.tree.map(jnp.zeros_like, aux.lam), 1.0)
        return [-scale * lagrangian.features(p.shape[1:]) * p for p in adjoints]
    return None


def _corrected(
    config: Config,
    state: TrainState,
    aux: _AuxPass,
    multiplier: list[InterfaceMultiplier] | None,
    adjoints: list[Interface],
    outputs: list[Interface],
) -> list[Interface]:
    """lambda_1^+ .. lambda_{K-1}^+, what the AuxNet should have emitted.

    They start from what it did emit, also when sweeps corrected the stages' inputs: its constraint is to meet the
    stages' outputs, and a distance to swept inputs would outweigh the adjoint.
    """
    beta = state.penalty_coef if config.penalty.aux is None else config.penalty.aux
    return [
        lagrangian.correction(
            a,
            adjoint,
            None if multiplier is None else multiplier[j],
            lagrangian.violation(a, output),
            beta,
            config.aux.correction_step,
        )
        for j, (a, adjoint, output) in enumerate(zip(aux.lam, adjoints, outputs, strict=True))
    ]


def _fit_aux(
    device: _Device,
    state: TrainState,
    batch: Batch,
    x: Interface,
    aux: _AuxPass,
    corrected: list[Interface],
    tail_grads: PyTree,
    optimizer: optax.GradientTransformation,
) -> tuple[PyTree, PyTree]:
    """The AuxNet's parameters and optimiser state after `inner_steps` of the fit (6): step 7.

    Its gradient adds its own cross entropy and, with coarse tails, what the stages' tail losses ask of it (`tail_grads`,
    one row a stage of this device): one psum over the mesh an inner step.
    """
    params, opt = state.aux_params, state.aux_opt
    for inner_step in range(device.config.aux.inner_steps if device.network.aux_net else 0):
        if inner_step > 0:
            aux = _aux_forward(device, params, state, x, batch.label)
        fit = tuple(
            lagrangian.fit_gradient(a, target) / (device.config.batch_size * lagrangian.features(target.shape[1:]))
            for a, target in zip(aux.lam, corrected, strict=True)
        )
        grads, _ = aux.pullback(fit, device.config.aux.task_weight)
        if device.config.multiplier == "coarse_tail":
            grads = jax.tree.map(lambda g, tail: g + tail.sum(0), grads, tail_grads)
        params, opt = optim.update(optimizer, lax.psum(grads, meshes.ALL_AXES), opt, params)
    return params, opt


def _updated_multiplier(
    device: _Device,
    state: TrainState,
    batch: Batch,
    multiplier: list[InterfaceMultiplier] | None,
    violations: list[Interface],
) -> tuple[Array, ...]:
    """What the policy stores after the step: update (7) of `lagrangian`, outside every gradient.

    Every example counts once a pass: it moves its own row by rho r, or the mean multiplier by rho r / N.
    """
    policy, rate, beta = device.config.multiplier, device.config.penalty.multiplier_rate, state.penalty_coef
    if policy == "mean":
        shares = [lax.psum(r.sum(0), meshes.ALL_AXES) / device.num_examples for r in violations]
        pairs = zip(state.multiplier, shares, strict=True)
        return tuple(lagrangian.update_multiplier(kappa, r, beta, rate) for kappa, r in pairs)
    if policy == "per_example":
        assert multiplier is not None
        pairs = zip(multiplier, violations, strict=True)
        rows = [lagrangian.update_multiplier(kappa, r, beta, rate) for kappa, r in pairs]
        tables = zip(state.multiplier, rows, strict=True)
        return tuple(multiplier_table.write(table, batch.index, row) for table, row in tables)
    return ()


def _figures(
    device: _Device,
    state: TrainState,
    done: _StageResult,
    grads: Row,
    multiplier: list[InterfaceMultiplier] | None,
    aux_loss: Array,
) -> dict[str, Array]:
    """The figures of `make_step` from every device's share: one psum over the mesh."""
    config, K = device.config, device.network.num_stages
    data_share = 1 / config.mesh_shape[1]  # gradients are already summed over 'data'
    mine = jnp.stack(
        [done.loss, done.correct, done.violation, done.output, jnp.square(optim.row_norms(grads)) * data_share], axis=1
    )
    rows = lax.dynamic_update_slice(
        jnp.zeros((K, mine.shape[1])), mine, (lax.axis_index("stage") * device.slots, jnp.zeros((), jnp.int32))
    )
    shape = (config.batch_size // (config.mesh_shape[0] * config.mesh_shape[1]), 1, 1, 1)
    norms = [lagrangian.psi(jnp.broadcast_to(k, shape[:1] + k.shape[-3:])).sum() for k in multiplier or []]
    rows, squares, aux_loss = lax.psum((rows, norms, aux_loss), meshes.ALL_AXES)
    return {
        "task_loss": rows[-1, 0],
        "stage_loss": rows[:, 0],
        "accuracy": rows[-1, 1] / config.batch_size,
        "relative_violation": rows[:-1, 2] / rows[:-1, 3],
        "violation": rows[:-1, 2] / config.batch_size,
        "output_square": rows[:-1, 3] / config.batch_size,
        "gradient_norm": jnp.sqrt(rows[:, 4]),
        "multiplier_norm": jnp.sqrt(jnp.array(squares or [0.0] * (K - 1)) / config.batch_size),
        "aux_task_loss": aux_loss,
        "penalty_coef": state.penalty_coef,
    }
