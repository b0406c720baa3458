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
from jax import lax
from jaxtyping import Array, PyTree

Rows = dict[str, Array]
"""{type: [length]}."""

Function = Callable[[PyTree, Array], tuple[Array, PyTree]]
"""(params, x) -> a differentiable output, and anything else."""


def lengths(functions: Iterable[tuple[Function, PyTree, PyTree]]) -> dict[str, int]:
    """The length of a row of each type that has room for what any of several functions keeps.

    Args:
      functions: Each with its parameters and its input, or their shapes.
    """
    found: dict[str, int] = {}
    for function, *args in functions:
        own: dict[str, int] = {}
        for leaf in jax.eval_shape(lambda *args, function=function: forward(function, *args)[2], *args):
            own[leaf.dtype.name] = own.get(leaf.dtype.name, 0) + math.prod(leaf.shape)
        found |= {name: max(found.get(name, 0), length) for name, length in own.items()}
    return found


def forward(function: Function, params: PyTree, x: Array) -> tuple[Array, PyTree, list[Array]]:
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
    leaves = jax.tree.leaves(replace(pullback, args_res=[]))
    return output, more, [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in leaves]


def empty(lengths: dict[str, int], *leading: int) -> Rows:
    """Rows of zeros of these lengths, or of this leading shape many."""
    return {name: jnp.zeros((*leading, length), name) for name, length in lengths.items()}


def rows(kept: Sequence[Array], lengths: dict[str, int]) -> Rows:
    """Rows of these lengths of what is kept, with zeros at the end of each.

    Each array is written to its place: XLA's CPU back end joins arrays many times slower.
    """
    made, done = empty(lengths), dict.fromkeys(lengths, 0)
    for leaf in kept:
        name = leaf.dtype.name
        made[name] = lax.dynamic_update_slice(made[name], leaf.reshape(-1), (done[name],))
        done[name] += leaf.size
    assert all(done[name] <= lengths[name] for name in done), (done, lengths)  # a slice would be put elsewhere
    return made


def backward(function: Function, params: PyTree, x: Array, kept: Rows, gradient: PyTree) -> tuple[PyTree, Array]:
    """The backward pass; the forward pass is not computed again.

    Args:
      function: That was applied.
      params: Its parameters in the forward pass.
      x: Its input then.
      kept: By `forward`, in `rows`.
      gradient: At the output.

    Returns:
      The gradients at the parameters and at the input.
    """
    pullback = jax.eval_shape(lambda params, x: jax.vjp(function, params, x, has_aux=True)[1], params, x)
    arguments = [_needed(*pair) for pair in zip(pullback.args_res, (params, x), strict=True)]
    shapes, tree = jax.tree.flatten(replace(pullback, args_res=[]))
    return replace(jax.tree.unflatten(tree, _read(kept, shapes)), args_res=arguments)(gradient)


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


def _read(kept: Rows, shapes: Sequence[jax.ShapeDtypeStruct]) -> list[Array]:
    """The arrays of these shapes and types that `rows` were made of."""
    done, leaves = dict.fromkeys(kept, 0), []
    for shape in shapes:
        key = _is_key(shape)
        form = jax.eval_shape(jax.random.key_data, shape) if key else shape
        name, start = form.dtype.name, done[form.dtype.name]
        done[name] = start + math.prod(form.shape)
        values = kept[name][start : done[name]].reshape(form.shape)
        leaves.append(jax.random.wrap_key_data(values) if key else values)
    return leaves
