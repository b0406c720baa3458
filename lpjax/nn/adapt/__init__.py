"""Modules of flax.linen, flax.nnx and equinox as the units of a chain.

    def network(*, blocks, classes):
        return adapt([Stem(16), *[Block(16)] * blocks, Head(classes)])

linen modules are given as they are; of nnx and equinox, whose modules hold their weights, a function that makes the
module is given, so that the run's seed decides: `lambda rngs: Block(16, rngs=rngs)`, `lambda key: Block(16, key=key)`.
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lpjax.errors import BadInput
from lpjax.nn.chain import UnitLike

_ARGUMENTS = {"rngs": "flax.nnx", "key": "equinox"}
"""Of functions that make a module, and the library it is of."""


def adapt(modules: Any) -> list[UnitLike]:
    """Make units of modules.

    Args:
      modules: A `Sequential` of linen, nnx or equinox, or modules in a row.  A module may be

        - a linen module; or a pair of one and its variables, as `module.init` returns them, which are the initial ones;
        - a function that makes a module: of nnx, if it has an argument `rngs`, or of equinox, if it has an argument
          `key`.  Its weights are drawn from the run's seed;
        - an nnx or equinox module, whose weights and statistics are the initial ones.  One of equinox with batch norm
          may be a pair, as `equinox.nn.make_with_state` returns it;
        - another function, of a batch and without weights, such as `jax.nn.relu`;
        - a unit.

        Equal modules in a row are one loop (see `lpjax.nn.chain`): linen modules of equal settings, nnx and equinox
        modules of equal structure, shapes and settings.

    Returns:
      The units: of a Sequential its layers, otherwise one a module.

    Raises:
      BadInput: A module cannot be a unit.  What shapes decide is found where the chain is made.
    """
    found = _modules(modules)
    units = {id(module): _unit(module) for module in {id(module): module for module in found}.values()}
    return [units[id(module)] for module in found]


def _modules(modules: Any) -> list[Any]:
    """The modules of a row or of a Sequential; of one with a State or variables, each with that or its own."""
    if _is_pair(modules, "equinox"):
        return [(module, modules[1]) for module in _modules(modules[0])]
    if _is_pair(modules, "flax.linen"):
        from lpjax.nn.adapt.linen import with_variables

        module, variables = modules
        return with_variables(module, variables) if type(module).__name__ == "Sequential" else _modules(module)
    if _library(modules) and type(modules).__name__ == "Sequential":
        return list(modules.layers)
    if not isinstance(modules, Iterable):
        raise BadInput(
            f"adapt({type(modules).__name__}): expected a list of modules or a Sequential, which can be cut into "
            f"stages; give the list of the network's blocks"
        )
    return list(modules)


def _library(module: Any) -> str | None:
    """Which library a module is of; what has not been imported has made none."""
    for name in ("flax.linen", "flax.nnx", "equinox"):
        library = sys.modules.get(name)
        if library and isinstance(module, library.Module):
            return name
    return None


def _is_pair(pair: Any, library: str) -> bool:
    """Whether it is a module of equinox and its State, or one of linen and its variables."""
    if not isinstance(pair, tuple) or len(pair) != 2:
        return False
    if library == "equinox":
        return library in sys.modules and isinstance(pair[1], sys.modules[library].nn.State)
    return _library(pair[0]) == library and isinstance(pair[1], Mapping)


def _unit(module: Any) -> UnitLike:
    if _is_pair(module, "equinox"):
        return _of_library("equinox", lambda key: module)
    pair = _is_pair(module, "flax.linen")
    library = "flax.linen" if pair else _library(module)
    if library == "flax.linen":
        from lpjax.nn.adapt.linen import linen_unit

        return linen_unit(*module) if pair else linen_unit(module)
    if library:
        return _of_library(library, lambda key: module)
    if isinstance(module, UnitLike):
        return module
    if not callable(module):
        raise BadInput(f"adapt: {module!r} is no module; expected one of linen, nnx or equinox, or a function")
    for argument, library in _ARGUMENTS.items():
        if argument in _parameters(module):
            return _of_library(library, _drawn(module, argument))
    from lpjax.nn.adapt.function import FunctionUnit

    return FunctionUnit(getattr(module, "__name__", type(module).__name__), module)


def _of_library(library: str, make: Callable[[Any], Any]) -> UnitLike:
    """The unit of a module that holds its weights; `make` gives it for a key."""
    if library == "flax.nnx":
        from lpjax.nn.adapt.nnx import nnx_unit

        return nnx_unit(make)
    from lpjax.nn.adapt.equinox import equinox_unit

    return equinox_unit(make)


def _drawn(make: Callable[..., Any], argument: str) -> Callable[[Any], Any]:
    """key -> the module that a user's function makes."""
    if argument == "key":
        return lambda key: make(key=key)

    def module(key: Any) -> Any:
        from flax import nnx

        return make(rngs=nnx.Rngs(key))

    return module


def _parameters(function: Callable[..., Any]) -> Iterable[str]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # of a function in C
        return ()
