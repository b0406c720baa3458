"""What the step is made of: where the state lies, which collectives there are, who runs what."""

import jax
import jax.numpy as jnp
import pytest
from helpers import small_run
from jax.sharding import PartitionSpec as P

from lpjax import train_state
from lpjax.data.feed import Batch
from lpjax.lagrangian import POLICIES


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


def test_rows_of_a_table_divide_over_the_devices():
    assert [train_state.table_rows(n, 8) for n in (1, 8, 9)] == [8, 8, 16]


@pytest.mark.parametrize("sweeps", [0, 1, 2])
def test_two_exchanges_and_two_more_a_sweep(sweeps):
    assert lowered(small_run(penalty__sweeps=sweeps)).count("stablehlo.all_to_all") == 2 + 2 * sweeps


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
