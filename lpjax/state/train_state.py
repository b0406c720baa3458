"""What training carries from step to step, and where each piece of it lies on the mesh."""

import math

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray, PyTree

from lpjax import methods
from lpjax.config.schema import Config
from lpjax.network import aux_net
from lpjax.network.network import Network
from lpjax.network.packing import Row
from lpjax.nn import chain
from lpjax.parallel import mesh as meshes
from lpjax.state import optim
from lpjax.state.step_inputs import Recipe

RUNNING_MOMENTUM = 0.9
"""Weight of the old running batch-norm statistics in each step's average."""


@struct.dataclass
class TrainState:
    """The state of a run.  K stages, S devices along 'stage'; P, Q, R lengths of packed rows.

    The fields' types are pytrees because the same container holds arrays, their partition specs, or their shapes.

    step: steps done; replicated.
    key: the run's random key; never changes: what is random derives from it, the step and the example.
    stage_params: {"kernel": [K, P], "other": [K, Q]}, rows sharded over 'stage' (methods
        that are not staged: replicated).
    stage_opt: their optimiser state, every leaf [K, ...], likewise.
    stage_stats: {"other": [K, R]}, running batch-norm statistics of the stages' inputs in training,
        likewise.  Under layer-parallel training these belong to the AuxNet's inputs, not to the composed network.
    aux_params, aux_stats: one tree a piece of the AuxNet (but a tied one); replicated.  Empty for K = 1 and for other
        methods.
    aux_opt: optimiser state of aux_params; replicated.
    multiplier: K-1 arrays, what the policy stores: `mean` [...], an interface's shape, replicated; `per_example`
        [rows, ...] with rows >= training examples, sharded over the whole mesh; otherwise none.
    penalty_coef: beta of this step; replicated.
    carry: what the method alone needs from step to step, see its file; see there how it lies on the mesh.  () for most.
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


def specs(config: Config) -> TrainState:
    """Partition spec of every field (a prefix of the state's tree)."""
    rows = meshes.STAGES if config.staged else meshes.REPLICATED
    method = methods.module(config.method)
    return TrainState(
        step=meshes.REPLICATED,
        key=meshes.REPLICATED,
        stage_params=rows,
        stage_opt=rows,
        stage_stats=rows,
        aux_params=meshes.REPLICATED,
        aux_opt=meshes.REPLICATED,
        aux_stats=meshes.REPLICATED,
        multiplier=meshes.TABLE if config.multiplier == "per_example" else meshes.REPLICATED,
        penalty_coef=meshes.REPLICATED,
        carry=method.carry_specs(config) if hasattr(method, "carry_specs") else (),
    )


def table_rows(num_examples: int, devices: int) -> int:
    """Rows of a per-example table: the training examples, rounded up to a multiple of the devices."""
    return -(-num_examples // devices) * devices


def multiplier_bytes(config: Config, network: Network, num_examples: int) -> int:
    """Memory of the stored multipliers over the whole mesh, in bytes."""
    if config.method != "layer_parallel" or config.multiplier not in ("mean", "per_example"):
        return 0
    stage, data = config.mesh_shape
    rows = table_rows(num_examples, stage * data) if config.multiplier == "per_example" else 1
    return rows * sum(map(math.prod, network.interfaces[1:])) * jnp.dtype(jnp.result_type(float)).itemsize


def create(config: Config, network: Network, mesh: Mesh, recipe: Recipe) -> TrainState:
    """The state before the first step, made on the devices where it will live."""
    layer_parallel = config.method == "layer_parallel"
    init_carry = getattr(methods.module(config.method), "init_carry", None)
    stored: tuple[tuple[int, ...], ...] = ()
    if layer_parallel and config.multiplier == "mean":
        stored = network.interfaces[1:]
    if layer_parallel and config.multiplier == "per_example":  # a device's own rows
        rows = table_rows(recipe.num_examples, mesh.size) // mesh.size
        stored = tuple((rows, *shape) for shape in network.interfaces[1:])

    def init(key: PRNGKeyArray) -> TrainState:
        def init_stage(k: int) -> tuple[Row, Row]:
            params, stats = chain.init(network.stages[k], jax.random.fold_in(key, 0))
            return network.params.pack(params), network.stats.pack(stats)

        devices = mesh.shape["stage"] if config.staged else 1
        params, stats = meshes.on_stages(init_stage, network.num_stages, devices)
        pieces = network.aux_own if methods.METHODS[config.method].aux_net else ()
        aux_params, aux_stats = aux_net.init(pieces, jax.random.fold_in(key, 1))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=jax.random.fold_in(key, 2),
            stage_params=params,
            stage_opt=optim.init_rows(recipe.optimizer, params),
            stage_stats=stats,
            aux_params=aux_params,
            aux_opt=recipe.aux_optimizer.init(aux_params),
            aux_stats=aux_stats,
            multiplier=tuple(jnp.zeros(shape) for shape in stored),
            penalty_coef=jnp.asarray(config.initial_penalty_coef, float),
            carry=init_carry(network, config, recipe, jax.random.fold_in(key, 3)) if init_carry else (),
        )

    key = jax.random.key(config.seed)
    on_mesh = jax.shard_map(init, mesh=mesh, in_specs=meshes.REPLICATED, out_specs=specs(config), check_vma=False)
    return jax.jit(on_mesh)(key)


def running_average(old: PyTree, batch: PyTree) -> PyTree:
    """Running statistics after one more batch: `RUNNING_MOMENTUM` old + (1 - `RUNNING_MOMENTUM`) batch."""
    return jax.tree.map(lambda o, b: RUNNING_MOMENTUM * o + (1 - RUNNING_MOMENTUM) * b, old, batch)
