"""python -m lpjax.report RUN [RUN ...] [--out=report.html]

One HTML page of a run, or of several beside each other: accuracy and loss over steps and wall time, violations,
multipliers, gradients against backprop's, the cut, the schedule of a step, where the time goes, and in what the
configurations differ.  The page opens from disk and needs no network.  RUN is a workdir, of a run that is finished or
not.

Exit codes: 0 done; 1 a fault of lpjax or of the system; 2 bad arguments, no run in a folder, or a page that cannot be
written; 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lpjax.cli import EXIT_BAD_INPUT, EXIT_INTERRUPTED
from lpjax.errors import extra_packages


def write(folders: Sequence[Path], out: Path) -> None:
    """The page of the runs in these folders, as a whole file or not at all.

    Raises ValueError or OSError naming the folder or the file at fault.
    """
    with extra_packages("the page", "report"):
        from lpjax.report import page, record
    folders = list(dict.fromkeys(folders))
    names = record.names_of(folders)
    text = page.render([record.read(folder, name) for folder, name in zip(folders, names, strict=True)])
    part = out.with_name(out.name + ".part")
    try:
        part.write_text(text)
        part.replace(out)
    except OSError as error:
        raise ValueError(f"--out={out}: expected a file that can be written ({error}); choose another --out") from error


def main(argv: Sequence[str]) -> int:
    """Write the page; returns the exit code, see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m lpjax.report", description="A page of charts of runs.")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (report.html)")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="workdir of a run")
    options = parser.parse_args(argv)
    try:
        write(options.runs, options.out)
    except (ValueError, OSError) as error:
        print(f"lpjax: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("lpjax: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
