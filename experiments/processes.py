"""Processes in which steps are timed, the environments they need, and what is made of their seconds.

`experiments.worker` is the other end.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
from typing import Any

LARGE_PAGES = "glibc.malloc.hugetlb=1"

KEPT = "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"
"""What is freed is not given back to the system.  One arena: others than the main thread's keep no large arrays."""

RECOMMENDED = {"GLIBC_TUNABLES": LARGE_PAGES}
"""Environment of processes on Linux that time steps.  The arrays of a step are new in each, and large pages make fewer
page faults of them."""

IN_TURNS = {"GLIBC_TUNABLES": f"{LARGE_PAGES}:{KEPT}"}
"""Of those where programs of one device take turns: none is to pay for memory that another one gave back."""

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


def medians(timed: list[Json]) -> Json:
    """Of each name over the processes; of a list's elements one by one."""

    def median(values: list[Any]) -> Any:
        if isinstance(values[0], list):
            return [statistics.median(own) for own in zip(*values, strict=True)]
        return statistics.median(values)

    return {name: median([own[name] for own in timed]) for name in timed[0]}
