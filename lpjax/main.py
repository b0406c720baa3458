"""Train a network, test a run, or say what it would take.

    python -m lpjax.main --config=FILE [--config.field=value ...] [--workdir=DIR]
    python -m lpjax.main --config=FILE --help

FILE is a config file, or the name of one that comes with lpjax, such as digits; with --help its fields are listed.

One process with all devices it sees; or several, each started by the same command with --distributed (SLURM, TPU,
GKE, Open MPI) or with --coordinator=HOST:PORT --num_processes=N --process_id=I.

The same command goes on with a run that was interrupted, from the last good checkpoint in its workdir.  --mode=eval
tests that checkpoint instead.

Exit codes: 0 done; 1 a fault of lpjax or of the system, such as a full disk; 2 bad configuration or data, or a workdir
that holds another run; 3 a metric became non-finite; 4 another process was lost; 75 stopped by SIGTERM, SIGUSR1
or SIGHUP, and 130 by Ctrl-C: the state was saved.
"""

import sys

from absl import flags

from lpjax import cli, errors, methods
from lpjax.config import command_line
from lpjax.config.load import from_config_dict
from lpjax.cost import dry_run, model
from lpjax.parallel import compilation, platform, processes
from lpjax.training import loop, stop, summary, workdir
from lpjax.training import run as runs
from lpjax.training.evaluate import in_words
from lpjax.training.log import NonFiniteError

_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train, or test the newest checkpoint of the workdir.")
_RESTART = flags.DEFINE_bool("restart", False, "Move what is in the workdir aside and train from the start.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes, found from the environment.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "One of several processes: HOST:PORT of process 0, a free port."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes; with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0; with --coordinator.")
_HEARTBEAT = flags.DEFINE_integer("heartbeat_seconds", 30, "A process that is silent for so long is lost.")


@cli.command("interrupted; nothing was written")
@processes.patient
def main(argv: list[str]) -> int:
    """Train, test or dry-run as the command line says; returns the exit code, see the module's docstring."""
    with errors.bad_input():
        fields, folder = command_line.parse(argv)
        config = from_config_dict(fields)
        compilation.keep()
        count = processes.initialize(
            detect=_DISTRIBUTED.value,
            coordinator=_COORDINATOR.value,
            num_processes=_NUM_PROCESSES.value,
            process_id=_PROCESS_ID.value,
            heartbeat_seconds=_HEARTBEAT.value,
        )
        platform.provide_devices(platform.devices_of_a_process(methods.resolve(config).mesh_shape, count))
        console = cli.console(quiet=not processes.is_writer())
        run = runs.prepare(config)
        summary.print_tables(console, run)
        console.print(model.memory_in_words(run.network, run.config, run.spec.num_train))
        if config.dry_run:
            cost = dry_run.dry_run(run, console)
            if flags.FLAGS.workdir and processes.is_writer():
                folder.mkdir(parents=True, exist_ok=True)
                workdir.write_json(folder / "cost.json", cost)
            return 0
    try:
        if _MODE.value == "eval":
            result = loop.evaluate(run, folder, console.print)
            console.print(f"step {result['step']}: {in_words(result)}")
        else:
            result = loop.train(run, folder, console, restart=_RESTART.value)
            console.print(f"{in_words(result)}, {result['seconds_total']:.0f} s; {folder}/result.json")
    except KeyboardInterrupt as error:
        message = f"interrupted; the same command goes on from the last checkpoint in {folder}"
        raise errors.Interrupted(message) from error
    return 0


if __name__ == "__main__":
    sys.exit(processes.run(main, sys.argv, agreed=(0, NonFiniteError.exit_code, stop.StoppedError.exit_code)))
