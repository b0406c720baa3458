"""What layer-parallel training says of itself: its settings, what it keeps, its schedule."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.data.source import Spec
from lpjax.errors import require
from lpjax.methods import moving
from lpjax.methods.base import WIDTH, Age, Method, StageResult
from lpjax.methods.layer_parallel.step import Carry, Step, make_exchange
from lpjax.methods.stage_plan import StagePlan, tag_values
from lpjax.network import aux_net
from lpjax.network.network import Network
from lpjax.network.packing import Row
from lpjax.nn.chain import Chain
from lpjax.nn.losses import features
from lpjax.nn.schedule import Item, Part
from lpjax.parallel.mesh import ALL_AXES, EXAMPLES, Stage
from lpjax.state.step_inputs import StepInputs
from lpjax.state.train_state import Carried, Stored, TrainState, table_rows


class LayerParallel(Method):
    """Layer-parallel training, where an AuxNet generates the stages' inputs."""

    name = "layer_parallel"
    title = "layer-parallel training with an AuxNet"
    paper = "arXiv:2112.05387"
    aux_net = "inputs"
    step = Step
    metrics = (
        Method.metrics
        | {"stage_loss": "stage", "aux_task_loss": "", "penalty_coef": ""}
        | dict.fromkeys(("relative_violation", "violation", "output_square", "multiplier_norm"), "interface")
    )

    def resolve(self, config: Config) -> Config:
        """Fill in the first beta, by the policy of the multipliers."""
        initial = config.penalty.initial
        if initial is None:
            initial = 0.1 if config.multiplier == "coarse_tail" else 1.0
        return replace(config, penalty=replace(config.penalty, initial=initial))

    def settings(self, config: Config) -> dict[str, Any]:
        """The policy of the multipliers, which tells its runs apart."""
        return {"multiplier": config.multiplier}

    def check(self, config: Config, data: Spec | None = None) -> None:
        """Refuse settings that contradict each other or the data set.

        Args:
          config: With all fields filled in.
          data: The data set, once it is known.

        Raises:
          BadInput: Per-example multipliers of examples that are augmented or cropped; sweeps with stale exchanges; tied
            pieces; multipliers by the adjoint of an AuxNet that does not learn the task.
        """
        data_config, per_example = config.data, config.multiplier == "per_example"
        require(
            not per_example or not (data_config.crop or data_config.flip or data_config.cutout or data_config.mixup),
            f"multiplier=per_example with data.crop={data_config.crop}, data.flip={data_config.flip}, "
            f"data.cutout={data_config.cutout}, data.mixup={data_config.mixup}: a multiplier stored per example needs "
            f"the example to be the same each time; set data.crop=0, data.flip=False, data.cutout=0 and data.mixup=0, "
            f"or choose multiplier=mean or adjoint",
        )
        require(
            not (per_example and data and data.cropped),
            f"multiplier=per_example with data.name={data_config.name}, whose images are cropped at random: a "
            f"multiplier stored per example needs the example to be the same each time; choose another multiplier",
        )
        require(
            not config.exchange.stale or config.penalty.sweeps == 0,
            f"exchange.stale=True with penalty.sweeps={config.penalty.sweeps}: a sweep waits for the stages, which is "
            f"what stale exchanges avoid; set one of them to its default",
        )
        require(
            not config.aux.tied,
            "aux.tied=True with method=layer_parallel, whose AuxNet has a head of its own to learn with: choose "
            "method=coarse_adjoint, or leave aux.tied unset",
        )
        require(
            config.multiplier != "adjoint" or config.aux.task_weight > 0,
            f"multiplier=adjoint with aux.task_weight={config.aux.task_weight}: the multiplier is the adjoint of the "
            f"AuxNet's own cross entropy, which must be trained; set aux.task_weight > 0",
        )

    def carry(self, network: Network, config: Config) -> Carried | None:
        """What is under way between steps with `exchange.stale`, see `Carry`; None without."""
        if not config.exchange.stale:
            return None
        own, length = config.batch_size // math.prod(config.mesh_shape), make_exchange(network, config).outward_length

        def init(step_inputs: StepInputs, key: PRNGKeyArray) -> Carry:
            images, index = jnp.zeros((own, *network.interfaces[0]), jnp.uint8), jnp.zeros(own, jnp.int32)
            labels = jnp.zeros((own, *network.label_shape), jnp.int32)
            partner = (images, labels) if config.data.mixup else ()
            owned = Batch(images, labels, index, *partner)
            _, tags = moving.empty(network, config)
            return Carry(jnp.zeros((*tags.shape[:2], length)), tags, owned)

        return Carried(Carry(moving.PACKETS, moving.PACKETS, EXAMPLES), init)

    def stores(self, network: Network, config: Config, num_examples: int) -> Stored | None:
        """The multipliers that the policy stores: one an interface, one an interface and example, or None."""
        if config.multiplier not in ("mean", "per_example"):
            return None
        devices = math.prod(config.mesh_shape)
        rows = table_rows(num_examples, devices) if config.multiplier == "per_example" else None
        return Stored(network.interfaces[1:], rows)

    def ages(self, config: Config) -> list[list[Age]]:
        """How old the gradients are: with `exchange.stale` the batch is of the step before."""
        return [[Age(int(config.exchange.stale), 0)] for _ in range(config.num_stages)]

    def work(self, network: Network, config: Config) -> list[Item]:
        """The schedule of a step, numbered as the drawing in `step`."""
        plan, exchange, K = Plan(network, config), make_exchange(network, config), network.num_stages
        outward, homeward = exchange.outward_length, exchange.homeward_length
        if K > 1:
            plan.each("pack", keeps=2 * WIDTH * K * plan.own * (outward + homeward))
        forward = plan.owners()
        plan.message("all_gather", "stage", tag_values(network, config) * WIDTH * plan.own, "exchange")
        micro = -int(config.exchange.stale)
        for _ in range(config.penalty.sweeps):
            plan.exchange(replace(exchange, with_multiplier=False).outward_length)
            for k in range(K):
                plan.forward(k, micro=micro)
            plan.exchange(homeward)
            for _ in range(2):  # at the corrected inputs and at the old ones
                plan.aux(last=False)
        plan.exchange(outward)
        if config.exchange.stale:
            forward = plan.owners()
        plan.stages(micro)
        plan.update()
        plan.exchange(homeward)
        plan.learn(forward)
        plan.message("psum", ALL_AXES, WIDTH * K, "metrics", count=2)
        plan.message("psum", ALL_AXES, 5 * WIDTH * K, "metrics")
        return plan.items

    def holds(self, network: Network, config: Config, num_examples: int) -> dict[str, int]:
        """Bytes between steps, with the stored multipliers, and with `exchange.stale` the packets on their way."""
        sizes, devices = super().holds(network, config, num_examples), math.prod(config.mesh_shape)
        if stored := self.stores(network, config, num_examples):
            rows = 1 if stored.rows is None else stored.rows // devices
            sizes["multipliers"] = WIDTH * rows * sum(map(features, stored.shapes))
        if config.exchange.stale:
            own = config.batch_size // devices
            sizes["packets"] = WIDTH * network.num_stages * own * make_exchange(network, config).outward_length
        return sizes

    def stage_program(
        self, k: int, network: Network, config: Config, step_inputs: StepInputs, state: TrainState, batch: Batch
    ) -> partial[StageResult]:
        """The passes of stage k on its local loss, as a program to be timed alone."""
        step = Step(network, config, step_inputs)
        packet = jax.random.normal(jax.random.key(0), (len(batch.label), step.exchange.outward_length), float)
        params, stats = jax.tree.map(lambda row: row[k], (state.stage_params, state.stage_stats))

        def run(params: Row, stats: Row, packet: Array, state: TrainState, batch: Batch) -> StageResult:
            examples = moving.tagged(network, config, state, moving.make_tags(batch, state.step))
            return step.run_stage(Stage((k,), k), params, stats, packet, state=step.in_rows(state), examples=examples)

        return partial(run, params, stats, packet, state, batch)


# ----------------------------------------------------------------------------------------------------------- schedule


BOTH = ("input", "weights")


class Plan(StagePlan):
    """The parts of a step's schedule, numbered as the drawing in `step`."""

    def aux(self, gradients: tuple[str, ...] = (), *, last: bool = True) -> list[dict[int, int]]:
        """A pass of the AuxNet on each device's own examples, without its `last` piece or with it.

        Returns:
          Of each device the position of each piece's entry.
        """
        pieces = list(enumerate(self.network.aux_net if last else self.network.aux_net[:-1]))
        what = self.what | {"examples": self.own, "norm_axes": ALL_AXES}

        def work(d: int, j: int, piece: Chain) -> int:
            own = ("weights",) if j == 0 and gradients == BOTH else gradients
            return self.work(d, "aux", stage=j, chain=piece, gradients=own, **what)

        return [{j: work(d, j, piece) for j, piece in pieces[:: -1 if gradients else 1]} for d in self.devices]

    def aux_both(self, forward: list[dict[int, int]]) -> None:
        """The AuxNet's backward pass after a forward pass at these positions, whose activations are kept until then."""
        for before, after in zip(forward, self.aux(BOTH), strict=True):
            for j, position in before.items():
                self.keep(position, after[j])

    def owners(self) -> list[dict[int, int]]:
        """1, 2: what owners make of their examples; returns the AuxNet's forward pass."""
        self.augment()
        forward = self.aux()
        if self.config.multiplier == "adjoint":
            self.aux(("input",))
        if self.config.multiplier == "per_example":
            for shape in self.network.interfaces[1:]:
                self.message("all_gather", ALL_AXES, 4 * self.own, "exchange")
                self.message("reduce_scatter", ALL_AXES, WIDTH * self.config.batch_size * features(shape), "exchange")
        return forward

    def exchange(self, length: int) -> None:
        """3 or 6: packets are written and read twice, and move by one all_to_all."""
        if self.network.num_stages > 1:
            values = self.network.num_stages * self.own * length
            self.each("pack", accesses=4 * values)
            width = 2 if self.config.exchange.bfloat16 else WIDTH
            self.message("all_to_all", "stage", width * values, "exchange")

    def stages(self, micro: int) -> None:
        """4: all stages at the same time."""
        K, tails = self.network.num_stages, self.network.aux_tails
        for part in self.network.parts():
            behind = []
            if self.config.multiplier == "coarse_tail" and tails:
                behind = [Part(part.stage, tails[i]) for i in aux_net.tail(K, part.stage + 1, self.config.aux.tail)]
            self.local(part.stage // self.slots, part, behind, "tail", micro=micro, **self.what)

    def learn(self, forward: list[dict[int, int]]) -> None:
        """7: the correction, the AuxNet's fit to it, and the stored multipliers."""
        config, interfaces = self.config, [features(shape) for shape in self.network.interfaces[1:]]
        self.each("correct", accesses=4 * self.own * sum(interfaces))  # lambda, P, X are read, lambda^+ is written
        for number in range(config.aux.inner_steps if self.network.aux_net else 0):
            self.aux_both(forward if number == 0 else self.aux())
            if config.aux.adjoint_weight > 0:  # of the mismatch: both passes, and the way back through both
                self.message("psum", ALL_AXES, WIDTH * len(interfaces), "gradients", count=len(interfaces))
                again = self.aux()
                self.aux(("input",))
                self.aux(BOTH)
                self.aux_both(again)
            self.update_aux()
        for size in interfaces:
            if config.multiplier == "mean":
                self.message("psum", ALL_AXES, WIDTH * size, "gradients")
            if config.multiplier == "per_example":
                self.message("all_gather", ALL_AXES, 4 * self.own, "exchange")
                self.message("all_gather", ALL_AXES, WIDTH * self.own * size, "exchange")
