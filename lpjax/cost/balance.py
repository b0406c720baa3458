"""Cuts that balance what the stages' devices really do, by seconds measured on one of them.

`partition.split` cuts evenly by floating-point operations, which early blocks (few channels on large maps) need more
time for; and not all stages have the same to do beside their units: the first one needs no gradient of the image, and a
coarse tail is the longer the earlier the stage.  Units are measured first; then, `rounds` times, the stages as whole
programs, in which a unit does not take quite what it takes alone.  For these the device holds the parameters of all
stages; where it cannot, `rounds=0` needs room for a unit only.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lpjax.config.schema import Config
from lpjax.cost import timing
from lpjax.methods import METHODS
from lpjax.network.network import Network
from lpjax.network.partition import even_cuts
from lpjax.nn.chain import Shape, UnitLike
from lpjax.nn.schedule import Item, Work
from lpjax.parallel import platform
from lpjax.training import run as runs

Cost = Callable[[UnitLike, Shape, int], timing.Seconds]
"""(unit, in_shape, examples) -> what it takes."""

FACTOR, OWN_SHARE, SCATTER = 0.2, 0.02, 0.1
"""Standard deviations that `factors` goes by: of a kind's factor from 1, of a stage's own share from none, both before
anything is measured, and of a measurement."""


def entry_seconds(item: Item, cost: Cost) -> float:
    """Seconds of an entry of a schedule that applies a chain, by those of its units; 0 of others.

    Args:
      item: The entry.
      cost: Seconds of a unit.
    """
    if not isinstance(item, Work) or item.chain is None:
        return 0.0
    pairs = zip(item.chain.units, item.chain.shapes[:-1], strict=True)
    units = [cost(unit, shape, item.examples) for unit, shape in pairs]
    if not item.gradients:
        return sum((own.forward for own in units), 0.0)
    backward = sum((own.both - own.forward for own in units), 0.0)
    if item.gradients == ("weights",):
        return backward - (units[0].both - units[0].without_input)
    return backward / 2 if item.gradients == ("input",) else backward


def stage_seconds(network: Network, config: Config, cost: Cost) -> list[float]:
    """Seconds of each stage's forward and backward passes, with what the method adds to them.

    Args:
      network: The network.
      config: The configuration.
      cost: Seconds of a unit.

    Returns:
      K numbers.
    """
    found = np.zeros((config.mesh_shape[0], network.num_stages))
    for item in METHODS[config.method].work(network, config):
        if isinstance(item, Work) and item.stage is not None and item.kind != "aux":
            found[item.device, item.stage] += entry_seconds(item, cost)
    return found.max(0).tolist()  # where every device holds the network, all take as long


def measured(network: Network, config: Config, cost: Cost) -> dict[str, Any]:
    """What seconds.json holds: seconds of the entries of a step's schedule on one device, one after another.

    Args:
      network: The network.
      config: The configuration.
      cost: Seconds of a unit.

    Returns:
      As `phases` of each method its name and the seconds of the entries in structure.json's schedule, 0 of exchanges
        and optimisers, which are not measured; `mesh`, `examples` and `cuts` as there; `device` and `versions`.
    """
    phases = []
    for name in config.all_methods:
        items = METHODS[name].work(network, config)
        phases.append({"method": name, "seconds": [entry_seconds(item, cost) for item in items]})
    return {
        "phases": phases,
        "mesh": config.mesh_shape,
        "examples": config.batch_size // config.mesh.data,
        "cuts": network.cuts,
        "device": platform.device_name(),
        "versions": platform.versions(),
    }


class Estimate(NamedTuple):
    """What stages should take by the seconds of units, and what that is made of.

    Attributes:
      units: [U], seconds of the units of the whole chain.
      kinds: [U], which of them go together: those of an output shape.
      parts: [K, kinds + 1 + K], of each stage the seconds of its units by kind, those of the rest, which may be
        negative, and a share of the step that is the stage's own.
    """

    units: Float[np.ndarray, " units"]
    kinds: list[int]
    parts: Float[np.ndarray, "stages parts"]

    @classmethod
    def of(cls, network: Network, cost: Cost, examples: int, seconds: Sequence[float]) -> "Estimate":
        """Estimate a network.

        Args:
          network: The network.
          cost: Seconds of a unit.
          examples: Of a stage column.
          seconds: What the stages should take by those of units.
        """
        chain, K = network.chain, network.num_stages
        pairs = zip(chain.units, chain.shapes[:-1], strict=True)
        units = np.array([cost(unit, shape, examples).both for unit, shape in pairs])
        names = list(dict.fromkeys(chain.shapes[1:]))
        kinds = [names.index(shape) for shape in chain.shapes[1:]]
        by_kind = np.zeros((K, len(names)))
        for k, (a, b) in enumerate(itertools.pairwise((0, *network.cuts, len(units)))):
            np.add.at(by_kind[k], kinds[a:b], units[a:b])
        rest = np.array(seconds) - by_kind.sum(1)
        return cls(units, kinds, np.hstack([by_kind, rest[:, None], np.mean(seconds) * np.eye(K)]))


def factors(estimates: Sequence[Estimate], measured: Sequence[Sequence[float]]) -> Float[np.ndarray, " parts"]:
    """Find by how much longer a kind of unit, or what is beside them, takes in a stage than estimated.

    Regularised least squares over all stages that were measured, drawn to what is expected.  (A stage's measurement
    scatters by up to a tenth: with a factor for each stage, cuts would follow that.)  Each measurement counts by its
    shares alone: seconds that were measured minutes apart do not compare.

    Args:
      estimates: Of the networks that were measured.
      measured: Of each of them the seconds of its stages.

    Returns:
      A factor a part, see `Estimate.parts`.
    """
    K, num_parts = estimates[0].parts.shape
    expected = np.repeat([1.0, 0.0], [num_parts - K, K])  # as long as nothing is measured: no share of a stage's own
    deviation = np.where(expected, FACTOR, OWN_SHARE)
    rows = [np.diag(1 / deviation)]
    for one, own in zip(estimates, measured, strict=True):
        scaled = np.array(own) * (one.parts @ expected).sum() / sum(own)
        rows.append(one.parts / scaled[:, None] / SCATTER)
    aims = [expected / deviation, *(np.full(len(own), 1 / SCATTER) for own in measured)]
    return np.linalg.lstsq(np.vstack(rows), np.concatenate(aims))[0]


def balanced(
    build: Callable[[tuple[int, ...] | None], Network],
    cost: Cost,
    examples: int,
    estimate: Callable[[Network], list[float]],
    seconds: Callable[[Network], list[float]] | None = None,
    start: tuple[int, ...] | None = None,
    rounds: int = 8,
) -> tuple[tuple[int, ...], list[float]]:
    """Find cuts whose stages take equally long, by the `factors` of all that was measured.

    What a stage has beside its units depends on where the cuts are, so they are balanced for what it was with the last
    ones, until they come back.

    Args:
      build: The network of these cuts (None: the default ones).
      cost: Seconds of a unit.
      examples: Of a stage column.
      estimate: Seconds of a network's stages by those of units, as `stage_seconds`.
      seconds: The same, measured (None: the estimate).
      start: Cuts to begin with.
      rounds: Of measurements, at most; the best cuts are measured once more where they are not among them.

    Returns:
      The best cuts found, and the seconds of their stages.
    """
    seconds = seconds or estimate
    cuts = build(start).cuts
    estimates: dict[tuple[int, ...], Estimate] = {}
    found: dict[tuple[int, ...], list[float]] = {}
    while True:
        network = build(cuts)
        estimates[cuts] = Estimate.of(network, cost, examples, estimate(network))
        if cuts in found or len(found) == rounds:
            break
        found[cuts] = seconds(network)
        factor = factors([estimates[tried] for tried in found], list(found.values()))
        units, kinds, parts = estimates[cuts]
        num_kinds = max(kinds) + 1
        rest = parts[:, num_kinds:] @ factor[num_kinds:]
        cuts = even_cuts((units * factor[kinds]).tolist(), network.num_stages, rest.tolist())
    best = min(estimates, key=lambda tried: (estimates[tried].parts @ factor).max())
    return best, found[best] if best in found else seconds(build(best))


def measured_cuts(config: Config, cost: Cost, repeats: int, rounds: int = 3) -> tuple[tuple[int, ...], list[float]]:
    """Find cuts that balance what the stages take.

    By the seconds of units first; then, where the method has programs of its stages, by those, in which units do not
    take quite what they take alone.

    Args:
      config: Of a dry run, with all fields filled in.
      cost: Seconds of a unit.
      repeats: Measurements of each program.
      rounds: Cuts whose programs are measured, at most.

    Returns:
      The cuts, and the seconds of their stages.
    """
    column, spec = config.batch_size // config.mesh.data, runs.prepare(config).spec

    def build(cuts: tuple[int, ...] | None) -> Network:
        return runs.build_network(replace(config, cuts=cuts), spec)

    estimate = partial(stage_seconds, config=config, cost=cost)
    cuts, seconds = balanced(build, cost, column, estimate)
    if METHODS[config.method].stage_program is None or not rounds:
        return cuts, seconds

    def programs(network: Network) -> list[float]:
        return timing.stage_seconds(runs.prepare(replace(config, cuts=network.cuts)), repeats)

    return balanced(build, cost, column, estimate, programs, cuts, rounds)


def make_timer(config: Config, repeats: int) -> timing.UnitTimer:
    """Make what measures units as the configuration runs them, in its precision.

    Args:
      config: The configuration.
      repeats: Of each measurement.
    """
    return timing.UnitTimer(repeats, "bfloat16" if config.bfloat16 else None, config.remat)
