"""A training state as named arrays of its network, which do not depend on mesh, K, packing or method.

    step, key, penalty_coef
    network.params.FIRST.PATH, network.stats.FIRST.PATH  of the uncut chain as `chain.init` lays it out; FIRST is the
                                                         position of the repeat's first unit
    network.optimizer.WHERE.FIRST.PATH                   the optimiser's arrays of the parameters, such as its momentum
    network.ema.FIRST.PATH                               moving average of the parameters, where the run has one
    network.optimizer.WHERE                              its counters, one for all stages: they take all steps together
    interface.CUT.stats.NAME, interface.CUT.multiplier   of the interface in front of unit CUT
    aux.params.START-STOP.FIRST.PATH, aux.stats, ..      of the AuxNet's piece beside units START .. STOP - 1
    aux.optimizer.WHERE.START-STOP.FIRST.PATH            and of its optimiser
    carry.METHOD-CUTS.WHERE                              what a method carries of its own, for just these cuts

So a checkpoint can be read by a run of another mesh, another K or another method: what has the same name and shape
there carries over.  Everything here is in host memory.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr
from jaxtyping import PyTree

from lpjax.network.network import Network
from lpjax.nn import chain
from lpjax.parallel import processes
from lpjax.state.train_state import Stored, TrainState

Arrays = dict[str, np.ndarray]


def fetch(state: TrainState) -> TrainState:
    """Bring a state to host memory, on every process; its key as `jax.random.key_data`."""
    return jax.tree.map(processes.to_host, replace(state, key=jax.random.key_data(state.key)))


def place(state: TrainState, shardings: TrainState) -> TrainState:
    """Put a state on the devices, in buffers of its own: the inverse of `fetch`.

    What was just put on a device may share memory with the host, and a step could not reuse it: so it is copied there.

    Args:
      state: In host memory.
      shardings: Of each of its arrays, a tree like it.
    """

    def own(state: TrainState) -> TrainState:
        state = jax.tree.map(jnp.copy, state)
        return replace(state, key=jax.random.wrap_key_data(state.key))

    on_devices = jax.tree.map(processes.from_host, state, shardings)
    return jax.jit(own, out_shardings=shardings)(on_devices)


def named(tree: PyTree) -> Arrays:
    """The leaves of a tree by name."""
    return {keystr(path, simple=True, separator="."): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def to_tree(
    state: TrainState, network: Network, owner: str, stored: Stored | None, num_examples: int
) -> dict[str, Any]:
    """Make of a fetched state the tree that the module's docstring names.

    Args:
      state: In host memory.
      network: The network.
      owner: The method whose carry it has.
      stored: The multipliers that it keeps.
      num_examples: Of the training set.
    """
    params = network.params
    stats, interface_stats = _join(network, network.stats.unpack_all(state.stage_stats))
    real = slice(num_examples if stored and stored.rows is not None else None)  # a table ends with padding
    kappas = [{"multiplier": kappa[real]} for kappa in state.multiplier] or [{}] * len(interface_stats)
    interfaces = [{"stats": own} | kappa for own, kappa in zip(interface_stats, kappas, strict=True)]
    ema = {"ema": _join(network, params.unpack_all(state.ema))[0]} if state.ema else {}
    carry = {_carry_name(owner, network): state.carry} if jax.tree.leaves(state.carry) else {}
    aux_structure = jax.tree.structure(state.aux_params)
    pieces = [f"{start:04}-{stop:04}" for start, stop in _bounds(network)][: len(state.aux_params)]

    def is_aux(part: Any) -> bool:
        return aux_structure == jax.tree.structure(part)  # type: ignore[operator]

    def by_piece(parts: tuple[PyTree, ...]) -> dict[str, PyTree]:
        return dict(zip(pieces, parts, strict=True))

    return {
        "step": state.step,
        "key": state.key,
        "penalty_coef": state.penalty_coef,
        "network": {
            "params": _join(network, params.unpack_all(state.stage_params))[0],
            "stats": stats,
            **ema,
            "optimizer": jax.tree.map(
                lambda part: _join(network, params.unpack_all(part))[0] if _is_dict(part) else part[0],
                state.stage_opt,
                is_leaf=_is_dict,
            ),
        },
        "carry": carry,
        "interface": dict(zip(network.cuts, interfaces, strict=True)),
        "aux": {
            "params": by_piece(state.aux_params),
            "stats": by_piece(state.aux_stats),
            "optimizer": jax.tree.map(
                lambda part: by_piece(part) if is_aux(part) else part, state.aux_opt, is_leaf=is_aux
            ),
        },
    }


def from_tree(tree: dict[str, Any], network: Network, owner: str, stored: Stored | None) -> TrainState:
    """Make a state for `place` of a tree: the inverse of `to_tree`.

    Args:
      tree: As `to_tree` makes it.
      network: The network.
      owner: The method whose carry it has.
      stored: The multipliers that it keeps.

    Returns:
      The state, in host memory.
    """
    params, aux = network.params, tree["aux"]
    interfaces = [tree["interface"][cut] for cut in network.cuts]
    multipliers = [interface["multiplier"] for interface in interfaces if "multiplier" in interface]
    if stored and stored.rows is not None:
        padding = [[(0, stored.rows - len(table))] + [(0, 0)] * (table.ndim - 1) for table in multipliers]
        multipliers = [np.pad(table, pad) for table, pad in zip(multipliers, padding, strict=True)]

    def rows(whole: dict[int, PyTree]) -> PyTree:
        return params.pack_all(_split(network, whole, [{}] * len(interfaces)), np)

    return TrainState(
        step=tree["step"],
        key=tree["key"],
        penalty_coef=tree["penalty_coef"],
        stage_params=rows(tree["network"]["params"]),
        stage_opt=jax.tree.map(
            lambda part: rows(part) if _is_dict(part) else np.repeat(part[None], network.num_stages, 0),
            tree["network"]["optimizer"],
            is_leaf=_is_dict,
        ),
        stage_stats=network.stats.pack_all(
            _split(network, tree["network"]["stats"], [interface["stats"] for interface in interfaces]), np
        ),
        aux_params=tuple(aux["params"].values()),
        aux_stats=tuple(aux["stats"].values()),
        aux_opt=jax.tree.map(
            lambda part: tuple(part.values()) if _is_dict(part) else part, aux["optimizer"], is_leaf=_is_dict
        ),
        multiplier=tuple(multipliers),
        carry=tree["carry"].get(_carry_name(owner, network), ()),
        ema=rows(tree["network"]["ema"]) if "ema" in tree["network"] else (),
    )


def _carry_name(owner: str, network: Network) -> str:
    return "-".join(map(str, (owner, *network.cuts)))


def _is_dict(part: Any) -> bool:
    return isinstance(part, dict)


def _bounds(network: Network) -> list[tuple[int, int]]:
    """First and last + 1 unit of each stage."""
    return list(itertools.pairwise((0, *network.cuts, len(network.chain.units))))


def _join(network: Network, trees: Sequence[PyTree]) -> tuple[dict[int, PyTree], list[PyTree]]:
    """One tree a repeat of the uncut chain, from one a stage; and one for the standardisation at each interface."""
    units, ends = [], []
    for stage, tree, (start, stop) in zip(network.stages, trees, _bounds(network), strict=True):
        own = chain.unstack(stage, tree)
        units += own[: stop - start]
        ends.append(own[stop - start] if len(own) > stop - start else {})
    repeats = chain.stack(network.chain, units)
    return {repeat.first: tree for repeat, tree in zip(network.chain.repeats, repeats, strict=True)}, ends[:-1]


def _split(network: Network, whole: dict[int, PyTree], ends: Sequence[PyTree]) -> list[PyTree]:
    """The inverse of `_join`."""
    units = chain.unstack(network.chain, tuple(whole[repeat.first] for repeat in network.chain.repeats))
    trees = []
    for stage, (start, stop), end in zip(network.stages, _bounds(network), (*ends, {}), strict=True):
        trees.append(chain.stack(stage, [*units[start:stop], end][: len(stage.units)]))
    return trees
