"""Cuts that balance what the stages' devices really do, by seconds measured on one of them.

    python -m lpjax.balance --config=FILE [--config.field=value ...] [--repeats=5] [--rounds=3] [--workdir=DIR]

Prints the seconds of each stage and the cuts as an argument of `lpjax.main`.  Nothing is trained and no data is read.
With --workdir the seconds of the stages as the configuration has them now are written to DIR/seconds.json, from which
`lpjax.report` draws the schedule of a step.
`partition.split` cuts evenly by floating-point operations, which early blocks (few channels on large maps) need more
time for; and not all stages have the same to do beside their units: the first one needs no gradient of the image, and a
coarse tail is the longer the earlier the stage.  Units are measured first; then, `rounds` times, the stages as whole
programs, in which a unit does not take quite what it takes alone.  For these the device holds the parameters of all
stages; where it cannot, --rounds=0 needs room for a unit only.

Exit codes: 0 done; 1 a fault of lpjax or of the system; 2 bad configuration.
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from jaxtyping import Float
from rich.console import Console

from lpjax import cli
from lpjax.config.load import from_config_dict
from lpjax.config.schema import Config
from lpjax.cost import stage_programs
from lpjax.cost.timing import Seconds, UnitTimer
from lpjax.data.source import Spec
from lpjax.methods import METHODS
from lpjax.network.network import Network
from lpjax.network.partition import even_cuts
from lpjax.nn.chain import Chain, Shape, UnitLike
from lpjax.parallel import platform
from lpjax.training import run as runs
from lpjax.training import writers
from lpjax.training.structure import beside

_REPEATS = flags.DEFINE_integer(
    "repeats", 5, "Measurements of each unit (their median counts) and stage (the least).", lower_bound=1
)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 3, "Cuts whose stages are compiled and measured; 0: units alone.", lower_bound=0
)

Cost = Callable[[UnitLike, Shape], Seconds]

FACTOR, OWN_SHARE, SCATTER = 0.2, 0.02, 0.1
"""Standard deviations that `factors` goes by: of a kind's factor from 1, of a stage's own share from none, both before
anything is measured, and of a measurement."""


def chain_seconds(chain: Chain, cost: Cost) -> float:
    """Of forward and backward pass."""
    return sum((cost(unit, shape).both for unit, shape in zip(chain.units, chain.shapes[:-1], strict=True)), 0.0)


def forward_seconds(chain: Chain, cost: Cost) -> float:
    """Of the forward pass."""
    return sum((cost(unit, shape).forward for unit, shape in zip(chain.units, chain.shapes[:-1], strict=True)), 0.0)


class StageSeconds(NamedTuple):
    """Of a stage's forward and backward pass, and of both passes of what it computes behind its units, see
    `structure.beside`."""

    forward: float
    backward: float
    beside: float


def stage_parts(network: Network, config: Config, cost: Cost) -> list[StageSeconds]:
    """Of each stage; the first one needs no gradient of the image."""
    first = cost(network.chain.units[0], network.chain.in_shape)
    parts = []
    for k, (stage, behind) in enumerate(zip(network.stages, beside(network, config), strict=True)):
        forward, both = forward_seconds(stage, cost), chain_seconds(stage, cost)
        spared = first.both - first.without_input if k == 0 else 0.0
        parts.append(StageSeconds(forward, both - spared - forward, sum(chain_seconds(c, cost) for c in behind)))
    return parts


def stage_seconds(network: Network, config: Config, cost: Cost) -> list[float]:
    """What each stage's forward and backward passes take, with what the method adds to them: FDG a second forward pass
    of all but the last stage."""
    parts = stage_parts(network, config, cost)
    again = config.method == "delayed" and config.delayed.variant == "fdg"
    return [sum(own) + (own.forward if again and own is not parts[-1] else 0.0) for own in parts]


def measured(network: Network, config: Config, cost: Cost, aux_cost: Cost) -> dict[str, Any]:
    """seconds.json: of the parts of a step on one device, one after another, without exchanges and optimisers.

    stages: `StageSeconds`, on the examples of a stage column.  aux: of the AuxNet's pieces, on a device's share of
    those, which `aux_cost` measures.  cuts: that the network has.
    """
    pieces = network.aux_net if METHODS[config.method].aux_net else ()
    aux = [(forward_seconds(piece, aux_cost), chain_seconds(piece, aux_cost)) for piece in pieces]
    return {
        "method": config.method,
        "mesh": config.mesh_shape,
        "examples": config.batch_size // config.mesh.data,
        "cuts": network.cuts,
        "stages": [parts._asdict() for parts in stage_parts(network, config, cost)],
        "aux": [{"forward": forward, "backward": both - forward} for forward, both in aux],
        "device": platform.device_name(),
        "versions": platform.versions(),
    }


class Told(NamedTuple):
    """What stages should take by the seconds of units, and what that is made of.

    units: [U], of the whole chain.  kinds: [U], which of them go together: those of an output shape.
    parts: [K, kinds + 1 + K], of each stage the seconds of its units by kind, those of the rest, which may be negative,
    and a share of the step that is the stage's own.
    """

    units: Float[np.ndarray, " units"]
    kinds: list[int]
    parts: Float[np.ndarray, "stages parts"]

    @classmethod
    def of(cls, network: Network, cost: Cost, seconds: Sequence[float]) -> "Told":
        """seconds: of the network's stages, by those of units."""
        chain, K = network.chain, network.num_stages
        units = np.array([cost(unit, shape).both for unit, shape in zip(chain.units, chain.shapes[:-1], strict=True)])
        names = list(dict.fromkeys(chain.shapes[1:]))
        kinds = [names.index(shape) for shape in chain.shapes[1:]]
        by_kind = np.zeros((K, len(names)))
        for k, (a, b) in enumerate(itertools.pairwise((0, *network.cuts, len(units)))):
            np.add.at(by_kind[k], kinds[a:b], units[a:b])
        rest = np.array(seconds) - by_kind.sum(1)
        return cls(units, kinds, np.hstack([by_kind, rest[:, None], np.mean(seconds) * np.eye(K)]))

    @property
    def expected(self) -> Float[np.ndarray, " parts"]:
        """What the factors of the parts are as long as nothing is measured: each as told, no share of a stage's own."""
        K = len(self.parts)
        return np.append(np.ones(self.parts.shape[1] - K), np.zeros(K))


def factors(told: Sequence[Told], measured: Sequence[Sequence[float]]) -> Float[np.ndarray, " parts"]:
    """Of the parts: by how much longer a kind of unit, or what is beside them, takes in a stage than told.

    Least squares over all stages that were measured, held to what is expected.  (A stage's measurement scatters by up
    to a tenth: with a factor for each stage, cuts would follow that.)  Each measurement counts by its shares alone:
    seconds that were measured minutes apart do not compare.
    """
    expected = told[0].expected
    deviation = np.where(expected, FACTOR, OWN_SHARE)
    rows = [np.diag(1 / deviation)]
    for one, own in zip(told, measured, strict=True):
        scaled = np.array(own) * (one.parts @ expected).sum() / sum(own)
        rows.append(one.parts / scaled[:, None] / SCATTER)
    aims = [expected / deviation, *(np.full(len(own), 1 / SCATTER) for own in measured)]
    return np.linalg.lstsq(np.vstack(rows), np.concatenate(aims))[0]


def balanced(
    build: Callable[[tuple[int, ...] | None], Network],
    cost: Cost,
    estimate: Callable[[Network], list[float]],
    seconds: Callable[[Network], list[float]] | None = None,
    start: tuple[int, ...] | None = None,
    rounds: int = 8,
) -> tuple[tuple[int, ...], list[float]]:
    """The best cuts found, by the `factors` of all that was measured, and the seconds of their stages.

    What a stage has beside its units depends on where the cuts are, so they are balanced for what it was with the last
    ones, until they come back.

    Args:
      build: the network of these cuts (None: the default ones).
      cost: seconds of a unit.
      estimate: seconds of a network's stages by those of units, as `stage_seconds`.
      seconds: the same, measured (None: the estimate).
      start: cuts to begin with.
      rounds: of measurements, at most; the best cuts are measured once more where they are not among them.
    """
    seconds = seconds or estimate
    cuts = build(start).cuts
    told: dict[tuple[int, ...], Told] = {}
    found: dict[tuple[int, ...], list[float]] = {}
    while True:
        network = build(cuts)
        told[cuts] = Told.of(network, cost, estimate(network))
        if cuts in found or len(found) == rounds:
            break
        found[cuts] = seconds(network)
        factor = factors([told[tried] for tried in found], list(found.values()))
        units, kinds, parts = told[cuts]
        num_kinds = max(kinds) + 1
        rest = parts[:, num_kinds:] @ factor[num_kinds:]
        cuts = even_cuts((units * factor[kinds]).tolist(), network.num_stages, rest.tolist())
    best = min(told, key=lambda tried: (told[tried].parts @ factor).max())
    return best, found[best] if best in found else seconds(build(best))


def measured_cuts(config: Config, cost: Cost, repeats: int, rounds: int = 3) -> tuple[tuple[int, ...], list[float]]:
    """Cuts balanced by the seconds of units, and then, for the methods of `stage_programs`, at most `rounds` times by
    those of the stages' whole programs, in which units do not take quite what they take alone.

    config: of a dry run.  Returns the cuts, and the seconds of their stages.
    """
    build = partial(cut, config, runs.prepare(config).spec)
    estimate = partial(stage_seconds, config=config, cost=cost)
    cuts, seconds = balanced(build, cost, estimate)
    if config.method not in stage_programs.METHODS or not rounds:
        return cuts, seconds

    def programs(network: Network) -> list[float]:
        return stage_programs.stage_seconds(runs.prepare(replace(config, cuts=network.cuts)), repeats)

    return balanced(build, cost, estimate, programs, cuts, rounds)


def make_timer(config: Config, repeats: int, devices: int = 1) -> UnitTimer:
    """Measures units as the configuration runs them: on a stage column's examples, or the share of one of `devices`
    that have them together, in its precision."""
    dtype = "bfloat16" if config.bfloat16 else None
    return UnitTimer(config.batch_size // (config.mesh.data * devices), repeats, dtype, config.remat)


def cut(config: Config, spec: Spec, cuts: tuple[int, ...] | None) -> Network:
    """The network of a configuration, cut here."""
    return runs.build_network(replace(config, cuts=cuts), spec)


def run_cli(argv: list[str]) -> int:
    """Measure the units, print the cuts; returns the exit code."""
    console = Console(soft_wrap=not sys.stdout.isatty())
    errors = Console(stderr=True, soft_wrap=True, style="red", highlight=False, markup=False)
    try:
        fields, folder = cli.parse(argv)
        config = replace(from_config_dict(fields), dry_run=True)
        platform.provide_devices(config.mesh_shape[0] * config.mesh_shape[1])
        spec = runs.prepare(config).spec
        timer = make_timer(config, _REPEATS.value)
        if flags.FLAGS.workdir:
            shares = make_timer(config, _REPEATS.value, config.mesh_shape[0])
            folder.mkdir(parents=True, exist_ok=True)
            writers.write_json(folder / "seconds.json", measured(cut(config, spec, config.cuts), config, timer, shares))
        cuts, seconds = measured_cuts(config, timer, _REPEATS.value, _ROUNDS.value)
    except (ValueError, OSError) as error:
        errors.print(f"lpjax: {error}")
        return cli.EXIT_BAD_INPUT
    except KeyboardInterrupt:
        errors.print("lpjax: interrupted")
        return cli.EXIT_INTERRUPTED
    for k, own in enumerate(seconds):
        console.print(f"stage {k}: {1e3 * own:,.1f} ms, {own / max(seconds):.0%} of the longest", markup=False)
    console.print(f"--config.cuts='{cuts}'", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(sys.argv))
