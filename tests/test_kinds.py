"""Stages of a kind share one program, which computes what a program for each of them does."""

from dataclasses import replace

import jax
import pytest
from helpers import assert_close, small_run, take_steps

from lpjax.configs.digits_mlp import init_block, linear
from lpjax.nn import layers
from lpjax.nn.chain import Unit
from lpjax.training.run import with_method

STAGES = 5
KINDS = (0,), (1, 2, 3), (4,)


def apply_block(params, stats, x, mode):
    y, stats = layers.batch_norm(params["norm"], stats, x, mode)
    return x + layers.dropout(layers.linear(params["linear"], jax.nn.tanh(y)), 0.5, mode), stats


def units(classes):
    return [linear(5), *[Unit("block", init_block, apply_block)] * 3, linear(classes)]


def run_of(stage, **fields):
    """A stage a unit; stages 1 to 3 share a program, though their tails have two, one and no piece before the head."""
    settings = {"model": {"function": "test_kinds:units"}, "aux__function": "own_units", "data__crop": 0}
    return small_run(num_stages=STAGES, mesh__stage=stage, standardise=True, batch_size=20, **settings, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "coarse_adjoint"},
        {"method": "coarse_adjoint", "aux__tail": 1},
        {"method": "layer_parallel", "multiplier": "coarse_tail"},
        {"method": "layer_parallel", "multiplier": "mean"},
        {"method": "local"},
        {"method": "local", "local__classifier": "sampled"},
        {"method": "delayed", "delayed__micro_batches": 2},
        {"method": "delayed", "delayed__micro_batches": 2, "delayed__weights": "batch"},
        {"method": "delayed", "delayed__variant": "ddg"},
        {"method": "corrected", "corrected__micro_batches": 2},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_stages_of_a_kind_compute_what_each_would_alone(fields, x64):
    run = run_of(1, **fields)
    assert run.network.kinds == KINDS
    each = replace(run, network=replace(run.network, kinds=tuple((k,) for k in range(STAGES))))
    state, figures = take_steps(with_method(each, run.config.method), 3)
    for shared in (run, run_of(STAGES, **fields)):
        other, other_figures = take_steps(shared, 3)
        assert_close(other, state)
        assert_close(other_figures, figures)
