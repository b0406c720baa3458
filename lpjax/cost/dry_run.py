"""A dry run: compile a step and say what it takes; nothing is trained."""

import time
from typing import Any

from rich.console import Console

from lpjax.cost.traffic import exchanged_bytes
from lpjax.methods import METHODS
from lpjax.training import run as runs


def dry_run(run: runs.Run, console: Console) -> dict[str, Any]:
    """Compile the step and say what it takes; nothing is trained.

    Args:
      run: The run.
      console: Where it is said.

    Returns:
      See `step_cost`.
    """
    if advice := METHODS[run.config.method].advice(run.config):
        console.print(advice)
    cost = step_cost(run)
    console.print(f"compiled in {cost['compile_seconds']:.1f} s")
    if cost["held_bytes"] is not None:
        held, temporary = cost["held_bytes"] / 1e6, cost["temporary_bytes"] / 1e6
        console.print(f"a device holds {held:,.1f} MB and needs {temporary:,.1f} MB more in a step")
    parts = ", ".join(f"{kind} {size / 1e6:,.3f}" for kind, size in cost["exchanged_bytes"].items() if size)
    sent = f"{cost['exchanged_bytes_total'] / 1e6:,.3f} MB in a step" + (f" ({parts})" if parts else "")
    console.print(f"a device sends {sent}")
    return cost


def step_cost(run: runs.Run) -> dict[str, Any]:
    """What a step of a run costs a device.

    Bytes are of one device: on the CPU back end too, where XLA compiles the program of one device.  With the whole
    state spread over S = 4 devices (pipeline) arguments come to a quarter of S = 1's, and temporaries do not grow with
    S.  The training set that is resident on every device is not an argument of the step.

    Args:
      run: The run.

    Returns:
      `exchanged_bytes`, see there, and their sum `exchanged_bytes_total`; `held_bytes` and `temporary_bytes`, arguments
        (state and batch) and temporaries of the compiled step, None where the back end does not say; `compile_seconds`,
        to trace, lower and compile.
    """
    start = time.perf_counter()
    traced = runs.trace(run)
    memory = traced.lower().compile().memory_analysis()
    seconds = time.perf_counter() - start
    exchanged = exchanged_bytes(traced.jaxpr, dict(run.mesh.shape))
    return {
        "exchanged_bytes": exchanged,
        "exchanged_bytes_total": sum(exchanged.values()),
        "held_bytes": None if memory is None else memory.argument_size_in_bytes,
        "temporary_bytes": None if memory is None else memory.temp_size_in_bytes,
        "compile_seconds": seconds,
    }
