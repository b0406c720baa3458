"""flax.nnx modules as units."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, PRNGKeyArray, PyTree

from lpjax.errors import BadInput
from lpjax.nn.adapt.call import arguments, check_settings, flags, refuse_state
from lpjax.nn.adapt.layers import Layers, Path, batch_norm
from lpjax.nn.adapt.unit import ModuleUnit
from lpjax.nn.chain import Shape


@dataclass(frozen=True)
class NnxUnit(ModuleUnit):
    """An nnx module.

    Attributes:
      name: Of its class.
      graph: Its structure and settings.
      shapes: Of its arrays.
      make: The module for a key.
    """

    name: str
    graph: Any
    shapes: Hashable
    make: Callable[[PRNGKeyArray], nnx.Module] = field(compare=False, repr=False)

    def draw(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[PyTree, PyTree]:
        """See `ModuleUnit.draw`."""
        return _split(self.make(key))[1:]

    def run(self, params: PyTree, stats: PyTree, x: Array, layers: Layers) -> tuple[Any, PyTree]:
        """See `ModuleUnit.run`."""
        module = nnx.merge(self.graph, params, stats)
        if layers.train:
            module.train()
        else:
            module.eval()
        for path, part in nnx.iter_modules(module):
            if isinstance(part, _BatchNorm | _Dropout):
                part.layers, part.path = layers, path
        y = module(x, **arguments(self.name, module.__call__, flags(layers.train)))
        return y, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))


def nnx_unit(make: Callable[[PRNGKeyArray], nnx.Module]) -> NnxUnit:
    """Make a unit of an nnx module.

    Args:
      make: The module for a key; nothing is computed.

    Raises:
      BadInput: It is none, or keeps what a unit cannot.
    """
    found: list[tuple[str, Any]] = []

    def parts(key: PRNGKeyArray) -> tuple[PyTree, PyTree]:
        module = make(key)
        if not isinstance(module, nnx.Module):
            raise BadInput(f"a function of `rngs` returns {module!r}; expected an nnx module; correct the function")
        graph, params, stats = _split(module)
        check_settings(type(module).__name__, graph)
        found.append((type(module).__name__, graph))
        return params, stats

    trees = jax.eval_shape(parts, jax.random.key(0))
    ((name, graph),) = found
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(trees))
    return NnxUnit(name, graph, shapes, make)


def _split(module: nnx.Module) -> tuple[Any, PyTree, PyTree]:
    """Structure, parameters and statistics of a copy of a module, whose batch norms and dropouts are those below."""
    name, module = type(module).__name__, nnx.clone(module)
    norms = set()
    parts: list[tuple[Path, Any]] = list(nnx.iter_modules(module))
    for path, part in parts:
        if type(part).__call__ is nnx.BatchNorm.__call__:
            part.__class__ = _BatchNorm
            norms.add(path)
        elif type(part).__call__ is nnx.Dropout.__call__:
            part.__class__ = _Dropout
            part.rngs = nnx.data(None)
    graph, *states = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
    params, stats, others = states
    for path, leaf in nnx.to_flat_state(others):
        where = "/".join(map(str, path))
        if isinstance(leaf, nnx.RngState):
            refuse_state(name, f"the random state {where}", "give rngs to nnx.Dropout alone, and keep none yourself")
        refuse_state(name, f"the {type(leaf).__name__} {where}", "make it an nnx.Param, or compute it in the call")
    for path, _ in nnx.to_flat_state(stats):
        if path[:-1] not in norms:
            refuse_state(name, f"the BatchStat {'/'.join(map(str, path))}, which is not of an nnx.BatchNorm")
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


class _BatchNorm(nnx.BatchNorm):
    """A batch norm that `Layers` computes."""

    layers: Layers
    path: Path

    def __call__(self, x: Array, use_running_average: bool | None = None, *, mask: Array | None = None) -> Array:
        if mask is not None or not isinstance(self.axis, int) or self.axis_index_groups is not None:
            raise BadInput(
                f"{self.layers.name}: the batch norm {'/'.join(map(str, self.path))} has a mask, several axes or "
                f"axis_index_groups; expected one axis, and the statistics of the whole batch; leave them out"
            )
        running = self.use_running_average if use_running_average is None else use_running_average
        mode = self.layers.norm_mode(self.path, running)
        scale, bias = (None if value is None else value[...] for value in (self.scale, self.bias))
        stats = {"mean": self.mean[...], "var": self.var[...]}
        y, stats = batch_norm(mode, scale, bias, stats, x, axis=self.axis, epsilon=self.epsilon)
        self.mean[...], self.var[...] = stats["mean"], stats["var"]
        return y


class _Dropout(nnx.Dropout):
    """A dropout that `Layers` computes."""

    layers: Layers
    path: Path

    def __call__(self, inputs: Array, *, deterministic: bool | None = None, rngs: Any = None) -> Array:
        off = self.deterministic if deterministic is None else deterministic
        return self.layers.dropout(inputs, self.rate, off, tuple(self.broadcast_dims))
