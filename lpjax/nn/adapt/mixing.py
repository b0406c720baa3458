"""Whether a program mixes the examples of a batch, found from the shapes in its jaxpr; nothing is computed.

The batch has a prime number of examples that no other axis has.  So its axis can be followed: an operation that loses
it, as a mean does, or doubles it, as a product of the batch with itself does, mixes.  Merged with others by a reshape,
the axis is a multiple of the prime.  What keeps the axis and mixes along it is known by name; a gather along it is not
found.
"""

from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr

BATCH = 10_007
"""The number of examples."""

_ALONG = ("axis", "dimension", "dimensions")
"""Parameters of operations that keep their axis: cumulative sums, sort, reverse."""


def mixing(jaxpr: Jaxpr) -> str | None:
    """Look for an operation that mixes examples, among those on which the outputs depend.

    Args:
      jaxpr: Of a batch of `BATCH` examples.

    Returns:
      The operation's name; None: there is none.
    """
    jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    for eqn in jaxpr.eqns:
        inner = list(jaxprs_in_params(eqn.params))
        found = [mixing(part) for part in inner] if inner else [eqn.primitive.name if _mixes(eqn) else None]
        if any(found):
            return next(name for name in found if name)
    return None


def _mixes(eqn: JaxprEqn) -> bool:
    batched = [var for var in eqn.invars if _axes(var)]
    if not batched:
        return False
    if any(len(_axes(var)) != 1 for var in eqn.outvars):
        return True
    along = [eqn.params[name] for name in _ALONG if name in eqn.params]
    if eqn.primitive.name not in ("rev", "sort") and not eqn.primitive.name.startswith("cum"):
        return False
    return any(axis in _axes(batched[0]) for axes in along for axis in (axes if isinstance(axes, tuple) else (axes,)))


def _axes(var: Any) -> list[int]:
    """Axes of the batch in a variable, one for each time that it is in the product of its sizes."""
    return [axis for axis, size in enumerate(var.aval.shape) for _ in range(_times(size))]


def _times(size: int) -> int:
    return 0 if size == 0 or size % BATCH else 1 + _times(size // BATCH)
