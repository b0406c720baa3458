"""What batch-norm statistics do to a test: those of batches as in training against those of images as they are.

    python -m experiments.recalibration WORKDIR .. [--out=experiments/results/recalibration.json]

Tests finished runs of `experiments.accuracy` once more, both ways: the same weights, the same test images.  A run takes
some seconds.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.compare import config_of
from experiments.provenance import provenance
from lpjax.config.schema import Config
from lpjax.training import evaluate, resume
from lpjax.training.run import prepare
from lpjax.training.writers import write_json

BOTH = "as in training", "as they are"


def tested(config: Config, workdir: Path) -> dict[str, float]:
    """Test accuracies of a run's last checkpoint, by where the statistics are from."""
    run = prepare(config)
    plain = prepare(replace(config, data=replace(config.data, crop=0, flip=False, cutout=0)))
    assert run.feed is not None
    state, _, _ = resume.load(run, workdir)
    return {
        name: evaluate.make_evaluate(run.network, config, run.mesh, step_inputs)(state, run.feed).test_accuracy
        for name, step_inputs in zip(BOTH, (run.step_inputs, plain.step_inputs), strict=True)
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """A line a row: accuracy in %, mean ± std over the seeds."""
    lines = ["| set | K | | as in training | images as they are | taken by these, seed by seed |", "|---" * 6 + "|"]
    for row in rows:
        both = [[100 * run[name] for run in row["runs"]] for name in BOTH]
        cells = [f"{statistics.mean(a):.2f}" + (f" ± {statistics.stdev(a):.2f}" if len(a) > 1 else "") for a in both]
        taken = ", ".join(f"{a - b:.1f}" for a, b in zip(*both, strict=True))
        lines.append(f"| {row['data']} | {row['stages']} | {row['row']} | {cells[0]} | {cells[1]} | {taken} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", type=Path, nargs="+", metavar="WORKDIR")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/recalibration.json"))
    args = parser.parse_args()
    runs: dict[tuple[str, int, str], list[dict[str, Any]]] = defaultdict(list)
    for workdir in args.workdirs:
        config = config_of(workdir)
        row = workdir.name.removesuffix(f"-{config.num_stages}-{config.seed}").replace("_", " ")
        runs[config.data.name, config.num_stages, row].append({"seed": config.seed, **tested(config, workdir)})
    rows = [
        {"data": data, "stages": K, "row": row, "n": len(runs[data, K, row]), "runs": runs[data, K, row]}
        for data, K, row in sorted(runs)
    ]
    write_json(args.out, {**provenance("experiments.recalibration", sys.argv[1:]), "rows": rows})
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
