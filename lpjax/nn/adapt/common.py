"""What the units of all libraries share: how batch norm, dropout and flags are replaced, and what is refused.

A module's batch norms and dropouts do not compute themselves: `Layers` does it for them, by `lpjax.nn.layers`.  So
statistics are the batch's own, over the mesh's axes too, and masks are the same on every mesh.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.errors import FlaxError
from jaxtyping import Array, PRNGKeyArray, PyTree

from lpjax.errors import BadInput
from lpjax.nn import layers
from lpjax.nn.adapt.mixing import BATCH, mixing
from lpjax.nn.chain import Mode, Shape

Path = tuple[Any, ...]

_FLAGS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
    "inference": False,
}
"""Arguments by which modules are told whether this is training, and what they are in training."""


class Layers:
    """Computes a module's batch norms and dropouts, in one application of it.

    Attributes:
      name: Of the unit, for errors.
      mode: Of the chain.
      train: What the module is told; other than `mode.train` only where it is checked.
    """

    def __init__(self, name: str, mode: Mode, train: bool | None = None) -> None:
        self.name = name
        self.mode = mode
        self.train = mode.train if train is None else train
        self.norms: set[Path] = set()
        self._dropouts = 0

    def norm_mode(self, path: Path, running: bool | None) -> Mode:
        """The mode of one batch norm.

        Args:
          path: Where it is in the module.
          running: Whether the module asks for the given statistics; None: it leaves it to the mode.  In training that
            freezes the batch norm.

        Raises:
          BadInput: It is applied a second time, or asks for the batch's statistics in tests.
        """
        where = "/".join(map(str, path)) or "itself"
        if path in self.norms:
            raise BadInput(
                f"{self.name}: the batch norm {where} is applied twice; expected once, as its statistics are those of "
                f"one input; make a batch norm for each"
            )
        if running is False and not self.train:
            raise BadInput(
                f"{self.name}: the batch norm {where} normalises by the batch in tests, too; expected the given "
                f"statistics; leave use_running_average (inference) unset, or set it from an argument `train`"
            )
        self.norms.add(path)
        return self.mode._replace(train=self.mode.train and not running)

    def dropout(self, x: Array, rate: float, off: bool | None, shared: tuple[int, ...] = ()) -> Array:
        """One dropout.

        Args:
          x: Activations [b, ..].
          rate: In [0, 1).
          off: Whether the module switches it off; None: it leaves it to the mode.
          shared: Axes along which the mask is the same.

        Returns:
          As x.

        Raises:
          BadInput: It is on in tests, or its mask is the same for all examples.
        """
        number = self._dropouts
        self._dropouts += 1
        if (off is False and not self.train) or not 0 <= rate < 1 or 0 in (axis % x.ndim for axis in shared):
            raise BadInput(
                f"{self.name}: a dropout of rate {rate}, broadcast_dims {shared}, "
                f"{'on in tests' if off is False and not self.train else 'in training alone'}; expected a rate in "
                f"[0, 1), a mask for each example, and none in tests; correct it"
            )
        if off:
            return x
        if not shared:
            return layers.dropout(x, rate, self.mode, number)
        few = jnp.ones([1 if axis in {a % x.ndim for a in shared} else n for axis, n in enumerate(x.shape)], x.dtype)
        return x * layers.dropout(few, rate, self.mode, number)


def batch_norm(
    mode: Mode,
    scale: Array | None,
    bias: Array | None,
    stats: layers.Stats,
    x: Array,
    *,
    axis: int,
    epsilon: float,
) -> tuple[Array, layers.Stats]:
    """`layers.batch_norm` as the libraries have it.

    Args:
      mode: From `Layers.norm_mode`.
      scale: Of the channels; None: 1.
      bias: Likewise; None: 0.
      stats: "mean" and "var".
      x: Activations [b, ..].
      axis: The one of the channels.
      epsilon: Added to the variance.

    Returns:
      As x, and the statistics used.
    """
    one = jnp.ones_like(stats["var"])
    params = {"scale": one if scale is None else scale, "bias": jnp.zeros_like(one) if bias is None else bias}
    y, stats = layers.batch_norm(params, stats, jnp.moveaxis(x, axis, -1), mode, epsilon)
    return jnp.moveaxis(y, -1, axis), stats


class ModuleUnit:
    """A unit made of a module; the libraries' are dataclasses derived from it.

    Attributes:
      name: Of the module's class.
    """

    name: str

    def draw(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[PyTree, PyTree]:
        """Parameters and statistics as nested dicts; a batch norm's are at the same path in both."""
        raise NotImplementedError

    def run(self, params: PyTree, stats: PyTree, x: Array, layers: Layers) -> tuple[Array, PyTree]:
        """What the module makes of x [b, ..], and the statistics."""
        raise NotImplementedError

    def init(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[PyTree, PyTree]:
        """See `lpjax.nn.chain`."""
        check(self, in_shape)
        return self._initial(key, in_shape)

    def _initial(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[PyTree, PyTree]:
        """As `draw`, in the dtype of `float`."""

        def as_float(leaf: Array) -> Array:
            return leaf.astype(float) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

        with calling(self.name):
            return jax.tree.map(as_float, self.draw(key, in_shape))

    def apply(self, params: PyTree, stats: PyTree, x: Array, mode: Mode) -> tuple[Array, PyTree]:
        """See `lpjax.nn.chain`; weights are cast to the dtype of x, but for those of batch norms."""
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
        found = mixing(jaxpr.jaxpr)
        if found:
            raise BadInput(
                f"{unit.name}: its output depends on other examples of the batch ({found}); expected each row of the "
                f"output to depend on that row of the input; the library's BatchNorm alone may take in the batch"
            )


def _described(out: jax.ShapeDtypeStruct) -> str:
    shape = ", ".join("b" if size == BATCH else str(size) for size in out.shape)
    return f"{out.dtype}[{shape}]"


@contextlib.contextmanager
def calling(name: str) -> Iterator[None]:
    """Around calls of a module: promotion is JAX's default, and errors of its library become BadInput.

    Args:
      name: Of the unit.

    Raises:
      BadInput: For any of them.
    """
    try:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            yield
    except BadInput:
        raise
    except (FlaxError, NameError, RuntimeError) as error:
        raise BadInput(
            f"{name}: {error}; expected a module that needs its parameters, batch statistics and dropout alone; "
            f"change it, or write a unit"
        ) from error


def arguments(name: str, call: Callable[..., Any], train: bool, offered: Mapping[str, Any] | None = None) -> dict:
    """The arguments that a module's call takes besides its input.

    Args:
      name: Of the unit.
      call: A bound `__call__`.
      train: What it is told.
      offered: Other arguments by name.

    Returns:
      By keyword; those that the call has and that are known.

    Raises:
      BadInput: It takes no input, or several.
    """
    known = {flag: train == value for flag, value in _FLAGS.items()} | dict(offered or {})
    first, *others = inspect.signature(call).parameters.values() or (None,)
    needed = [p.name for p in others if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    unknown = [parameter for parameter in needed if parameter not in known]
    if first is None or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD) or unknown:
        raise BadInput(
            f"{name}: its call takes ({', '.join(inspect.signature(call).parameters)}); expected one array, and flags "
            f"among {', '.join(_FLAGS)}; join what a skip connects into one module, and give others a default"
        )
    return {parameter.name: known[parameter.name] for parameter in others if parameter.name in known}


def refuse_state(name: str, what: str, remedy: str = "use BatchNorm and Dropout of the library, or write a unit") -> None:
    """Refuse what a module keeps besides parameters and the statistics of batch norms.

    Args:
      name: Of the unit.
      what: It keeps.
      remedy: What to do.

    Raises:
      BadInput: Always.
    """
    raise BadInput(f"{name}: it keeps {what}; expected parameters and statistics of batch norms alone; {remedy}")
