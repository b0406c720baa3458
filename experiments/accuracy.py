"""README's accuracy tables: a search on a validation split, the recipe it led to beside the peers, and its ablation.

    python -m experiments.accuracy search|final|ablation|deep|cifar10|cifar100|digits|CONFIG [--jobs=2] [--seeds=N]
        [--stages=K,..] [--first_seed=N] [--rows="NAME;NAME .."] [--runs=runs/accuracy] [--add]
        [--out=experiments/results/accuracy_TABLE.json] [--config.x=y ...]

The protocol is in docs/method.md, "Protocol", written before the search: `PROTOCOL` here, for Fashion-MNIST.  `search`
tests on the last 10,000 images of the training set and uses seeds from 100 on; the other tables use the test set and
seeds from 0 on.  `cifar10` and `cifar100` are the same protocol on other sets (with --config.data.dir=DIR), `digits` a
set with the recipe of its own config file: no choice was made by these tables.  CONFIG is one of `PAPER`, tables of the
paper's size: with the data, on a GPU,

    python -m experiments.accuracy cifar10_resnet110 --stages=2,3,4,8 --jobs=1 --config.data.dir=DIR

Every run is a process on one core with all stages on one device, which gives the numbers of K devices
(tests/test_oracles.py) but not their time, so no time is told here; `jobs` of them run side by side.  Runs that are
finished are kept, see `experiments.compare`.  With --add rows and seeds join those that the JSON has, which must be of
the same fields; `added` there says by which commands.  Exit code 1 if a run failed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.compare import arguments, entry, finished, load, parsed, row_fields
from experiments.provenance import provenance
from lpjax.config.schema import Config
from lpjax.training.writers import write_json

CONFIG = Path("configs/fashion_mnist_small.py")

PROTOCOL: dict[str, Any] = {
    "data.train_examples": 10_000,
    "num_epochs": 15,
    "eval.every_epochs": 5,
    "eval.calibration_batches": 20,
    "mesh.stage": 1,
}
"""What all runs of all tables share, beside the config file: docs/method.md."""

VALIDATION: dict[str, Any] = {"data.validation_examples": 10_000, "eval.every_epochs": 0}

FINAL: dict[str, Any] = {"eval.every_epochs": 1}
"""So that the table also tells when a method got where: epochs to an accuracy.  Nothing is chosen by it."""

DEEP: dict[str, Any] = {"model.depth": 56}

CIFAR10: dict[str, Any] = {"data.name": "cifar10", "data.crop": 2}
"""Images of 16x16; half of the usual four pixels of padding."""

CIFAR100: dict[str, Any] = CIFAR10 | {"data.name": "cifar100", "data.train_examples": 50_000}
"""All images: the protocol's 10,000 would be a hundred a class."""

GRID: dict[str, Any] = {"aux.grid": 8, "aux.width": 2.0}

NO_FIT: dict[str, Any] = {"penalty.aux": 0.0}
"""Pieces are not fitted to the stages beside them; the last one learns its own cross entropy, as the network's head."""

TAILS_ALONE: dict[str, Any] = NO_FIT | {"aux.task_weight": 0.0}
"""The AuxNet's pieces learn from the tails they are part of, and from nothing else."""

RECIPE: dict[str, Any] = {"method": "coarse_adjoint", "aux.grid": 8}
"""What the search led to."""

COARSER: dict[str, Any] = RECIPE | {"aux.grid": 4}
"""The same with tails on the smallest map of the network: what a grid of 8 is to images of 32x32."""

TIED: dict[str, Any] = RECIPE | {"aux.tied": True}
"""The recipe with tails that end in units of the last stage itself."""


def delayed_from(epoch: float) -> dict[str, Any]:
    """What makes the recipe go on with delayed gradients from an epoch on.

    These are exact but old, which matters less the slower weights move; the tails' are of now but inexact.
    """
    return {"phases.methods": ("coarse_adjoint", "delayed"), "phases.epochs": (epoch,)}


LONGER: dict[str, Any] = RECIPE | delayed_from(10.0) | {"num_epochs": PROTOCOL["num_epochs"] * 6 // 5}
"""The same over a schedule longer by a fifth, for time to an accuracy; in no comparison at equal epochs."""

STANDARDISED: dict[str, Any] = {"standardise": True}
"""The network with a standardisation where it is cut, as methods with generated inputs have it; otherwise it is the one
published, the same for every number of stages."""

BLOCKLESS: dict[str, Any] = {"aux.blocks_per_stage": 0}

NO_BLOCK: dict[str, Any] = RECIPE | BLOCKLESS
"""The same with pieces of one convolution each."""

NARROW: dict[str, Any] = NO_BLOCK | {"aux.width": 0.5}
"""The same of half as many channels, and so of two convolutions, 3x3 and 1x1, with a nonlinearity between."""

SEARCH: dict[str, dict[str, Any]] = {
    "serial": {"method": "serial"},
    "local": {"method": "local"},
    "coarse_tail": {},
    "blocks 2": {"aux.blocks_per_stage": 2},
    "blocks 3": {"aux.blocks_per_stage": 3},
    "grid": {"aux.grid": 8},
    "grid wide": GRID,
    "grid wide, blocks 2": GRID | {"aux.blocks_per_stage": 2},
    "grid wide, blocks 3": GRID | {"aux.blocks_per_stage": 3},
    "matching 0.1": {"aux.adjoint_weight": 0.1},
    "matching 0.3": {"aux.adjoint_weight": 0.3},
    "matching 1": {"aux.adjoint_weight": 1.0},
    "matching 3": {"aux.adjoint_weight": 3.0},
    "matching 1, blocks 2": {"aux.adjoint_weight": 1.0, "aux.blocks_per_stage": 2},
    "matching 1, grid wide": GRID | {"aux.adjoint_weight": 1.0},
    "matching 1, beta 0.01": {"aux.adjoint_weight": 1.0, "penalty.initial": 0.01},
    "matching 1, beta 0.3": {"aux.adjoint_weight": 1.0, "penalty.initial": 0.3},
    "sweeps 1": {"penalty.sweeps": 1},
    "sweeps 3": {"penalty.sweeps": 3},
    "matching 1, sweeps 3": {"aux.adjoint_weight": 1.0, "penalty.sweeps": 3},
    "sweeps 3, tails alone": {"penalty.sweeps": 3, "penalty.initial": 0.0, "aux.correction_step": 0.0},
    "real inputs": {"method": "coarse_adjoint"},
    "real inputs, no fit": {"method": "coarse_adjoint"} | NO_FIT,
    "real inputs, blocks 2": {"method": "coarse_adjoint", "aux.blocks_per_stage": 2},
    "real inputs, grid": {"method": "coarse_adjoint", "aux.grid": 8},
    "real inputs, grid, blocks 2": RECIPE | {"aux.blocks_per_stage": 2},
    "real inputs, grid, blocks 4": RECIPE | {"aux.blocks_per_stage": 4},
    "real inputs, grid, standardised": RECIPE | STANDARDISED,
    "real inputs, grid wide": GRID | {"method": "coarse_adjoint"},
    "real inputs, grid narrow": {"method": "coarse_adjoint", "aux.grid": 8, "aux.width": 0.5},
    "real inputs, grid, tails alone": {"method": "coarse_adjoint", "aux.grid": 8} | TAILS_ALONE,
    "real inputs, grid, no block": NO_BLOCK,
    "real inputs, grid narrow, no block": NARROW,
    "real inputs, grid wide, no block": GRID | {"method": "coarse_adjoint", "aux.blocks_per_stage": 0},
    "real inputs, grid, no block, no fit": NO_BLOCK | NO_FIT,
    "real inputs, grid, no block, tails alone": NO_BLOCK | TAILS_ALONE,
    "real inputs, grid 4, no block": COARSER | BLOCKLESS,
    "real inputs, grid, no block, tail 3": NO_BLOCK | {"aux.tail": 3},
    "real inputs, grid, no block, tail 2": NO_BLOCK | {"aux.tail": 2},
    "real inputs, grid 4": {"method": "coarse_adjoint", "aux.grid": 4},
    "real inputs, grid 2": {"method": "coarse_adjoint", "aux.grid": 2},
    "real inputs, grid 2 wide": {"method": "coarse_adjoint", "aux.grid": 2, "aux.width": 2.0},
    "real inputs, grid 4 narrow": {"method": "coarse_adjoint", "aux.grid": 4, "aux.width": 0.5},
    "real inputs, grid 4, tails alone": {"method": "coarse_adjoint", "aux.grid": 4} | TAILS_ALONE,
    "real inputs, grid 4 narrow, no block": NARROW | {"aux.grid": 4},
    "real inputs, grid 4 narrow, tails alone": {"method": "coarse_adjoint", "aux.grid": 4, "aux.width": 0.5}
    | TAILS_ALONE,
    "real inputs, grid, tail 1": {"method": "coarse_adjoint", "aux.grid": 8, "aux.tail": 1},
    "real inputs, grid narrow, tail 1": {"method": "coarse_adjoint", "aux.grid": 8, "aux.width": 0.5, "aux.tail": 1},
    "real inputs, grid 4, tail 1": {"method": "coarse_adjoint", "aux.grid": 4, "aux.tail": 1},
    "real inputs, grid 4 narrow, tail 1": {"method": "coarse_adjoint", "aux.grid": 4, "aux.width": 0.5, "aux.tail": 1},
    "real inputs, tail 1": {"method": "coarse_adjoint", "aux.tail": 1},
    "real inputs, tail 0": {"method": "coarse_adjoint", "aux.tail": 0},
    "real inputs, grid, tied": TIED,
    "real inputs, grid, AuxNet's rate 0.03": RECIPE | {"aux_optimizer.learning_rate": 0.03},
    "real inputs, grid, AuxNet's rate 0.3": RECIPE | {"aux_optimizer.learning_rate": 0.3},
    "real inputs, grid, AuxNet without decay": RECIPE | {"aux_optimizer.weight_decay": 0.0},
    "sweeps 3, grid, tails alone": {
        "penalty.sweeps": 3,
        "penalty.initial": 0.0,
        "aux.correction_step": 0.0,
        "aux.grid": 8,
    },
    "fdg": {"method": "delayed"},
    **{f"real inputs, grid, delayed from epoch {epoch}": RECIPE | delayed_from(float(epoch)) for epoch in (4, 8, 12)},
    "real inputs, grid, serial from epoch 12": RECIPE
    | {"phases.methods": ("coarse_adjoint", "serial"), "phases.epochs": (12.0,)},
    "serial from epoch 12": {"phases.methods": ("layer_parallel", "serial"), "phases.epochs": (12.0,)},
}
"""Candidates of the search, on top of coarse_tail as configs/fashion_mnist_small.py has it."""

ABLATION: dict[str, dict[str, Any]] = {
    "recipe": RECIPE,
    "pieces not fitted to the stages": RECIPE | NO_FIT,
    "no loss of the AuxNet's own": RECIPE | {"aux.task_weight": 0.0},
    "tails of one piece and the last": RECIPE | {"aux.tail": 1},
    "tails of the last piece": RECIPE | {"aux.tail": 0},
    "no block in a piece": NO_BLOCK,
    "two blocks a piece": RECIPE | {"aux.blocks_per_stage": 2},
    "half the width": RECIPE | {"aux.width": 0.5},
    "grid 4": COARSER,
    "on the stages' maps": {"method": "coarse_adjoint"},
    "standardised": RECIPE | STANDARDISED,
    "inputs from the AuxNet": {},
    "inputs from the AuxNet, three sweeps": {"penalty.sweeps": 3},
    "inputs from the AuxNet, a step stale": {"exchange.stale": True},
    "classifiers of their own": {"method": "local"},
}
"""One thing changed at a time."""

PEERS: dict[str, dict[str, Any]] = {
    name: {n: v for n, v in row_fields(name, 2, PROTOCOL["num_epochs"]).items() if n != "num_stages"}
    for name in ("serial", "local", "fdg", "coarse_tail")
}

FINALS: dict[str, dict[str, Any]] = {
    "serial": PEERS["serial"],
    "serial, standardised": PEERS["serial"] | STANDARDISED,
    "recipe": RECIPE,
    "recipe, standardised": RECIPE | STANDARDISED,
    "recipe, delayed from epoch 8": RECIPE | delayed_from(8.0),
    "recipe, delayed from epoch 10 of 18": LONGER,
    "recipe, tied": TIED,
    "recipe, no block": NO_BLOCK,
    "recipe, grid 4": COARSER,
    **PEERS,
}


@dataclass(frozen=True)
class Table:
    """rows: fields of each by name.  fields: that all of them have.  seeds are counted from first_seed."""

    rows: dict[str, dict[str, Any]]
    fields: dict[str, Any]
    config: Path = CONFIG
    first_seed: int = 0


TABLES = {
    "search": Table(SEARCH, PROTOCOL | VALIDATION, first_seed=100),
    "final": Table(FINALS, PROTOCOL | FINAL),
    "ablation": Table(ABLATION, PROTOCOL | FINAL),
    "deep": Table(FINALS, PROTOCOL | DEEP),
    "cifar10": Table(FINALS, PROTOCOL | FINAL | CIFAR10),
    "cifar100": Table(FINALS, PROTOCOL | FINAL | CIFAR100),
    "digits": Table(
        {"recipe": COARSER, "recipe, no block": COARSER | BLOCKLESS, **PEERS},
        {"mesh.stage": 1, "eval.every_epochs": 0},
        Path("configs/digits.py"),
    ),
}
"""Images of the digits are 8x8, so that half the side of their first maps is 4."""

PAPER = {
    "cifar10_resnet110": 82.0,
    "cifar10_wrn16_4": 100.0,
    "cifar100_wrn28_10": 100.0,
    "cifar100_wrn40_4": 100.0,
    "imagenet_resnet18": 45.0,
    "imagenet_resnet50": 45.0,
}
"""Config files of full-size tables, for whoever has the data, and half the epochs of each.

Rows: the recipe as the file has it, with what gained in long runs here (up to K = 4, and at K = 8), and the peers.
"""

TABLES |= {
    name: Table(
        {
            "recipe": {"method": "coarse_adjoint"},
            "recipe, delayed from the middle": {"method": "coarse_adjoint"} | delayed_from(middle),
            "recipe, tied": {"method": "coarse_adjoint", "aux.tied": True},
            **{peer: FINALS[peer] for peer in ("serial", "local", "fdg")},
        },
        {"mesh.stage": 1},
        Path(f"configs/{name}.py"),
    )
    for name, middle in PAPER.items()
}


Runs = dict[tuple[str, int], dict[int, dict[str, Any]]]
"""By row and number of stages: by seed."""


def trained(command: list[str]) -> bool:
    """Run `python ...` on one core; the end of its stderr is shown where it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"NPROC": "1"}
    done = subprocess.run(
        [sys.executable, *command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        print(f"exit code {done.returncode}: {' '.join(command)}\n{done.stderr[-2000:]}", file=sys.stderr, flush=True)
    return done.returncode == 0


def summary(row: str, num_stages: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of the JSON."""
    accuracies = [run["test_accuracy"] for run in runs]
    return {
        "row": row,
        "stages": num_stages,
        "n": len(runs),
        "accuracy_mean": statistics.mean(accuracies),
        "accuracy_std": statistics.stdev(accuracies) if len(runs) > 1 else None,
        "runs": runs,
    }


def row_of(rows: list[dict[str, Any]], name: str, num_stages: int) -> dict[str, Any] | None:
    """A row of the JSON.  Backprop's of the network as published, which is the same for every number of stages, may be
    that of another one."""
    named = {row["stages"]: row for row in rows if row["row"] == name}
    return named.get(num_stages) or (next(iter(named.values()), None) if name == "serial" else None)


def markdown(rows: list[dict[str, Any]]) -> str:
    """A line a row, a column a number of stages: accuracy in %, mean ± std (n)."""
    stages = sorted({row["stages"] for row in rows})
    lines = ["| | " + " | ".join(f"K = {K}" for K in stages) + " |", "|---" * (1 + len(stages)) + "|"]
    for name in dict.fromkeys(row["row"] for row in rows):
        cells = []
        for K in stages:
            row = row_of(rows, name, K)
            if row is None:
                cells.append("")
                continue
            spread = "" if row["accuracy_std"] is None else f" ± {100 * row['accuracy_std']:.2f}"
            cells.append(f"{100 * row['accuracy_mean']:.2f}{spread} ({row['n']})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def joined(header: dict[str, Any], old: dict[str, Any]) -> tuple[dict[str, Any], Runs]:
    """The header of a JSON to which runs are added, and the runs that it has.

    Raises ValueError where these are of another configuration.
    """
    header = json.loads(json.dumps(header))  # tuples become lists, as in the file
    for what in ("config", "fields"):
        if header[what] != old[what]:
            raise ValueError(f"--add: {what} {header[what]}: expected {old[what]}, as the runs have that are there")
    for row, fields in header["by_row"].items():
        if old["by_row"].get(row, fields) != fields:
            raise ValueError(f"--add: row {row!r} is {fields}: expected {old['by_row'][row]}, as its runs there are")
    runs = {(row["row"], row["stages"]): {run["seed"]: run for run in row["runs"]} for row in old["rows"]}
    added = {name: header[name] for name in ("command", "date", "commit", "hardware", "versions")}
    kept = {name: value for name, value in old.items() if name not in ("rows", "failed")}
    return kept | {"by_row": old["by_row"] | header["by_row"], "added": [*old.get("added", []), added]}, runs


def command_line() -> argparse.ArgumentParser:
    """Its options, but those of a run's configuration."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first_seed", type=int, help="counted from here, not from the table's own")
    parser.add_argument("--stages", default="4", help="numbers of stages K")
    parser.add_argument("--rows", help="only these, separated by semicolons")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="folder of the runs' workdirs")
    parser.add_argument("--add", action="store_true", help="to what the JSON has")
    parser.add_argument("--out", type=Path)
    return parser


def main(argv: list[str]) -> int:
    args, extra = command_line().parse_known_args(argv)
    out = args.out or Path(f"experiments/results/accuracy_{args.table}.json")
    table = TABLES[args.table]
    rows = table.rows
    first_seed = table.first_seed if args.first_seed is None else args.first_seed
    try:
        if args.rows:
            rows = {name: rows[name] for name in args.rows.split(";")}
        shared = table.fields | parsed(extra)
        cells: dict[tuple[str, int], dict[str, Any]] = {
            (name, K): {**shared, **fields, "num_stages": K}
            for K in map(int, args.stages.split(","))
            for name, fields in rows.items()
        }
        configs = {cell: load(table.config, fields) for cell, fields in cells.items()}
        header = {
            **provenance("experiments.accuracy", argv),
            "config": str(table.config),
            "fields": shared,
            "by_row": rows,
        }
        runs: Runs = {}
        if args.add:
            header, runs = joined(header, json.loads(out.read_text()))
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 2
    for cell in cells:
        runs.setdefault(cell, {})
    names = [*table.rows, *header["by_row"]]  # the JSON may have rows that the table has no longer
    failed: list[str] = []

    def one(cell: tuple[str, int], seed: int, config: Config) -> None:
        (row, K), fields = cell, cells[cell]
        folder = args.runs / args.table / f"{row.replace(' ', '_')}-{K}-{seed}"
        command = ["-m", "lpjax.main", f"--config={table.config}", *arguments(fields), f"--config.seed={seed}"]
        result = finished(folder, config)
        if result is None and trained([*command, f"--workdir={folder}"]):
            result = finished(folder, config)
        if result is None:
            failed.append(f"{row}, K = {K}, seed {seed}")
            return
        runs[cell][seed] = {"seed": seed, "command": " ".join(["python", *command]), **entry(folder, result, 1.0)}
        print(f"{row}, K = {K}, seed {seed}: {result['test_accuracy']:.4f}", flush=True)
        write()

    writing = threading.Lock()

    def write() -> list[dict[str, Any]]:
        with writing:  # a thread a job calls this
            order = sorted(runs, key=lambda cell: (cell[1], names.index(cell[0])))
            made = [
                summary(row, K, [run for _, run in sorted(runs[row, K].items())]) for row, K in order if runs[row, K]
            ]
            write_json(out, header | {"failed": failed, "rows": made})
            return made

    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [
            pool.submit(one, cell, seed, configs[cell])
            for seed in range(first_seed, first_seed + args.seeds)
            for cell in cells
        ]
        for job in jobs:
            job.result()
    print(markdown(write()))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
