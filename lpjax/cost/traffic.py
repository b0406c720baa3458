"""What a step costs a device, from its traced and its compiled program; nothing is run or timed."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

KINDS = {
    "psum": "psum",
    "psum2": "psum",
    "psum_invariant": "psum",
    "pmax": "psum",
    "pmin": "psum",
    "all_gather": "all_gather",
    "all_gather_invariant": "all_gather",
    "all_gather_reduced": "all_gather",
    "all_to_all": "all_to_all",
    "reduce_scatter": "reduce_scatter",
    "unreduced_reduce_scatter": "reduce_scatter",
    "ppermute": "ppermute",
}
"""Kinds of collectives by the names of their primitives, which differ between versions of JAX."""


def exchanged_bytes(jaxpr: ClosedJaxpr | Jaxpr, axis_sizes: Mapping[str, int]) -> dict[str, float]:
    """Bytes that one device sends in the collectives of a program, by kind; kinds it has none of are left out.

    Of n devices over the collective's axes, for a device's own input of `size` bytes:

        psum                        2 (n-1)/n size      ring all-reduce; pmean, pmax and pmin are counted here
        all_gather                  (n-1) size
        all_to_all                  (n-1)/n size
        reduce_scatter              (n-1)/n size
        ppermute                    size                0 if n = 1; a device at the edge of a shift sends nothing

    A scan counts its length times, a cond as its dearest branch.  A body of a while loop, whose passes nobody knows,
    may hold no collective that sends: ValueError.  `axis_sizes`: of the mesh.
    """
    inner = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    total: dict[str, float] = {}
    for eqn in inner.eqns:
        for kind, size in _of_equation(eqn, axis_sizes).items():
            total[kind] = total.get(kind, 0.0) + size
    return total


def _of_equation(eqn: JaxprEqn, axis_sizes: Mapping[str, int]) -> dict[str, float]:
    name = eqn.primitive.name
    if name not in KINDS and name != "axis_index" and "axis_name" in eqn.params:
        raise ValueError(f"{name}: a collective of unknown cost; expected one of {', '.join(KINDS)}")
    if name in KINDS:
        kind = KINDS[name]
        return {kind: _sent(kind, _devices(eqn, axis_sizes), sum(map(_size, eqn.invars)))}
    costs = [exchanged_bytes(inner, axis_sizes) for inner in _programs(eqn.params)]
    if name == "cond":
        return max(costs, key=lambda cost: sum(cost.values()))
    if name == "while" and any(sum(cost.values()) for cost in costs):
        raise ValueError(f"a while loop with collectives {costs}: its number of passes is unknown; use a scan")
    times = eqn.params["length"] if name == "scan" else 1
    return {kind: times * sum(c.get(kind, 0.0) for c in costs) for kind in {k: None for cost in costs for k in cost}}


def _programs(params: Mapping[str, Any]) -> Iterator[ClosedJaxpr | Jaxpr]:
    """The programs an equation calls: whatever its parameters hold."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr | Jaxpr):
                yield item


def _devices(eqn: JaxprEqn, axis_sizes: Mapping[str, int]) -> int:
    groups = eqn.params.get("axis_index_groups")
    if groups is not None:
        return len(groups[0])
    axes = eqn.params["axes"] if "axes" in eqn.params else eqn.params["axis_name"]
    names = axes if isinstance(axes, tuple | list) else (axes,)
    return math.prod(axis_sizes[axis] for axis in names if isinstance(axis, str))


def _size(var: Var | Literal) -> int:
    return math.prod(var.aval.shape) * var.aval.dtype.itemsize  # type: ignore[attr-defined]


def _sent(kind: str, n: int, size: int) -> float:
    factor = {
        "psum": 2 * (n - 1) / n,
        "all_gather": n - 1,
        "all_to_all": (n - 1) / n,
        "reduce_scatter": (n - 1) / n,
        "ppermute": n > 1,
    }
    return float(factor[kind] * size)
