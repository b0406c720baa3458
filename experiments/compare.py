"""README's comparison: methods beside backprop on one network and set; accuracy, time, memory and traffic.

    python -m experiments.compare --config=configs/fashion_mnist_small.py --methods=serial,data_parallel,pipeline,ddg
        --stages=2,4 --seeds=3 [--target=0.8] [--diagnose=50] [--devices=N] [--runs=runs/compare] [--config.x=y ...]

Writes experiments/results/compare.json, or --out, after every run, and at the end two figures beside it.

A row is a name of `ROWS` or a method.  Each (row, K, seed) is a training process of its own, one after the other, the
rows taking turns within K within seed; its workdir is RUNS/row-K-seed.  A finished one of the same configuration is
kept, whatever commit made it: delete the folder to make it again.  A killed one goes on.  Each (row, K) has a dry run
too, for what a step costs a device (`lpjax.cost.traffic`; of a hybrid, its first phase).  Exit code 1 if a run failed.
"""

import argparse
import ast
import contextlib
import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.provenance import provenance
from lpjax.config.schema import Config, DataConfig
from lpjax.methods import METHODS, configure
from lpjax.training.writers import write_json

ROWS: dict[str, dict[str, Any]] = {
    "serial": {"method": "serial"},
    "data_parallel": {"method": "data_parallel"},
    "pipeline": {"method": "pipeline"},
    "ddg": {"method": "delayed", "delayed.variant": "ddg"},
    "fdg": {"method": "delayed", "delayed.variant": "fdg"},
    "local": {"method": "local"},
    "coarse_adjoint": {"method": "coarse_adjoint"},
    "coarse_adjoint_grid_16": {"method": "coarse_adjoint", "aux.grid": 16},
    "coarse_adjoint_grid_16_no_block": {"method": "coarse_adjoint", "aux.grid": 16, "aux.blocks_per_stage": 0},
    "coarse_adjoint_grid_16_narrow": {
        "method": "coarse_adjoint",
        "aux.grid": 16,
        "aux.blocks_per_stage": 0,
        "aux.width": 0.5,
    },
    "coarse_adjoint_grid": {"method": "coarse_adjoint", "aux.grid": 8},
    "coarse_adjoint_grid_no_block": {"method": "coarse_adjoint", "aux.grid": 8, "aux.blocks_per_stage": 0},
    "coarse_adjoint_grid_no_fit": {
        "method": "coarse_adjoint",
        "aux.grid": 8,
        "aux.blocks_per_stage": 0,
        "penalty.aux": 0.0,
    },
    "penalty": {"method": "layer_parallel", "multiplier": "none"},
    "coarse_tail": {"method": "layer_parallel", "multiplier": "coarse_tail"},
    "adjoint": {"method": "layer_parallel", "multiplier": "adjoint"},
    "tail_1": {"method": "layer_parallel", "multiplier": "coarse_tail", "aux.tail": 1},
    "tail_0": {"method": "layer_parallel", "multiplier": "coarse_tail", "aux.tail": 0},
    "grid": {"method": "layer_parallel", "multiplier": "coarse_tail", "aux.grid": 8},
    "grid_bfloat16": {
        "method": "layer_parallel",
        "multiplier": "coarse_tail",
        "aux.grid": 8,
        "exchange.bfloat16": True,
    },
    "grid_wide": {"method": "layer_parallel", "multiplier": "coarse_tail", "aux.grid": 8, "aux.width": 2.0},
    "narrow": {"method": "layer_parallel", "multiplier": "coarse_tail", "aux.width": 0.5},
    "stale": {"method": "layer_parallel", "multiplier": "coarse_tail", "exchange.stale": True},
    "bfloat16_exchange": {"method": "layer_parallel", "multiplier": "coarse_tail", "exchange.bfloat16": True},
    "hybrid": {"method": "layer_parallel", "phases.methods": ("layer_parallel", "serial")},
}
"""Rows of the table: fields of the configuration."""

HYBRID_SHARE = 0.8
"""Of the epochs, that a hybrid's first phase takes."""

ELSEWHERE = ("checkpoint", "dry_run", "mesh", "recovery", "seed", "start", "watch")
DATA_ELSEWHERE = ("dir", "max_corrupt", "prefetch", "threads")
"""Fields that do not decide what a cell shows (the folder's name has the seed)."""

KEPT = ("test_accuracy", "test_loss", "aux_path_accuracy", "steps", "seconds_total", "relative_violation", "device")


# ------------------------------------------------------------------------------------------------------ configuration


def parsed(extra: list[str]) -> dict[str, Any]:
    """Fields from arguments `--config.field=value`; raises ValueError for others."""
    fields = {}
    for argument in extra:
        name, equals, text = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config.") or not equals:
            raise ValueError(f"{argument}: expected --config.field=value; see --help for the options")
        try:
            fields[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            fields[name] = text
    return fields


def load(path: Path, fields: Mapping[str, Any]) -> Config:
    """The configuration of a config file with some fields set, filled in and checked."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    values = module.get_config()
    values.update_from_flattened_dict(dict(fields))
    return configure(values.to_dict())


def row_fields(row: str, num_stages: int, num_epochs: int, devices: int | None = None) -> dict[str, Any]:
    """Fields of a row with K stages.

    Rows of `ROWS` with an AuxNet have the grid that they name, or none, whatever the config file has.

    Args:
      row: Its name.
      num_stages: K.
      num_epochs: Of a run.
      devices: Along 'stage' of a method that uses several; unset: as many as it does.

    Raises:
      ValueError: There is no such row.
    """
    if row not in ROWS and row not in METHODS:
        raise ValueError(
            f"--methods: {row!r}: expected of {', '.join([*ROWS, *(m for m in METHODS if m not in ROWS)])}"
        )
    fields = {**ROWS.get(row, {"method": row}), "num_stages": num_stages}
    if row in ROWS and METHODS[fields["method"]].aux_net != "none":
        fields = {"aux.grid": None, **fields}
    if "phases.methods" in fields:
        fields["phases.epochs"] = (HYBRID_SHARE * num_epochs,)
    if devices is not None and METHODS[fields["method"]].devices != "one":
        fields["mesh.stage"] = devices
    return fields


def arguments(fields: Mapping[str, Any]) -> list[str]:
    """Fields as arguments of `lpjax.main`, which cannot be told to unset one (see `main`)."""
    return [f"--config.{name}={value}" for name, value in fields.items() if value is not None]


# --------------------------------------------------------------------------------------------------------------- cells


def config_of(folder: Path) -> Config:
    """The configuration of a run, from its workdir, filled in as it would be here.

    Raises:
      ValueError: It has fields or values that there are no more.
    """
    values = json.loads((folder / "config.json").read_text())
    model = values["model"]
    return configure(values | {"model": {"function": model["function"], **model["arguments"]}})


def of_config(folder: Path, config: Config) -> bool:
    """Whether the folder's config.json is of this configuration, in what decides a cell."""
    if not (folder / "config.json").exists():
        return False
    with contextlib.suppress(ValueError):
        return _deciding(config_of(folder)) == _deciding(config)
    return False


def _deciding(config: Config) -> Config:
    """The configuration with all that does not decide a cell at its default."""
    data = dataclasses.replace(config.data, **{name: getattr(DataConfig(), name) for name in DATA_ELSEWHERE})
    return dataclasses.replace(config, data=data, **{name: getattr(Config(), name) for name in ELSEWHERE})


def finished(folder: Path, config: Config) -> dict[str, Any] | None:
    """result.json of a folder that holds the finished run of a configuration."""
    path = folder / "result.json"
    if not path.exists() or not of_config(folder, config):
        return None
    result = json.loads(path.read_text())
    return result if result["ended"] == "finished" else None


def call(command: list[str]) -> bool:
    """Run `python ...`; the end of its stderr is shown where it fails.  It makes the devices it needs itself."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, *command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-15:])
        print(f"exit code {done.returncode}: python {' '.join(command)}\n{tail}", file=sys.stderr, flush=True)
    return done.returncode == 0


def seconds_to_target(accuracy: list[list[float]], target: float, seconds_per_step: float | None) -> float | None:
    """Training seconds to the first test of at least `target`, of a curve [(step, accuracy)]; None if there is none."""
    steps = [step for step, value in accuracy if value >= target]
    return steps[0] * seconds_per_step if steps and seconds_per_step is not None else None


def entry(folder: Path, result: Mapping[str, Any], target: float) -> dict[str, Any]:
    """What the JSON keeps of a finished run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    accuracy = [[line["step"], line["test_accuracy"]] for line in lines if line["kind"] == "eval"]
    diagnosis = [
        [line["step"], line["gradient_cosine"], line["gradient_ratio"]]
        for line in lines
        if line["kind"] == "train" and "gradient_cosine" in line
    ]
    per_step = result["seconds_per_step_median"]
    return {name: result.get(name) for name in KEPT} | {
        "seconds_per_step": per_step,
        "seconds_to_target": seconds_to_target(accuracy, target, per_step),
        "accuracy": accuracy,
        "diagnosis": diagnosis,
    }


# ---------------------------------------------------------------------------------------------------------------- rows


def summarise(
    row: str, num_stages: int, runs: list[dict[str, Any]], cost: Mapping[str, Any] | None, target: float
) -> dict[str, Any]:
    """A row of the JSON, but for its speed against serial."""
    accuracies = [run["test_accuracy"] for run in runs]
    seconds = [run["seconds_per_step"] for run in runs if run["seconds_per_step"] is not None]
    reached = [run["seconds_to_target"] for run in runs]
    cost = cost or {}
    return {
        "row": row,
        "stages": num_stages,
        "n": len(runs),
        "test_accuracy_mean": statistics.mean(accuracies) if runs else None,
        "test_accuracy_std": statistics.stdev(accuracies) if len(runs) > 1 else None,
        "seconds_per_step": statistics.median(seconds) if seconds else None,
        "seconds_per_step_min": min(seconds, default=None),
        "seconds_per_step_max": max(seconds, default=None),
        "speedup": None,
        "target": target,
        "seconds_to_target": statistics.mean(reached) if runs and None not in reached else None,
        "held_bytes": cost.get("held_bytes"),
        "temporary_bytes": cost.get("temporary_bytes"),
        "exchanged_bytes": cost.get("exchanged_bytes_total"),
        "exchanged_bytes_by_kind": cost.get("exchanged_bytes"),
        "runs": runs,
    }


def with_speedup(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with serial's seconds per step over their own, of the same K."""
    serial = {row["stages"]: row["seconds_per_step"] for row in rows if row["row"] == "serial"}

    def speedup(row: dict[str, Any]) -> float | None:
        base, own = serial.get(row["stages"]), row["seconds_per_step"]
        return base / own if base and own else None

    return [row | {"speedup": speedup(row)} for row in rows]


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of the README."""
    target = rows[0]["target"] if rows else 0.0
    lines = [
        "| K | method | test accuracy, %, mean ± std (n) | s/step | speed against serial "
        f"| s to {100 * target:g} % | MB a device | MB sent a step |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    for row in rows:
        mean, std = row["test_accuracy_mean"], row["test_accuracy_std"]
        accuracy = "" if mean is None else f"{100 * mean:.2f}" + ("" if std is None else f" ± {100 * std:.2f}") + " "
        held = None if row["held_bytes"] is None else (row["held_bytes"] + row["temporary_bytes"]) / 1e6
        sent = None if row["exchanged_bytes"] is None else row["exchanged_bytes"] / 1e6
        lines.append(
            f"| {row['stages']} | {row['row']} | {accuracy}({row['n']}) | {shown(row['seconds_per_step'], '.3f')} "
            f"| {shown(row['speedup'], '.2f')} | {shown(row['seconds_to_target'], '.0f')} | {shown(held, '.1f')} "
            f"| {shown(sent, '.2f')} |"
        )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------- figures

Curve = tuple[list[int], list[list[float]]]


def over_seeds(curves: list[list[list[float]]]) -> Curve:
    """Steps that all of several curves [(step, value)] have, and the values there, one list a step."""
    tables_ = [{int(step): value for step, value in curve} for curve in curves]
    steps = sorted(set.intersection(*map(set, tables_))) if tables_ else []
    return steps, [[table[step] for table in tables_] for step in steps]


def accuracy_curve(row: dict[str, Any]) -> Curve:
    return over_seeds([run["accuracy"] for run in row["runs"]])


def cosine_curve(row: dict[str, Any]) -> Curve:
    """Mean over the stages."""
    return over_seeds(
        [
            [[step, statistics.mean(cosine)] for step, cosine, _ in run["diagnosis"]]
            for run in row["runs"]
            if run["diagnosis"]
        ]
    )


def draw(rows: list[dict[str, Any]], path: Path, kind: str) -> None:
    """A panel per K; a line, with a band from least to most over the seeds, per row.  kind: "accuracy" or "cosine"."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    stages = sorted({row["stages"] for row in rows})
    names = list(dict.fromkeys(row["row"] for row in rows))
    markers = "osD^vPX*<>"
    with plt.rc_context({"svg.hashsalt": "lpjax", "svg.fonttype": "none"}):
        figure, axes = plt.subplots(
            1, len(stages), figsize=(1.5 + 5 * len(stages), 4), sharey=True, squeeze=False, layout="constrained"
        )
        lines: dict[str, Any] = {}
        for axis, K in zip(axes[0], stages, strict=True):
            for row in (row for row in rows if row["stages"] == K):
                number = names.index(row["row"])
                steps, values = accuracy_curve(row) if kind == "accuracy" else cosine_curve(row)
                if not steps or (kind == "accuracy" and row["seconds_per_step"] is None):
                    continue
                scale = row["seconds_per_step"] if kind == "accuracy" else 1
                x = [step * scale for step in steps]
                dashes = ("-", "--", ":", "-.")[number % 4]
                (line,) = axis.plot(
                    x,
                    [statistics.mean(v) for v in values],
                    color=f"C{number % 10}",
                    marker=markers[number % len(markers)],
                    linestyle=dashes,
                    markevery=max(1, len(x) // 10),
                    markersize=5,
                )
                axis.fill_between(
                    x, [min(v) for v in values], [max(v) for v in values], color=f"C{number % 10}", alpha=0.15
                )
                lines.setdefault(row["row"], line)
            axis.set_title(f"K = {K}")
            axis.set_xlabel("training seconds" if kind == "accuracy" else "step")
            axis.grid(alpha=0.3)
        axes[0][0].set_ylabel("test accuracy" if kind == "accuracy" else "cosine with backprop's gradient")
        figure.legend(list(lines.values()), list(lines), loc="outside right upper")
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


# ---------------------------------------------------------------------------------------------------------------- main


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", type=Path, default=Path("configs/fashion_mnist_small.py"))
    parser.add_argument("--methods", default="serial,data_parallel,pipeline,ddg,fdg,local,penalty,coarse_tail")
    parser.add_argument("--stages", default="2,4", help="numbers of stages K")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"), help="folder of the runs' workdirs")
    parser.add_argument("--target", type=float, default=0.8, help="test accuracy to which the time is told")
    parser.add_argument("--diagnose", type=int, default=0, help="steps between comparisons with backprop's gradient")
    parser.add_argument("--devices", type=int, help="along 'stage', for methods that use several; K if not given")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/compare.json"))
    args, extra = parser.parse_known_args(argv)
    names, stages = args.methods.split(","), [int(K) for K in args.stages.split(",")]
    pairs = [(K, row) for K in stages for row in names]
    try:
        own = parsed(extra)
        epochs = load(args.config, own).num_epochs
        # The command line's own fields come first: a row's are what makes it that row.
        fields = {
            pair: own | row_fields(pair[1], pair[0], epochs, args.devices) | {"diagnose_every": args.diagnose}
            for pair in pairs
        }
        configs = {pair: load(args.config, fields[pair]) for pair in pairs}
        for (K, row), config in configs.items():
            told = {name: value for name, value in fields[K, row].items() if value is not None}
            if load(args.config, told) != config:
                raise ValueError(
                    f"{args.config}: has aux.grid, which row {row} is without: expected a config file that leaves it "
                    f"unset; choose rows on a grid, or another file"
                )
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2

    runs: dict[tuple[int, str], list[dict[str, Any]]] = {pair: [] for pair in pairs}
    costs: dict[tuple[int, str], dict[str, Any] | None] = dict.fromkeys(pairs)
    header = {
        **provenance("experiments.compare", argv),
        "config": str(args.config),
        "overrides": own,
    }

    def write() -> list[dict[str, Any]]:
        rows = with_speedup([summarise(row, K, runs[K, row], costs[K, row], args.target) for K, row in pairs])
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, header | {"rows": rows})
        return rows

    failures = 0
    base = ["-m", "lpjax.main", f"--config={args.config}"]
    for pair in pairs:
        K, row = pair
        folder = args.runs / f"{row}-{K}-cost"
        path = folder / "cost.json"
        if not (path.exists() and of_config(folder, configs[pair])):
            dry = [*base, *arguments(fields[pair]), "--config.dry_run=True", f"--workdir={folder}"]
            if not call(dry):
                failures += 1
                continue
            write_json(folder / "config.json", dataclasses.asdict(configs[pair]))
        costs[pair] = json.loads(path.read_text())
    for seed in range(args.seeds):
        for pair in pairs:
            K, row = pair
            folder = args.runs / f"{row}-{K}-{seed}"
            command = [*base, *arguments(fields[pair]), f"--config.seed={seed}"]
            result = finished(folder, configs[pair])
            if result is None and call([*command, f"--workdir={folder}"]):
                result = finished(folder, configs[pair])
            if result is None:
                failures += 1
                print(f"{row}, K = {K}, seed {seed}: failed", flush=True)
            else:
                told = {"seed": seed, "command": " ".join(["python", *command])}
                runs[pair].append(told | entry(folder, result, args.target))
                print(f"{row}, K = {K}, seed {seed}: {result['test_accuracy']:.4f}", flush=True)
            write()
    rows = write()
    draw(rows, args.out.with_name(f"{args.out.stem}_accuracy.svg"), "accuracy")
    draw(rows, args.out.with_name(f"{args.out.stem}_cosine.svg"), "cosine")
    print(markdown(rows))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
