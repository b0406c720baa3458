"""The stages as programs of their own."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from lpjax.config.schema import MeshConfig
from lpjax.cost import timing
from lpjax.cost.timing import StagePrograms
from lpjax.methods import METHODS
from lpjax.training import run as runs
from tests.helpers import small_config


@pytest.mark.parametrize(
    ("method", "tied"),
    [
        *((name, False) for name, method in METHODS.items() if method.stage_program is not None),
        ("coarse_adjoint", True),
    ],
)
def test_each_stage_has_a_program_on_a_columns_examples(method, tied):
    config = replace(small_config(method=method, num_stages=3, mesh__stage=1, aux__tied=tied), dry_run=True)
    run = runs.prepare(replace(config, mesh=MeshConfig(1, 2)))
    programs = StagePrograms(run, jax.devices()[0])
    assert programs.column == config.batch_size // 2
    for k in range(3):
        done = programs.stage(k)()
        gradient = jax.tree.leaves(done.grads)
        assert all(jnp.isfinite(leaf).all() for leaf in gradient)
        assert max(jnp.abs(leaf).max() for leaf in gradient) > 0
        assert 0.1 < done.loss < 20, "the examples count as real ones"


def test_a_method_whose_stages_have_several_passes_is_refused():
    run = runs.prepare(replace(small_config(method="pipeline", num_stages=2), dry_run=True))
    with pytest.raises(ValueError, match="method=pipeline: a stage of it is no program of its own"):
        StagePrograms(run, jax.devices()[0]).stage(0)


def test_a_table_of_multipliers_has_the_columns_examples_alone():
    run = runs.prepare(small_config(multiplier="per_example", data__crop=0, num_stages=2, mesh__stage=1, dry_run=True))
    programs = StagePrograms(run, jax.devices()[0])
    assert [len(table) for table in programs.state.multiplier] == [programs.column]
    assert programs.column < run.step_inputs.num_examples


def test_stages_are_timed_interleaved(monkeypatch):
    asked = []

    def clock(programs, repeats):
        asked.append((len(programs), repeats))
        return [[k + 2.0, 9.0, k + 1.0] for k in range(len(programs))]

    monkeypatch.setattr("lpjax.cost.timing.interleaved", clock)
    run = runs.prepare(replace(small_config(method="coarse_adjoint", num_stages=2), dry_run=True))
    assert timing.stage_seconds(run, repeats=3) == [1.0, 2.0]
    assert asked == [(2, 3)]
