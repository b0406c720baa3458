"""What training carries from step to step, and where each piece of it lies on the mesh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, PRNGKeyArray, PyTree

from lpjax.nn.chain import Shape
from lpjax.parallel import mesh as meshes
from lpjax.state.step_inputs import StepInputs

RUNNING_MOMENTUM = 0.9
"""Weight of the old running batch-norm statistics in each step's average."""


@struct.dataclass
class TrainState:
    """The state of a run: K stages, S devices along 'stage'; P, Q, R lengths of packed rows.

    The fields' types are pytrees because the same container holds arrays, their partition specs, or their shapes.

    Attributes:
      step: Steps done; replicated.
      key: The run's random key; never changes: what is random derives from it, the step and the example.
      stage_params: {"kernel": [K, P], "other": [K, Q]}, rows sharded over 'stage' (methods that are not staged:
        replicated).
      stage_opt: Their optimiser state, every leaf [K, ...], likewise.
      stage_stats: {"other": [K, R]}, running batch-norm statistics of the stages' inputs in training, likewise.  Where
        an AuxNet generates the inputs these belong to them, not to the composed network.
      aux_params: One tree a piece of the AuxNet that has weights of its own; replicated.  () for K = 1 and for methods
        without AuxNet.
      aux_opt: Their optimiser state; replicated.
      aux_stats: Their running statistics, one tree a piece; replicated.
      multiplier: K-1 arrays, see `Stored`; () where nothing is stored.
      penalty_coef: beta of this step; replicated.
      carry: What the method alone keeps from step to step, see `Carried`; () for most.
      ema: Moving average of `stage_params`, likewise; () without `ema_decay`.
    """

    step: PyTree
    key: PyTree
    stage_params: PyTree
    stage_opt: PyTree
    stage_stats: PyTree
    aux_params: PyTree
    aux_opt: PyTree
    aux_stats: PyTree
    multiplier: PyTree
    penalty_coef: PyTree
    carry: PyTree
    ema: PyTree = ()


class Carried(NamedTuple):
    """What a method keeps from step to step.

    Attributes:
      specs: Its partition specs (a prefix of its tree); what differs by stage leads with the K stages.
      init: (step_inputs, key) -> a device's own slice before the first step, under `shard_map`.
      optimizers: Names of its fields that hold an optimiser's state.
      again: (step_inputs, state) -> a device's own slice, under `shard_map`, with what lies otherwise on another mesh
        computed from the rest, for a run that goes on there; None where nothing does.
    """

    specs: Any
    init: Callable[[StepInputs, PRNGKeyArray], Any]
    optimizers: tuple[str, ...] = ()
    again: Callable[[StepInputs, Any], Any] | None = None


class Stored(NamedTuple):
    """Multipliers that are kept from step to step, one array an interface.

    Attributes:
      shapes: Of an interface's multiplier, one for each of the interfaces 1..K-1.
      rows: Of a table of examples, padded so that every device has equally many; None where one serves all examples.
    """

    shapes: tuple[Shape, ...]
    rows: int | None = None

    @property
    def spec(self) -> Any:
        """Tables are spread over the whole mesh; what serves all examples is replicated."""
        return meshes.REPLICATED if self.rows is None else meshes.TABLE

    def zeros(self, devices: int) -> tuple[Array, ...]:
        """Those of the first step, on one of so many devices: of a table its own rows."""
        own = () if self.rows is None else (self.rows // devices,)
        return tuple(jnp.zeros((*own, *shape)) for shape in self.shapes)


def table_rows(num_examples: int, devices: int) -> int:
    """Rows of a table of examples: their number, rounded up to a multiple of the devices."""
    return -(-num_examples // devices) * devices


def running_average(old: PyTree, batch: PyTree, real: Bool[Array, " rows"] | None = None) -> PyTree:
    """Running statistics after one more batch: `RUNNING_MOMENTUM` old + (1 - `RUNNING_MOMENTUM`) batch.

    Args:
      old: Before it.
      batch: Its statistics.
      real: For rows of stages: whether each had a batch, otherwise its statistics stay; None: all had one.
    """

    def average(old: Array, batch: Array) -> Array:
        new = RUNNING_MOMENTUM * old + (1 - RUNNING_MOMENTUM) * batch
        return new if real is None else jnp.where(real[:, None], new, old)

    return jax.tree.map(average, old, batch)


def weight_average(old: PyTree, params: PyTree, decay: float, step: Array) -> PyTree:
    """Moving average of parameters after a step: d old + (1 - d) params, d = min(`decay`, (1 + step) / (10 + step)).

    Args:
      old: Before it.
      params: After it.
      decay: d of a long run.
      step: Number of the step, counted from 0.
    """
    t = step.astype(float)
    d = jnp.minimum(decay, (1 + t) / (10 + t))
    return jax.tree.map(lambda old, new: d * old + (1 - d) * new, old, params)
