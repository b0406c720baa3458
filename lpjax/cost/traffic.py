"""What a device sends in a step: as its schedule says, and as its traced program has it; nothing is run."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxprs_in_params

from lpjax.methods.base import WIDTH
from lpjax.nn.count import chain_layers
from lpjax.nn.schedule import Item, Message, Work

_NAMES = {
    "psum": ("psum", "psum2", "psum_invariant", "pmax", "pmin"),
    "all_gather": ("all_gather", "all_gather_invariant", "all_gather_reduced"),
    "all_to_all": ("all_to_all",),
    "reduce_scatter": ("reduce_scatter", "unreduced_reduce_scatter"),
    "ppermute": ("ppermute",),
}
KINDS = {name: kind for kind, names in _NAMES.items() for name in names}
"""Kinds of collectives by the names of their primitives, which differ between versions of JAX."""


class Sent(NamedTuple):
    """What is sent in the collectives of a kind among more than one device.

    Attributes:
      number: How many.
      bytes: That one device sends in all of them.
    """

    number: int = 0
    bytes: float = 0.0


Traffic = dict[str, Sent]
"""By kind of collective; kinds that there are none of are left out, collectives of one device too."""


def _added(parts: Iterable[Traffic], times: int = 1) -> Traffic:
    total: Traffic = {}
    for part in parts:
        for kind, sent in part.items():
            before = total.get(kind, Sent())
            total[kind] = Sent(before.number + times * sent.number, before.bytes + times * sent.bytes)
    return total


def total_bytes(traffic: Traffic) -> float:
    """Bytes of all kinds together."""
    return sum((sent.bytes for sent in traffic.values()), 0.0)


def sent_share(kind: str, n: int) -> float:
    """What each of n devices sends in a collective, over its own input: see `exchanged`."""
    part = (n - 1) / n
    return {"psum": 2 * part, "all_gather": n - 1.0, "all_to_all": part, "reduce_scatter": part, "ppermute": 1.0}[kind]


def _sent(kind: str, n: int, size: int, number: int = 1) -> Traffic:
    return {kind: Sent(number, float(sent_share(kind, n) * size))} if n > 1 else {}


def scheduled(items: Sequence[Item], axis_sizes: Mapping[str, int]) -> Traffic:
    """What the device that sends most sends in a step, by the step's schedule.

    Batch norms average two moments a channel in each pass, over the axes that their work names; a backward pass that
    computes its forward pass again averages twice.

    Args:
      items: The schedule.
      axis_sizes: Of the mesh.

    Returns:
      Number and bytes by kind of collective.
    """

    def devices(axes: Iterable[str]) -> int:
        return math.prod(axis_sizes[axis] for axis in axes)

    def norms(work: Work) -> Traffic:
        again = 2 if work.gradients and work.chain.remat else 1
        return _added(
            _added((_sent("psum", devices(work.norm_axes), 2 * WIDTH * c, 2) for c in own.norms), count * again)
            for count, own in chain_layers(work.chain)
        )

    messages = [_sent(m.collective, devices(m.axes), m.bytes, m.count) for m in items if isinstance(m, Message)]
    own = [
        _added(norms(item) for item in items if isinstance(item, Work) and item.chain and item.device == d)
        for d in range(axis_sizes["stage"])
    ]
    return _added([*messages, max(own, key=total_bytes)])


def exchanged(jaxpr: ClosedJaxpr | Jaxpr, axis_sizes: Mapping[str, int]) -> Traffic:
    """What one device sends in the collectives of a program.

    Of n devices over the collective's axes, for a device's own input of `size` bytes:

        psum                        2 (n-1)/n size      ring all-reduce; pmean, pmax and pmin are counted here
        all_gather                  (n-1) size
        all_to_all                  (n-1)/n size
        reduce_scatter              (n-1)/n size
        ppermute                    size                a device at the edge of a shift sends nothing

    A scan counts its length times, a cond as its dearest branch.

    Args:
      jaxpr: The program.
      axis_sizes: Of the mesh.

    Returns:
      Number and bytes by kind of collective.

    Raises:
      ValueError: A body of a while loop, whose passes nobody knows, has a collective that sends; or a collective is of
        a kind that is not known.
    """
    inner = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return _added(_of_equation(eqn, axis_sizes) for eqn in inner.eqns)


def exchanged_bytes(jaxpr: ClosedJaxpr | Jaxpr, axis_sizes: Mapping[str, int]) -> dict[str, float]:
    """Bytes of `exchanged`, by kind.

    Args:
      jaxpr: The program.
      axis_sizes: Of the mesh.
    """
    return {kind: sent.bytes for kind, sent in exchanged(jaxpr, axis_sizes).items()}


def _of_equation(eqn: JaxprEqn, axis_sizes: Mapping[str, int]) -> Traffic:
    name = eqn.primitive.name
    if name not in KINDS and name != "axis_index" and "axis_name" in eqn.params:
        raise ValueError(f"{name}: a collective of unknown cost; expected one of {', '.join(KINDS)}")
    if name in KINDS:
        size = sum(math.prod(var.aval.shape) * var.aval.dtype.itemsize for var in eqn.invars)  # type: ignore[attr-defined]
        return _sent(KINDS[name], _devices(eqn, axis_sizes), size, len(eqn.invars))
    inside = [exchanged(inner, axis_sizes) for inner in jaxprs_in_params(eqn.params)]
    if name == "cond":
        return max(inside, key=total_bytes)
    if name == "while" and any(map(total_bytes, inside)):
        raise ValueError(f"a while loop with collectives {inside}: its number of passes is unknown; use a scan")
    return _added(inside, eqn.params["length"] if name == "scan" else 1)


def _devices(eqn: JaxprEqn, axis_sizes: Mapping[str, int]) -> int:
    groups = eqn.params.get("axis_index_groups")
    if groups is not None:
        return len(groups[0])
    axes = eqn.params["axes"] if "axes" in eqn.params else eqn.params["axis_name"]
    names = axes if isinstance(axes, tuple | list) else (axes,)
    return math.prod(axis_sizes[axis] for axis in names if isinstance(axis, str))
