"""What a method says of itself: the interface that the rest of lpjax asks, and never a method's name."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from lpjax.config.schema import Config
from lpjax.data.batch import Batch
from lpjax.data.source import Spec
from lpjax.network.network import Network
from lpjax.nn.count import chain_size
from lpjax.nn.schedule import Item
from lpjax.parallel import mesh as meshes
from lpjax.state import train_state
from lpjax.state.step_inputs import StepInputs
from lpjax.state.train_state import Carried, Stored, TrainState

Metrics = dict[str, Array]
StepFunction = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]

WIDTH = 4
"""Bytes of a value, in single precision."""

UPDATE = 5
"""Accesses to a parameter in an update by SGD with momentum: both read and written, the gradient read."""


class Age(NamedTuple):
    """How old a gradient is when it is used.

    Attributes:
      entered: Micro-batches since the one that it is of entered the network, the last one of a step counting 0.
      weights: Updates of the stage's weights since those that it was taken at.
    """

    entered: int
    weights: int


class StageProgram(NamedTuple):
    """A stage's part of a step as a program of its own, to be timed alone on one device.

    Attributes:
      run: A function of arrays, to be run under `shard_map` on a mesh of one device.
      args: The arrays.
    """

    run: Callable[..., Any]
    args: tuple[PyTree, ...]


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
      stage_program: (k, network, config, step_inputs, state, batch) -> forward and backward pass of stage k with what
        is computed beside it, as the step runs it.  `config` is of a mesh of one device, its batch that of a stage
        column, `state` and `batch` are of such a run.  None where a stage has no such program.
      metrics: Of each metric of a step what a list of it runs over: "" (a number), "stage" or "interface".
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str] = ""
    staged: ClassVar[bool] = True
    devices: ClassVar[Literal["stages", "one"]] = "stages"
    aux_net: ClassVar[Literal["none", "tails", "inputs"]] = "none"
    stage_program: ClassVar[Callable[..., StageProgram] | None] = None
    metrics: ClassVar[dict[str, str]] = {"task_loss": "", "accuracy": "", "gradient_norm": "stage"}

    def resolve(self, config: Config) -> Config:
        """The configuration with the method's own unset fields filled in; one that is filled in stays as it is."""
        return config

    def settings(self, config: Config) -> dict[str, Any]:
        """Fields of its own that tell its runs apart, for tables and cards."""
        return {}

    def check(self, config: Config, data: Spec | None = None) -> None:  # noqa: B027
        """Whether the method can be run so; any configuration, unless overridden.

        Args:
          config: With all fields filled in.
          data: The data set, once it is known.

        Raises:
          BadInput: Its own settings contradict each other, or the data set.
        """

    @abc.abstractmethod
    def make_step(self, network: Network, config: Config, mesh: Mesh, step_inputs: StepInputs) -> StepFunction:
        """The jitted step (state, batch) -> (state, metrics); the state is donated."""

    def carry(self, network: Network, config: Config) -> Carried | None:
        """What the method keeps from step to step in `TrainState.carry`; None for nothing."""
        return None

    def stores(self, network: Network, config: Config, num_examples: int) -> Stored | None:
        """The multipliers that it keeps in `TrainState.multiplier`; None for none."""
        return None

    def ages(self, config: Config) -> list[list[Age]]:
        """[K][M], of the gradients that a step uses: all of this step's batch and weights, unless overridden."""
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
          parameters: of its stages (or of all), and of the AuxNet's pieces that it trains.  optimizer: their state,
          SGD's momentum or Adam's two.  A method adds what it carries.
        """
        values = parameters(self, network, config)
        copies = 2 if config.optimizer.name == "adamw" else 1
        return {"parameters": WIDTH * values, "optimizer": copies * WIDTH * values}

    def specs(self, network: Network, config: Config) -> TrainState:
        """Partition specs of every field of the state (a prefix of its tree)."""
        carried, stored = self.carry(network, config), self.stores(network, config, 1)
        return train_state.specs(staged=self.staged, carried=carried, stored=stored)

    def create(self, network: Network, config: Config, mesh: Mesh, step_inputs: StepInputs) -> TrainState:
        """The state before the first step, made on the devices where it will live."""
        return train_state.create(
            network,
            mesh,
            step_inputs,
            seed=config.seed,
            staged=self.staged,
            pieces=network.aux_own if self.aux_net != "none" else (),
            carried=self.carry(network, config),
            stored=self.stores(network, config, step_inputs.num_examples),
        )

    def jit(self, step: Callable[..., Any], network: Network, config: Config, mesh: Mesh) -> StepFunction:
        """A device's step over the mesh, jitted."""
        return meshes.jit_step(step, mesh, self.specs(network, config))


def stage_values(network: Network, config: Config) -> int:
    """Values of the packed parameters of a device's stages."""
    return network.num_stages // config.mesh_shape[0] * sum(network.params.lengths.values())


def parameters(method: Method, network: Network, config: Config) -> int:
    """Values of the parameters that a device trains: of its stages, or all, and of the AuxNet."""
    stages = sum(network.params.lengths.values()) * network.num_stages
    aux = sum(map(chain_size, network.aux_own)) if method.aux_net != "none" else 0
    return (stages // config.mesh_shape[0] if method.staged else stages) + aux
