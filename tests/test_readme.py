"""The README says what the files say."""

import json
import re
from pathlib import Path

import pytest

from lpjax.errors import BadInput, Interrupted
from lpjax.training.log import NonFiniteError
from lpjax.training.loop import StoppedError

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "experiments/results").glob("*.json")), ids=lambda path: path.stem)
def test_results_say_where_they_are_from(path):
    assert {"command", "date", "commit", "hardware"} <= json.loads(path.read_text()).keys()


def test_files_it_names_exist():
    names = set(re.findall(r"`?((?:lpjax|configs|experiments|tests)/[\w/]+\.(?:py|json))", README))
    assert len(names) > 10
    assert not [name for name in names if not (ROOT / name).exists()]


def test_every_exit_code_is_documented():
    for error in (BadInput, NonFiniteError, StoppedError, Interrupted):
        assert f"{error.exit_code} " in README
