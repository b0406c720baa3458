"""A user's own networks, from the config file that defines them, trained as a person would."""

import json

import pytest
from test_main import ROOT, lpjax


@pytest.mark.slow
@pytest.mark.parametrize("name, stages, epochs, least", [("digits_mlp", 4, 10, 0.9), ("digits_vit", 2, 15, 0.9)])
def test_trains_layer_parallel_on_digits(name, stages, epochs, least, tmp_path):
    done = lpjax(f"--workdir={tmp_path}", config=f"configs/{name}.py")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["method"], result["num_stages"], result["epochs"]) == ("layer_parallel", stages, epochs)
    assert result["test_accuracy"] > least
    assert max(result["relative_violation"]) < 0.3


def test_a_network_defined_outside_the_repository(tmp_path):
    """The config file of the residual MLP, in a folder of its own and run from there."""
    text = (ROOT / "configs/digits_mlp.py").read_text().replace("lpjax.configs.digits_mlp:", "mine:")
    (tmp_path / "mine.py").write_text(text)
    done = lpjax("--config.num_steps=2", "--workdir=out", config="mine.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 x mlp-block" in done.stdout
