"""What batch-norm statistics do to a test: those of batches as in training against those of images as they are.

    python -m experiments.recalibration [--accuracy=experiments/results/accuracy_cifar10_all.json]
        [--runs=runs/all/cifar10] [--seeds=3] [--out=experiments/results/recalibration.json]

Tests finished runs of `experiments.accuracy` (their workdirs in --runs) once more, both ways: the same weights, the
same test images.  A run takes some seconds.
"""

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.accuracy import folder_of
from experiments.compare import load
from experiments.provenance import provenance
from lpjax import evaluate, resume
from lpjax.config import Config
from lpjax.metrics import write_json
from lpjax.runs import prepare


def tested(config: Config, workdir: Path) -> dict[str, float]:
    """Test accuracies of a run's last checkpoint, by where the statistics are from."""
    run = prepare(config)
    plain = prepare(replace(config, data=replace(config.data, crop=0, flip=False, cutout=0)))
    assert run.feed is not None
    state, _, _ = resume.load(run, workdir)
    return {
        name: evaluate.make_evaluate(run.network, config, run.mesh, recipe)(state, run.feed).test_accuracy
        for name, recipe in (("as in training", run.recipe), ("as they are", plain.recipe))
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """A line a row: accuracy in %, mean ± std over the seeds."""
    lines = ["| | K | as in training | images as they are | loss by these, seed by seed |", "|---" * 5 + "|"]
    for row in rows:
        both = [[100 * run[name] for run in row["runs"]] for name in ("as in training", "as they are")]
        cells = [f"{statistics.mean(a):.2f}" + (f" ± {statistics.stdev(a):.2f}" if len(a) > 1 else "") for a in both]
        losses = ", ".join(f"{a - b:.1f}" for a, b in zip(*both, strict=True))
        lines.append(f"| {row['row']} | {row['stages']} | {cells[0]} | {cells[1]} | {losses} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accuracy", type=Path, default=Path("experiments/results/accuracy_cifar10_all.json"))
    parser.add_argument("--runs", type=Path, default=Path("runs/all/cifar10"))
    parser.add_argument("--seeds", type=int, default=3, help="of a row, at most")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/recalibration.json"))
    args = parser.parse_args()
    table = json.loads(args.accuracy.read_text())
    made: list[dict[str, Any]] = []
    for row in table["rows"]:
        fields = {**table["fields"], **table["by_row"][row["row"]], "num_stages": row["stages"]}
        runs = []
        for run in row["runs"][: args.seeds]:
            workdir = args.runs / folder_of(row["row"], row["stages"], run["seed"])
            if workdir.exists():
                config = load(Path(table["config"]), {**fields, "seed": run["seed"]})
                runs.append({"seed": run["seed"], **tested(config, workdir)})
        if runs:
            made.append({"row": row["row"], "stages": row["stages"], "n": len(runs), "runs": runs})
            print(markdown(made[-1:]).splitlines()[-1], flush=True)
    write_json(args.out, {**provenance("experiments.recalibration", sys.argv[1:]), "rows": made})
    return 0


if __name__ == "__main__":
    sys.exit(main())
