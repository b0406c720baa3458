"""The command line of all experiments: options, fields of the configuration, and the JSON that is written."""

import argparse
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.harness.experiment import RESULTS, Experiment, Json
from experiments.harness.provenance import provenance
from experiments.harness.rows import parsed
from lpjax.errors import BadInput
from lpjax.training.writers import write_json

USAGE = "usage: python -m experiments NAME [options]      python -m experiments NAME --help"


def listing(experiments: Mapping[str, Experiment]) -> str:
    """The names, a line each."""
    width = max(map(len, experiments))
    lines = [f"  {name:{width}}  {made.doc.splitlines()[0]}" for name, made in experiments.items()]
    return "\n".join([USAGE, "", *lines])


def arguments(experiment: Experiment, argv: Sequence[str]) -> argparse.Namespace:
    """The options of an experiment.

    Args:
      experiment: Which one.
      argv: The command line behind its name.

    Returns:
      The options; `fields`, what --config.field=value sets; `made`, the provenance.

    Raises:
      BadInput: An argument is unknown.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments {experiment.name}",
        description=experiment.doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for option in experiment.options:
        name = option.name if option.positional else f"--{option.name}"
        if option.default is False:
            parser.add_argument(name, action="store_true", help=option.help)
        else:
            kind = str if option.default is None else type(option.default)
            told = option.help if option.default in (None, "") else f"{option.help} (default: {option.default})"
            parser.add_argument(name, type=kind, default=option.default, choices=option.choices, help=told)
    if experiment.config is not None:
        parser.add_argument("--config", default=experiment.config, help="config file; --config.field=value sets fields")
    if experiment.out is not None:
        parser.add_argument("--out", type=Path, help="JSON file (default: in experiments/results/)")
    args, extra = parser.parse_known_args(argv)
    if extra and not (experiment.fields or experiment.config):
        raise BadInput(f"{extra[0]}: no such option; --help lists them")
    args.fields, args.made = parsed(extra), provenance([experiment.name, *argv])
    return args


def perform(experiment: Experiment, argv: Sequence[str]) -> int:
    """Run an experiment.

    Args:
      experiment: Which one.
      argv: The command line behind its name.

    Returns:
      1 where a part of it failed, else 0.
    """
    args = arguments(experiment, argv)
    path = None
    if experiment.out is not None:
        out = experiment.out if isinstance(experiment.out, str) else experiment.out(args)
        path = args.out = args.out or RESULTS / f"{out}.json"
    content: Json = {}
    for content in experiment.run(args):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, args.made | content)
    if experiment.show is not None:
        print(experiment.show(content))
    return 1 if content.get("failed") else 0


def chosen(argv: Sequence[str], experiments: Mapping[str, Experiment]) -> int:
    """Run the experiment that the command line names, or list all.

    Args:
      argv: The command line behind the program.
      experiments: All of them by name.

    Returns:
      The exit code.

    Raises:
      BadInput: There is no such experiment.
    """
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(listing(experiments))
        return 0
    if name not in experiments:
        near = difflib.get_close_matches(name, experiments, n=3)
        close = f"did you mean {' or '.join(near)}? " if near else ""
        raise BadInput(f"no experiment {name!r}: {close}`python -m experiments` lists them")
    return perform(experiments[name], rest)
