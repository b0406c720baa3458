"""Write a page of charts of runs.

    python -m lpjax.report RUN [RUN ...] [--out=report.html]

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

from lpjax import cli, errors
from lpjax.config.command_line import local_path
from lpjax.errors import BadInput, extra_packages


def write(folders: Sequence[Path], out: Path) -> None:
    """Write a page of runs, as a whole file or not at all.

    Args:
      folders: Workdirs of the runs.
      out: The page.

    Raises:
      BadInput: Names the folder or the file at fault.
      OSError: A file of a run cannot be read.
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
        raise BadInput(f"--out={out}: expected a file that can be written ({error}); choose another --out") from error


@cli.command()
@errors.bad_input()
def main(argv: list[str]) -> int:
    """Write the page; returns the exit code, see the module's docstring.

    Args:
      argv: The command line without the program.
    """
    parser = argparse.ArgumentParser(prog="python -m lpjax.report", description="A page of charts of runs.")
    parser.add_argument("--out", default="report.html", help="the page (report.html)")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="workdir of a run")
    options = parser.parse_args(argv)
    out = local_path(options.out)
    write([local_path(run) for run in options.runs], out)
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
