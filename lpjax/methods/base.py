"""What a method says of itself: the interface that the rest of lpjax asks, and never a method's name."""

import abc
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.data.source import Spec
from lpjax.network import alike, aux_net
from lpjax.network.network import Network
from lpjax.network.packing import PackedChains, Row, drawn_alike
from lpjax.nn.chain import Chain
from lpjax.nn.count import chain_size
from lpjax.nn.schedule import Item
from lpjax.parallel import mesh as meshes
from lpjax.state import optim
from lpjax.state.step_inputs import StepInputs, paired
from lpjax.state.train_state import Carried, Stored, TrainState, running_average, weight_average

Metrics = dict[str, Array]
StepFunction = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]

WIDTH = 4
"""Bytes of a value, in single precision."""


class Age(NamedTuple):
    """How old a gradient is when it is used.

    Attributes:
      entered: Micro-batches since the one that it is of entered the network, the last one of a step counting 0.
      weights: Updates of the stage's weights since those that it was taken at.
    """

    entered: int
    weights: int


class StageResult(NamedTuple):
    """What a stage makes of a step, in shapes that are the same for all stages, so that `lax.switch` can return it.

    Attributes:
      shares: This device's shares of what is summed over the examples: "loss", "correct" and the like, scalars.
      grads: Gradient with respect to the stage's parameters, packed.
      stats: Its batch statistics, packed.
      output: What it sends, packed.
      real: Whether there was a batch; None where there always is one.
      beside: Of what is run beside the stage or behind it, in a form of the method's own.
    """

    shares: dict[str, Float[Array, "..."]]
    grads: Row
    stats: Row
    output: PyTree
    real: Bool[Array, "..."] | None = None
    beside: PyTree = ()


@dataclass(frozen=True, eq=False)
class Step(abc.ABC):
    """One step of one device, under `shard_map`, and what is the same in every step.

    Attributes:
      network: The network.
      config: The configuration.
      step_inputs: What a step is fed.
      rate_factors: Of the stages' learning rates, see `optim.age_factors`.
    """

    network: Network
    config: Config
    step_inputs: StepInputs
    rate_factors: optax.Schedule | None = None

    @abc.abstractmethod
    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One step as one device sees it: the new state, and the metrics."""

    @property
    def kinds(self) -> tuple[tuple[int, ...], ...]:
        """Stages by kind, see `Network.kinds`."""
        return self.network.kinds

    def on_stages(self, run: Callable[..., Any], state: TrainState, *operands: PyTree) -> Any:
        """`mesh.on_stages` of (k, its rows of parameters and statistics, `operands` of stage k)."""
        operands = state.stage_params, state.stage_stats, *operands
        return meshes.on_stages(run, self.kinds, self.config.mesh_shape[0], *operands)

    def in_rows(self, state: TrainState) -> TrainState:
        """The state as `run_stage` reads it: equal pieces of the AuxNet in a row are stacked, see `alike`."""
        params, stats = (alike.stacked(self.network.aux_rows, tree) for tree in (state.aux_params, state.aux_stats))
        return replace(state, aux_params=params, aux_stats=stats)

    def of_pieces(self, grads: PyTree) -> tuple[PyTree, ...]:
        """The sums of the slots' gradients with respect to the AuxNet, one tree a piece, from trees of rows."""
        return alike.unstacked(self.network.aux_rows, jax.tree.map(lambda leaf: leaf.sum(0), grads))

    def updated(
        self, state: TrainState, grads: Row, stats: Row, real: Bool[Array, " slots"] | None = None
    ) -> TrainState:
        """The state after the step, as far as the stages are concerned.

        Args:
          state: Before it.
          grads: Rows of gradients, summed over the devices that have the same stages.
          stats: Rows of batch statistics, averaged over these.
          real: Whether the stages had a batch; None where they always have one.
        """
        optimizer, old, factors = self.step_inputs.optimizer, state.stage_stats, self.rate_factors
        own = None if factors is None else meshes.own_stages(factors(state.step), len(jax.tree.leaves(grads)[0]))
        params, opt = optim.update_rows(optimizer, grads, state.stage_opt, state.stage_params, own)
        stats, decay = running_average(old, stats, real), self.config.ema_decay
        ema = state.ema if decay is None else weight_average(state.ema, params, decay, state.step)
        return replace(state, step=state.step + 1, stage_params=params, stage_opt=opt, stage_stats=stats, ema=ema)

    def metrics(self, grads: Row, shares: dict[str, Float[Array, " slots"]]) -> tuple[Metrics, Metrics]:
        """The metrics that all staged methods have: one psum over the mesh.

        Args:
          grads: As for `updated`.
          shares: See `StageResult`; with "loss" and "correct".

        Returns:
          task_loss and accuracy of the last stage, and each stage's gradient_norm; and `shares` summed, [K] each.
        """
        squares = jnp.square(optim.row_norms(grads)) / self.config.mesh.data  # they are already summed over 'data'
        *sums, squares = meshes.by_stage(jnp.stack([*shares.values(), squares]), self.network.num_stages)
        by_stage = dict(zip(shares, sums, strict=True))
        found = {"task_loss": by_stage["loss"][-1], "accuracy": by_stage["correct"][-1] / self.config.batch_size}
        return found | {"gradient_norm": jnp.sqrt(squares)}, by_stage


class Method(abc.ABC):
    """A way to train a network.

    Attributes:
      name: What `config.method` calls it.
      title: What people call it, for tables and cards.
      paper: Where it is from, such as "arXiv:1811.06965"; "" where it needs no source.
      staged: Whether each device along 'stage' holds its K/S stages only; otherwise every device holds the network.
      devices: Along 'stage' where nothing is said: "stages" (K) or "one".
      aux_net: What the AuxNet's pieces are for: the stages' "inputs" (and tails), "tails" alone, or "none", where no
        AuxNet is made.  With "inputs" interfaces are standardised.
      accumulates: Whether it reads `optimizer.accumulate`.
      step: A step of one device.
      stage_program: (k, network, config, step_inputs, state, batch) -> forward and backward pass of stage k on a
        micro-batch, with what is computed beside it, as the step runs it, to be timed alone: a `partial` of a function
        to be run under `shard_map` on a mesh of one device, and its arrays.  `config` is of such a mesh, its batch that
        of a stage column, `state` and `batch` are of such a run.  None where a stage has no such program.
      metrics: Of each metric of a step what a list of it runs over: "" (a number), "stage" or "interface".
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str] = ""
    staged: ClassVar[bool] = True
    devices: ClassVar[Literal["stages", "one"]] = "stages"
    aux_net: ClassVar[Literal["none", "tails", "inputs"]] = "none"
    accumulates: ClassVar[bool] = False
    step: ClassVar[type[Step]]
    stage_program: ClassVar[Callable[..., partial[Any]] | None] = None
    metrics: ClassVar[dict[str, str]] = {"task_loss": "", "accuracy": "", "gradient_norm": "stage"}

    def resolve(self, config: Config) -> Config:
        """The configuration with the method's own unset fields filled in; one that is filled in stays as it is."""
        return config

    def sections(self, config: Config) -> tuple[str, ...]:
        """Sections of the methods' settings that it reads: its own, unless overridden."""
        return (self.name,)

    def settings(self, config: Config) -> dict[str, Any]:
        """Fields of its own that tell its runs apart, for tables and cards."""
        return {}

    def advice(self, config: Config) -> str | None:
        """What a dry run says of the method's settings; None for nothing."""
        return None

    def check(self, config: Config, data: Spec | None = None) -> None:  # noqa: B027
        """Whether the method can be run so; any configuration, unless overridden.

        Args:
          config: With all fields filled in.
          data: The data set, once it is known.

        Raises:
          BadInput: Its own settings contradict each other, or the data set.
        """

    def make_step(self, network: Network, config: Config, mesh: Mesh, step_inputs: StepInputs) -> StepFunction:
        """The jitted step (state, batch) -> (state, metrics); the state is donated."""
        factors = optim.age_factors(config, self.ages(config), step_inputs.steps_per_epoch)
        step: StepFunction = self.step(network, config, step_inputs, factors)

        def on_device(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            return step(state, paired(config, batch))

        return meshes.jit_step(on_device, mesh, self.specs(network, config))

    def carry(self, network: Network, config: Config) -> Carried | None:
        """What the method keeps from step to step in `TrainState.carry`; None for nothing."""
        return None

    def stores(self, network: Network, config: Config, num_examples: int) -> Stored | None:
        """The multipliers that it keeps in `TrainState.multiplier`; None for none."""
        return None

    def ages(self, config: Config) -> list[list[Age]]:
        """How old the gradients are that a step uses: of this step's batch and weights, unless overridden.

        Args:
          config: The configuration.

        Returns:
          Of each of the K stages a list, one `Age` for each of its M micro-batches.
        """
        return [[Age(0, 0)] for _ in range(config.num_stages)]

    @abc.abstractmethod
    def work(self, network: Network, config: Config) -> list[Item]:
        """The schedule of a step."""

    def holds(self, network: Network, config: Config, num_examples: int) -> dict[str, int]:
        """Bytes of the fullest device between steps, by kind.

        Args:
          network: The network.
          config: The configuration.
          num_examples: Of the training set.

        Returns:
          `parameters` of its stages (or of all) and of the AuxNet's pieces that it trains; `optimizer`, their state;
            `average` of the stages' parameters, with `ema_decay`.  A method adds what it carries.
        """
        own = stage_values(network, config) if self.staged else network.num_stages * network.params.length
        aux = sum(map(chain_size, self.pieces(network)))
        kept = own * optim.kept_values(config.optimizer) + aux * optim.kept_values(config.aux_optimizer)
        average = {} if config.ema_decay is None else {"average": WIDTH * own}
        return {"parameters": WIDTH * (own + aux), "optimizer": WIDTH * kept, **average}

    def pieces(self, network: Network) -> tuple[Chain, ...]:
        """The AuxNet's pieces that the method trains."""
        return network.aux_own if self.aux_net != "none" else ()

    def specs(self, network: Network, config: Config) -> TrainState:
        """Partition specs of every field of the state (a prefix of its tree)."""
        carried, stored = self.carry(network, config), self.stores(network, config, 1)
        specs: dict[str, Any] = dict.fromkeys((field.name for field in fields(TrainState)), meshes.REPLICATED)
        if self.staged:
            specs |= dict.fromkeys(("stage_params", "stage_opt", "stage_stats", "ema"), meshes.STAGES)
        kept = {"carry": carried.specs if carried else (), "multiplier": stored.spec if stored else meshes.REPLICATED}
        return TrainState(**specs | kept)

    def make_create(
        self, network: Network, config: Config, mesh: Mesh, step_inputs: StepInputs
    ) -> Callable[[], TrainState]:
        """A function that returns the state before the first step, made on the devices where it will live."""
        carried, stored = self.carry(network, config), self.stores(network, config, step_inputs.num_examples)
        packed = PackedChains(network.stages, network.params, network.stats)

        def init_state(key: PRNGKeyArray) -> TrainState:
            keys = [jax.random.fold_in(key, i) for i in range(4)]
            init, devices = partial(packed.init, key=keys[0]), mesh.shape["stage"] if self.staged else 1
            params, stats = meshes.on_stages(init, drawn_alike(network.stages, network.kinds), devices)
            aux_params, aux_stats = aux_net.init(self.pieces(network), keys[1])
            return TrainState(
                step=jnp.zeros((), jnp.int32),
                key=keys[2],
                stage_params=params,
                stage_opt=optim.init_rows(step_inputs.optimizer, params),
                stage_stats=stats,
                aux_params=aux_params,
                aux_opt=step_inputs.aux_optimizer.init(aux_params),
                aux_stats=aux_stats,
                multiplier=stored.zeros(mesh.size) if stored else (),
                penalty_coef=jnp.asarray(step_inputs.initial_penalty_coef, float),
                carry=carried.init(step_inputs, keys[3]) if carried else (),
                ema=() if config.ema_decay is None else params,
            )

        on_mesh = jax.shard_map(
            init_state, mesh=mesh, in_specs=meshes.REPLICATED, out_specs=self.specs(network, config), check_vma=False
        )
        create = jax.jit(on_mesh)
        return lambda: create(jax.random.key(config.seed))


def stage_values(network: Network, config: Config) -> int:
    """Values of the packed parameters of a device's stages."""
    return network.num_stages // config.mesh_shape[0] * network.params.length
