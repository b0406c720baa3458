"""What the units of all libraries are: a module's parameters and statistics, checked before anything is computed."""

import abc
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, PRNGKeyArray, PyTree

from lpjax.errors import BadInput
from lpjax.nn.adapt.call import calling
from lpjax.nn.adapt.layers import Layers, Path
from lpjax.nn.adapt.mixing import BATCH, mixing
from lpjax.nn.chain import Mode, Shape

_FROZEN = "frozen"
"""The key of a frozen kernel, in its place: only leaves whose last key is "kernel" decay."""


class ModuleUnit(abc.ABC):
    """A unit made of a module; the libraries' are dataclasses derived from it.

    Attributes:
      name: Of the module's class.
    """

    name: str

    @abc.abstractmethod
    def draw(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[PyTree, PyTree]:
        """Parameters and statistics as nested dicts; a batch norm's are at the same path in both."""

    @abc.abstractmethod
    def run(self, params: PyTree, stats: PyTree, x: Array, layers: Layers) -> tuple[Any, PyTree]:
        """What the module makes of x [b, ..], and the statistics."""

    def init(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[PyTree, PyTree]:
        """See `lpjax.nn.chain`; a kernel that the module freezes is one level deeper, so that it does not decay."""
        check(self, in_shape)
        params, stats = self._initial(key, in_shape)
        frozen = frozen_kernels(self, in_shape)
        return jax.tree.map_with_path(lambda path, leaf: {_FROZEN: leaf} if path in frozen else leaf, params), stats

    def _initial(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[PyTree, PyTree]:
        """As `draw`, in the dtype of `float`."""

        def as_float(leaf: Any) -> Array:
            return jnp.asarray(leaf, float if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype)

        with calling(self.name):
            return jax.tree.map(as_float, self.draw(key, in_shape))

    def apply(self, params: PyTree, stats: PyTree, x: Array, mode: Mode) -> tuple[Array, PyTree]:
        """See `lpjax.nn.chain`; weights are cast to the dtype of x, but for those of batch norms."""
        params = jax.tree.map_with_path(_as_the_module_has_it, params, is_leaf=_may_be_frozen)
        norms = {path[:-1] for path, _ in jax.tree.leaves_with_path(stats)}

        def cast(path: Path, leaf: Array) -> Array:
            return leaf if path[:-1] in norms else leaf.astype(x.dtype)

        with calling(self.name):
            y, stats = self.run(jax.tree.map_with_path(cast, params), stats, x, Layers(self.name, mode))
        return y.astype(x.dtype), stats


@functools.cache
def check(unit: ModuleUnit, in_shape: Shape) -> None:
    """Refuse a module that a chain cannot have; it is traced, nothing is computed.

    Args:
      unit: The unit.
      in_shape: Of an example.

    Raises:
      BadInput: Its parameters are not floats, its output is not one array of floats with a row for each example, or a
        row depends on other examples.
    """
    params, stats = jax.eval_shape(lambda key: unit._initial(key, in_shape), jax.random.key(0))
    for path, leaf in jax.tree.leaves_with_path((params, stats)):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise BadInput(
                f"{unit.name}: {jax.tree_util.keystr(path[1:], simple=True, separator='/')} is an array of "
                f"{leaf.dtype}; expected parameters of floats; make it in the call, or a plain number"
            )
    x = jax.ShapeDtypeStruct((BATCH, *in_shape), jnp.result_type(float))
    for train in (True, False):

        def forward(params: PyTree, stats: PyTree, x: Array, train: bool = train) -> Any:
            return unit.run(params, stats, x, Layers(unit.name, Mode(train=False), train))[0]

        with calling(unit.name):
            jaxpr, out = jax.make_jaxpr(forward, return_shape=True)(params, stats, x)
        one = isinstance(out, jax.ShapeDtypeStruct)
        if not one or out.shape[:1] != (BATCH,) or not jnp.issubdtype(out.dtype, jnp.floating):
            found = f"{_described(out)}" if one else f"{len(jax.tree.leaves(out))} arrays"
            raise BadInput(
                f"{unit.name}: it returns {found}; expected one array of floats with a row for each of the batch's b "
                f"examples; pass on one array, and join what a skip connects into one module"
            )
        operation = mixing(jaxpr.jaxpr)
        if operation:
            raise BadInput(
                f"{unit.name}: its output depends on other examples of the batch ({operation}); expected each row of "
                f"the output to depend on that row of the input; the library's BatchNorm alone may take in the batch"
            )


@functools.cache
def frozen_kernels(unit: ModuleUnit, in_shape: Shape) -> frozenset[Path]:
    """Where a unit has parameters called "kernel" that get no gradient, by `stop_gradient`; it is traced."""
    params, stats = jax.eval_shape(lambda key: unit._initial(key, in_shape), jax.random.key(0))
    x, scale = (jax.ShapeDtypeStruct(shape, jnp.result_type(float)) for shape in ((2, *in_shape), ()))

    def gradients(scale: Array, params: PyTree, stats: PyTree, x: Array) -> PyTree:
        def output(params: PyTree) -> Array:
            return unit.run(params, stats, x, Layers(unit.name, Mode(train=False), True))[0]

        y, pullback = jax.vjp(output, params)
        return pullback(jnp.broadcast_to(scale.astype(y.dtype), y.shape))

    with calling(unit.name):
        jaxpr = jax.make_jaxpr(gradients)(scale, params, stats, x).jaxpr
    paths = [path for path, _ in jax.tree.leaves_with_path(params)]

    def depends(i: int) -> bool:
        return dce_jaxpr(jaxpr, [i == j for j in range(len(paths))])[1][0]  # on `scale`

    return frozenset(
        path for i, path in enumerate(paths) if getattr(path[-1], "key", "") == "kernel" and not depends(i)
    )


def _may_be_frozen(leaf: Any) -> bool:
    return isinstance(leaf, dict) and leaf.keys() == {_FROZEN} and not isinstance(leaf[_FROZEN], dict)


def _as_the_module_has_it(path: Path, leaf: Any) -> Any:
    """Without the level of a frozen kernel; modules and their parameters may have its name."""
    names = [getattr(key, "key", "") for key in path[-1:]]
    return leaf[_FROZEN] if _may_be_frozen(leaf) and names == ["kernel"] else leaf


def _described(out: jax.ShapeDtypeStruct) -> str:
    shape = ", ".join("b" if size == BATCH else str(size) for size in out.shape)
    return f"{out.dtype}[{shape}]"
