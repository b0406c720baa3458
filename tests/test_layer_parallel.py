"""What the step is made of: where the state lies, which collectives there are, who runs what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, small_run, take_steps
from jax.sharding import PartitionSpec as P

from lpjax.config.schema.penalty import POLICIES
from lpjax.cost.traffic import exchanged_bytes
from lpjax.data.batch import Batch
from lpjax.methods.layer_parallel import step
from lpjax.training import run as runs


def lowered(run):
    index = jax.ShapeDtypeStruct((16,), jnp.int32)
    batch = Batch(image=jax.ShapeDtypeStruct((16, 8, 8, 1), jnp.uint8), label=index, index=index)
    return run.step.lower(jax.eval_shape(run.create), batch).as_text()


@pytest.mark.parametrize("policy", ["per_example", "mean"])
def test_state_lies_where_it_should_before_and_after_a_step(policy):
    run = small_run(multiplier=policy, data__crop=0, mesh__stage=4, mesh__data=2)
    state = run.create()
    for _ in range(2):
        for leaf in jax.tree.leaves((state.stage_params, state.stage_opt, state.stage_stats)):
            assert leaf.sharding.spec == P("stage")
            assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {1}, "one stage a device"
        for leaf in jax.tree.leaves((state.aux_params, state.aux_opt, state.aux_stats, state.penalty_coef)):
            assert leaf.sharding.is_fully_replicated
        for table in state.multiplier:
            assert table.sharding.is_fully_replicated == (policy == "mean")
            if policy == "per_example":
                assert {shard.data.shape[0] for shard in table.addressable_shards} == {1440 // 8}
        state, _ = run.step(state, next(run.feed.train()))


def test_serial_state_is_replicated():
    state = small_run(method="serial", mesh__stage=2, mesh__data=2).create()
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
    assert not jax.tree.leaves((state.aux_params, state.multiplier))


@pytest.mark.parametrize("sweeps, multiplier", [(0, "coarse_tail"), (1, "adjoint"), (2, "coarse_tail")])
def test_two_exchanges_and_two_more_a_sweep(sweeps, multiplier):
    run = small_run(penalty__sweeps=sweeps, multiplier=multiplier)
    assert lowered(run).count("stablehlo.all_to_all") == 2 + 2 * sweeps


@pytest.mark.parametrize("stage, switches", [(1, 0), (2, 2), (4, 1)])
def test_one_switch_a_slot_and_none_on_one_device(stage, switches):
    assert lowered(small_run(mesh__stage=stage)).count("stablehlo.case") == switches


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_inside_a_branch_waits_for_another_stage(policy):
    """Collectives in a branch have groups of one 'data' row: devices of one stage index."""
    run = small_run(multiplier=policy, data__crop=0, mesh__stage=4, mesh__data=2)
    text = lowered(run)
    start = text.index("stablehlo.case")
    depth, end = 0, start
    for end in range(text.index("({", start), len(text)):
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        if depth == 0:
            break
    branches = text[start:end]
    groups = set()
    for part in branches.split("replica_groups = dense<")[1:]:
        groups.add(part.split(">")[0])
    assert groups == {"[[0, 1], [2, 3], [4, 5], [6, 7]]"}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("policy", ["coarse_tail", pytest.param("adjoint", marks=pytest.mark.slow)])
def test_stale_exchange_is_a_step_late(policy):
    """Two steps learn what one does on the first batch: until then the AuxNet is the initial one."""
    late, history = take_steps(small_run(multiplier=policy, exchange__stale=True), 2)
    prompt, (figures,) = take_steps(small_run(multiplier=policy), 1)
    for name in step.LEARNT:
        assert_close(getattr(late, name), getattr(prompt, name))
    assert late.step == 2
    assert_close(history[1], figures | {"penalty_coef": history[1]["penalty_coef"]})
    assert all((value == 0).all() for name, value in history[0].items() if name != "penalty_coef")


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_stale_exchange_is_the_same_on_every_mesh():
    expected, _ = take_steps(small_run(exchange__stale=True, mesh__stage=1), 4)
    for stage, data in [(2, 1), (4, 2)]:
        state, _ = take_steps(small_run(exchange__stale=True, mesh__stage=stage, mesh__data=data), 4)
        assert_close(state, expected)


@pytest.mark.slow
def test_stale_exchange_learns_from_lambda_of_old_weights():
    """From the third step on it is not the prompt one a step late."""
    late, _ = take_steps(small_run(exchange__stale=True), 3)
    prompt, _ = take_steps(small_run(), 2)
    assert abs(late.stage_params["kernel"] - prompt.stage_params["kernel"]).max() > 1e-4


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_a_tail_as_long_as_the_auxnet_is_the_whole_one():
    whole, _ = take_steps(small_run(), 1)
    for tail in (3, 2):  # the longest, of stage 0, has pieces 1, 2 and 3, the last of which is always there
        assert_close(take_steps(small_run(aux__tail=tail), 1)[0], whole)
    short, _ = take_steps(small_run(aux__tail=1), 1)
    changed = abs(short.stage_params["kernel"] - whole.stage_params["kernel"]).max(axis=1) > 1e-9
    assert changed.tolist() == [True, False, False, False], "the tails of stages 1 and 2 have at most two pieces"


def test_exchange_in_bfloat16_rounds_and_halves_the_bytes():
    run, run16 = (small_run(multiplier="none", exchange__bfloat16=half) for half in (False, True))
    (_, (figures,)), (_, (figures16,)) = (take_steps(one, 1) for one in (run, run16))
    np.testing.assert_allclose(figures16["violation"], figures["violation"], rtol=2e-2)
    assert figures16["violation"].tolist() != figures["violation"].tolist()
    sizes = [exchanged_bytes(runs.trace(one).jaxpr, dict(one.mesh.shape))["all_to_all"] for one in (run, run16)]
    assert sizes[1] == sizes[0] / 2
