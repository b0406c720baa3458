"""Export the network of a run as a model.

    python -m lpjax.export --config=FILE [--config.field=value ...] --workdir=RUN --output=DIR [--step=N] [--ema]

Writes the composed network of a run's checkpoint, without AuxNet and with recalibrated batch-norm statistics, as a
model that can be used without lpjax (`model_file`).  Start it with the run's own configuration.

Exit codes: 0 done; 1 a fault of lpjax or of the system; 2 bad configuration, data, checkpoint or output folder; 130
interrupted.
"""

import math
import shlex
import sys

from absl import flags

from lpjax import cli, errors, methods
from lpjax.config import command_line
from lpjax.config.load import from_config_dict
from lpjax.export import from_run, model_file
from lpjax.parallel import compilation, platform
from lpjax.training import evaluate, resume
from lpjax.training.run import prepare

_OUTPUT = flags.DEFINE_string("output", None, "Folder for the model: a new one, or empty.")
_STEP = flags.DEFINE_integer("step", None, "Of the checkpoint; the last one if not given.")
_FOLD = flags.DEFINE_bool("fold_batch_norm", False, "Fold batch norms into the convolutions before them.")

_EMA = flags.DEFINE_bool("ema", False, "Take the moving average of the weights, of a run with ema_decay.")


@cli.command("interrupted; nothing was written")
@errors.bad_input()
def main(argv: list[str]) -> int:
    """Export the newest good checkpoint of a workdir, or the one asked for; returns the exit code."""
    fields, workdir = command_line.parse(argv)
    config = from_config_dict(fields)
    if _OUTPUT.value is None:
        raise errors.BadInput("--output is missing: expected a folder for the model, e.g. --output=model")
    if config.dry_run:
        raise errors.BadInput("dry_run=True: the batch-norm statistics are found on training data; leave it out")
    if _EMA.value and config.ema_decay is None:
        raise errors.BadInput("--ema with ema_decay=None: the run has no average of its weights; leave --ema out")
    output = command_line.local_path(_OUTPUT.value)
    model_file.check_free(output)
    compilation.keep()
    platform.provide_devices(math.prod(methods.resolve(config).mesh_shape))
    run = prepare(config)
    state, step, meta = resume.load(run, workdir, _STEP.value)
    accuracy = (meta.get("evaluation") or {}).get("ema_accuracy" if _EMA.value else "test_accuracy")
    state = evaluate.with_average(state) if _EMA.value else state
    params, stats = from_run.composed_trees(run, state)
    known = {"step": step, "test_accuracy": accuracy, "ema": _EMA.value}
    from_run.write(output, run, params, stats, fold_batch_norm=_FOLD.value, **known)
    what = "IMAGES" if run.spec.task.images else "--prompt=TEXT"
    cli.console().print(
        f"{output}: the network of step {step}; try: python -m lpjax.predict --model={shlex.quote(str(output))} {what}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
