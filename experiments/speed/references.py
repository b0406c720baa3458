"""Serial backprop beside the same network in flax.linen and in torch, on one core.

Steps take turns; seconds of lpjax over theirs are paired by round.  The networks are ResNets of CIFAR.
torch is that of the interpreter --torch, which need not have lpjax.
"""

import statistics
from collections.abc import Iterator

from experiments.harness import markdown
from experiments.harness.experiment import Call, Experiment, Json, Table
from experiments.harness.rows import load
from experiments.harness.runs import ONE_CORE
from experiments.harness.stats import spread
from experiments.harness.worker import Process, interleaved
from experiments.speed.speedup import RECOMMENDED, WORKER
from lpjax.errors import BadInput
from lpjax.training import run as runs

HERE = "experiments.speed.reference"


def run(call: Call, torch: str = "", rounds: int = 6, steps: int = 2) -> Iterator[Json]:
    """The JSON at the end."""
    fields, environment = {**call.fields, "method": "serial"}, RECOMMENDED | ONE_CORE
    config = load(call.config, {**fields, "dry_run": True})
    if config.model.function != "resnet":
        raise BadInput(f"model.function={config.model.function}: expected resnet, as the references have it")
    spec = runs.prepare(config).spec
    model = {**config.model.arguments, "classes": spec.classes}
    modules = {"lpjax": (WORKER, ""), "flax": (f"{HERE}_flax", "")}
    modules |= {"torch": (f"{HERE}_torch", torch)} if torch else {}
    processes, ready = {name: Process(1, environment, *own) for name, own in modules.items()}, {}
    for name, process in processes.items():
        asked = {"model": model, "batch": config.batch_size, "image": spec.image_shape}
        asked = {"config": call.config, "fields": fields} if name == "lpjax" else asked
        ready[name] = process.ask("prepare", name=name, **asked)
        if ready[name]["parameters"] != ready["lpjax"]["parameters"]:
            raise BadInput(f"{name}: {ready[name]['parameters']} parameters, of lpjax's {ready['lpjax']['parameters']}")
    answers = interleaved({name: (own, name) for name, own in processes.items()}, rounds + 1, steps)
    for process in processes.values():
        process.close()
    timed = {name: [statistics.median(a["seconds"]) for a in given[1:]] for name, given in answers.items()}
    rows = []
    for name, own in timed.items():
        ratios = spread([a / b for a, b in zip(timed["lpjax"], own, strict=True)])
        rows.append({"network": name, **ready[name], "seconds": spread(own), "lpjax_over_this": ratios})
    yield {"config": call.config, "overrides": call.fields, "references": rows}


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


TABLES = {"references": Table(beside, ("speedup_references", "speedup_wrn16_4"))}
EXPERIMENT = Experiment(run, config="configs/cifar10_resnet110.py", out="references", show=beside, tables=TABLES)
