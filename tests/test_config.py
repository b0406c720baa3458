"""The configuration: every config file builds, every mistake is refused by name, before anything compiles."""

import importlib.util
import io
import re
import sys
from functools import partial
from pathlib import Path

import pytest
from helpers import small_config
from rich.console import Console
from rich.table import Column, Table

from lpjax.config import named
from lpjax.config.load import default_config, from_config_dict
from lpjax.config.schema import Config
from lpjax.cost.model import device_bytes
from lpjax.data import SOURCES
from lpjax.errors import BadInput
from lpjax.methods import METHODS, configure
from lpjax.models.resnet import Classifier
from lpjax.nn.count import chain_size
from lpjax.training import run as runs
from lpjax.training import summary

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("[!_]*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DEEP = ("1202", "1001", "164", "152")
"""Endings of networks that take long to count, beside shallower ones of the same kind."""


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if path.stem.endswith(DEEP) else ()) for path in CONFIGS],
    ids=lambda path: path.stem,
)
def test_every_config_builds(path):
    """Its network, cut table and memory estimate, for the published set; nothing is compiled."""
    module = load(path)
    assert f"--config=configs/{path.name}" in module.__doc__, "the header gives the command"
    config = configure(module.get_config().to_dict())
    source = SOURCES[config.data.name]
    spec = (source.published or source.describe)(config.data)
    network = runs.build_network(config, spec)
    assert network.num_stages == config.num_stages
    assert network.stages[-1].out_shape == (*network.label_shape, spec.classes)
    assert summary.cut_table(network, config).row_count == config.num_stages + len(network.aux_net) * (
        METHODS[config.method].aux_net != "none"
    )
    memory = device_bytes(network, config, spec.num_train)
    assert memory["parameters"] * config.mesh_shape[0] > 4 * sum(map(chain_size, network.stages))
    assert memory["activations"] > 0


def test_a_narrow_terminal_loses_nothing_of_a_table():
    console = Console(file=io.StringIO(), width=20)
    table = Table("stage", Column("units", overflow="fold"), Column("parameters", justify="right"))
    table.add_row("0", "conv, 3 x block-16/2", "1,234,567")
    summary.print_whole(console, table)
    said = console.file.getvalue()
    assert {"stage", "units", "parameters", "0", "conv,", "3", "x", "block-16/2", "1,234,567"} <= set(said.split())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_names_its_method(path, monkeypatch):
    """In its header, too: a change of the default changes no file.  A multiplier is set only where it is read."""
    module = load(path)
    config = module.get_config()
    assert re.search(rf"\b{config.method}\b", module.__doc__)
    assert config.method == "layer_parallel" or "config.multiplier" not in path.read_text()
    for method in METHODS:
        monkeypatch.setattr("lpjax.config.load.Config", partial(Config, method=method))
        assert load(path).get_config().method == config.method


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_can_be_given_from_any_folder(path, tmp_path, monkeypatch):
    """Where lpjax can be imported, and what is beside the file cannot."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if Path(folder).resolve() != path.parent.parent])
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    assert load(path).get_config().num_stages > 1


def test_defaults_survive_the_round_trip():
    assert from_config_dict(default_config().to_dict()) == Config()


def test_a_models_fields_are_its_functions_arguments():
    """In a config file, where the section may be set whole, and from the command line's types."""
    config = default_config()
    config.model.depth = 32
    assert from_config_dict(config.to_dict()).model.arguments == {"depth": 32, "width": 16}
    config.model = {"function": "wide_resnet", "depth": 16, "widen": 4}
    model = from_config_dict(config.to_dict()).model
    assert model.function == "wide_resnet"
    assert model.arguments == {"depth": 16, "widen": 4}


@pytest.mark.parametrize("field", named.PROVIDED)
def test_what_comes_with_lpjax_goes_by_its_name(field):
    """The dotted name is understood when a configuration is read; both are of the same function."""
    section, _, _ = field.partition(".")
    for name, place in named.PROVIDED[field].items():
        assert named.load(name, field) is named.load(place, field)
        assert getattr(from_config_dict({section: {"function": place}}), section).function == name
    assert named.canonical_name(name) == name
    assert named.canonical_name("mine:resnet") == "mine:resnet"


@pytest.mark.parametrize("name", ["convolutions", "own_units"])
def test_names_of_before_are_understood(name):
    assert from_config_dict({"aux": {"function": f"lpjax.aux_net:{name}"}}).aux.function == name


BAD = [
    ({"mehtod": "serial"}, r"mehtod: no such field; did you mean method\?"),
    ({"mesh": {"stages": 2}}, r"mesh.stages: no such field; did you mean mesh.stage\?"),
    ({"mesh": 4}, "mesh=4: expected a section with fields"),
    (
        {"method": "seriel"},
        r"method='seriel': expected one of layer_parallel, coarse_adjoint, serial, .*; did you mean serial\?",
    ),
    ({"num_stages": "4"}, "num_stages='4': expected int, got str"),
    ({"cuts": 3}, "cuts=3: expected a tuple"),
    ({"seed": -1}, "seed=-1: expected 0 to 4294967295"),
    ({"num_stages": 0}, "num_stages=0: expected at least 1"),
    ({"mesh": {"stage": 3}}, r"mesh.stage=3: expected a divisor of num_stages=4.*choose one of \[1, 2, 4\]"),
    ({"batch_size": 30}, r"batch_size=30: expected a multiple of .* 4 \* 1 = 4.*nearest above is 32"),
    ({"batch_size": 36, "mesh": {"data": 2}}, r"4 \* 2 = 8.*nearest above is 40"),
    ({"multiplier": "per_example"}, "multiplier=per_example with data.crop=1.*set data.crop=0"),
    ({"multiplier": "per_example", "data": {"crop": 0, "flip": True}}, "data.flip=True"),
    ({"data": {"channels": 2}}, "data.channels=2: expected 3, or 1 for grey"),
    ({"model": {"function": 3}}, "model.function=3: expected str"),
    ({"multiplier": "adjoint", "aux": {"task_weight": 0.0}}, "multiplier=adjoint with aux.task_weight=0.0"),
    ({"penalty": {"initial": 20.0, "maximum": 10.0}}, "penalty.maximum=10.0: expected at least penalty.initial=20.0"),
    ({"optimizer": {"learning_rate": 0.0}}, "optimizer.learning_rate=0.0: expected > 0"),
    ({"optimizer": {"momentum": 1.0}}, "optimizer.momentum=1.0: expected at least 0 and < 1"),
    ({"optimizer": {"age_discount": -1.0}}, "optimizer.age_discount=-1.0: expected at least 0"),
    ({"aux_optimizer": {"age_discount": 1.0}}, "aux_optimizer.age_discount=1.0: expected 0.*leave it out"),
    ({"aux_optimizer": {"accumulate": 2}}, "aux_optimizer.accumulate=2: expected 1.*leave it out"),
    ({"method": "pipeline", "optimizer": {"accumulate": 2}}, "method=pipeline, which .* one of serial, data_parallel"),
    (
        {"method": "data_parallel", "optimizer": {"accumulate": 3}},
        r"optimizer.accumulate=3: expected a divisor of batch_size / \(mesh.stage \* mesh.data\) = 16",
    ),
    ({"optimizer": {"schedule": "step"}}, "optimizer.step_epochs=.*schedule=step"),
    ({"optimizer": {"step_epochs": [10]}}, "step_epochs belong to schedule=step"),
]


@pytest.mark.parametrize("values, message", BAD, ids=lambda value: str(value)[:40])
def test_mistakes_are_refused(values, message):
    with pytest.raises(BadInput, match=message):
        configure(values)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_stages": 8}, "num_stages=8: the network is a chain of 5 units"),
        ({"cuts": (1, 1, 2)}, "expected num_stages - 1 = 3 increasing positions"),
        ({"model": {"depth": 8}}, r"model: missing a required argument: 'width'; .* takes depth, width: correct"),
        (
            {"model__function": "resnt"},
            r"function='resnt': expected one of resnet, .*'package.*; .* resnet\?",
        ),
        ({"aux__function": "resnet"}, "aux.function='resnet': expected one of convolutions, own_units, or"),
        ({"model__function": "lpjax.nothing:resnet"}, "No module named 'lpjax.nothing'; correct the name"),
        ({"model__function": "lpjax.models.resnet:nothing"}, "has no attribute 'nothing'; correct the name"),
        ({"model__function": "lpjax.nn.layers:BATCH_NORM_EPSILON"}, "is a float; name a function"),
        ({"model": {"function": "imagenet_resnet", "depth": 18}}, "a map of 1x1 cannot be taken at stride 2"),
        ({"data__name": "cifar11"}, "data.name='cifar11': expected one of digits"),
        ({"batch_size": 1600}, "batch_size=1600: the training set has 1437 examples"),
        ({"mesh__data": 4}, r"mesh.stage=4 \* mesh.data=4 = 16 devices: 8 found"),
        ({"aux__share": 0.0}, "aux.share=0.0: expected > 0"),
    ],
)
def test_what_does_not_fit_network_data_or_machine(fields, message):
    with pytest.raises(ValueError, match=message):
        runs.prepare(small_config(**fields))


def test_the_first_penalty_coefficient_goes_by_the_policy():
    assert small_config(multiplier="coarse_tail").penalty.initial == 0.1
    assert small_config(multiplier="adjoint").penalty.initial == 1.0
    assert small_config(multiplier="coarse_tail", penalty__initial=3).penalty.initial == 3.0


@pytest.mark.parametrize("outputs", [1, 1000])
def test_a_head_of_another_number_of_classes(outputs):
    """Refused by both numbers, before anything is compiled."""
    fields = {"model": {"function": f"{__name__}:network_of_outputs", "outputs": outputs}, "data": {"name": "digits"}}
    message = (
        rf"network_of_outputs: its outputs have shape \({outputs},\), expected \(10,\).* data.name=digits; correct"
    )
    with pytest.raises(BadInput, match=message):
        runs.prepare(configure(fields | {"method": "serial", "num_stages": 1}))


def network_of_outputs(*, outputs, classes):
    return [Classifier(outputs)]
