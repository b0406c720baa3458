"""Activations that are kept from a forward pass to its backward pass, as rows in which unlike stages have room.

`jax.vjp` tells apart what its pullback needs of the arguments (weights and inputs, which are at hand when it is called)
and what it needs besides: that is kept, flattened, a row for each array.  Of that only what convolutions and matrix
products return is kept, and the moments of batch norm: the rest, which is more, is soon computed from these.

Of unlike stages the largest arrays share a row, the second largest ones, and so on: an array as long as its row is
not copied to it.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from lpjax.network.alike import without_place
from lpjax.nn import chain
from lpjax.nn.chain import Chain
from lpjax.nn.conv import COSTLY

Rows = dict[str, Array]
"""`{name: [length]}`; "float32.2" is the name of the third largest array of float32, counted from 0."""

Function = Callable[[PyTree, Array], tuple[Array, PyTree]]
"""(params, x) -> a differentiable output, and anything else."""

POLICY = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_saveable, jax.checkpoint_policies.save_only_these_names(COSTLY)
)


def lengths(function: Function, params: PyTree, x: PyTree) -> dict[str, int]:
    """How long the arrays are that a function keeps, by the names of `Rows`.

    Args:
      function: What is applied.
      params: Its parameters, or their shapes.
      x: Its input, likewise.
    """
    leaves = jax.eval_shape(lambda *args: forward(function, *args)[2], params, x)
    return {name: math.prod(leaf.shape) for name, leaf in zip(_names(leaves), leaves, strict=True)}


def longest(several: Iterable[dict[str, int]]) -> dict[str, int]:
    """The lengths of rows that have room for any of several `lengths`."""
    found: dict[str, int] = {}
    for own in several:
        found |= {name: max(length, found.get(name, 0)) for name, length in own.items()}
    return found


def joined(several: Iterable[dict[str, int]]) -> dict[str, int]:
    """The `lengths` of functions that are one after the other."""
    pairs = [(_dtype(name), length) for own in several for name, length in own.items()]
    shapes = [jax.ShapeDtypeStruct((length,), dtype) for dtype, length in pairs]
    return dict(zip(_names(shapes), (length for _, length in pairs), strict=True))


def of_chain(own: Chain, examples: int) -> dict[str, int]:
    """`lengths` of a chain in training, in the precision of the day."""
    return dict(_of_chain(without_place(own), examples, jnp.result_type(float)))


@functools.lru_cache(maxsize=1024)
def _of_chain(own: Chain, examples: int, dtype: jnp.dtype) -> dict[str, int]:
    params, stats = jax.eval_shape(partial(chain.init, own), jax.random.key(0))
    mode = chain.Mode(train=True, keys=jax.random.split(jax.random.key(0), examples))

    def function(params: PyTree, x: Array) -> tuple[Array, PyTree]:
        none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), stats)
        return chain.apply(own, params, none, x, mode)

    return lengths(function, params, jax.ShapeDtypeStruct((examples, *own.in_shape), dtype))


def size(lengths: dict[str, int]) -> int:
    """Bytes of rows."""
    return sum(_dtype(name).itemsize * length for name, length in lengths.items())


def forward(function: Function, params: PyTree, x: Array) -> tuple[Array, PyTree, list[Array]]:
    """A forward pass.

    Args:
      function: What is applied.
      params: Its parameters.
      x: Its input.

    Returns:
      What `function` returns, and what is to be kept for `backward`.
    """
    output, pullback, more = _vjp(function, params, x)
    leaves = jax.tree.leaves(replace(pullback, args_res=[]))
    return output, more, [jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf) for leaf in leaves]


def empty(lengths: dict[str, int], *leading: int) -> Rows:
    """Rows of zeros of these lengths, or of this leading shape many."""
    return {name: jnp.zeros((*leading, length), _dtype(name)) for name, length in lengths.items()}


def noise(lengths: dict[str, int], *leading: int) -> Rows:
    """Rows as a backward pass might find them, to time it: positive where they are not of whole numbers."""
    made = empty(lengths, *leading)
    return {
        name: jax.random.uniform(jax.random.key(0), row.shape, row.dtype, 0.5, 1.5)
        if jnp.issubdtype(row.dtype, jnp.floating)
        else row
        for name, row in made.items()
    }


def rows(kept: Sequence[Array], lengths: dict[str, int]) -> Rows:
    """Rows of these lengths of what is kept, with zeros at the end of each that is longer than its array.

    An array is written to its place: XLA's CPU back end joins arrays many times slower.
    """
    made = empty(lengths)
    for name, leaf in zip(_names(kept), kept, strict=True):
        assert leaf.size <= lengths[name], (name, lengths)  # a slice would be put elsewhere
        flat = leaf.reshape(-1)
        whole = leaf.size == lengths[name]
        made[name] = flat if whole else lax.dynamic_update_slice(made[name], flat, (0,))
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
    pullback = jax.eval_shape(lambda params, x: _vjp(function, params, x)[1], params, x)
    arguments = [_needed(*pair) for pair in zip(pullback.args_res, (params, x), strict=True)]
    shapes, tree = jax.tree.flatten(replace(pullback, args_res=[]))
    return replace(jax.tree.unflatten(tree, _read(kept, shapes)), args_res=arguments)(gradient)


def _vjp(function: Function, params: PyTree, x: Array) -> tuple[Array, Any, PyTree]:
    """`jax.vjp`, whose pullback, of a type that JAX does not name, keeps what `POLICY` says."""
    return jax.vjp(jax.checkpoint(function, policy=POLICY, prevent_cse=False), params, x, has_aux=True)


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
    forms = [jax.eval_shape(jax.random.key_data, shape) if _is_key(shape) else shape for shape in shapes]
    named = zip(_names(forms), forms, strict=True)
    leaves = [kept[name][: math.prod(form.shape)].reshape(form.shape) for name, form in named]
    return [jax.random.wrap_key_data(x) if _is_key(shape) else x for x, shape in zip(leaves, shapes, strict=True)]


def _names(leaves: Sequence[Array | jax.ShapeDtypeStruct]) -> list[str]:
    """The arrays' rows: numbered by type, the largest array first."""
    names, count = [""] * len(leaves), dict[str, int]()
    for i in sorted(range(len(leaves)), key=lambda i: -math.prod(leaves[i].shape)):
        dtype = leaves[i].dtype.name
        names[i] = f"{dtype}.{count.setdefault(dtype, 0)}"
        count[dtype] += 1
    return names


def _dtype(name: str) -> jnp.dtype:
    """The type of a row's values."""
    return jnp.dtype(name.split(".")[0])
