r"""Delayed gradients: a stage's backward pass uses what the stage behind computed one step ago, on the matching batch.

    DDG  Huo, Gu, Yang, Huang, "Decoupled Parallel Backpropagation with Convergence Guarantee", arXiv:1804.10574
    FDG  Zhuang, Wang, Liu, Lin, "Fully Decoupled Neural Network Learning Using Delayed Gradients", arXiv:1906.09108

In step t (K = 3; F m, B m: forward and backward pass of the batch of step m):

    FDG  stage 0  F t     B t-4  |         DDG  stage 0  F t              B t-2  |
         stage 1  F t-1   B t-3  | shift        stage 1       F t         B t-1  | shift
         stage 2  F t-2   B t-2  |              stage 2            F t    B t    |

FDG runs all stages at the same time: what a stage sends arrives in the next step.  DDG only takes the wait out of the
backward passes (its forward pass is the serial one, a stage after the other).  W_k^t being the weights of stage k
before step t, a batch m is differentiated exactly, but through weights of several steps, and the result comes late:

    FDG   g_k(m) = d/dW_k phi(F_{K-1}(.. F_0(x_m; W_0^m) .. ; W_{K-1}^{m+K-1}), y)     used in step m + 2(K-1) - k
    DDG   g_k(m) = d/dW_k phi(F_{K-1}(.. F_0(x_m; W_0^m) .. ; W_{K-1}^m), y)           used in step m + (K-1) - k

So the weights that are updated are this many steps newer than those of the gradient, the `staleness`:

    FDG   2 (K-1-k)                DDG   K-1-k                0 for the last stage, and for K = 1 (backprop)

Gradient shrinking (FDG): a gradient is multiplied by `delayed.shrink` each time it goes to the stage before.  A stage
whose first gradient has not come yet has gradient 0.  Each stage keeps its inputs and weights while they are stale, and
computes its forward pass again for the backward pass (the authors' codes keep activations instead): FDG costs a forward
pass of all stages but the last more than backprop, and much less memory.  Batch norm uses the batch's statistics twice.

Collectives of a step: two all_gathers over 'stage' (input and tags); ppermutes over 'stage' of outputs, tags and
gradients (DDG: K-1 of outputs); psum over 'data' of the stages' gradients, psum over the mesh of the metrics; batch
norm's over 'data'.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.methods import base, moving
from lpjax.methods.base import WIDTH, Age, Metrics, StageResult, stage_values
from lpjax.methods.stage_plan import StagePlan, packet_bytes
from lpjax.network.network import Network
from lpjax.network.packing import Row
from lpjax.nn import chain
from lpjax.nn.schedule import Item
from lpjax.parallel import exchange
from lpjax.parallel import mesh as meshes
from lpjax.state.step_inputs import StepInputs
from lpjax.state.train_state import Carried, TrainState


@struct.dataclass
class Carry:
    """What is under way between steps; position t mod H of a ring is of step t, H = largest staleness + 1.

    Attributes:
      forward: [K, B, L], the stages' inputs of this step (FDG).
      tags: [K, B, T], whose they are.
      backward: [K, B, L], gradients at the stages' outputs, for their backward passes of this step.
      inputs: Ring [K, H, B, L] of the stages' inputs.
      input_tags: Ring [K, H, B, T] of their tags.
      weights: Rings `{kind: [K, H, length]}` of the stages' parameters.
    """

    forward: PyTree
    tags: PyTree
    backward: PyTree
    inputs: PyTree
    input_tags: PyTree
    weights: PyTree


def staleness(config: Config) -> list[int]:
    """By how many steps each stage's weights are newer than those of the gradient that updates them, [K]."""
    once = 2 if config.delayed.variant == "fdg" else 1
    return [once * (config.num_stages - 1 - k) for k in range(config.num_stages)]


def _depth(config: Config) -> int:
    """H, positions of a ring."""
    return max(staleness(config)) + 1


class Step(base.Step):
    """One step of one device."""

    def apply(self, k: int, stats: Row, mode: chain.Mode, params: PyTree, lam: Array) -> tuple[Array, PyTree]:
        """X_k, and the stage's batch statistics."""
        return chain.apply(self.network.stages[k], params, self.network.stats.unpack(k, stats), lam, mode)

    def forward(
        self, state: TrainState, k: int, params: Row, stats: Row, packet: Float[Array, "b l"], tags: moving.Tags
    ) -> Float[Array, "b l"]:
        """X_k as a packet; the last stage sends none."""
        network = self.network
        if k == network.num_stages - 1:
            return jnp.zeros_like(packet)
        trees = network.params.unpack(k, params), moving.unpack(packet, network.interfaces[k])
        return moving.pack(network, self.apply(k, stats, moving.tagged(self.config, state, tags).mode, *trees)[0])

    def sequential_forward(self, state: TrainState, x: Float[Array, "b l"], tags: Array) -> Array:
        """DDG's forward pass: every stage's input, one stage after the other."""
        inputs = moving.with_new_batch(x, jnp.zeros_like(state.carry.forward))
        for turn in range(self.network.num_stages - 1):

            def run(k: int, *args: Any, turn: int = turn) -> Array:
                return self.forward(state, k, *args) if k == turn else jnp.zeros_like(args[2])

            outputs = self.on_stages(run, state, inputs, tags)
            inputs = inputs + exchange.shift(outputs, self.config.mesh_shape[0], forward=True)
        return inputs

    def run_stage(
        self, k: int, params: Row, stats: Row, packet: Array, tags: moving.Tags, carry: Carry, *, state: TrainState
    ) -> StageResult:
        """Stage k's passes of this step; `packet` and `tags` are its input's, already in the rings of `carry`.

        What it sends is zeros in DDG; `beside` is the adjoint, packed.
        """
        network, config, none, old = self.network, self.config, jnp.zeros_like(packet), (params, packet, tags)
        output = self.forward(state, k, params, stats, packet, tags) if config.delayed.variant == "fdg" else none
        if (stale := staleness(config)[k]) > 0:
            position = (state.step - stale) % carry.inputs.shape[0]
            old = jax.tree.map(
                lambda ring: lax.dynamic_index_in_dim(ring, position, keepdims=False),
                (carry.weights, carry.inputs, carry.input_tags),
            )
        examples = moving.tagged(config, state, old[2])
        run = partial(self.apply, k, stats, examples.mode)
        trees = network.params.unpack(k, old[0]), moving.unpack(old[1], network.interfaces[k])
        behind = carry.backward if k < network.num_stages - 1 else None
        shares, new, grads, adjoint = moving.exact_passes(run, *trees, examples, behind, config.batch_size)
        return StageResult(
            shares=shares,
            grads=network.params.pack(grads),
            stats=network.stats.pack(new),
            output=output,
            real=examples.real,
            beside=moving.pack(network, config.delayed.shrink * adjoint) if k > 0 else none,
        )

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One step; its metrics are of the last stage's batch, 0 in FDG's first K-1 steps, where it has none."""
        carry, S = state.carry, self.config.mesh_shape[0]
        x, tags = moving.column_batch(self.network, self.step_inputs, state, batch)
        if self.config.delayed.variant == "fdg":
            inputs, tags = moving.with_new_batch(x, carry.forward), moving.with_new_batch(tags, carry.tags)
        else:
            tags = jnp.repeat(tags[None], len(carry.forward), 0)
            inputs = self.sequential_forward(state, x, tags)
        position = state.step % carry.inputs.shape[1]
        inputs_ring, tags_ring, weights = jax.tree.map(
            lambda ring, new: lax.dynamic_update_index_in_dim(ring, new[:, None], position, 1),
            (carry.inputs, carry.input_tags, carry.weights),
            (inputs, tags, state.stage_params),
        )
        carry = replace(carry, inputs=inputs_ring, input_tags=tags_ring, weights=weights)
        done: StageResult = self.on_stages(partial(self.run_stage, state=state), state, inputs, tags, carry)
        grads = lax.psum(done.grads, "data")
        carry = replace(
            carry,
            forward=exchange.shift(done.output, S, forward=True),
            tags=exchange.shift(tags, S, forward=True),
            backward=exchange.shift(done.beside, S, forward=False),
        )
        new_state = self.updated(state, grads, lax.pmean(done.stats, "data"), done.real)
        return replace(new_state, carry=carry), self.metrics(grads, done.shares)[0]


class Delayed(base.Method):
    """Delayed gradients: backward passes that do not wait for the stages behind."""

    name = "delayed"
    title = "delayed gradients"
    paper = "arXiv:1804.10574, arXiv:1906.09108"
    step = Step

    def settings(self, config: Config) -> dict[str, Any]:
        """The variant, which tells its runs apart."""
        return {"variant": config.delayed.variant}

    def carry(self, network: Network, config: Config) -> Carried:
        """What is under way between steps, see `Carry`."""
        depth, packets, rings = _depth(config), moving.PACKETS, P("stage", None, "data")

        def init(step_inputs: StepInputs, key: PRNGKeyArray) -> Carry:
            packets, tags = moving.empty(network, config)
            rows = network.params.lengths.items()
            weights = {kind: jnp.zeros((len(packets), depth, size)) for kind, size in rows}
            rings = jnp.repeat(packets[:, None], depth, 1), jnp.repeat(tags[:, None], depth, 1)
            return Carry(packets, tags, packets, *rings, weights)

        return Carried(Carry(packets, packets, packets, rings, rings, meshes.STAGES), init)

    def ages(self, config: Config) -> list[list[Age]]:
        """In FDG a batch reaches stage k after k steps, in DDG at once; its gradient comes `staleness` later."""
        fdg = config.delayed.variant == "fdg"
        return [[Age(k * fdg + stale, stale)] for k, stale in enumerate(staleness(config))]

    def work(self, network: Network, config: Config) -> list[Item]:
        """The schedule of a step; weights are copied to a ring and older ones are read from it: three accesses."""
        plan, K, fdg = StagePlan(network, config), network.num_stages, config.delayed.variant == "fdg"
        plan.column_batch(plan.slots)
        for k in range(0 if fdg else K - 1):
            plan.forward(k)
            plan.shift()
        for k, (age,) in enumerate(self.ages(config)):
            if fdg and k < K - 1:
                plan.forward(k, micro=-k)
            plan.backward(k // plan.slots, [k], again=k < K - 1, micro=-age.entered)
        plan.update(more=3 * stage_values(network, config))
        for _ in range(2):  # outputs (DDG: zeros) and gradients
            plan.shift()
        plan.shift_tags()
        plan.message("psum", meshes.ALL_AXES, 3 * WIDTH * K, "metrics")
        return plan.items

    def holds(self, network: Network, config: Config, num_examples: int) -> dict[str, int]:
        """Bytes between steps, with the packets on their way and the rings of inputs and of weights."""
        slots, depth = network.num_stages // config.mesh_shape[0], _depth(config)
        packet = packet_bytes(network, config)
        return super().holds(network, config, num_examples) | {
            "packets": 2 * slots * packet,
            "rings of inputs": slots * depth * packet,
            "rings of weights": depth * WIDTH * stage_values(network, config),
        }
