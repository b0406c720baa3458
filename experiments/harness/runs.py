"""Training runs: started as a user would, kept when they are finished, gone on with when they are not."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.harness.experiment import Json
from experiments.harness.rows import in_numbers, load
from lpjax.config.schema import Config, DataConfig
from lpjax.methods import configure

ONE_CORE = {"NPROC": "1"}
"""Environment of a process that computes on one CPU core."""

ELSEWHERE = ("checkpoint", "dry_run", "mesh", "recovery", "seed", "start", "watch")
DATA_ELSEWHERE = ("dir", "max_corrupt", "prefetch", "threads")
"""Fields that do not decide what a run shows (the folder's name has the seed)."""

KEPT = ("test_accuracy", "test_loss", "aux_path_accuracy", "steps", "seconds_total", "relative_violation", "device")


def arguments(fields: Mapping[str, Any]) -> list[str]:
    """Fields as arguments of lpjax's commands."""
    return [f"--config.{name}={value}" for name, value in fields.items()]


def start(
    module: str, words: Iterable[str], environment: Mapping[str, str] | None = None, log: Path | None = None
) -> subprocess.Popen[str]:
    """Start a command of lpjax, which makes the devices that it needs itself.

    Args:
      module: Such as "main".
      words: Its arguments.
      environment: Added to this process's.
      log: File of what it says; without one stderr is a pipe, and stdout goes nowhere.

    Returns:
      The process.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", f"lpjax.{module}", *words]
    options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with contextlib.ExitStack() as stack:
        if log:
            options = {"stdout": stack.enter_context(log.open("w")), "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, env=inherited | dict(environment or {}), text=True, **options)


def call(module: str, words: Sequence[str], environment: Mapping[str, str] | None = None) -> bool:
    """Run a command of lpjax; whether it ended well.  The end of its stderr is shown where it did not."""
    process = start(module, words, environment)
    _, said = process.communicate()
    if process.returncode:
        told = " ".join([f"lpjax.{module}", *words])
        print(f"exit code {process.returncode}: {told}\n{said[-2000:]}", file=sys.stderr, flush=True)
    return process.returncode == 0


# ---------------------------------------------------------------------------------------------------------------- kept


def config_of(folder: Path) -> Config:
    """The configuration of a run, from its workdir, filled in as it would be here.

    Raises:
      ValueError: It has fields or values that there are no more.
    """
    values = json.loads((folder / "config.json").read_text())
    model = values["model"]
    return configure(values | {"model": {"function": model["function"], **model["arguments"]}})


def of_config(folder: Path, config: Config) -> bool:
    """Whether the folder's config.json is of this configuration, in what decides a run."""
    if not (folder / "config.json").exists():
        return False
    with contextlib.suppress(ValueError):
        return _deciding(config_of(folder)) == _deciding(config)
    return False


def _deciding(config: Config) -> Config:
    """The configuration with all that does not decide a run at its default."""
    data = dataclasses.replace(config.data, **{name: getattr(DataConfig(), name) for name in DATA_ELSEWHERE})
    return dataclasses.replace(config, data=data, **{name: getattr(Config(), name) for name in ELSEWHERE})


def finished(folder: Path, config: Config) -> Json | None:
    """result.json of a folder that holds the finished run of a configuration."""
    path = folder / "result.json"
    if not path.exists() or not of_config(folder, config):
        return None
    result = json.loads(path.read_text())
    return result if result["ended"] == "finished" else None


def lines(folder: Path, kind: str) -> list[Json]:
    """Lines of a run's metrics.jsonl of a kind: "train", "eval"."""
    found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["kind"] == kind]


def entry(folder: Path, result: Mapping[str, Any]) -> Json:
    """What a JSON keeps of a finished run.

    Returns:
      accuracy: [(step, accuracy)] of each test.  diagnosis: [(step, cosines, ratios)] of the gradients.
    """
    diagnosed = [line for line in lines(folder, "train") if "gradient_cosine" in line]
    return {name: result.get(name) for name in KEPT} | {
        "seconds_per_step": result["seconds_per_step_median"],
        "accuracy": [[line["step"], line["test_accuracy"]] for line in lines(folder, "eval")],
        "diagnosis": [[line["step"], line["gradient_cosine"], line["gradient_ratio"]] for line in diagnosed],
    }


# --------------------------------------------------------------------------------------------------------------- cells


@dataclass(frozen=True)
class Cell:
    """A run of a table.

    Attributes:
      row: Name of the row.
      stages: K.
      seed: Of the run.
      path: The config file.
      fields: What is set on top of it, as the command line can have it.
      config: The configuration of both, whatever its seed.
      folder: The run's workdir.
    """

    row: str
    stages: int
    seed: int
    path: str
    fields: Json
    config: Config
    folder: Path

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.row}, K = {self.stages}, seed {self.seed}"

    def words(self) -> list[str]:
        """Arguments of `lpjax.main`, but the workdir."""
        return [f"--config={self.path}", *arguments(self.fields), f"--config.seed={self.seed}"]


def cells(path: str, fields: Mapping[tuple[str, int], Json], seeds: Iterable[int], folder: Path) -> list[Cell]:
    """The runs of a table, seed by seed.

    Args:
      path: The config file.
      fields: Of each row and number of stages.
      seeds: Of the runs.
      folder: Of the workdirs.

    Raises:
      BadInput: A configuration is bad.
    """
    told = {key: in_numbers(path, {**own, "num_stages": key[1]}) for key, own in fields.items()}
    configs = {key: load(path, own) for key, own in told.items()}
    return [
        Cell(row, K, seed, path, told[row, K], configs[row, K], folder / f"{row.replace(' ', '_')}-{K}-{seed}")
        for seed in seeds
        for row, K in fields
    ]


def sweep(
    todo: Sequence[Cell], jobs: int, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[Cell, Json | None]]:
    """Train what is not finished; each run as it ends, None for one that failed.

    Args:
      todo: The runs, in order.
      jobs: Runs side by side.
      environment: Of their processes, see `start`.
    """

    def one(cell: Cell) -> Json | None:
        result = finished(cell.folder, cell.config)
        if result is None and call("main", [*cell.words(), f"--workdir={cell.folder}"], environment):
            result = finished(cell.folder, cell.config)
        if result is None:
            return None
        command = " ".join(["python -m lpjax.main", *cell.words()])
        return {"seed": cell.seed, "command": command, **entry(cell.folder, result)}

    with ThreadPoolExecutor(jobs) as pool:
        pending = {pool.submit(one, cell): cell for cell in todo}
        for done in as_completed(pending):
            cell, run = pending[done], done.result()
            print(f"{cell.name}: {'failed' if run is None else format(run['test_accuracy'], '.4f')}", flush=True)
            yield cell, run
