"""python -m lpjax.main --config=FILE [--config.field=value ...] [--workdir=DIR]

Exit codes: 0 done; 1 a fault of lpjax or of the system; 2 bad configuration or data; 3 a figure became non-finite;
130 interrupted (Ctrl-C).
"""

import os
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags
from rich.console import Console

EXIT_BAD_INPUT, EXIT_NON_FINITE, EXIT_INTERRUPTED = 2, 3, 130

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file (Python: it is executed), e.g. configs/digits.py."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for metrics and results; runs/<config's name> if not given.")


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


def main(argv: list[str]) -> int:
    console = Console(soft_wrap=not sys.stdout.isatty())
    errors = Console(stderr=True, soft_wrap=True, style="red", highlight=False, markup=False)
    try:
        from lpjax.config_dict import from_config_dict

        fields, workdir = parse(argv)
        config = from_config_dict(fields)
        provide_devices(config.mesh_shape[0] * config.mesh_shape[1])
        from lpjax import tables, train
        from lpjax.data.source import CorruptDataError

        run = train.prepare(config)
        tables.print_tables(console, run.network, config, run.mesh, run.spec.num_train)
        if config.dry_run:
            train.dry_run(run, console)
            return 0
        workdir.mkdir(parents=True, exist_ok=True)
        if not os.access(workdir, os.W_OK):
            raise PermissionError(f"workdir={workdir}: expected a folder that can be written to; choose another")
    except (ValueError, OSError) as error:
        errors.print(f"lpjax: {error}")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        errors.print("lpjax: interrupted; nothing was written")
        return EXIT_INTERRUPTED
    try:
        result = train.train(run, workdir, console)
    except train.NonFiniteError as error:
        errors.print(f"lpjax: {error}")
        return EXIT_NON_FINITE
    except CorruptDataError as error:
        errors.print(f"lpjax: {error}")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        errors.print(f"lpjax: interrupted; what was done is in {workdir}")
        return EXIT_INTERRUPTED
    console.print(
        f"test accuracy {result['test_accuracy']:.4f}, {result['seconds_total']:.0f} s; {workdir}/result.json"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
