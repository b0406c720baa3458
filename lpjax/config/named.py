"""Functions that a configuration names: "package.module:function", anything that can be imported."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from lpjax.errors import BadInput


def load(name: str, field: str) -> Callable[..., Any]:
    """The function called `name`; `field` is where the configuration names it.

    Raises ValueError where there is none.
    """
    module_name, colon, attribute = name.partition(":")
    expected = f"{field}={name!r}: expected 'package.module:function', importable from the current folder"
    if not (module_name and colon and attribute):
        raise BadInput(f"{expected}, such as lpjax.models.resnet:resnet")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise BadInput(f"{expected}: {error}; correct the name, or start from the folder that holds it") from error
    if not callable(function):
        raise BadInput(f"{expected}: {attribute} is a {type(function).__name__}; name a function")
    return function


def call(name: str, field: str, arguments: Mapping[str, Any], **given: Any) -> Any:
    """What the named function returns for the configuration's `arguments` and those `given`.

    Raises ValueError where they do not fit the function's.
    """
    function = load(name, field)
    signature = inspect.signature(function)
    try:
        signature.bind(**arguments, **given)
    except TypeError as error:
        takes = ", ".join(parameter for parameter in signature.parameters if parameter not in given)
        section = field.partition(".")[0]
        raise BadInput(f"{section}: {error}; {name} takes {takes}: correct the fields of {section}") from error
    return function(**arguments, **given)


def canonical_name(name: str) -> str:
    """The name that a function of lpjax goes by."""
    return name
