"""What training carries from step to step, and where each piece of it lies on the mesh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray, PyTree

from lpjax.network import aux_net
from lpjax.network.network import Network
from lpjax.network.packing import Row
from lpjax.nn import chain
from lpjax.nn.chain import Chain, Shape
from lpjax.parallel import mesh as meshes
from lpjax.state import optim
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


class Carried(NamedTuple):
    """What a method keeps from step to step.

    Attributes:
      specs: Its partition specs (a prefix of its tree); what differs by stage leads with the K stages.
      init: (step_inputs, key) -> a device's own slice before the first step, under `shard_map`.
      optimizers: Names of its fields that hold an optimiser's state.
    """

    specs: Any
    init: Callable[[StepInputs, PRNGKeyArray], Any]
    optimizers: tuple[str, ...] = ()


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


def specs(*, staged: bool, carried: Carried | None, stored: Stored | None) -> TrainState:
    """Partition spec of every field (a prefix of the state's tree)."""
    rows = meshes.STAGES if staged else meshes.REPLICATED
    return TrainState(
        step=meshes.REPLICATED,
        key=meshes.REPLICATED,
        stage_params=rows,
        stage_opt=rows,
        stage_stats=rows,
        aux_params=meshes.REPLICATED,
        aux_opt=meshes.REPLICATED,
        aux_stats=meshes.REPLICATED,
        multiplier=stored.spec if stored else meshes.REPLICATED,
        penalty_coef=meshes.REPLICATED,
        carry=carried.specs if carried else (),
    )


def table_rows(num_examples: int, devices: int) -> int:
    """Rows of a table of examples: their number, rounded up to a multiple of the devices."""
    return -(-num_examples // devices) * devices


def create(
    network: Network,
    mesh: Mesh,
    step_inputs: StepInputs,
    *,
    seed: int,
    staged: bool,
    pieces: tuple[Chain, ...],
    carried: Carried | None,
    stored: Stored | None,
) -> TrainState:
    """The state before the first step, made on the devices where it will live.

    Args:
      network: The network.
      mesh: Where the state will live.
      step_inputs: What a step is fed; its optimisers and first penalty are taken.
      seed: Of the run.
      staged: Whether a device holds its own stages only.
      pieces: Of the AuxNet, those that are trained.
      carried: What the method keeps.
      stored: The multipliers that it keeps.
    """
    shapes = stored.shapes if stored else ()
    if stored and stored.rows is not None:  # a device's own rows
        shapes = tuple((stored.rows // mesh.size, *shape) for shape in shapes)

    def init(key: PRNGKeyArray) -> TrainState:
        def init_stage(k: int) -> tuple[Row, Row]:
            params, stats = chain.init(network.stages[k], jax.random.fold_in(key, 0))
            return network.params.pack(params), network.stats.pack(stats)

        params, stats = meshes.on_stages(init_stage, network.num_stages, mesh.shape["stage"] if staged else 1)
        aux_params, aux_stats = aux_net.init(pieces, jax.random.fold_in(key, 1))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=jax.random.fold_in(key, 2),
            stage_params=params,
            stage_opt=optim.init_rows(step_inputs.optimizer, params),
            stage_stats=stats,
            aux_params=aux_params,
            aux_opt=step_inputs.aux_optimizer.init(aux_params),
            aux_stats=aux_stats,
            multiplier=tuple(jnp.zeros(shape) for shape in shapes),
            penalty_coef=jnp.asarray(step_inputs.initial_penalty_coef, float),
            carry=carried.init(step_inputs, jax.random.fold_in(key, 3)) if carried else (),
        )

    specs_ = specs(staged=staged, carried=carried, stored=stored)
    on_mesh = jax.shard_map(init, mesh=mesh, in_specs=meshes.REPLICATED, out_specs=specs_, check_vma=False)
    return jax.jit(on_mesh)(jax.random.key(seed))


def running_average(old: PyTree, batch: PyTree) -> PyTree:
    """Running statistics after one more batch: `RUNNING_MOMENTUM` old + (1 - `RUNNING_MOMENTUM`) batch."""
    return jax.tree.map(lambda o, b: RUNNING_MOMENTUM * o + (1 - RUNNING_MOMENTUM) * b, old, batch)
