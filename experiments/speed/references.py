"""Serial backprop beside the same network in flax.linen and in torch, on one core.

Steps take turns; seconds of lpjax over theirs are paired by round.  The networks are those of configs/cifar10_*.py
without dropout.  torch is looked for in the interpreter --torch, which need not have lpjax.
"""

import argparse
import statistics
from collections.abc import Iterator

from experiments.harness import markdown
from experiments.harness.experiment import Experiment, Json, Option, Table
from experiments.harness.rows import load
from experiments.harness.runs import ONE_CORE
from experiments.harness.stats import spread
from experiments.harness.worker import Process, interleaved
from experiments.speed.bench import RECOMMENDED, WORKER
from lpjax.config.schema import Config
from lpjax.errors import BadInput
from lpjax.training import run as runs


def described(config: Config) -> tuple[Json, int, list[int]]:
    """A configuration's network for the reference workers, its batch size and image shape.

    Raises:
      BadInput: They do not have it.
    """
    sizes = {"resnet": ("width", 1), "wide_resnet": ("widen", 16)}
    arguments, spec = config.model.arguments, runs.prepare(config).spec
    if config.model.function not in sizes or arguments.get("dropout"):
        raise BadInput(f"model {config.model}: expected one of {', '.join(sizes)}, without dropout")
    name, factor = sizes[config.model.function]
    model = {"depth": arguments["depth"], "width": factor * arguments[name], "wide": factor > 1}
    return {**model, "classes": spec.classes}, config.batch_size, list(spec.image_shape)


def run(args: argparse.Namespace) -> Iterator[Json]:
    """The JSON at the end."""
    fields = {**args.fields, "method": "serial"}
    model, batch, image = described(load(args.config, {**fields, "dry_run": True}))
    environment = RECOMMENDED | ONE_CORE
    processes = {"lpjax": Process(1, environment, WORKER)}
    processes["flax"] = Process(1, environment, "experiments.speed.reference_flax")
    if args.torch:
        processes["torch"] = Process(1, environment, "experiments.speed.reference_torch", args.torch)
    ready = {"lpjax": processes["lpjax"].ask("prepare", name="lpjax", config=args.config, fields=fields)}
    for name in list(processes)[1:]:
        ready[name] = processes[name].ask("prepare", name=name, model=model, batch=batch, image=image)
        if ready[name]["parameters"] != ready["lpjax"]["parameters"]:
            raise BadInput(f"{name}: {ready[name]['parameters']} parameters, of lpjax's {ready['lpjax']['parameters']}")
    answers = interleaved({name: (own, name) for name, own in processes.items()}, args.rounds + 1, args.steps)
    for process in processes.values():
        process.close()
    timed = {name: [statistics.median(a["seconds"]) for a in given[1:]] for name, given in answers.items()}
    rows = []
    for name, own in timed.items():
        ratios = spread([a / b for a, b in zip(timed["lpjax"], own, strict=True)])
        rows.append({"network": name, **ready[name], "seconds": spread(own), "lpjax_over_this": ratios})
    yield {"config": args.config, "overrides": args.fields, "references": rows}


def beside(*files: Json) -> str:
    """A line a network and library."""
    shown = []
    for made in files:
        config = load(made["config"], made["overrides"])
        network = f"{config.model.function} {config.model.arguments['depth']}"
        for row in made["references"]:
            ratio = "" if row["network"] == "lpjax" else markdown.median(row["lpjax_over_this"])
            shown.append([network, row["network"], f"{row['seconds']['median']:.2f}", ratio])
    heading = ["network", "written with", "s/step, median", "lpjax's seconds over these, median (least .. most)"]
    return markdown.table(heading, shown)


EXPERIMENT = Experiment(
    name="references",
    doc=__doc__,
    run=run,
    options=(
        Option("torch", None, "an interpreter that has torch"),
        Option("rounds", 6, "of turns"),
        Option("steps", 2, "in a round"),
    ),
    config="configs/cifar10_resnet110.py",
    out="references",
    show=beside,
    tables={"references": Table(beside, ("speedup_references", "speedup_wrn16_4"))},
)
