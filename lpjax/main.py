"""python -m lpjax.main --config=FILE [--config.field=value ...] [--workdir=DIR]

One process with all devices it sees; or several, each started by the same command with --distributed (SLURM, TPU,
GKE, Open MPI) or with --coordinator=HOST:PORT --num_processes=N --process_id=I.

The same command goes on with a run that was interrupted, from the last good checkpoint in its workdir.  --mode=eval
tests that checkpoint instead.

Exit codes: 0 done; 1 a fault of lpjax or of the system, such as a full disk; 2 bad configuration or data, or a workdir
that holds another run; 3 a figure became non-finite; 4 another process was lost; 75 stopped by SIGTERM, and 130 by
Ctrl-C: the state was saved.
"""

import signal
import sys

from absl import flags
from rich.console import Console

from lpjax.cli import _WORKDIR, EXIT_BAD_INPUT, EXIT_FAULT, EXIT_INTERRUPTED, EXIT_NON_FINITE, EXIT_STOPPED, parse
from lpjax.parallel.platform import devices_of_a_process, provide_devices

_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train, or test the newest checkpoint of the workdir.")
_RESTART = flags.DEFINE_bool("restart", False, "Move what is in the workdir aside and train from the start.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes, found from the environment.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "One of several processes: HOST:PORT of process 0, a free port."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes; with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0; with --coordinator.")
_HEARTBEAT = flags.DEFINE_integer("heartbeat_seconds", 30, "A process that is silent for so long is lost.")


def join() -> int:
    """Join the other processes that the flags tell of; returns how many there are.  Raises ValueError."""
    from lpjax.parallel import processes

    return processes.initialize(
        detect=_DISTRIBUTED.value,
        coordinator=_COORDINATOR.value,
        num_processes=_NUM_PROCESSES.value,
        process_id=_PROCESS_ID.value,
        heartbeat_seconds=_HEARTBEAT.value,
    )


def main(argv: list[str]) -> int:
    """Train, test or dry-run as the command line says; returns the exit code, see the module's docstring."""
    console = Console(soft_wrap=not sys.stdout.isatty())
    errors = Console(stderr=True, soft_wrap=True, style="red", highlight=False, markup=False)
    try:
        from lpjax import methods
        from lpjax.config.load import from_config_dict

        fields, folder = parse(argv)
        config = from_config_dict(fields)
        provide_devices(devices_of_a_process(methods.resolve(config).mesh_shape, join()))
        from lpjax.cost import dry_run, memory
        from lpjax.errors import CorruptDataError
        from lpjax.parallel import processes
        from lpjax.training import log, loop, summary, workdir, writers
        from lpjax.training import run as runs

        console.quiet = not processes.is_writer()
        run = runs.prepare(config)
        summary.print_tables(console, run)
        console.print(memory.in_words(run.network, run.config, run.spec.num_train))
        if config.dry_run:
            needs = dry_run.dry_run(run, console)
            if _WORKDIR.value and processes.is_writer():
                folder.mkdir(parents=True, exist_ok=True)
                writers.write_json(folder / "traffic.json", needs)
            return 0
    except (ValueError, OSError) as error:
        errors.print(f"lpjax: {error}")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        errors.print("lpjax: interrupted; nothing was written")
        return EXIT_INTERRUPTED
    try:
        if _MODE.value == "eval":
            result = loop.evaluate(run, folder)
            console.print(f"step {result['step']}: test accuracy {result['test_accuracy']:.4f}; {folder}/eval.json")
        else:
            result = loop.train(run, folder, console, restart=_RESTART.value)
            seconds = f"{result['seconds_total']:.0f} s; {folder}/result.json"
            console.print(f"test accuracy {result['test_accuracy']:.4f}, {seconds}")
    except log.NonFiniteError as error:
        errors.print(f"lpjax: {error}")
        return EXIT_NON_FINITE
    except (CorruptDataError, workdir.WorkdirError) as error:
        errors.print(f"lpjax: {error}")
        return EXIT_BAD_INPUT
    except loop.StoppedError as stopped:
        errors.print(f"lpjax: {stopped}; the same command goes on from there")
        return EXIT_INTERRUPTED if stopped.signal == signal.SIGINT else EXIT_STOPPED
    except KeyboardInterrupt:
        errors.print(f"lpjax: interrupted; the same command goes on from the last checkpoint in {folder}")
        return EXIT_INTERRUPTED
    except OSError as error:  # a full disk, above all
        errors.print(f"lpjax: {error}")
        return EXIT_FAULT
    return 0


if __name__ == "__main__":
    from lpjax.parallel.processes import run

    sys.exit(run(main, sys.argv, agreed=(0, EXIT_NON_FINITE, EXIT_STOPPED)))
