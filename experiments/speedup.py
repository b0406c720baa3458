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

Of rows of `TAKEN_APART` all parts of a step are timed alone on one device, for every K, whether there are K devices or
not, and beside them the whole step of serial (in another process: its memory is not to be shared out to the parts).
With what links take they predict rho, T the whole network's and the whole batch's, t a device's share:

    sharded    (T_d + T_f + T_b + T_o) / (max_k stage_k + t_d + t_AuxNet + t_correction + t_packing + t_exchange + t_o)
    contended  the same where devices share memory and clock: all takes as much longer as the stages take when they run
               at the same time; for as many K as there are devices
    Eq. 27     (T_d + T_f + T_b) / (T_d + t_psi + T_AuxNet + (T_f + T_b) / K)     of arXiv:2112.05387, a serial AuxNet

not stages: what of the predicted step is something else.  imbalance: by how much the dearest stage is over the mean.

On CPUs the same program takes more or less time in another process, by a fifth and more, so all but the references is
done `processes` times in new ones.  A part counts with its median over these: the step waits for the dearest stage, and
the dearest of eight that were timed once is one that was timed high.  `by_process`: what each process alone would
predict.  On Linux steps are timed in the environment `RECOMMENDED`, cuts and parts, which take turns, in `IN_TURNS`.

Exit code 1 if a row could not be measured.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments.compare import ROWS, load, parsed, row_fields
from experiments.provenance import provenance
from lpjax.config.schema import Config
from lpjax.training import run as runs
from lpjax.training.writers import write_json

LARGE_PAGES = "glibc.malloc.hugetlb=1"

KEPT = "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"
"""What is freed is not given back to the system.  One arena: others than the main thread's keep no large arrays."""

RECOMMENDED = {"GLIBC_TUNABLES": LARGE_PAGES}
"""Environment of processes on Linux that time steps.  The arrays of a step are new in each, and large pages make fewer
page faults of them."""

IN_TURNS = {"GLIBC_TUNABLES": f"{LARGE_PAGES}:{KEPT}"}
"""Of those where programs of one device take turns: none is to pay for memory that another one gave back."""

TAKEN_APART = ("layer_parallel", "coarse_adjoint")
"""Methods whose steps are predicted from their parts."""

Json = dict[str, Any]


class Process:
    """A worker in an environment of its own; see `experiments.speedup_worker`."""

    def __init__(
        self, devices: int, environment: dict[str, str], module: str = "experiments.speedup_worker", python: str = ""
    ) -> None:
        inherited = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "NPROC")}
        self._process = subprocess.Popen(
            [python or sys.executable, "-m", module, str(devices)],
            env=inherited | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, do: str, **request: Any) -> Json:
        """The answer to a command.  Raises RuntimeError where it failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"the process ended with code {self._process.wait()}"}
        if "error" in answer:
            raise RuntimeError(f"{do} {request}: {answer['error']}")
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


# ---------------------------------------------------------------------------------------------------------- predictions


def sharded_terms(parts: Json, link: Json | None, sent: float) -> dict[str, float]:
    """Seconds of a layer-parallel step by what they are spent on, from its parts and the bytes a device sends.

    Without a link, where there is one device, an exchange takes no time.  A sweep is the stages' forward passes, two
    exchanges, and two forward passes of the AuxNet; a stale exchange a second forward pass of it.
    """
    none: Json = dict.fromkeys(
        ("send", "receive", "correction", "aux_forward"), 0.0
    )  # coarse_adjoint has none of these
    parts = none | parts
    packing = parts["send"] + parts["receive"]
    exchange = 2 * link["latency"] + sent / link["bandwidth"] if link else 0.0
    sweep = max(parts["stages_forward"]) + packing + exchange + 2 * parts["aux_forward"]
    return {
        "stage": max(parts["stages"]),
        "data": parts["data"],
        "aux_net": parts["aux_all"] - parts["correction"] + parts["stale"] * (parts["data"] + parts["aux_forward"]),
        "correction": parts["correction"],
        "packing": packing,
        "exchange": exchange,
        "sweeps": parts["sweeps"] * sweep,
        "optimizer": parts["optimizer"],
    }


def eq27(parts: Json, link: Json | None, sent: float, num_stages: int) -> tuple[float, float]:
    """rho(K) by Eq. 27 of the paper, and its bound."""
    terms, own, data = sharded_terms(parts, link, sent), parts["serial"], parts["serial_data"]
    rest = terms["packing"] + terms["exchange"] + terms["optimizer"]
    waited = data + rest + parts["serial_aux_all"]
    return own / (waited + (own - data) / num_stages), own / waited


def prediction(parts: Json, link: Json | None, sent: float, num_stages: int) -> Json:
    """rho of a layer-parallel row, by the sharded formula and by Eq. 27."""
    terms = sharded_terms(parts, link, sent)
    total = sum(terms.values())
    rho27, bound = eq27(parts, link, sent, num_stages) if "serial_aux_all" in parts else (None, None)
    return {
        "terms": terms,
        "seconds": total,
        "rho": parts["serial"] / total,
        "rho_eq27": rho27,
        "bound_eq27": bound,
        "not_stage": 1 - terms["stage"] / total,
        "imbalance": max(parts["stages"]) / statistics.mean(parts["stages"]) - 1,
    }


# --------------------------------------------------------------------------------------------------------- measurements


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def interleaved(turns: dict[str, tuple[Process, str]], rounds: int, steps: int) -> dict[str, list[Json]]:
    """Answers of each name's steps, a list by round.  turns: the process and the run's name there."""
    answers: dict[str, list[Json]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, (process, run) in turns.items():
            answers[name].append(process.ask("step", name=run, steps=steps))
    return answers


def measured_row(answers: list[Json], serial: list[Json]) -> Json:
    """Seconds, rho paired by round, and what the host took, of a name's answers."""
    own = [statistics.median(answer["seconds"]) for answer in answers]
    base = [statistics.median(answer["seconds"]) for answer in serial]
    host = [value for answer in answers for value in answer["host_seconds"]]
    return {
        "seconds": spread([value for answer in answers for value in answer["seconds"]]),
        "rho": spread([b / o for b, o in zip(base, own, strict=True)]),
        "host_seconds": statistics.median(host),
        "compiled": sum(answer["compiled"] for answer in answers),
    }


@dataclass(frozen=True)
class Workers:
    """Processes to time in.  many: has all devices.  one, apart: a device each, on CPUs a core.  default: one device,
    and what else the environment gives it."""

    many: Process
    one: Process
    apart: Process
    default: Process


class Bench:
    """The configuration that is measured, and where."""

    def __init__(self, args: argparse.Namespace, extra: Json) -> None:
        self.args, self.extra = args, extra
        self.environment = {} if args.plain or sys.platform != "linux" else RECOMMENDED
        self.stages = [int(K) for K in args.stages.split(",")]
        probe = Process(max(self.stages), self.environment)
        self.where = probe.ask("hello")
        self.cpu = self.where["platform"] == "cpu"
        self.available = self.where["cores"] if self.cpu else self.where["devices"]
        self.processes = args.processes if self.cpu else 1
        self.one_core = self.environment | ({"NPROC": "1"} if self.cpu else {})
        self.in_turns = self.one_core | (IN_TURNS if self.environment else {})
        if self.cpu:  # a device is a core
            probe.close()
            probe = Process(1, self.in_turns)
        self.kept = probe
        self.cuts: dict[tuple[str, int], list[int]] = {}

    @contextlib.contextmanager
    def workers(self) -> Iterator[Workers]:
        """On CPUs new processes, elsewhere the one that is kept, which has all devices."""
        if not self.cpu:
            yield Workers(self.kept, self.kept, self.kept, self.kept)
            return
        made = Workers(
            Process(min(max(self.stages), self.available), self.environment),
            Process(1, self.one_core),
            Process(1, self.in_turns),
            Process(1, self.environment),
        )
        try:
            yield made
        finally:
            for process in (made.many, made.one, made.apart, made.default):
                process.close()

    def fields(self, row: str, num_stages: int) -> Json:
        """Of a row's configuration, with its cuts, which are measured once."""
        config, repeats = str(self.args.config), self.args.repeats
        fields = {**row_fields(row, num_stages, 1), **self.extra}
        if self.args.cuts == "even" or fields["method"] == "data_parallel":
            return fields
        if (row, num_stages) not in self.cuts:
            single = {**fields, "mesh.stage": 1}
            self.cuts[row, num_stages] = self.kept.ask("cuts", config=config, fields=single, repeats=repeats)["cuts"]
        return fields | {"cuts": self.cuts[row, num_stages]}

    def prepared(self, workers: Workers, row: str, num_stages: int) -> dict[str, tuple[Process, Json]]:
        """A row ready to be timed, serial in each of its environments: by name, where it is, and of what kind."""
        fields = self.fields(row, num_stages)
        where = {row: workers.one if row == "serial" else workers.many}
        if row == "serial" and self.cpu:
            where["serial_default"] = workers.default
        ready = {
            name: process.ask("prepare", name=name, config=str(self.args.config), fields=fields)
            for name, process in where.items()
        }
        return {
            name: (where[name], {"row": name, "stages": num_stages, "fields": fields, **ready[name]}) for name in where
        }

    def timed(self, ready: dict[str, tuple[Process, Json]]) -> list[tuple[Json, list[Json], list[Json]]]:
        """Of the rows that are ready, timed in turns beside serial, and dropped: each, its answers, and serial's."""
        turns = {name: (process, name) for name, (process, _) in ready.items()}
        answers = interleaved(turns, self.args.rounds, self.args.steps)
        for process in {process for process, _ in ready.values()}:
            process.ask("drop")
        return [(row, answers[name], answers["serial"]) for name, (_, row) in ready.items()]

    def parts(self, fields: Json, num_stages: int) -> Json:
        """The parts of a layer-parallel step, and serial's step; together: all stages at the same time, where there are
        devices for them."""
        config, repeats = str(self.args.config), self.args.repeats
        single = {**fields, "mesh.stage": 1}
        with self.workers() as workers:
            parts = workers.apart.ask("parts", config=config, fields=single, devices=num_stages)
            workers.one.ask("prepare", name="serial", config=config, fields=self.fields("serial", 1))
            seconds = workers.apart.ask("parts_seconds", repeats=repeats)
            parts["serial"] = statistics.median(workers.one.ask("step", name="serial", steps=repeats)["seconds"])
            for process in (workers.apart, workers.one):
                process.ask("drop")
            if num_stages <= self.available:
                asked = workers.many.ask("together", config=config, fields=single, repeats=repeats)
                parts["together"] = asked["seconds"]
        parts["stages"] = [seconds.pop(f"stage {k}") for k in range(num_stages)]
        parts["stages_forward"] = [seconds.pop(f"forward {k}", 0.0) for k in range(num_stages)]
        return parts | seconds

    def predicted(self, row: str, num_stages: int, link: Json | None) -> Json:
        """A layer-parallel row's prediction from its parts."""
        fields = self.fields(row, num_stages)
        timed = [self.parts(fields, num_stages) for _ in range(self.processes)]
        parts = medians(timed)
        made = prediction(parts, link, parts["sent_bytes"], num_stages)
        if "together" in parts:
            made["contention"] = parts["together"] / max(parts["stages"])
            made["rho_contended"] = made["rho"] / max(1.0, made["contention"])
        alone = [prediction(own, link, own["sent_bytes"], num_stages)["rho"] for own in timed]
        made["by_process"] = [
            {"stages": own["stages"], "serial": own["serial"], "rho": rho}
            for own, rho in zip(timed, alone, strict=True)
        ]
        return {"row": row, "stages": num_stages, "fields": fields, "parts": parts, **made}


def medians(timed: list[Json]) -> Json:
    """Of each name over the processes; of a list's elements one by one."""

    def median(values: list[Any]) -> Any:
        if isinstance(values[0], list):
            return [statistics.median(own) for own in zip(*values, strict=True)]
        return statistics.median(values)

    return {name: median([own[name] for own in timed]) for name in timed[0]}


# -------------------------------------------------------------------------------------------------------------- output


def markdown(result: Json) -> str:
    """The tables of the README."""
    heading = ("K", "method", "s/step", "rho, measured", "predicted", "contended", "Eq. 27", "not stages", "imbalance")
    lines = ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    predictions = {(p["row"], p["stages"]): p for p in result["predictions"]}
    measured = {(m["row"], m["stages"]): m for m in result["measured"]}
    for row, K in sorted({**measured, **predictions}, key=lambda key: key[1]):
        m, p = measured.get((row, K)), predictions.get((row, K))
        shown = [
            f"{m['seconds']['median']:.3f}" if m else "",
            f"{m['rho']['median']:.2f} ({m['rho']['min']:.2f} .. {m['rho']['max']:.2f})" if m else "",
            predicted_rho(p) if p else "",
            f"{p['rho_contended']:.2f}" if p and "rho_contended" in p else "",
            f"{p['rho_eq27']:.2f} < {p['bound_eq27']:.2f}" if p and p["rho_eq27"] else "",
            f"{p['not_stage']:.1%}" if p else "",
            f"{p['imbalance']:.0%}" if p else "",
        ]
        lines.append(f"| {K} | {row} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def predicted_rho(prediction: Json) -> str:
    """rho, and the least and the most that one process alone predicts, where there were several."""
    alone = [process["rho"] for process in prediction.get("by_process", [])]
    return f"{prediction['rho']:.2f}" + (f" ({min(alone):.2f} .. {max(alone):.2f})" if len(alone) > 1 else "")


def draw(result: Json, path: Path) -> None:
    """rho over K: measured, predicted, and by Eq. 27 with its bound."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context({"svg.hashsalt": "lpjax", "svg.fonttype": "none"}):
        figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
        for number, row in enumerate(dict.fromkeys(p["row"] for p in result["predictions"])):
            own = [p for p in result["predictions"] if p["row"] == row]
            K = [p["stages"] for p in own]
            color = f"C{number}"
            axis.plot(K, [p["rho"] for p in own], color=color, marker="o", label=f"{row}, predicted from parts")
            if own[0]["rho_eq27"] is None:
                continue
            axis.plot(K, [p["rho_eq27"] for p in own], color=color, marker="x", ls="--", label=f"{row}, Eq. 27")
            bound = [p["bound_eq27"] for p in own]
            axis.plot(K, bound, color=color, ls=":", label=f"{row}, bound of Eq. 27")
        for number, name in enumerate(dict.fromkeys(m["row"] for m in result["measured"])):
            if name.startswith("serial"):
                continue
            own = [m for m in result["measured"] if m["row"] == name]
            rho = [m["rho"] for m in own]
            error = [[r["median"] - r["min"] for r in rho], [r["max"] - r["median"] for r in rho]]
            axis.errorbar(
                [m["stages"] for m in own], [r["median"] for r in rho], yerr=error, fmt="sDv^P*"[number % 6], capsize=3,
                color=f"C{number % 10}", label=f"{name}, measured",
            )  # fmt: skip
        stages = sorted({p["stages"] for p in result["predictions"]})
        axis.plot(stages, stages, color="0.7", lw=1, label="K")
        axis.set(xlabel="stages K", ylabel="speed-up against serial", xticks=stages)
        axis.set_ylim(0, 1.15 * max(stages, default=1))
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def main(argv: list[str]) -> int:
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
    taken_apart = [name for name in names if ROWS.get(name, {"method": name})["method"] in TAKEN_APART]
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
