"""python -m lpjax.predict --model=DIR [--top=5] [--json] IMAGES...

Classes and probabilities of image files by a model that `lpjax.export` wrote, on one device.  With --json a line is
{"image": .., "classes": [{"class": .., "probability": ..}, ..]}, or {"image": .., "error": ..}.

Exit codes: 0 done; 1 a fault of lpjax or of the system; 2 bad arguments or model, or an image that could not be read
(it is said which, and the others are done); 130 interrupted.
"""

import argparse
import json
import sys
from pathlib import Path

from lpjax import cli, errors
from lpjax.export import model_file
from lpjax.export.predict import Ranking, predict


@cli.command()
@errors.bad_input()
def main(argv: list[str]) -> int:
    """Print the classes of the image files; returns the exit code: 2 where a file or the model could not be read.

    Args:
      argv: the command line without the program.
    """
    parser = argparse.ArgumentParser(prog="python -m lpjax.predict", description="Classes of image files.")
    parser.add_argument("--model", type=Path, required=True, help="folder that python -m lpjax.export wrote")
    parser.add_argument("--top", type=_positive, default=5, metavar="N", help="how many classes, 1 or more (5)")
    parser.add_argument("--json", action="store_true", help="a line of JSON an image")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGES")
    options = parser.parse_args(argv)
    code = 0
    model = model_file.load(options.model)
    for path, result in predict(model, options.images, options.top):
        if isinstance(result, Exception):
            code = errors.BadInput.exit_code
            print(f"lpjax: {cli.printable(result)}", file=sys.stderr)
        if options.json:
            print(_as_json(path, result))
        elif not isinstance(result, Exception):
            print(_as_text(path, result))
    return code


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def _as_text(path: Path, result: Ranking) -> str:
    width = max(len(name) for name, _ in result)
    return "\n".join([cli.printable(path), *(f"  {name:{width}}  {probability:.4f}" for name, probability in result)])


def _as_json(path: Path, result: Ranking | Exception) -> str:
    if isinstance(result, Exception):
        return json.dumps({"image": str(path), "error": str(result)})
    classes = [{"class": name, "probability": probability} for name, probability in result]
    return json.dumps({"image": str(path), "classes": classes})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
