"""`python -m experiments NAME`: one way to make a figure."""

import sys

from experiments.docs import docs, report_picture
from experiments.harness.command import chosen
from lpjax.cli import command

EXPERIMENTS = {made.name: made for made in (*docs.MEASURED, docs.EXPERIMENT, report_picture.EXPERIMENT)}

if __name__ == "__main__":
    sys.exit(command()(lambda argv: chosen(argv, EXPERIMENTS))(sys.argv[1:]))
