"""Find cuts that balance what the stages take.

    python -m lpjax.balance --config=FILE [--config.field=value ...] [--repeats=5] [--rounds=3] [--workdir=DIR]

Measures how long each stage takes on one device and prints the cuts that balance them (see `lpjax.cost.balance`), as
an argument of `lpjax.main`.  Nothing is trained and no data is read.  With --workdir the seconds of the stages as the
configuration cuts them are written to DIR/seconds.json, from which `lpjax.report` draws the schedule of a step.

Exit codes: 0 done; 1 a fault of lpjax or of the system; 2 bad configuration or workdir; 130 interrupted.
"""

import math
import sys
from dataclasses import replace

from absl import flags

from lpjax import cli, errors, methods
from lpjax.config import command_line
from lpjax.config.load import from_config_dict
from lpjax.cost import balance
from lpjax.parallel import compilation, platform
from lpjax.training import run as runs
from lpjax.training import workdir

_REPEATS = flags.DEFINE_integer(
    "repeats", 5, "Measurements of each unit (their median counts) and stage (the least).", lower_bound=1
)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 3, "Cuts whose stages are compiled and measured; 0: units alone.", lower_bound=0
)


@cli.command()
@errors.bad_input()
def main(argv: list[str]) -> int:
    """Measure the units, print the cuts; returns the exit code, see the module's docstring."""
    fields, folder = command_line.parse(argv)
    config = methods.resolve(replace(from_config_dict(fields), dry_run=True))
    compilation.keep()
    platform.provide_devices(math.prod(config.mesh_shape))
    timer = balance.make_timer(config, _REPEATS.value)
    if flags.FLAGS.workdir:
        folder.mkdir(parents=True, exist_ok=True)
        workdir.write_json(folder / "seconds.json", balance.measured(runs.prepare(config).network, config, timer))
    cuts, seconds = balance.measured_cuts(config, timer, _REPEATS.value, _ROUNDS.value)
    console = cli.console()
    for k, own in enumerate(seconds):
        console.print(f"stage {k}: {1e3 * own:,.1f} ms, {own / max(seconds):.0%} of the longest")
    console.print(f"--config.cuts='{cuts}'")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
