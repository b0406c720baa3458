"""Import functions that a configuration names: "resnet", which comes with lpjax, or any "package.module:function"."""

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from lpjax.config.check import require_one_of
from lpjax.errors import BadInput

PROVIDED: dict[str, dict[str, str]] = {
    "model.function": {
        "resnet": "lpjax.models.resnet:resnet",
        "preact_resnet": "lpjax.models.preact_resnet:preact_resnet",
        "wide_resnet": "lpjax.models.preact_resnet:wide_resnet",
        "imagenet_resnet": "lpjax.models.resnet:imagenet_resnet",
        "gpt": "lpjax.models.gpt:gpt",
        "vit": "lpjax.models.vit:vit",
    },
    "aux.function": {
        "convolutions": "lpjax.network.aux_net:convolutions",
        "own_units": "lpjax.network.aux_net:own_units",
    },
}
"""What comes with lpjax, by field: its names, and where each function is."""

_DOTTED = {place: name for names in PROVIDED.values() for name, place in names.items()}
# checkpoints of older runs have these
_DOTTED |= {"lpjax.models.imagenet_resnet:imagenet_resnet": "imagenet_resnet"}
_DOTTED |= {f"lpjax.aux_net:{name}": name for name in PROVIDED["aux.function"]}
_DOTTED |= {"configs.digits_mlp:residual_mlp": "lpjax.configs.digits_mlp:residual_mlp"}


def canonical_name(text: str) -> str:
    """Give the name of a function that comes with lpjax, so that runs made under its dotted name go on.

    Args:
      text: What a configuration or a checkpoint names.

    Returns:
      The name where `text` is the dotted name of such a function, `text` itself otherwise.
    """
    return _DOTTED.get(text, text)


def load(name: str, field: str) -> Callable[..., Any]:
    """Import the function that a configuration names.

    Args:
      name: One of `PROVIDED[field]`, or "package.module:function".
      field: Where the configuration names it, "model.function" or "aux.function".

    Returns:
      The function.

    Raises:
      ValueError: There is none of that name.
    """
    place = PROVIDED[field].get(name, name)
    if ":" not in place:
        require_one_of(field, name, PROVIDED[field], ", or 'package.module:function'")
    expected = f"{field}={name!r}: expected 'package.module:function', importable from the current folder"
    try:
        function = pkgutil.resolve_name(place)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(f"{expected}: {error}; correct the name, or start from the folder that holds it") from error
    if not callable(function):
        raise BadInput(f"{expected}: {place.partition(':')[2]} is a {type(function).__name__}; name a function")
    return function


def call(name: str, field: str, arguments: Mapping[str, Any], **given: Any) -> Any:
    """Call the function that a configuration names.

    Args:
      name: See `load`.
      field: See `load`.
      arguments: Of the function, as the configuration has them.
      **given: Its other arguments, by keyword.

    Returns:
      What the function returns.

    Raises:
      ValueError: There is no such function, or the arguments do not fit it.
    """
    function = load(name, field)
    signature = inspect.signature(function)
    try:
        signature.bind(**arguments, **given)
    except TypeError as error:
        takes = ", ".join(parameter for parameter in signature.parameters if parameter not in given)
        section = field.partition(".")[0]
        raise BadInput(f"{section}: {error}; {name} takes {takes}: correct the fields of {section}") from error
    try:
        return function(**arguments, **given)
    except TypeError as error:
        values = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise BadInput(
            f"{field}={name} with {values}: {error}; correct the fields of {field.partition('.')[0]}"
        ) from error
