"""The command line."""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

EXIT_FAULT, EXIT_BAD_INPUT, EXIT_NON_FINITE, EXIT_STOPPED, EXIT_INTERRUPTED = 1, 2, 3, 75, 130


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
