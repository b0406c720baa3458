"""Processes that are told what to do, over and over: commands in, answers out, a JSON object a line.

Needs nothing but Python: `experiments.speed.reference_torch` runs where there is no lpjax.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]


class Process:
    """A worker's process, as the one that asks sees it."""

    def __init__(self, devices: int, environment: Mapping[str, str], module: str, python: str = "") -> None:
        """Start a module that calls `serve`, where a CPU back end is to have so many devices."""
        inherited = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "NPROC")}
        command = [python or sys.executable, "-m", module, str(devices)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, env=inherited | dict(environment), text=True, **pipes)
        assert self._process.stdin
        assert self._process.stdout
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def ask(self, do: str, **request: Any) -> Json:
        """The answer to a command; RuntimeError where it failed, or the process has ended."""
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._requests.write(json.dumps({"do": do, **request}) + "\n")
            self._requests.flush()
            line = self._answers.readline()
        answer = json.loads(line) if line else {"error": f"the process ended with code {self._process.wait()}"}
        if "error" in answer:
            raise RuntimeError(f"{do} {request}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        self._process.wait()
        self._answers.close()


def interleaved(turns: Mapping[str, tuple[Process, str]], rounds: int, steps: int) -> dict[str, list[Json]]:
    """Answers of each name, one a round, to so many steps of a run in a process; the names take turns."""
    answers: dict[str, list[Json]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, (process, run) in turns.items():
            answers[name].append(process.ask("step", name=run, steps=steps))
    return answers


def serve(worker: Any) -> None:
    """Answer {"do": METHOD, ..arguments} by what that method of the worker returns, or {"error": ..}."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed meanwhile goes to stderr
    for line in sys.stdin:
        request = json.loads(line)
        command = request.pop("do")
        try:
            answer = getattr(worker, command)(**request)
        except Exception as error:  # the other end says which request it was
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
