"""equinox modules as units: each is applied to one example, under `jax.vmap`.

A weight that decays is called "kernel" in a unit's parameters: the `weight` of linear layers, convolutions and
recurrent cells, whose counterparts in flax are called so.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import getitem
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.tree_util import keystr
from jaxtyping import Array, PRNGKeyArray, PyTree

from lpjax.errors import BadInput
from lpjax.nn.adapt.call import arguments, check_settings, refuse_state
from lpjax.nn.adapt.layers import Layers, Path, batch_norm
from lpjax.nn.adapt.unit import ModuleUnit
from lpjax.nn.chain import Mode, Shape
from lpjax.nn.layers import Stats

_DECAYED = (eqx.nn.Linear, eqx.nn.Conv, eqx.nn.ConvTranspose, eqx.nn.GRUCell, eqx.nn.LSTMCell)


@dataclass(frozen=True)
class EquinoxUnit(ModuleUnit):
    """An equinox module.

    Attributes:
      name: Of its class.
      structure: Its tree, with static fields.
      leaves: Shape and dtype of its arrays, and its other leaves.
      names: Where each array is, ("params", ..) or ("stats", ..); None for other leaves.
      make: The module for a key, or that and its State.
    """

    name: str
    structure: Any
    leaves: tuple[Any, ...]
    names: tuple[Path | None, ...]
    make: Callable[[PRNGKeyArray], Any] = field(compare=False, repr=False)

    def draw(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[PyTree, PyTree]:
        """See `ModuleUnit.draw`."""
        trees: dict[str, Any] = {"params": {}, "stats": {}}
        for names, leaf in zip(self.names, jax.tree.leaves(_prepared(self.make(key))), strict=True):
            if names:
                _put(trees, names, leaf)
        return trees["params"], trees["stats"]

    def run(self, params: PyTree, stats: PyTree, x: Array, layers: Layers) -> tuple[Any, PyTree]:
        """See `ModuleUnit.run`."""
        trees, mode = {"params": params, "stats": stats}, layers.mode
        leaves = [
            reduce(getitem, names, trees) if names else leaf
            for names, leaf in zip(self.names, self.leaves, strict=True)
        ]
        module = _told(jax.tree.unflatten(self.structure, leaves), layers)
        norms = [part for part in jax.tree.leaves(module, is_leaf=_is_norm) if _is_norm(part)]
        stateful = getattr(module, "is_stateful", lambda: True)()

        def one(x: Array, key: PRNGKeyArray) -> tuple[Any, PyTree]:
            state = eqx.nn.State(module)
            offered = {"train": layers.train, "training": layers.train, "inference": not layers.train, "key": key}
            given = arguments(self.name, module.__call__, offered | ({"state": state} if stateful else {}))
            y = module(x, **given)
            if "state" in given and isinstance(y, tuple) and len(y) == 2:
                y, state = y
            new: dict[str, Any] = {}
            for norm in norms:
                mean, var = state.get(norm.index)
                _put(new, (*norm.path, "mean"), mean)
                _put(new, (*norm.path, "var"), var)
            return y, new

        random = mode.train and mode.keys is not None
        keys = jax.vmap(lambda k: jax.random.fold_in(k, mode.position))(mode.keys) if random else jax.random.key(0)
        return jax.vmap(one, in_axes=(0, 0 if random else None), out_axes=(0, None))(x, keys)


def equinox_unit(make: Callable[[PRNGKeyArray], Any]) -> EquinoxUnit:
    """Make a unit of an equinox module.

    Args:
      make: The module for a key, or that and its State; nothing is computed.

    Raises:
      BadInput: It is none, or keeps what a unit cannot.
    """
    found: list[EquinoxUnit] = []

    def parts(key: PRNGKeyArray) -> tuple[()]:
        module = _prepared(make(key))
        owners = dict(jax.tree.leaves_with_path(module, is_leaf=lambda part: isinstance(part, (_BatchNorm, *_DECAYED))))
        name, structure = type(module).__name__, jax.tree.structure(module)
        leaves, names = [], []
        for path, leaf in jax.tree.leaves_with_path(module):
            is_array = eqx.is_inexact_array(leaf)
            names.append(_names(path, owners.get(path[:-1])) if is_array else None)
            leaves.append((leaf.shape, leaf.dtype) if is_array else leaf)
            if isinstance(leaf, np.ndarray | jax.Array) and not is_array:
                what = f"the array {keystr(path, simple=True, separator='/')} of {leaf.dtype}"
                refuse_state(name, what, "make it an array of floats, or compute it in the call")
        found.append(EquinoxUnit(name, structure, tuple(leaves), tuple(names), make))
        return ()

    jax.eval_shape(parts, jax.random.key(0))
    (unit,) = found
    check_settings(unit.name, unit)
    return unit


def _put(tree: dict[str, Any], names: Path, leaf: Any) -> None:
    for name in names[:-1]:
        tree = tree.setdefault(name, {})
    tree[names[-1]] = leaf


def _names(path: Path, owner: Any) -> Path:
    """Where a unit has an array of its module, which is in a part of it, `owner`, or not in one of interest."""
    *place, name = (keystr((entry,), simple=True) for entry in path)
    if isinstance(owner, _BatchNorm):
        return "stats" if name in ("mean", "var") else "params", *place, name
    if isinstance(owner, _DECAYED) and name.startswith("weight"):
        return ("params", *place, "kernel") if name == "weight" else ("params", *place, name, "kernel")
    return "params", *place, name


def _is_norm(part: Any) -> bool:
    return isinstance(part, _BatchNorm)


def _prepared(made: Any) -> eqx.Module:
    """A module, or that and its State, with the batch norms below for its own."""
    module, state = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, eqx.Module):
        raise BadInput(f"a function of `key` returns {made!r}; expected an equinox module; correct the function")
    name = type(module).__name__

    def ours(part: Any) -> Any:
        return _own_norm(name, part, state) if type(part) is eqx.nn.BatchNorm else part

    module = jax.tree.map(ours, module, is_leaf=lambda part: type(part) is eqx.nn.BatchNorm)
    for path, part in jax.tree.leaves_with_path(module, is_leaf=lambda part: isinstance(part, eqx.nn.StateIndex)):
        if isinstance(part, eqx.nn.StateIndex):
            where = keystr(path, simple=True, separator="/")
            refuse_state(name, f"the state {where}, which is not of an eqx.nn.BatchNorm")
    return module


def _own_norm(name: str, norm: eqx.nn.BatchNorm, state: eqx.nn.State | None) -> "_BatchNorm":
    if norm.mode != "batch":
        raise BadInput(
            f"{name}: a BatchNorm of mode={norm.mode!r}, which normalises by running averages in training; expected "
            f"statistics of the batch; set mode='batch'"
        )
    mean, var = jnp.zeros(norm.input_size), jnp.ones(norm.input_size)
    if state is not None:
        count = state.get(norm.batch_counter)
        weight = jnp.where(count == 0, 1.0, 1 - norm.momentum ** count.astype(float))
        mean, var = (moment / weight.astype(moment.dtype) for moment in state.get(norm.batch_state_index))
    return _BatchNorm(norm.weight, norm.bias, mean, var, norm.eps)


def _told(module: eqx.Module, layers: Layers) -> eqx.Module:
    """A module in training or not; without keys its dropouts do nothing."""
    module = eqx.nn.inference_mode(module, not layers.train)
    still = layers.mode.keys is None

    def placed(path: Path, part: Any) -> Any:
        if isinstance(part, _BatchNorm):
            names = tuple(keystr((entry,), simple=True) for entry in path)
            return replace(part, index=eqx.nn.StateIndex((part.mean, part.var)), layers=layers, path=names)
        return eqx.nn.Dropout(0.0) if still and isinstance(part, eqx.nn.Dropout) else part

    return jax.tree.map_with_path(placed, module, is_leaf=lambda part: isinstance(part, _BatchNorm | eqx.nn.Dropout))


class _BatchNorm(eqx.nn.StatefulLayer):
    """A batch norm of the whole batch, which `vmap` hands over."""

    scale: Array | None
    bias: Array | None
    mean: Array
    var: Array
    epsilon: float = eqx.field(static=True)
    index: eqx.nn.StateIndex | None = None
    layers: Layers | None = eqx.field(static=True, default=None)
    path: Path = eqx.field(static=True, default=())

    def __call__(
        self, x: Array, state: eqx.nn.State, *, key: PRNGKeyArray | None = None, inference: bool | None = None
    ) -> tuple[Array, eqx.nn.State]:
        assert self.layers is not None
        mode, index = self.layers.norm_mode(self.path, inference)._replace(keys=None, position=0), self.index
        mean, var = state.get(index)
        y, moments = _normalised(mode, self.epsilon, self.scale, self.bias, {"mean": mean, "var": var}, x)
        return y, state.set(index, (moments["mean"], moments["var"]))


def _normalised(
    mode: Mode, epsilon: float, scale: Array | None, bias: Array | None, stats: Stats, x: Array
) -> tuple[Array, Stats]:
    """`batch_norm` of one example x [C, ..] under `vmap`; it is computed where that has the batch together."""

    @custom_vmap
    def one(scale: Array | None, bias: Array | None, stats: Stats, x: Array) -> tuple[Array, Stats]:
        alone = mode._replace(axes=())
        y, stats = batch_norm(alone, scale, bias, stats, x[None], axis=1, epsilon=epsilon)
        return y[0], stats

    @one.def_vmap
    def whole(size: int, batched: Any, scale: Any, bias: Any, stats: Stats, x: Array) -> tuple[Any, Any]:
        x = x if batched[-1] else jnp.broadcast_to(x[None], (size, *x.shape))
        out = batch_norm(mode, scale, bias, stats, x, axis=1, epsilon=epsilon)
        return out, (True, jax.tree.map(lambda _: False, stats))

    return one(scale, bias, stats, x)
