"""Training runs: started as a user would, kept when they are finished, gone on with when they are not."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from experiments.harness.experiment import Json
from experiments.harness.rows import in_numbers, load
from lpjax.config.schema import Config, DataConfig
from lpjax.methods import configure

ONE_CORE = {"NPROC": "1"}  # environment of a process that computes on one CPU core

ELSEWHERE = ("checkpoint", "dry_run", "mesh", "recovery", "seed", "start", "watch")
DATA_ELSEWHERE = ("dir", "max_corrupt", "prefetch", "threads")
"""Fields that do not decide what a run shows (the folder's name has the seed)."""

KEPT = ("test_accuracy", "test_loss", "aux_path_accuracy", "steps", "seconds_total", "relative_violation", "device")


def arguments(fields: Mapping[str, Any]) -> list[str]:
    """Fields as arguments of lpjax's commands."""
    return [f"--config.{name}={value}" for name, value in fields.items()]


def start(
    module: str, words: Sequence[str], environment: Mapping[str, str] | None = None, log: Path | None = None
) -> subprocess.Popen[str]:
    """Start a command of lpjax, such as "main", which makes the devices that it needs itself.

    What it says goes to the file `log`; without one stderr is a pipe, and stdout goes nowhere.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command, environment = [sys.executable, "-m", f"lpjax.{module}", *words], inherited | dict(environment or {})
    if log:
        with log.open("w") as said:
            return subprocess.Popen(command, env=environment, text=True, stdout=said, stderr=subprocess.STDOUT)
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def call(module: str, words: Sequence[str], environment: Mapping[str, str] | None = None) -> bool:
    """Run a command of lpjax; whether it ended well.  The end of its stderr is shown where it did not."""
    process = start(module, words, environment)
    _, said = process.communicate()
    if process.returncode:
        told = " ".join([f"exit code {process.returncode}: lpjax.{module}", *words])
        print(f"{told}\n{said[-2000:]}", file=sys.stderr, flush=True)
    return process.returncode == 0


def of_config(folder: Path, config: Config) -> bool:
    """Whether the folder's config.json is of this configuration, in what decides a run."""

    def deciding(config: Config) -> Config:
        data = replace(config.data, **{name: getattr(DataConfig(), name) for name in DATA_ELSEWHERE})
        return replace(config, data=data, **{name: getattr(Config(), name) for name in ELSEWHERE})

    with contextlib.suppress(ValueError, FileNotFoundError):  # it may have fields that there are no more
        values = json.loads((folder / "config.json").read_text())
        values["model"] |= values["model"].pop("arguments")
        return deciding(configure(values)) == deciding(config)
    return False


def finished(folder: Path, config: Config) -> Json | None:
    """result.json of a folder that holds the finished run of a configuration."""
    path = folder / "result.json"
    result = json.loads(path.read_text()) if path.exists() and of_config(folder, config) else {"ended": ""}
    return result if result["ended"] == "finished" else None


def lines(folder: Path, kind: str | None = None) -> list[Json]:
    """Lines of a run's metrics.jsonl, of a kind ("train", "eval") if one is given."""
    found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if kind in (None, line["kind"])]


def entry(folder: Path, result: Mapping[str, Any]) -> Json:
    """What a JSON keeps of a finished run; of each test and diagnosis the step and values."""
    diagnosed = [line for line in lines(folder, "train") if "gradient_cosine" in line]
    return {name: result.get(name) for name in KEPT} | {
        "seconds_per_step": result["seconds_per_step_median"],
        "accuracy": [[line["step"], line["test_accuracy"]] for line in lines(folder, "eval")],
        "diagnosis": [[line["step"], line["gradient_cosine"], line["gradient_ratio"]] for line in diagnosed],
    }


class Cell(NamedTuple):
    """A run of a table: arguments are of `lpjax.main`, the configuration is that of any seed."""

    name: str
    row: str
    stages: int
    seed: int
    words: list[str]
    config: Config
    folder: Path


def cells(made: Json, rows: Mapping[str, Json], stages: str, seeds: Iterable[int], runs: Path) -> list[Cell]:
    """The runs of a JSON's config file and fields, by the fields of its rows, seed by seed."""
    path, found = made["config"], []
    for K, (row, fields) in itertools.product(map(int, stages.split(",")), rows.items()):
        told = in_numbers(path, {**made["fields"], **fields, "num_stages": K})
        found.append((row, K, [f"--config={path}", *arguments(told)], load(path, told)))
    todo = []
    for seed, (row, K, words, config) in itertools.product(seeds, found):
        name, folder = f"{row}, K = {K}, seed {seed}", runs / f"{row.replace(' ', '_')}-{K}-{seed}"
        todo.append(Cell(name, row, K, seed, [*words, f"--config.seed={seed}"], config, folder))
    return todo


def sweep(
    todo: Sequence[Cell], jobs: int, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[Cell, Json | None]]:
    """Train what is not finished, `jobs` runs side by side; each run as it ends, None for one that failed."""

    def one(cell: Cell) -> Json | None:
        result = finished(cell.folder, cell.config)
        if result is None and call("main", [*cell.words, f"--workdir={cell.folder}"], environment):
            result = finished(cell.folder, cell.config)
        told = {"seed": cell.seed, "command": " ".join(["python -m lpjax.main", *cell.words])}
        return None if result is None else told | entry(cell.folder, result)

    with ThreadPoolExecutor(jobs) as pool:
        pending = {pool.submit(one, cell): cell for cell in todo}
        for done in as_completed(pending):
            cell, run = pending[done], done.result()
            print(f"{cell.name}: {'failed' if run is None else format(run['test_accuracy'], '.4f')}", flush=True)
            yield cell, run
