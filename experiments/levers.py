"""README's levers: what environment variables, XLA flags and unrolled scans do to a step of backprop on one device.

    python -m experiments.levers [--config=configs/cifar10_resnet110.py] [--rounds=4] [--steps=2]
        [--out=experiments/results/levers.json] [--config.x=y ...]

Each row is a process of its own; their steps take turns, and seconds over those of `as it is` are paired by round.  On
a CPU each has one core (NPROC=1).  Nothing is read or learnt: the images are noise.  The machine must have nothing else
to do.  Seven minutes for ResNet-110 on one core.  Exit code 1 if a row could not be measured.
"""

import argparse
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.compare import parsed
from experiments.processes import KEPT, LARGE_PAGES, Process, interleaved, spread
from experiments.provenance import provenance
from lpjax.training.writers import write_json

BASE = "as it is"


@dataclass(frozen=True)
class Lever:
    """environment: of the process.  unroll: units in a row of a scan's step, instead of one."""

    environment: dict[str, str] = field(default_factory=dict)
    unroll: int = 1


LEVERS = {
    BASE: Lever(),
    "large pages": Lever({"GLIBC_TUNABLES": LARGE_PAGES}),
    "freed memory kept": Lever({"GLIBC_TUNABLES": KEPT}),
    "large pages, freed memory kept": Lever({"GLIBC_TUNABLES": f"{LARGE_PAGES}:{KEPT}"}),
    "vectors of 512 bits": Lever({"XLA_FLAGS": "--xla_cpu_prefer_vector_width=512"}),
    "fast math": Lever({"XLA_FLAGS": "--xla_cpu_enable_fast_math=true"}),
    "older kernel emitters": Lever({"XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false"}),
    "scans unrolled by 2": Lever(unroll=2),
    "scans unrolled by 6": Lever(unroll=6),
}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of the README."""
    lines = ["| | set by | seconds over those of no lever, median (least .. most) |", "|---|---|---|"]
    for row in rows:
        ratio, how = row["over_base"], " ".join(f"`{name}={value}`" for name, value in row["environment"].items())
        shown = f"{ratio['median']:.2f} ({ratio['min']:.2f} .. {ratio['max']:.2f})"
        lines.append(f"| {row['row']} | {how} | {shown} |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", type=Path, default=Path("configs/cifar10_resnet110.py"))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/levers.json"))
    args, extra = parser.parse_known_args(argv)
    fields, failed = {**parsed(extra), "method": "serial", "num_stages": 1}, []
    turns: dict[str, tuple[Process, str]] = {}
    for name, lever in LEVERS.items():
        process = Process(1, {"NPROC": "1", **lever.environment})
        try:
            process.ask("prepare", name=name, config=str(args.config), fields=fields, unroll=lever.unroll)
            turns[name] = process, name
        except RuntimeError as error:
            process.close()
            failed.append(f"{name}: {error}")
            print(failed[-1], file=sys.stderr, flush=True)
    if BASE not in turns:  # nothing to compare with
        for process, _ in turns.values():
            process.close()
        return 1
    answers = interleaved(turns, args.rounds, args.steps)
    for process, _ in turns.values():
        process.close()
    medians = {name: [statistics.median(answer["seconds"]) for answer in own] for name, own in answers.items()}
    rows = [
        {
            "row": name,
            "environment": LEVERS[name].environment,
            "unroll": LEVERS[name].unroll,
            "seconds": spread(own),
            "over_base": spread([a / b for a, b in zip(own, medians[BASE], strict=True)]),
        }
        for name, own in medians.items()
    ]
    write_json(
        args.out,
        {
            **provenance("experiments.levers", argv),
            "config": str(args.config),
            "rounds": args.rounds,
            "steps": args.steps,
            "failed": failed,
            "rows": rows,
        },
    )
    print(markdown(rows))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
