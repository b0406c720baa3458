"""flax.linen modules as units."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import unfreeze
from jaxtyping import Array, PRNGKeyArray, PyTree

from lpjax.errors import BadInput
from lpjax.nn.adapt.call import arguments, check_settings, flags, refuse_state
from lpjax.nn.adapt.layers import Layers, batch_norm
from lpjax.nn.adapt.unit import ModuleUnit
from lpjax.nn.chain import Mode, Shape

COLLECTIONS = ("params", "batch_stats")
_BATCH_NORM, _DROPOUT = inspect.unwrap(nn.BatchNorm.__call__), inspect.unwrap(nn.Dropout.__call__)


@dataclass(frozen=True)
class LinenUnit(ModuleUnit):
    """A linen module.

    Attributes:
      name: Of its class.
      settings: Of the module, by which units are equal.
      module: Not bound.
      variables: The initial parameters and statistics; None: they are drawn.
      shapes: Names and shapes of the variables.
    """

    name: str
    settings: Any
    module: nn.Module = field(compare=False, repr=False)
    variables: tuple[PyTree, PyTree] | None = field(default=None, compare=False, repr=False)
    shapes: frozenset[tuple[str, Shape]] = frozenset()

    def draw(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[PyTree, PyTree]:
        """See `ModuleUnit.draw`."""
        if self.variables is None:
            return self._drawn(key, in_shape)
        expected = _shapes(jax.eval_shape(lambda key: self._drawn(key, in_shape), key))
        if self.shapes != expected:
            name, *_ = sorted({name for name, _ in self.shapes ^ expected})
            raise BadInput(
                f"{self.name}: its variables have {name} of shape {dict(self.shapes).get(name)}: expected "
                f"{dict(expected).get(name)} (None: none of that name); give those of this module"
            )
        return self.variables

    def _drawn(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[PyTree, PyTree]:
        """Parameters and statistics as the module draws them."""
        layers = Layers(self.name, Mode(train=False))
        told = arguments(self.name, self.module.__call__, flags(train=False))
        with nn.intercept_methods(functools.partial(_intercept, layers)):
            variables = self.module.init({"params": key}, jnp.zeros((1, *in_shape)), **told)
        variables = nn.meta.unbox(variables)
        params, stats = (variables.pop(name, {}) for name in COLLECTIONS)
        if variables:
            refuse_state(self.name, f"variables of {', '.join(map(repr, variables))}")
        for path, _ in jax.tree.leaves_with_path(stats):
            names = tuple(entry.key for entry in path)
            if names[:-1] not in layers.norms:
                refuse_state(self.name, f"{'/'.join(names)} in 'batch_stats', which is not of a linen.BatchNorm")
        return params, stats

    def run(self, params: PyTree, stats: PyTree, x: Array, layers: Layers) -> tuple[Any, PyTree]:
        """See `ModuleUnit.run`."""
        told = arguments(self.name, self.module.__call__, flags(layers.train))
        variables = {"params": params, "batch_stats": stats}
        with nn.intercept_methods(functools.partial(_intercept, layers)):
            y, new = self.module.apply(variables, x, mutable=["batch_stats"], **told)
        return y, new.get("batch_stats", stats)


def linen_unit(module: nn.Module, variables: Mapping[str, Any] | None = None) -> LinenUnit:
    """Make a unit of a linen module.

    Args:
      module: Not bound.
      variables: Its parameters and statistics, as `module.init` returns them; None: they are drawn.

    Raises:
      BadInput: It is bound, or has settings without a value to compare.
    """
    name = type(module).__name__
    if module.scope is not None:
        raise BadInput(f"{name}: a bound module; expected one that is not; give the module itself, or its clone()")
    settings = _settings(module)
    check_settings(name, settings)
    if variables is not None:
        params, stats = (nn.meta.unbox(unfreeze(dict(variables.get(name, {})))) for name in COLLECTIONS)
        return LinenUnit(name, settings, module, (params, stats), _shapes((params, stats)))
    return _first_equal(LinenUnit(name, settings, module))


def with_variables(module: nn.Module, variables: Mapping[str, Any]) -> list[Any]:
    """The layers of a Sequential, each module with its own of the variables."""
    layers: list[Any] = []
    for i, layer in enumerate(getattr(module, "layers", ())):
        own = {name: tree[f"layers_{i}"] for name, tree in variables.items() if f"layers_{i}" in tree}
        layers.append((layer, own) if isinstance(layer, nn.Module) else layer)
    return layers


def _shapes(trees: tuple[PyTree, PyTree]) -> frozenset[tuple[str, Shape]]:
    """Names and shapes of arrays."""
    leaves = jax.tree.leaves_with_path(dict(zip(COLLECTIONS, trees, strict=True)))
    return frozenset((jax.tree_util.keystr(path, simple=True, separator="/"), jnp.shape(leaf)) for path, leaf in leaves)


@functools.cache
def _first_equal(unit: LinenUnit) -> LinenUnit:
    """One object for equal units, whose weights `chain.init` then draws in one go."""
    return unit


def _settings(value: Any) -> Any:
    """A module's settings, lists and dicts as tuples."""
    if isinstance(value, nn.Module):
        own = [entry.name for entry in fields(value) if entry.compare and entry.name != "parent"]
        return type(value), *((name, _settings(getattr(value, name))) for name in own)
    if isinstance(value, dict):
        return tuple((name, _settings(value[name])) for name in value)
    return tuple(map(_settings, value)) if isinstance(value, list | tuple) else value


def _intercept(
    layers: Layers, run: Callable[..., Any], args: tuple, kwargs: dict, context: nn.module.InterceptorContext
) -> Any:
    """Called for every call of a module: batch norms and dropouts are computed by `layers`."""
    function = inspect.unwrap(context.orig_method.func)  # type: ignore[attr-defined]
    if function is _BATCH_NORM:
        return _batch_norm(layers, context.module, run, *args, **kwargs)
    if function is _DROPOUT:
        return _dropout(layers, context.module, *args, **kwargs)
    return run(*args, **kwargs)


def _batch_norm(
    layers: Layers,
    norm: Any,
    run: Callable[..., Any],
    x: Array,
    use_running_average: bool | None = None,
    *,
    mask: Array | None = None,
) -> Array:
    given = [value for value in (norm.use_running_average, use_running_average) if value is not None]
    path = tuple(norm.scope.path)
    if mask is not None or not isinstance(norm.axis, int) or norm.axis_index_groups is not None:
        raise BadInput(
            f"{layers.name}: the batch norm {'/'.join(path)} has a mask, several axes or axis_index_groups; expected "
            f"one axis, and the statistics of the whole batch; leave them out"
        )
    mode = layers.norm_mode(path, given[0] if given else None)
    if norm.is_initializing():
        return run(x, True if norm.use_running_average is None else None)
    scale, bias = (norm.get_variable("params", name) for name in ("scale", "bias"))
    stats = {name: norm.get_variable("batch_stats", name) for name in ("mean", "var")}
    y, stats = batch_norm(mode, scale, bias, stats, x, axis=norm.axis, epsilon=norm.epsilon)
    for name, value in stats.items():
        norm.put_variable("batch_stats", name, value)
    return y


def _dropout(layers: Layers, dropout: Any, x: Array, deterministic: bool | None = None, rng: Any = None) -> Array:
    given = [value for value in (dropout.deterministic, deterministic) if value is not None]
    return layers.dropout(x, dropout.rate, given[0] if given else None, tuple(dropout.broadcast_dims))
