"""python -m lpjax.balance: see `lpjax.cost.balance`."""

import sys

from lpjax.cost.balance import run_cli

if __name__ == "__main__":
    sys.exit(run_cli(sys.argv))
