"""`python -m experiments NAME`: one way to make a figure."""

import sys

from experiments.docs import docs, report_picture
from experiments.harness.command import chosen
from experiments.registry import MEASURED
from lpjax.cli import command

EXPERIMENTS = {made.name: made for made in (*MEASURED, docs.EXPERIMENT, report_picture.EXPERIMENT)}


@command()
def main(argv: list[str]) -> int:
    """The command; its exit code."""
    return chosen(argv, EXPERIMENTS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
