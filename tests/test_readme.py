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
    levers,
    memory,
    mesh_agreement,
    speedup,
    tradeoff,
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


def shown(name):
    (found,) = re.findall(rf"<!-- {name} -->\n(.*?)\n<!-- end -->", README, re.DOTALL)
    return found.strip()


def result(name):
    return json.loads((ROOT / f"experiments/results/{name}.json").read_text())


def test_the_accuracy_table_is_that_of_the_results():
    """Of two files: all methods and epochs for K = 4 and 8, fewer for 2 and 3."""
    rows = [row for name in ("accuracy_final", "accuracy_few") for row in result(name)["rows"]]
    assert shown("accuracy") == accuracy.markdown(rows)


@pytest.mark.parametrize("name", ["accuracy_deep", "accuracy_digits"])
def test_accuracy_elsewhere_is_that_of_the_results(name):
    assert shown(name) == accuracy.markdown(result(name)["rows"])


@pytest.mark.parametrize("name, experiment", [("tradeoff", tradeoff), ("levers", levers), ("memory", memory)])
def test_tables_of_speed_are_those_of_the_results(name, experiment):
    assert shown(name) == experiment.markdown(result(name)["rows"])


@pytest.mark.parametrize("name", ["speedup", "speedup_wrn16_4"])
def test_speed_up_tables_are_those_of_the_results(name):
    assert shown(name) == speedup.markdown(result(name))


def test_files_it_names_exist():
    names = set(re.findall(r"`?((?:lpjax|configs|experiments|tests)/[\w/]+\.(?:py|json))", README))
    assert len(names) > 10
    assert not [name for name in names if not (ROOT / name).exists()]


def test_every_exit_code_is_documented():
    from lpjax import main

    for code in (main.EXIT_BAD_INPUT, main.EXIT_NON_FINITE, main.EXIT_STOPPED, main.EXIT_INTERRUPTED):
        assert f"{code} " in README
