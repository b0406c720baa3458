"""The command line of all experiments: options, fields of the configuration, and the JSON that is written."""

import argparse
import datetime
import difflib
import inspect
import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.harness.experiment import RESULTS, Call, Experiment, Json
from experiments.harness.rows import parsed
from lpjax.errors import BadInput
from lpjax.parallel import platform
from lpjax.training.workdir import write_json

OPTIONS = {
    "add": "add to what the JSON has",
    "check": "write nothing; exit code 1 where something would be written",
    "diagnose": "steps between comparisons with backprop's gradient",
    "each": 'settings to try each row with, as "field=value|value;field=value|value"',
    "even": "cut by FLOPs, not by measured seconds",
    "first_seed": "seeds are counted from here",
    "jobs": "runs side by side",
    "processes": "on CPUs, that all is timed in",
    "rounds": "of turns, in each process",
    "rows": "methods and what is changed of them, with ; between them; see experiments/harness/rows.py",
    "runs": "folder of the runs' workdirs",
    "stages": "numbers of stages K, with commas between them",
    "target": "test accuracy to which the time is told",
    "torch": "an interpreter that has torch",
}
"""What options of the command line mean: the same in every experiment."""


def provenance(argv: Sequence[str]) -> dict[str, Any]:
    """How the JSON of an experiment that starts now is made, by its name and arguments."""
    info, head = Path("/proc/cpuinfo"), ["git", "rev-parse", "HEAD"]
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return {
        "command": shlex.join(["python", "-m", "experiments", *argv]),
        "date": datetime.date.today().isoformat(),
        "commit": subprocess.run(head, check=True, capture_output=True, text=True).stdout.strip(),
        "hardware": f"{names[0] if names else 'an unknown processor'}, {os.cpu_count()} cores",
        "versions": platform.versions(),
    }


def arguments(experiment: Experiment, argv: Sequence[str]) -> tuple[Call, dict[str, Any]]:
    """How an experiment is called, and its options, from the command line behind its name."""
    name, layout = experiment.name, argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(name, description=experiment.doc, formatter_class=layout, allow_abbrev=False)
    parser.prog = f"python -m experiments {name}"
    for option in list(inspect.signature(experiment.run).parameters.values())[1:]:
        told: dict[str, Any] = {"help": OPTIONS.get(option.name, "")}
        if option.default is option.empty:
            parser.add_argument(option.name, **told)
        elif option.default is False:
            parser.add_argument(f"--{option.name}", action="store_true", **told)
        else:
            told["help"] += f" (default: {option.default})" if option.default not in ("", 0) else ""
            parser.add_argument(f"--{option.name}", default=option.default, type=type(option.default), **told)
    if experiment.config:
        parser.add_argument("--config", default=experiment.config, help="config file; --config.field=value sets fields")
    parser.add_argument("--out", type=Path, help="JSON file (default: in experiments/results/)")
    args, extra = parser.parse_known_args(argv)
    if extra and experiment.config is None:
        raise BadInput(f"{extra[0]}: no such option; --help lists them")
    options = vars(args)
    config, out = options.pop("config", ""), options.pop("out")
    out = out or RESULTS / f"{experiment.out}.json".format(**options)
    return Call(provenance([name, *argv]), parsed(extra), config, out), options


def perform(experiment: Experiment, argv: Sequence[str]) -> int:
    """Run an experiment by the command line behind its name; 1 where a part of it failed, else 0."""
    call, options = arguments(experiment, argv)
    content: Json = {}
    for content in experiment.run(call, **options):
        if experiment.out:
            call.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(call.out, call.made | content)
    if experiment.show:
        print(experiment.show(content))
    return 1 if content.get("failed") else 0


def chosen(argv: Sequence[str], experiments: Mapping[str, Experiment]) -> int:
    """Run the experiment that the command line names, or list all; the exit code."""
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print("usage: python -m experiments NAME [options]      python -m experiments NAME --help\n")
        for name, made in experiments.items():
            print(f"  {name:{max(map(len, experiments))}}  {made.doc.splitlines()[0]}")
        return 0
    if name not in experiments:
        close = " or ".join(difflib.get_close_matches(name, experiments))
        hint = f"did you mean {close}? " if close else ""
        raise BadInput(f"no experiment {name!r}: {hint}`python -m experiments` lists them")
    return perform(experiments[name], rest)
