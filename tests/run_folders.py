"""Folders as runs leave them, without the training: figures are made up, the cut is a network's own."""

import functools
import json
import math
from collections import Counter
from pathlib import Path

from helpers import small_config

from lpjax.config.schema import Config
from lpjax.data import SOURCES
from lpjax.methods import METHODS
from lpjax.training import run as runs
from lpjax.training import summary

K = 4
SECONDS = {"stage forward": 0.01, "stage backward": 0.02, "aux forward": 0.004, "aux backward": 0.008}
"""Of an entry of the schedule; both passes of a stage's tail together take 0.03."""


@functools.cache
def described(method: str) -> str:
    """structure.json of the small network."""
    config = small_config(method=method)
    return json.dumps(summary.describe(runs.build_network(config, SOURCES["digits"].describe(config.data)), config))


def train_line(step: int, **fields) -> dict:
    fall = math.exp(-step / 50) * (1 + 0.1 * math.sin(step))
    figures = {
        "accuracy": 1 - 0.9 * fall,
        "task_loss": 2.3 * fall,
        "aux_task_loss": 2.2 * fall,
        "stage_loss": [2.4 * fall + 0.1 * k for k in range(K)],
        "gradient_norm": [fall * (k + 1) for k in range(K)],
        "relative_violation": [fall / (j + 1) for j in range(K - 1)],
        "multiplier_norm": [0.1 * (j + 1) * (1 - fall) for j in range(K - 1)],
        "penalty_coef": 0.1 * (1 + step),
        "data_seconds": 0.001 * (1 + step % 3),
        "seconds": 5 + 0.1 * step,
    }
    if step % 20 == 0:
        figures |= {"gradient_cosine": [1 - fall / (k + 1) for k in range(K)], "gradient_ratio": [1 + fall] * K}
    return {"kind": "train", "step": step, "epoch": step / 25, **figures, **fields}


def eval_line(step: int) -> dict:
    rise = 1 - math.exp(-step / 60)
    accuracies = {"test_accuracy": rise, "aux_path_accuracy": 0.98 * rise, "aux_head_accuracy": 0.95 * rise}
    return {
        "kind": "eval",
        "step": step,
        "epoch": step / 25,
        **accuracies,
        "test_loss": 2.3 - rise,
        "seconds": 5.05 + 0.1 * step,
    }


def write_lines(folder: Path, lines: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_json(folder: Path, **files) -> None:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))


def seconds_of(phase: dict) -> list[float]:
    """`SECONDS` for the entries of a schedule; what is beside a stage shares 0.03."""
    rows = phase["schedule"]
    beside = Counter(row["stage"] for row in rows if row.get("label", "").split()[0:1] in (["tail"], ["classifier"]))
    return [
        0.03 / beside[row["stage"]]
        if row.get("label", "").split()[0:1] in (["tail"], ["classifier"])
        else SECONDS.get(row.get("label"), 0.0)
        for row in rows
    ]


def result(config: Config, steps: int) -> dict:
    return {
        "ended": "finished",
        "method": config.method,
        "settings": METHODS[config.method].settings(config),
        "num_stages": K,
        "mesh": {"stage": K, "data": 1},
        "seed": config.seed,
        "steps": steps,
        "test_accuracy": 0.9,
        "aux_path_accuracy": 0.95,
        "seconds_total": 30.0,
        "seconds_per_step_median": 0.1,
        "data_seconds_median": 0.002,
        "versions": {"python": "3.11.7", "lpjax": "0.1.0", "jax": "0.10.2"},
        "device": "4 x cpu",
    }


def finished(folder: Path, steps: int = 100, method: str = "layer_parallel", **fields) -> Path:
    """A run that came to its end, with seconds of its parts."""
    lines = [
        line for step in range(1, steps + 1) for line in [train_line(step), *([eval_line(step)] * (step % 25 == 0))]
    ]
    write_lines(folder, lines)
    values = {"method": method, "num_stages": K, "seed": 0, "optimizer": {"learning_rate": 0.1, "name": "sgd"}} | fields
    made = json.loads(described(method))
    phases = [{"method": phase["method"], "seconds": seconds_of(phase)} for phase in made["phases"]]
    seconds = {name: made[name] for name in ("mesh", "examples", "cuts")} | {"phases": phases, "device": "4 x cpu"}
    write_json(
        folder, config=values, result=result(small_config(method=method), steps), structure=made, seconds=seconds
    )
    return folder
