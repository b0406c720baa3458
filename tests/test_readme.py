"""The README says what the files say."""

import json
import re
from pathlib import Path

import pytest

from experiments import (
    accuracy,
    compare,
    compile_time,
    digits_policies,
    fashion_mnist_epoch,
    feed_rate,
    kill_loop,
    mesh_agreement,
)

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "name, experiment",
    [
        ("digits", digits_policies),
        ("fashion", fashion_mnist_epoch),
        ("compile", compile_time),
        ("mesh", mesh_agreement),
        ("feed", feed_rate),
        ("kills", kill_loop),
        ("compare", compare),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tables_are_those_of_the_results(name, experiment):
    (shown,) = re.findall(rf"<!-- {name} -->\n(.*?)\n<!-- end -->", README, re.DOTALL)
    out = re.search(r"experiments/results/\w+\.json", experiment.__doc__).group()
    results = json.loads((ROOT / out).read_text())
    assert shown.strip() == experiment.markdown(results["rows"])
    assert {"command", "date", "commit", "hardware"} <= results.keys()


@pytest.mark.parametrize("table", ["final"])
def test_accuracy_tables_are_those_of_the_results(table):
    (shown,) = re.findall(rf"<!-- accuracy_{table} -->\n(.*?)\n<!-- end -->", README, re.DOTALL)
    results = json.loads((ROOT / f"experiments/results/accuracy_{table}.json").read_text())
    assert shown.strip() == accuracy.markdown(results["rows"])


def test_files_it_names_exist():
    names = set(re.findall(r"`?((?:lpjax|configs|experiments|tests)/[\w/]+\.(?:py|json))", README))
    assert len(names) > 10
    assert not [name for name in names if not (ROOT / name).exists()]


def test_every_exit_code_is_documented():
    from lpjax import main

    for code in (main.EXIT_BAD_INPUT, main.EXIT_NON_FINITE, main.EXIT_STOPPED, main.EXIT_INTERRUPTED):
        assert f"{code} " in README
