"""How a module is called, and errors of what it is."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from flax.errors import FlaxError

from lpjax.errors import BadInput


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
        if isinstance(error, NameError) and "axis name" not in str(error):
            raise  # a fault of the module's code
        raise BadInput(
            f"{name}: {error}; expected a module that needs its parameters, batch statistics and dropout alone; "
            f"change it, or write a unit"
        ) from error


def flags(train: bool) -> dict[str, bool]:
    """Arguments by which modules of flax are told whether this is training."""
    of_training, of_tests = ("train", "training", "is_training"), ("deterministic", "use_running_average", "inference")
    return dict.fromkeys(of_training, train) | dict.fromkeys(of_tests, not train)


def arguments(name: str, call: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a module's call takes besides its input.

    Args:
      name: Of the unit.
      call: A bound `__call__`, or a function.
      offered: What can be given, by name.

    Returns:
      By keyword; those of `offered` that the call has.

    Raises:
      BadInput: It takes no input, or something else that has no default.
    """
    first, *others = inspect.signature(call).parameters.values() or (None,)
    needed = [p.name for p in others if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if first is None or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD) or set(needed) - set(offered):
        raise BadInput(
            f"{name}: its call takes ({', '.join(inspect.signature(call).parameters)}); expected one array, and beside "
            f"it {', '.join(offered)} at most; join what a skip connects into one module, and give others a default"
        )
    return {parameter.name: offered[parameter.name] for parameter in others if parameter.name in offered}


def refuse_state(
    name: str, what: str, remedy: str = "use BatchNorm and Dropout of the library, or write a unit"
) -> None:
    """Refuse what a module keeps besides parameters and the statistics of batch norms.

    Args:
      name: Of the unit.
      what: It keeps.
      remedy: What to do.

    Raises:
      BadInput: Always.
    """
    raise BadInput(f"{name}: it keeps {what}; expected parameters and statistics of batch norms alone; {remedy}")


def check_settings(name: str, settings: Any) -> None:
    """Refuse settings by which units cannot be compared.

    Args:
      name: Of the unit.
      settings: All that it is, but for its weights.

    Raises:
      BadInput: They cannot be hashed.
    """
    try:
        hash(settings)
    except TypeError as error:
        raise BadInput(
            f"{name}: its settings cannot be compared ({error}); expected numbers, strings, functions and tuples of "
            f"them; make arrays parameters (of nnx nnx.Param), or compute them in the call"
        ) from error
