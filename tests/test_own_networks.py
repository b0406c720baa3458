"""A user's own networks, from the config file that defines them, trained as a person would."""

import json
import re
from pathlib import Path

import pytest
from test_main import ROOT, lpjax

README = (ROOT / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name, stages, epochs, least", [("digits_mlp", 4, 10, 0.9), ("digits_vit", 2, 15, 0.9)])
def test_trains_layer_parallel_on_digits(name, stages, epochs, least, tmp_path):
    done = lpjax(f"--workdir={tmp_path}", config=f"configs/{name}.py")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["method"], result["num_stages"], result["epochs"]) == ("layer_parallel", stages, epochs)
    assert result["test_accuracy"] > least
    assert max(result["relative_violation"]) < 0.3


def test_the_readmes_network_is_the_configs_and_short():
    (shown,) = re.findall(r"<!-- own -->\n```python\n(.*?)```\n<!-- end -->", README, re.DOTALL)
    _, _, code = Path(ROOT / "configs/digits_mlp.py").read_text().split('"""', 2)
    assert shown.strip() == code.strip()
    assert len(shown.splitlines()) <= 40


def test_a_network_defined_outside_the_repository(tmp_path):
    """The config file of the README, in a folder of its own and run from there."""
    text = (ROOT / "configs/digits_mlp.py").read_text().replace("lpjax.configs.digits_mlp:", "mine:")
    (tmp_path / "mine.py").write_text(text)
    done = lpjax("--config.num_steps=2", "--workdir=out", config="mine.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 x mlp-block" in done.stdout
