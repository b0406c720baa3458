"""Read a configuration: from a config file and the command line to a checked `Config`.

A config file (`configs/*.py`) is Python by ml_collections' convention and is executed when it is loaded.  Its
`get_config()` starts from `default_config()`, sets fields, and returns the `ConfigDict`; `--config.field=value`
overrides one; `from_config_dict` types and checks the result.  A section takes the fields of its dataclass only, but
`model`, whose fields beside `function` are that function's arguments: set it whole to name another function,

    config.model = {"function": "my_network:make", "depth": 12}
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import config_dict

from lpjax.config import named
from lpjax.config.check import require_one_of
from lpjax.config.schema import Config, ModelConfig
from lpjax.errors import BadInput


def default_config() -> config_dict.ConfigDict:
    """Give the defaults, for a config file to start from.

    Returns:
      The defaults, locked: unknown fields and values of another type are refused.
    """

    def convert(instance: Any) -> config_dict.ConfigDict:
        if isinstance(instance, ModelConfig):
            return config_dict.ConfigDict({"function": instance.function, **instance.arguments})
        out = config_dict.ConfigDict()
        for name, hint in typing.get_type_hints(type(instance)).items():
            value = getattr(instance, name)
            if type(None) in typing.get_args(hint):
                out[name] = config_dict.placeholder(_optional(hint))
            out[name] = convert(value) if dataclasses.is_dataclass(value) else value
        return out

    return convert(Config()).lock()


def _optional(hint: Any) -> Any:
    inner = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return typing.get_origin(inner) or inner


def from_config_dict(values: Mapping[str, Any]) -> Config:
    """Type a configuration; `lpjax.methods.resolve` fills it in and checks it.

    Args:
      values: Fields, and sections as mappings, such as `get_config().to_dict()`; what is left out has its default.

    Returns:
      The configuration.  Functions that come with lpjax go by their names (`named.canonical_name`).

    Raises:
      BadInput: A field does not exist or has a value of another type; says what was expected and what to do.
    """
    return _build(Config, dict(values), "")


def hint_of(name: str) -> Any:
    """Give the type of a field.

    Args:
      name: The field, after its sections: "data.crop".

    Returns:
      Its type, as the dataclass has it; None for an argument of the network's function, such as "model.depth".

    Raises:
      BadInput: There is no such field.
    """
    hint, prefix = Config, ""
    for part in name.split("."):
        if hint is ModelConfig and part != "function":
            return None
        hints = typing.get_type_hints(hint) if dataclasses.is_dataclass(hint) else {}
        _check_field(part, hints, prefix)
        hint, prefix = hints[part], f"{prefix}{part}."
    return hint


def _check_field(name: str, hints: Mapping[str, Any], prefix: str) -> None:
    if name not in hints:
        inside = [f"{part}.{name}" for part, hint in hints.items() if name in getattr(hint, "__dataclass_fields__", ())]
        close = inside or difflib.get_close_matches(name, hints, n=1)
        known = f"known here: {', '.join(hints)}" if hints else f"{prefix.rstrip('.')} is not a section"
        raise BadInput(f"{prefix}{name}: no such field; " + (f"did you mean {prefix}{close[0]}?" if close else known))


def _build(cls: type, values: dict[str, Any], prefix: str) -> Any:
    """Make a section of its fields; `prefix` is what their names begin with in messages.

    Raises:
      BadInput: See `from_config_dict`.
    """
    if cls is ModelConfig:  # its other fields are the arguments of its function
        function = _typed(str, values.pop("function", ModelConfig.function), f"{prefix}function")
        return ModelConfig(function, {name: _plain(value) for name, value in values.items()})
    hints = typing.get_type_hints(cls)
    for name in values:
        _check_field(name, hints, prefix)
    out = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping) and not hasattr(value, "items"):
                raise BadInput(f"{prefix}{name}={value!r}: expected a section with fields")
            out[name] = _build(typing.cast(type, hint), dict(value.items()), f"{prefix}{name}.")
        else:
            out[name] = _typed(hint, value, f"{prefix}{name}")
    return cls(**out)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _typed(hint: Any, value: Any, name: str) -> Any:
    """Give `value` as the type `hint`, in a field called `name`, or raise BadInput."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if value is None else _typed(next(arg for arg in args if arg is not type(None)), value, name)
    if origin is Literal:
        require_one_of(name, value, args)
        return value
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise BadInput(f"{name}={value!r}: expected a tuple, such as (1, 2)")
        return tuple(_typed(args[0], item, name) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise BadInput(f"{name}={value!r}: expected {hint.__name__}, got {type(value).__name__}")
    return named.canonical_name(value) if name in named.PROVIDED else value
