"""The rows of all experiments: a method, and what is changed of it, such as "coarse_adjoint, tied, 18 epochs".

A row sets fields of the configuration, on top of a config file.  After the method come changes: names of `CHANGES` and
`NUMBERS`, such as "3 sweeps", "METHOD from epoch N" or "METHOD by cosine N" for a second phase, or field=value.
"""

import ast
import re
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lpjax.config.schema import Config, DataConfig
from lpjax.data import SOURCES
from lpjax.data.source import Spec
from lpjax.data.subset import reduced_spec
from lpjax.errors import BadInput
from lpjax.methods import METHODS, configure

Fields = dict[str, Any]

SHARES = {"half": 1, "quarter": 2}
"""Words for `aux.grid`: the config file's, or half of the images' side (up to a power of two), over this."""

ROWS: dict[str, Fields] = {
    "ddg": {"method": "delayed", "delayed.variant": "ddg"},
    "fdg": {"method": "delayed", "delayed.variant": "fdg"},
    "coarse_adjoint": {"method": "coarse_adjoint", "aux.grid": "half"},
    "corrected": {"method": "corrected", "aux.grid": "half"},
    "coarse_tail": {"method": "layer_parallel", "multiplier": "coarse_tail", "aux.grid": None},
    "penalty": {"method": "layer_parallel", "multiplier": "none", "aux.grid": None},
    "adjoint": {"method": "layer_parallel", "multiplier": "adjoint", "aux.grid": None},
}
"""Methods with settings; any other method of lpjax is a row by its own name."""

CHANGES: dict[str, tuple[Fields, str]] = {
    "by batch": ({"delayed.weights": "batch"}, "one version of the weights for all stages"),
    "sampled": ({"local.classifier": "sampled"}, "classifiers of units drawn from the stages behind"),
    "momentum": ({"local.classifier": "momentum"}, "classifiers with a mean of the next stage's first unit"),
    "nadam": ({"optimizer.name": "nadam", "optimizer.learning_rate": 2e-3, "optimizer.b1": 0.99}, "NAdam, b1 = 0.99"),
    "age discount": ({"optimizer.age_discount": 1.0}, "learning rates by the age of a stage's gradients"),
    "remat": ({"remat": True}, "activations computed again in the backward pass"),
    "no block": ({"aux.blocks_per_stage": 0}, "pieces of one convolution"),
    "half width": ({"aux.width": 0.5}, "half as many channels in the AuxNet"),
    "quarter grid": ({"aux.grid": "quarter"}, "tails on a quarter of the images' side"),
    "own maps": ({"aux.grid": None}, "tails on the stages' maps"),
    "tied": ({"aux.tied": True}, "tails end in units of the last stage"),
    "no fit": ({"penalty.aux": 0.0}, "pieces are not fitted to the stages"),
    "no task loss": ({"aux.task_weight": 0.0}, "the AuxNet has no loss of its own"),
    "standardised": ({"standardise": True}, "features standardised at the cuts"),
    "stale": ({"exchange.stale": True}, "an exchange that is a step old"),
    "bfloat16 exchange": ({"exchange.bfloat16": True}, "half as many bytes exchanged"),
}

NUMBERS = {
    "N blocks": "aux.blocks_per_stage",
    "tail N": "aux.tail",
    "N sweeps": "penalty.sweeps",
    "N micro-batches": "{method}.micro_batches",
    "N epochs": "num_epochs",
    "residue N": "local.residue",
    "accumulate N": "optimizer.accumulate",
    "deep supervision N": "serial.deep_supervision",
}


def _change(text: str, row: Fields) -> Fields:
    """Fields of one change of a row."""
    if text in CHANGES:
        return CHANGES[text][0]
    if (found := re.search(r"[\d.]+", text)) and (name := NUMBERS.get(text.replace(found[0], "N", 1))):
        return {name.format(**row): ast.literal_eval(found[0])}
    if (found := re.fullmatch(r"(\w+) (from epoch|by \w+) ([\d.]+)", text)) and found[1] in METHODS:
        own, by, number = {"phases.methods": (row["method"], found[1])}, found[2].removeprefix("by "), float(found[3])
        return own | ({"phases.epochs": (number,)} if by == found[2] else {"phases.by": by, "phases.threshold": number})
    if "=" in text:
        return parsed([f"--config.{text}"])
    raise BadInput(f"row change {text!r}: expected {', '.join([*CHANGES, *NUMBERS])}, METHOD from/by .. N, field=value")


def fields_of(row: str) -> Fields:
    """Fields of a row, `aux.grid` in words where it depends on the images; BadInput if there is no such row."""
    name, *changes = re.split(r", (?![^(]*\))", row)
    if name not in ROWS and name not in METHODS:
        raise BadInput(f"row {row!r}: expected one of {', '.join(dict.fromkeys([*METHODS, *ROWS]))}, and changes")
    fields = dict(ROWS.get(name, {"method": name}))
    for change in changes:
        fields |= _change(change, fields)
    return fields


def meaning(row: str) -> str:
    """What the changes of a row are, for a table."""
    return ", ".join(CHANGES[change][1] if change in CHANGES else change for change in row.split(", ")[1:])


def parsed(extra: list[str]) -> Fields:
    """Fields from arguments --config.field=value; BadInput for any other argument."""
    fields = {}
    for argument in extra:
        name, equals, text = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config.") or not equals:
            raise BadInput(f"{argument}: expected --config.field=value; --help lists the options")
        try:
            fields[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            fields[name] = text
    return fields


def load(path: Path | str, fields: Mapping[str, Any]) -> Config:
    """The configuration of a config file with some fields set (lists, as JSON has them, as tuples), and checked."""
    if not Path(path).exists():
        raise BadInput(f"--config={path}: expected a config file, e.g. configs/digits.py")
    values = runpy.run_path(str(path))["get_config"]()
    own: Fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    share = SHARES[own.pop("aux.grid")] if own.get("aux.grid") in SHARES else 0
    try:
        values.update_from_flattened_dict(own)
    except (KeyError, AttributeError, TypeError) as error:
        raise BadInput(f"{path}: {error}") from error
    if share:
        side = images(configure(values.to_dict()).data).image_shape[0]
        values.aux.grid = (values.aux.grid or 1 << (side - 1).bit_length() - 1) // share
    return configure(values.to_dict())


def images(config: DataConfig) -> Spec:
    """Images and numbers of a published data set, as the configuration reduces them."""
    if (published := SOURCES[config.name].published) is None:
        raise BadInput(f"data.name={config.name}: its images have no known size; set aux.grid")
    return reduced_spec(published(config), config)


def in_numbers(path: Path | str, fields: Mapping[str, Any]) -> Fields:
    """The fields as the command line of lpjax can be told them: `aux.grid` as a number."""
    grid = {"aux.grid": load(path, fields).aux.grid} if fields.get("aux.grid") in SHARES else {}
    return {**fields, **grid}
