"""Cuts that balance what the stages' devices really do, by seconds measured on one of them.

    python -m lpjax.balance --config=FILE [--config.field=value ...] [--repeats=5]

Prints the seconds of each stage and the cuts as an argument of `lpjax.main`.  Nothing is trained and no data is read.
`partition.split` cuts evenly by floating-point operations, which early blocks (few channels on large maps) need more
time for; and not all stages have the same to do beside their units: the first one needs no gradient of the image, and a
coarse tail is the longer the earlier the stage.

Exit codes: 0 done; 1 a fault of lpjax or of the system; 2 bad configuration.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from absl import flags
from rich.console import Console

from lpjax import aux_net, main, runs
from lpjax.chain import Chain, Shape, Unit
from lpjax.config import Config
from lpjax.config_dict import from_config_dict
from lpjax.data.source import Spec
from lpjax.methods.local import classifiers
from lpjax.network import Network
from lpjax.partition import even_cuts
from lpjax.timing import Seconds, UnitTimer

_REPEATS = flags.DEFINE_integer("repeats", 5, "Measurements of each unit, of which the median counts.", lower_bound=1)

Cost = Callable[[Unit, Shape], Seconds]


def chain_seconds(chain: Chain, cost: Cost) -> float:
    """Of forward and backward pass."""
    return sum((cost(unit, shape).both for unit, shape in zip(chain.units, chain.shapes[:-1], strict=True)), 0.0)


def stage_seconds(network: Network, config: Config, cost: Cost) -> list[float]:
    """What each stage's forward and backward passes take, with what the method adds to them: coarse tails
    (layer_parallel, coarse_adjoint), the AuxNet's piece (coarse_adjoint) or classifiers (local)."""
    seconds = [chain_seconds(stage, cost) for stage in network.stages]
    first = cost(network.chain.units[0], network.chain.in_shape)
    seconds[0] -= first.both - first.without_input
    beside = config.method == "coarse_adjoint"
    if beside or (config.method == "layer_parallel" and config.multiplier == "coarse_tail"):
        pieces = [chain_seconds(piece, cost) for piece in network.aux_tails]
        for k in range(network.num_stages):
            seconds[k] += sum(pieces[i] for i in aux_net.tail(network.num_stages, k + 1, config.aux.tail))
    if beside:  # G_k learns beside its stage
        seconds[1:] = [s + chain_seconds(p, cost) for s, p in zip(seconds[1:], network.aux_net[1:], strict=True)]
    if config.method == "local":
        made = classifiers(network, config.local.blocks).chains
        seconds = [own + chain_seconds(chain, cost) for own, chain in zip(seconds, made, strict=True)]
    return seconds


def balanced(
    build: Callable[[tuple[int, ...] | None], Network], config: Config, cost: Cost, rounds: int = 8
) -> tuple[tuple[int, ...], list[float]]:
    """The best cuts found, and `stage_seconds` of them.

    What a stage has beside its units depends on where the cuts are.  So they are balanced for what it was with the last
    ones, starting from even ones, until they come back.

    Args:
      build: the network of these cuts (None: the default ones).
      cost: seconds of a unit.
      rounds: at most.
    """
    cuts = build(None).cuts
    tried: dict[tuple[int, ...], list[float]] = {}
    while cuts not in tried and len(tried) < rounds:
        network = build(cuts)
        whole = network.chain
        tried[cuts] = stage_seconds(network, config, cost)
        units = [cost(unit, shape).both for unit, shape in zip(whole.units, whole.shapes[:-1], strict=True)]
        bounds = (0, *cuts, len(units))
        beside = [own - sum(units[a:b]) for own, a, b in zip(tried[cuts], bounds, bounds[1:], strict=False)]
        cuts = even_cuts(units, network.num_stages, beside)
    best = min(tried, key=lambda cuts: max(tried[cuts]))
    return best, tried[best]


def make_timer(config: Config, repeats: int) -> UnitTimer:
    """Measures units as the configuration runs them: on a stage column's examples, in its precision."""
    dtype = "bfloat16" if config.bfloat16 else None
    return UnitTimer(config.batch_size // config.mesh.data, repeats, dtype, config.remat)


def cut(config: Config, spec: Spec, cuts: tuple[int, ...] | None) -> Network:
    """The network of a configuration, cut here."""
    return runs.build_network(replace(config, cuts=cuts), spec)


def run_cli(argv: list[str]) -> int:
    """Measure the units, print the cuts; returns the exit code."""
    console = Console(soft_wrap=not sys.stdout.isatty())
    errors = Console(stderr=True, soft_wrap=True, style="red", highlight=False, markup=False)
    try:
        config = replace(from_config_dict(main.parse(argv)[0]), dry_run=True)
        main.provide_devices(config.mesh_shape[0] * config.mesh_shape[1])
        spec = runs.prepare(config).spec
        timer = make_timer(config, _REPEATS.value)
        cuts, seconds = balanced(partial(cut, config, spec), config, timer)
    except (ValueError, OSError) as error:
        errors.print(f"lpjax: {error}")
        return main.EXIT_BAD_INPUT
    except KeyboardInterrupt:
        errors.print("lpjax: interrupted")
        return main.EXIT_INTERRUPTED
    for k, own in enumerate(seconds):
        console.print(f"stage {k}: {1e3 * own:,.1f} ms, {own / max(seconds):.0%} of the longest", markup=False)
    console.print(f"--config.cuts='{cuts}'", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(sys.argv))
