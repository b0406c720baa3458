"""How far a method's gradients are from backprop's: for each stage, their cosine and the ratio of their norms.

    cosine_k = <g_k, b_k> / (|g_k| |b_k|),     ratio_k = |g_k| / |b_k|

g_k is the gradient that the method hands to the stage's optimiser, b_k backprop's of the composed network, at the
weights of that moment and on the batch that g_k is from.  For methods whose stages work on older batches (`lags` in
their files) each stage has its own; weights that are newer than those of g_k count as the method's error, an older
batch does not.  Backprop's batch norm sees the whole batch.  Any method can be diagnosed: g_k is taken down by a
transformation in front of the optimiser, in a step that is otherwise the method's own.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from lpjax import methods
from lpjax.data.batch import Batch
from lpjax.methods.backprop import backprop
from lpjax.network.packing import Row
from lpjax.parallel import mesh as meshes
from lpjax.state.step_inputs import example_keys
from lpjax.state.train_state import TrainState
from lpjax.training.run import Run


def _take_down() -> optax.GradientTransformation:
    """Changes nothing; its state after an update is the gradient."""

    def init(params: PyTree) -> tuple[()]:
        return ()

    def update(grads: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        return grads, grads

    return optax.GradientTransformation(init, update)


def cosine_and_ratio(grads: Row, references: Row) -> tuple[Array, Array]:
    """Cosine and ratio of norms of rows {kind: [K, length]}, each [K]; 0 where a row is zero."""
    pairs = [(grads[name], references[name]) for name in grads]

    def product(i: int, j: int) -> Array:
        return sum((pair[i] * pair[j]).sum(-1) for pair in pairs)  # type: ignore[return-value]

    mine, theirs = jnp.sqrt(product(0, 0)), jnp.sqrt(product(1, 1))
    both = mine * theirs
    return (
        jnp.where(both > 0, product(0, 1) / jnp.where(both > 0, both, 1.0), 0.0),
        jnp.where(theirs > 0, mine / jnp.where(theirs > 0, theirs, 1.0), 0.0),
    )


class Diagnosis:
    """Steps of a run that are diagnosed when they are due."""

    def __init__(self, run: Run) -> None:
        self._run = run
        file = methods.module(run.config.method)
        lags = getattr(file, "lags", None)
        self._lags: list[int] = lags(run.config) if lags else [0] * run.config.num_stages
        recipe = replace(run.recipe, optimizer=optax.chain(_take_down(), run.recipe.optimizer))
        self._step = file.make_step(run.network, run.config, run.mesh, recipe)
        self._batches: deque[Batch] = deque(maxlen=max(self._lags) + 1)

        def gradient(params: Row, stats: Row, key: Array, step: Array, batch: Batch) -> Row:
            keys = example_keys(key, step, batch.index)
            return backprop(run.network, run.config, run.recipe, params, stats, keys, batch)[0]

        everywhere = meshes.REPLICATED
        self._backprop: Callable[..., Row] = jax.jit(
            jax.shard_map(
                gradient,
                mesh=run.mesh,
                in_specs=(everywhere,) * 4 + (meshes.EXAMPLES,),
                out_specs=everywhere,
                check_vma=False,
            )
        )

        @jax.jit
        def compare(grads: Row, references: dict[int, Row]) -> tuple[Array, Array]:
            rows = [jax.tree.map(lambda x, k=k: x[k], references[lag]) for k, lag in enumerate(self._lags)]
            return cosine_and_ratio(grads, jax.tree.map(lambda *row: jnp.stack(row), *rows))

        self._compare = compare

    def step(self, number: int, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        """The run's step `number`; the figures of one that is due have gradient_cosine [K] and gradient_ratio [K] too.

        None is before every stage has a batch, nor, in a resumed run, before as many steps again (the batches behind
        the stages' gradients are not in a checkpoint).
        """
        self._batches.append(batch)
        if not self._run.diagnoses(number) or len(self._batches) < max(self._lags) + 1:
            return self._run.step(state, batch)
        references = {
            lag: self._backprop(
                state.stage_params, state.stage_stats, state.key, state.step - lag, self._batches[-1 - lag]
            )
            for lag in set(self._lags)
        }
        state, figures = self._step(replace(state, stage_opt=((), state.stage_opt)), batch)
        grads, optimizer = state.stage_opt
        cosine, ratio = self._compare(grads, references)
        return replace(state, stage_opt=optimizer), figures | {"gradient_cosine": cosine, "gradient_ratio": ratio}
