"""README's speed-ups: methods beside backprop on one device, what a step is made of, and what that predicts.

    python -m experiments.speedup --config=configs/cifar10_resnet110.py [--stages=2,4,8]
        [--methods=serial,data_parallel,pipeline,fdg,local,coarse_tail,coarse_adjoint] [--cuts=measured|even]
        [--processes=3] [--rounds=2] [--steps=2] [--repeats=5] [--plain] [--references] [--torch=PYTHON]
        [--out=experiments/results/speedup.json] [--config.x=y ...]

Writes the JSON after every part, and at the end a table and a figure (rho over K) beside it.  Nothing is read or
learnt: the images are noise.  The machine must have nothing else to do.

Rows are those of `experiments.compare`.  Where there are devices for K stages each row's step is timed, the rows taking
turns (`rounds` times `steps` steps each), and rho = seconds of serial on one device / its own, paired by round.  On
CPUs a device is a core: serial runs in a process that has one (NPROC=1), and, as `serial_default`, in one that may use
all.

Where a method has `Method.stage_program` all parts of a step are timed alone on one device, for every K, whether there
are K devices or not, and beside them the whole step of serial (in another process: its memory is not to be shared out
to the parts).  With what links take they predict rho:

    predicted  seconds of serial / end of the method's schedule (`experiments.step_prediction`)
    contended  the same where devices share memory and clock: all takes as much longer as the stages take when they run
               at the same time; for as many K as there are devices
    Eq. 27     (T_d + T_f + T_b) / (T_d + t_psi + T_AuxNet + (T_f + T_b) / K)     of arXiv:2112.05387, a serial AuxNet;
               T of the whole network and batch

not stages: what of the predicted step is something else.  imbalance: by how much the dearest stage is over the mean.

On CPUs the same program takes more or less time in another process, by a fifth and more, so all but the references is
done `processes` times in new ones.  A part counts with its median over these: the step waits for the dearest stage, and
the dearest of eight that were timed once is one that was timed high.  `by_process`: what each process alone would
predict.  On Linux steps are timed in the environment `processes.RECOMMENDED`, cuts and parts, which take turns, in
`processes.IN_TURNS`.

Exit code 1 if a row could not be measured.
"""

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from experiments.bench import Bench
from experiments.compare import load, parsed, row_fields
from experiments.processes import Process, interleaved, measured_row, spread
from experiments.provenance import provenance
from experiments.speedup_tables import draw, markdown
from lpjax.config.schema import Config
from lpjax.methods import METHODS
from lpjax.training import run as runs
from lpjax.training.writers import write_json

Json = dict[str, Any]


def arguments(argv: list[str]) -> tuple[argparse.Namespace, Json, list[str]]:
    """The command line, the fields of the configuration in it, and the rows, serial first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", type=Path, default=Path("configs/cifar10_resnet110.py"))
    parser.add_argument("--methods", default="serial,data_parallel,pipeline,fdg,local,coarse_tail,coarse_adjoint")
    parser.add_argument("--stages", default="2,4,8", help="numbers of stages K")
    parser.add_argument("--rounds", type=int, default=2, help="of turns, in each process")
    parser.add_argument("--steps", type=int, default=2, help="of a row in a round")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of a part")
    parser.add_argument("--processes", type=int, default=3, help="on CPUs, that all is timed in")
    parser.add_argument("--cuts", choices=["measured", "even"], default="measured", help="even: by FLOPs")
    parser.add_argument("--plain", action="store_true", help="leave the environment as it is")
    parser.add_argument("--references", action="store_true", help="also time the network in flax.linen")
    parser.add_argument("--torch", metavar="PYTHON", help="and in torch, by this interpreter")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/speedup.json"))
    args, extra = parser.parse_known_args(argv[1:])
    try:
        overrides = parsed(extra)
        names = list(dict.fromkeys(["serial", *args.methods.split(",")]))
        for name in names:
            row_fields(name, 2, 1)
    except ValueError as error:
        parser.error(str(error))
    return args, overrides, names


def main(argv: list[str]) -> int:
    args, overrides, names = arguments(argv)
    bench = Bench(args, overrides)
    result: Json = {
        **provenance("experiments.speedup", argv[1:]),
        "where": bench.where,
        "environment": bench.environment,
        "environment_of_parts": bench.in_turns,
        "config": str(args.config),
        "overrides": overrides,
        "rounds": args.rounds,
        "steps": args.steps,
        "processes": bench.processes,
        "measured": [],
        "predictions": [],
        "failed": [],
    }

    def attempt(what: str, keep: Callable[[Any], Any], work: Callable[[], Any]) -> None:
        """Keep what work returns, and write the JSON; where it fails, this is told and kept there."""
        print(what, flush=True)
        try:
            keep(work())
        except RuntimeError as error:
            result["failed"].append({"what": what, "error": str(error)})
            print(f"failed: {error}", file=sys.stderr, flush=True)
        write_json(args.out, result)

    measure(bench, names, result, attempt)
    bench.kept.close()
    print(markdown(result))
    draw(result, args.out.with_suffix(".svg"))
    return 1 if result["failed"] else 0


def measure(bench: Bench, names: list[str], result: Json, attempt: Callable[..., None]) -> None:
    """Everything, into the result."""
    args = bench.args
    if args.references or args.torch:
        attempt("references", result.setdefault("references", []).extend, partial(references, bench))
    for K in (K for K in bench.stages if bench.available >= K):
        measure_rows(bench, names, K, result, attempt)
    taken_apart = [name for name in names if METHODS[row_fields(name, 2, 1)["method"]].stage_program is not None]
    if taken_apart:
        count = min(max(bench.stages), bench.available)
        result["link"] = None
        if count > 1:
            with bench.workers() as workers:
                result["link"] = workers.many.ask("link", devices=count, repeats=args.repeats)
    for row, K in itertools.product(taken_apart, bench.stages):
        attempt(
            f"parts of {row}, K = {K}",
            result["predictions"].append,
            partial(bench.predicted, row, K, result["link"]),
        )


def measure_rows(bench: Bench, names: list[str], K: int, result: Json, attempt: Callable[..., None]) -> None:
    """The rows that run at K stages, over all processes, into the result."""
    before = result["measured"]
    rows: dict[str, tuple[Json, list[Json], list[Json]]] = {}

    def keep(timed: list[tuple[Json, list[Json], list[Json]]]) -> None:
        for row, own, serial in timed:
            _, answers, beside = rows.setdefault(row["row"], (row, [], []))
            answers.extend(own)
            beside.extend(serial)
        result["measured"] = [*before, *(row | measured_row(own, serial) for row, own, serial in rows.values())]

    for number in range(1, bench.processes + 1):
        with bench.workers() as workers:
            ready: dict[str, tuple[Process, Json]] = {}
            for name in names:
                what = f"compiling {name}, K = {K}, processes {number}"
                attempt(what, ready.update, partial(bench.prepared, workers, name, K))
            if "serial" in ready:
                attempt(f"timing K = {K}, processes {number}", keep, partial(bench.timed, ready))


def references(bench: Bench) -> list[Json]:
    """The same network in flax.linen and torch beside lpjax's serial step, on one core; ratios paired by round."""
    args, config = bench.args, str(bench.args.config)
    fields = bench.fields("serial", 1)
    model, batch, image = described(load(args.config, {**fields, "dry_run": True}))
    processes = {"flax": Process(1, bench.one_core, "experiments.reference_flax")}
    if args.torch:
        processes["torch"] = Process(1, bench.one_core, "experiments.reference_torch", args.torch)
    with bench.workers() as workers:
        ready = workers.one.ask("prepare", name="lpjax", config=config, fields=fields)
        rows = {"lpjax": ready}
        for name, process in processes.items():
            rows[name] = process.ask("prepare", name=name, model=model, batch=batch, image=image)
            if rows[name]["parameters"] != ready["parameters"]:
                raise RuntimeError(f"{name}: {rows[name]['parameters']} parameters, of lpjax's {ready['parameters']}")
        turns = {name: (process, name) for name, process in {"lpjax": workers.one, **processes}.items()}
        answers = interleaved(turns, args.rounds * bench.processes + 1, args.steps)
        workers.one.ask("drop")
    for process in processes.values():
        process.close()
    timed = {name: [statistics.median(a["seconds"]) for a in given[1:]] for name, given in answers.items()}
    return [
        {
            "network": name,
            **rows[name],
            "seconds": spread(own),
            "lpjax_over_this": spread([a / b for a, b in zip(timed["lpjax"], own, strict=True)]),
        }
        for name, own in timed.items()
    ]


def described(config: Config) -> tuple[Json, int, list[int]]:
    """A configuration's network for the reference workers, its batch size and image shape.

    Raises RuntimeError for networks that they do not have.
    """
    sizes = {"resnet": ("width", 1), "wide_resnet": ("widen", 16)}
    arguments, spec = config.model.arguments, runs.prepare(config).spec
    if config.model.function not in sizes or arguments.get("dropout"):
        raise RuntimeError(f"model {config.model}: expected one of {', '.join(sizes)}, without dropout")
    name, factor = sizes[config.model.function]
    model = {"depth": arguments["depth"], "width": factor * arguments[name], "wide": factor > 1}
    return {**model, "classes": spec.classes}, config.batch_size, list(spec.image_shape)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
