"""python -m lpjax.predict: see `lpjax.export.predict`."""

import sys

from lpjax.export.predict import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
