"""python -m lpjax.main --config=FILE [--config.field=value ...] [--workdir=DIR]

One process with all devices it sees; or several, each started by the same command with --distributed (SLURM, TPU,
GKE, Open MPI) or with --coordinator=HOST:PORT --num_processes=N --process_id=I.

The same command goes on with a run that was interrupted, from the last good checkpoint in its workdir.  --mode=eval
tests that checkpoint instead.

Exit codes: 0 done; 1 a fault of lpjax or of the system, such as a full disk; 2 bad configuration or data, or a workdir
that holds another run; 3 a figure became non-finite; 4 another process was lost; 75 stopped by SIGTERM, and 130 by
Ctrl-C: the state was saved.
"""

import os
import signal
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags
from rich.console import Console

EXIT_FAULT, EXIT_BAD_INPUT, EXIT_NON_FINITE, EXIT_STOPPED, EXIT_INTERRUPTED = 1, 2, 3, 75, 130

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file (Python: it is executed), e.g. configs/digits.py."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for metrics and results; runs/<config's name> if not given.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train, or test the newest checkpoint of the workdir.")
_RESTART = flags.DEFINE_bool("restart", False, "Move what is in the workdir aside and train from the start.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes, found from the environment.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "One of several processes: HOST:PORT of process 0, a free port."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes; with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0; with --coordinator.")
_HEARTBEAT = flags.DEFINE_integer("heartbeat_seconds", 30, "A process that is silent for so long is lost.")


def parse(argv: list[str]) -> tuple[dict, Path]:
    """The configuration's fields and the workdir from the command line.

    Raises ValueError for anything wrong with them.
    """
    try:
        rest = flags.FLAGS(argv)
        values = _CONFIG.value
        if values is None:
            raise ValueError("--config is missing: expected a config file, e.g. --config=configs/digits.py")
        name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
        fields = values.to_dict()
    except (flags.Error, AttributeError, KeyError, TypeError, OSError, SyntaxError, ImportError) as error:
        raise ValueError(f"{error}".strip('"')) from error
    if rest[1:]:
        raise ValueError(f"unexpected argument {rest[1]!r}: fields are set as --config.field=value")
    return fields, Path(_WORKDIR.value or Path("runs") / name)


def join() -> int:
    """Join the other processes that the flags tell of; returns how many there are.  Raises ValueError."""
    from lpjax import distributed

    return distributed.initialize(
        detect=_DISTRIBUTED.value,
        coordinator=_COORDINATOR.value,
        num_processes=_NUM_PROCESSES.value,
        process_id=_PROCESS_ID.value,
        heartbeat_seconds=_HEARTBEAT.value,
    )


def provide_devices(count: int) -> None:
    """Let a CPU back end have `count` devices, unless XLA_FLAGS already says how many.  Before JAX starts."""
    xla_flags = os.environ.get("XLA_FLAGS", "")
    # A slow device is not a dead one: the default gives up on a collective after a minute.
    for name, value in (("warn_stuck", 300), ("terminate", 1800)):
        flag = f"--xla_cpu_collective_call_{name}_timeout_seconds"
        if flag not in xla_flags:
            xla_flags = f"{xla_flags} {flag}={value}".strip()
    os.environ["XLA_FLAGS"] = xla_flags
    if "xla_force_host_platform_device_count" not in xla_flags:
        import jax

        jax.config.update("jax_num_cpu_devices", count)


def devices_of_a_process(mesh_shape: tuple[int, int], processes: int) -> int:
    """How many devices of the mesh each process has; raises ValueError when they do not divide."""
    devices = mesh_shape[0] * mesh_shape[1]
    if devices % processes:
        raise ValueError(
            f"mesh.stage={mesh_shape[0]} * mesh.data={mesh_shape[1]} = {devices} devices on {processes} processes: "
            f"expected a multiple, so that each has equally many; change the mesh or the number of processes"
        )
    return devices // processes


def main(argv: list[str]) -> int:
    """Train, test or dry-run as the command line says; returns the exit code, see the module's docstring."""
    console = Console(soft_wrap=not sys.stdout.isatty())
    errors = Console(stderr=True, soft_wrap=True, style="red", highlight=False, markup=False)
    try:
        from lpjax.config_dict import from_config_dict

        fields, folder = parse(argv)
        config = from_config_dict(fields)
        provide_devices(devices_of_a_process(config.mesh_shape, join()))
        from lpjax import cost, distributed, metrics, progress, runs, tables, train, workdir
        from lpjax.data.source import CorruptDataError

        console.quiet = not distributed.is_writer()
        run = runs.prepare(config)
        tables.print_tables(console, run.network, config, run.mesh, run.spec.num_train)
        if config.dry_run:
            needs = cost.dry_run(run, console)
            if _WORKDIR.value and distributed.is_writer():
                folder.mkdir(parents=True, exist_ok=True)
                metrics.write_json(folder / "cost.json", needs)
            return 0
    except (ValueError, OSError) as error:
        errors.print(f"lpjax: {error}")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        errors.print("lpjax: interrupted; nothing was written")
        return EXIT_INTERRUPTED
    try:
        if _MODE.value == "eval":
            result = train.evaluate(run, folder)
            console.print(f"step {result['step']}: test accuracy {result['test_accuracy']:.4f}; {folder}/eval.json")
        else:
            result = train.train(run, folder, console, restart=_RESTART.value)
            seconds = f"{result['seconds_total']:.0f} s; {folder}/result.json"
            console.print(f"test accuracy {result['test_accuracy']:.4f}, {seconds}")
    except progress.NonFiniteError as error:
        errors.print(f"lpjax: {error}")
        return EXIT_NON_FINITE
    except (CorruptDataError, workdir.WorkdirError) as error:
        errors.print(f"lpjax: {error}")
        return EXIT_BAD_INPUT
    except train.StoppedError as stopped:
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
    from lpjax.distributed import run

    sys.exit(run(main, sys.argv, agreed=(0, EXIT_NON_FINITE, EXIT_STOPPED)))
