"""How far a method's gradients are from backprop's: for each stage, their cosine and the ratio of their norms.

    cosine_k = <g_k, b_k> / (|g_k| |b_k|),     ratio_k = |g_k| / |b_k|

g_k is the gradient that the method hands to the stage's optimiser, b_k backprop's of the composed network, at the
weights of that moment and on the micro-batches that g_k is from.  Where stages work on older ones (`Method.ages`) each
stage has its own; weights that are newer than those of g_k count as the method's error, an older batch does not.
Backprop's batch norm sees the whole batch, or the parts of `optimizer.accumulate`.  Any method can be diagnosed: g_k is
taken down by a transformation in front of the optimiser, in a step that is otherwise the method's own.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from lpjax.data.batch import Batch
from lpjax.methods import METHODS, backprop, base
from lpjax.network.packing import Row
from lpjax.parallel import mesh as meshes
from lpjax.state.step_inputs import example_keys, paired
from lpjax.state.train_state import TrainState
from lpjax.training.run import Run

_TAKE_DOWN = optax.GradientTransformation(lambda params: (), lambda grads, state, params=None: (grads, grads))
"""Changes nothing; its state after an update is the gradient."""


def cosine_and_ratio(grads: Row, references: Row) -> tuple[Array, Array]:
    """Compare gradients with a reference, stage by stage.

    Args:
      grads: {kind: [K, length]}, packed rows.
      references: Likewise, of backprop.

    Returns:
      The cosines and the ratios of norms, each [K]; 0 where a row is zero.
    """

    def product(one: Row, other: Row) -> Array:
        return sum((one[name] * other[name]).sum(-1) for name in grads)  # type: ignore[return-value]

    def ratio(part: Array, whole: Array) -> Array:
        return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1.0), 0.0)

    mine, theirs = jnp.sqrt(product(grads, grads)), jnp.sqrt(product(references, references))
    return ratio(product(grads, references), mine * theirs), ratio(mine, theirs)


def lags(ages: Sequence[base.Age]) -> tuple[int, ...]:
    """How many steps ago each micro-batch of a batch entered the network.

    Micro-batch m of a batch is its examples m, m + M, m + 2M ..

    Args:
      ages: [M], of a stage's gradients.

    Returns:
      [M], in steps.
    """
    M = len(ages)
    found = [0] * M
    for age in ages:
        found[M - 1 - age.entered % M] = age.entered // M
    return tuple(found)


@partial(jax.jit, static_argnums=0)
def mixed(row: tuple[int, ...], batches: Sequence[Batch]) -> tuple[Batch, Int[Array, " b"]]:
    """Put together the batch whose micro-batch m is of `row[m]` steps ago.

    Args:
      row: [M], see `lags`.
      batches: The newest first.

    Returns:
      The batch, and of each example how many steps ago it was fed, [b].
    """
    lag = jnp.resize(jnp.array(row, jnp.int32), batches[0].index.shape)

    def pick(*leaves: Array) -> Array:
        chosen = leaves[row[0]]
        for age, leaf in enumerate(leaves):
            if age in row[1:]:
                chosen = jnp.where(lag.reshape(-1, *(1,) * (leaf.ndim - 1)) == age, leaf, chosen)
        return chosen

    return jax.tree.map(pick, *batches), lag


class Diagnosis:
    """Takes the steps of a run, and diagnoses those that are due."""

    def __init__(self, run: Run) -> None:
        self._run, method = run, METHODS[run.config.method]
        self._rows = [lags(ages) for ages in method.ages(run.config)]
        step_inputs = replace(run.step_inputs, optimizer=optax.chain(_TAKE_DOWN, run.step_inputs.optimizer))
        self._step = method.make_step(run.network, run.config, run.mesh, step_inputs)
        self._batches: deque[Batch] = deque(maxlen=self.lag + 1)

        def gradient(params: Row, stats: Row, key: Array, step: Array, batch: Batch, lag: Array) -> Row:
            keys = jax.vmap(lambda lag, index: example_keys(key, step - lag, index[None])[0])(lag, batch.index)
            return backprop.backprop(run.network, run.config, run.step_inputs, params, stats, keys, batch)[0]

        pair = jax.shard_map(
            partial(paired, run.config), mesh=run.mesh, in_specs=meshes.EXAMPLES, out_specs=meshes.EXAMPLES
        )
        self._pair: Callable[[Batch], Batch] = jax.jit(pair) if run.config.data.mixup else lambda batch: batch
        whole, specs = meshes.REPLICATED, (meshes.REPLICATED,) * 4 + (meshes.EXAMPLES,) * 2
        mapped = jax.shard_map(gradient, mesh=run.mesh, in_specs=specs, out_specs=whole, check_vma=False)
        self._backprop: Callable[..., Row] = jax.jit(mapped)

        @jax.jit
        def compare(grads: Row, references: list[Row]) -> tuple[Array, Array]:
            rows = [jax.tree.map(lambda x, k=k: x[k], reference) for k, reference in enumerate(references)]
            return cosine_and_ratio(grads, jax.tree.map(lambda *row: jnp.stack(row), *rows))

        self._compare = compare

    @property
    def lag(self) -> int:
        """How many batches before that of a step its diagnosis needs."""
        return max(map(max, self._rows))

    def add(self, batch: Batch) -> None:
        """Take note of the batch of a step."""
        self._batches.appendleft(self._pair(batch))

    def step(self, number: int, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        """Take a step of the run, and diagnose it if it is due.

        None is due before every stage has a batch, nor, in a run that goes on from a checkpoint of one that was not
        diagnosed, before as many steps again.

        Args:
          number: Of the step, counted from 1.
          state: Before it; donated.
          batch: Of this step.

        Returns:
          The state after it, and its metrics; where it was diagnosed, gradient_cosine [K] and gradient_ratio [K] too.
        """
        self.add(batch)
        if not self._run.is_diagnosis_step(number) or len(self._batches) < (self._batches.maxlen or 0):
            return self._run.step(state, batch)
        fields = state.stage_params, state.stage_stats, state.key, state.step
        found = {row: self._backprop(*fields, *mixed(row, list(self._batches))) for row in dict.fromkeys(self._rows)}
        references = [found[row] for row in self._rows]
        state, metrics = self._step(replace(state, stage_opt=((), state.stage_opt)), batch)
        grads, optimizer = state.stage_opt
        cosine, ratio = self._compare(grads, references)
        return replace(state, stage_opt=optimizer), metrics | {"gradient_cosine": cosine, "gradient_ratio": ratio}
