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


def entry_seconds(item: Item, cost: Cost) -> list[float]:
    """Seconds of the units of an entry of a schedule that applies a chain; of others none.

    Args:
      item: The entry.
      cost: Seconds of a unit.
    """
    if not isinstance(item, Work) or item.chain is None:
        return []
    pairs = zip(item.chain.units, item.chain.shapes[:-1], strict=True)
    units = [cost(unit, shape, item.examples) for unit, shape in pairs]
    if not item.gradients:
        return [own.forward for own in units]
    backward = [own.both - own.forward for own in units]
    if item.gradients == ("weights",):
        return [backward[0] - (units[0].both - units[0].without_input), *backward[1:]]
    return [own / 2 for own in backward] if item.gradients == ("input",) else backward


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
        phases.append({"method": name, "seconds": [sum(entry_seconds(item, cost), 0.0) for item in items]})
    return {
        "phases": phases,
        "mesh": config.mesh_shape,
        "examples": config.batch_size // config.mesh.data,
        "cuts": network.cuts,
        "device": platform.device_name(),
        "versions": platform.versions(),
    }


class Estimate(NamedTuple):
    """What stages' forward and backward passes should take, with what the method adds to them, by seconds of units.

    Attributes:
      units: [U], seconds of each unit of the whole chain in the stage that it is in, of all micro-batches.
      kinds: [U], which of them go together: those of an output shape.
      parts: [K, kinds + 1 + K], of each stage the seconds of its units by kind, those of the rest, and a share of the
        step that is the stage's own.
    """

    units: Float[np.ndarray, " units"]
    kinds: list[int]
    parts: Float[np.ndarray, "stages parts"]

    @property
    def expected(self) -> Float[np.ndarray, " parts"]:
        """The `factors` as long as nothing is measured: no share of a stage's own."""
        K, num_parts = self.parts.shape
        return np.repeat([1.0, 0.0], [num_parts - K, K])

    @property
    def seconds(self) -> list[float]:
        """Of each stage."""
        return (self.parts @ self.expected).tolist()

    @classmethod
    def of(cls, network: Network, config: Config, cost: Cost) -> "Estimate":
        """Estimate a network, by the schedule of a step.

        Args:
          network: The network.
          config: The configuration.
          cost: Seconds of a unit.
        """
        chain, K, S = network.chain, network.num_stages, config.mesh_shape[0]
        bounds = list(itertools.pairwise((0, *network.cuts, len(chain.units))))
        units, whole = np.zeros((S, len(chain.units))), np.zeros((S, K))
        for item in METHODS[config.method].work(network, config):
            if isinstance(item, Work) and item.stage is not None and item.kind != "aux":
                taken, (a, b) = entry_seconds(item, cost), bounds[item.stage]
                whole[item.device, item.stage] += sum(taken)
                if item.kind in ("stage", "recompute"):  # the chain may go on behind the stage's units
                    units[item.device, a:b] += taken[: b - a]
        names = list(dict.fromkeys(chain.shapes[1:]))
        kinds = [names.index(shape) for shape in chain.shapes[1:]]
        each, seconds = units.max(0), whole.max(0)  # where every device holds the network, all take as long
        by_kind = np.zeros((K, len(names)))
        for k, (a, b) in enumerate(bounds):
            np.add.at(by_kind[k], kinds[a:b], each[a:b])
        rest = seconds - by_kind.sum(1)
        return cls(each, kinds, np.hstack([by_kind, rest[:, None], np.mean(seconds) * np.eye(K)]))


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
    expected = estimates[0].expected
    deviation = np.where(expected, FACTOR, OWN_SHARE)
    rows = [np.diag(1 / deviation)]
    for one, own in zip(estimates, measured, strict=True):
        scaled = np.array(own) * (one.parts @ expected).sum() / sum(own)
        rows.append(one.parts / scaled[:, None] / SCATTER)
    aims = [expected / deviation, *(np.full(len(own), 1 / SCATTER) for own in measured)]
    return np.linalg.lstsq(np.vstack(rows), np.concatenate(aims))[0]


def balanced(
    build: Callable[[tuple[int, ...] | None], Network],
    estimate: Callable[[Network], Estimate],
    seconds: Callable[[Network], list[float]] | None = None,
    start: tuple[int, ...] | None = None,
    rounds: int = 8,
) -> tuple[tuple[int, ...], list[float]]:
    """Find cuts whose stages take equally long, by the `factors` of all that was measured.

    What a stage has beside its units, and how often it applies them, depends on where the cuts are, so they are
    balanced for what that was with the last ones, until they come back.

    Args:
      build: The network of these cuts (None: the default ones).
      estimate: What a network's stages should take.
      seconds: Seconds of a network's stages, measured (None: the estimate).
      start: Cuts to begin with.
      rounds: Of measurements, at most; the best cuts are measured once more where they are not among them.

    Returns:
      The best cuts found, and the seconds of their stages.
    """
    cuts = build(start).cuts
    estimates: dict[tuple[int, ...], Estimate] = {}
    found: dict[tuple[int, ...], list[float]] = {}
    while True:
        network = build(cuts)
        estimates[cuts] = estimate(network)
        if cuts in found or len(found) == rounds:
            break
        found[cuts] = seconds(network) if seconds else estimates[cuts].seconds
        factor = factors([estimates[tried] for tried in found], list(found.values()))
        units, kinds, parts = estimates[cuts]
        num_kinds = max(kinds) + 1
        rest = parts[:, num_kinds:] @ factor[num_kinds:]
        cuts = even_cuts((units * factor[kinds]).tolist(), network.num_stages, rest.tolist())
    best = min(estimates, key=lambda tried: (estimates[tried].parts @ factor).max())
    if best not in found:
        found[best] = seconds(build(best)) if seconds else estimates[best].seconds
    return best, found[best]


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
    spec = runs.prepare(config).spec

    def build(cuts: tuple[int, ...] | None) -> Network:
        return runs.build_network(replace(config, cuts=cuts), spec)

    estimate = partial(Estimate.of, config=config, cost=cost)
    cuts, seconds = balanced(build, estimate)
    if METHODS[config.method].stage_program is None or not rounds:
        return cuts, seconds

    def programs(network: Network) -> list[float]:
        return timing.stage_seconds(runs.prepare(replace(config, cuts=network.cuts)), repeats)

    return balanced(build, estimate, programs, cuts, rounds)


def make_timer(config: Config, repeats: int) -> timing.UnitTimer:
    """Make what measures units as the configuration runs them, in its precision.

    Args:
      config: The configuration.
      repeats: Of each measurement.
    """
    return timing.UnitTimer(repeats, "bfloat16" if config.bfloat16 else None, config.remat)
