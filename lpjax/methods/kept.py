"""Activations that are kept from a forward pass to its backward pass, as rows in which unlike stages have room.

`jax.vjp` tells apart what its pullback needs of the arguments (weights and inputs, which are at hand when it is called)
and what it needs besides: that is kept, flattened, a row for each type of its values.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

Rows = dict[str, Array]
"""{type: [length]}."""

Function = Callable[[PyTree, Array], tuple[Array, PyTree]]
"""(params, x) -> a differentiable output, and anything else."""


def forward(function: Function, params: PyTree, x: Array) -> tuple[Array, PyTree, Rows]:
    """A forward pass.

    Args:
      function: What is applied.
      params: Its parameters.
      x: Its input.

    Returns:
      What `function` returns, and what is to be kept for `backward`.
    """
    pullback: Any  # a `VJP`, which JAX's types do not name
    output, pullback, more = jax.vjp(function, params, x, has_aux=True)
    return output, more, _flat(jax.tree.leaves(replace(pullback, args_res=[])))


def backward(function: Function, params: PyTree, x: Array, kept: Rows, gradient: PyTree) -> tuple[PyTree, Array]:
    """The backward pass; the forward pass is not computed again.

    Args:
      function: That was applied.
      params: Its parameters in the forward pass.
      x: Its input then.
      kept: By `forward`, perhaps with padding at the end of each row.
      gradient: At the output.

    Returns:
      The gradients at the parameters and at the input.
    """
    pullback = jax.eval_shape(lambda params, x: jax.vjp(function, params, x, has_aux=True)[1], params, x)
    arguments = [_needed(*pair) for pair in zip(pullback.args_res, (params, x), strict=True)]
    shapes, tree = jax.tree.flatten(replace(pullback, args_res=[]))
    return replace(jax.tree.unflatten(tree, _unflat(kept, shapes)), args_res=arguments)(gradient)


def padded(kept: Rows, lengths: dict[str, int]) -> Rows:
    """Rows of these lengths: `kept` with zeros behind it, and rows of zeros of types that it does not have."""
    rows = {name: kept.get(name, jnp.zeros(0, name)) for name in lengths}
    return {name: jnp.pad(row, (0, lengths[name] - len(row))) for name, row in rows.items()}


def longest(rows: Iterable[PyTree]) -> dict[str, int]:
    """The length that a row of each type needs for all of several `Rows`, or of their shapes."""
    found: dict[str, int] = {}
    for each in rows:
        for name, row in each.items():
            found[name] = max(found.get(name, 0), len(row))
    return found


def _needed(marks: PyTree, argument: PyTree) -> PyTree:
    """What a pullback needs of an argument, as its `args_res` has it: marks stand where it needs nothing."""

    def is_mark(leaf: Any) -> bool:
        return type(leaf).__name__ == "NotNeeded"

    if is_mark(marks):
        return marks
    places, tree = jax.tree.flatten(marks, is_leaf=is_mark)
    values = jax.tree.leaves(argument)
    chosen = [place if is_mark(place) else value for place, value in zip(places, values, strict=True)]
    return jax.tree.unflatten(tree, chosen)


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _flat(leaves: Sequence[Array]) -> Rows:
    rows: dict[str, list[Array]] = {}
    for leaf in leaves:
        values = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        rows.setdefault(values.dtype.name, []).append(values.reshape(-1))
    return {name: jnp.concatenate(parts) for name, parts in rows.items()}


def _unflat(rows: Rows, shapes: Sequence[jax.ShapeDtypeStruct]) -> list[Array]:
    """The inverse of `_flat`, for leaves of these shapes and types."""
    done, leaves = dict.fromkeys(rows, 0), []
    for shape in shapes:
        key = _is_key(shape)
        form = jax.eval_shape(jax.random.key_data, shape) if key else shape
        name, start = form.dtype.name, done[form.dtype.name]
        done[name] = start + math.prod(form.shape)
        values = rows[name][start : done[name]].reshape(form.shape)
        leaves.append(jax.random.wrap_key_data(values) if key else values)
    return leaves
