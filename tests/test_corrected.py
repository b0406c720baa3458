"""Delayed gradients, corrected by an AuxNet."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, detach, plain_sgd, small_config, small_run, take_steps, trees
from test_methods import RATE, TRAIN, descended, plain_batches

from lpjax.methods import METHODS
from lpjax.network.aux_net import skip
from lpjax.nn import chain, losses


@pytest.mark.parametrize("grid", [None, 2])
def test_the_equations_by_autodiff_tick_by_tick(grid, x64):
    """Of stages and AuxNet, as long as it takes until each stage's gradient has been corrected several times."""
    M, K, steps = 2, 4, 6
    run = small_run(method="corrected", corrected__micro_batches=M, aux__grid=grid, data__crop=0, **plain_sgd(RATE))
    network, (params, stats, aux, aux_stats), B = run.network, trees(run), run.config.batch_size
    batches, history = plain_batches(run, steps), []

    def apply(k, p, x):
        return chain.apply(network.stages[k], p, stats[k], x, TRAIN)[0]

    def of_logits(logits, labels):
        return losses.task_loss(logits, labels).sum() / B

    def tail(j, aux, x, labels):
        for i in range(j, K):
            x = chain.apply(network.aux_tails[i], aux[i], aux_stats[i], skip(x, network.aux_tails[i].in_shape), TRAIN)[
                0
            ]
        return of_logits(x, labels)

    @partial(jax.jit, static_argnums=0)
    def backward(k, p, aux, x, sent, labels):
        """Gradients of the stage and the AuxNet, and what is sent to the stage before."""
        output, pull = jax.vjp(partial(apply, k), p, x)
        if k == K - 1:
            own, behind = jax.tree.map(jnp.zeros_like, aux), jax.grad(of_logits)(output, labels)
        else:
            own, now = jax.grad(partial(tail, k + 1), argnums=(0, 1))(aux, output, labels)
            behind = sent + now
        grads, adjoint = pull(behind)
        return grads, own, adjoint - jax.grad(partial(tail, k), argnums=1)(aux, x, labels) if k else None

    forward = jax.jit(apply, static_argnums=0)
    entered = [(x[m::M], labels[m::M]) for x, labels in batches for m in range(M)]
    inputs, sent = {(0, m): x for m, (x, _) in enumerate(entered)}, {}
    for t in range(steps):
        sums, aux_sums = jax.tree.map(jnp.zeros_like, (list(params), aux))
        for tick in range(t * M, t * M + M):
            for k in range(K - 1):
                if (m := tick - k) >= 0:
                    inputs[k + 1, m] = forward(k, params[k], inputs[k, m])
            for k in range(K):
                if (m := tick - 2 * (K - 1) + k) >= 0:
                    rows = params[k], aux, inputs[k, m], sent.get((k + 1, m)), entered[m][1]
                    grads, own, sent[k, m] = backward(k, *rows)
                    sums[k], aux_sums = jax.tree.map(jnp.add, (sums[k], aux_sums), (grads, own))
        params, aux = descended(tuple(params), tuple(sums)), descended(aux, aux_sums)
        history.append((params, aux))
    state, batches = run.create(), run.feed.train()
    for expected in history:
        state, _ = run.step(state, next(batches))
        assert_close(detach((network.params.unpack_all(state.stage_params), state.aux_params)), expected)


def test_ages_and_settings():
    found = METHODS["corrected"].ages(small_config(method="corrected", corrected__micro_batches=2))
    assert [[(age.entered, age.weights) for age in ages] for ages in found] == [
        [(1 - m + 6 - k, 0) for m in range(2)] for k in range(4)
    ]
    for fields, message in (
        ({"corrected__micro_batches": 3}, "corrected.micro_batches=3: expected a divisor of"),
        ({"aux__tied": True}, "aux.tied=True with method=corrected"),
    ):
        with pytest.raises(ValueError, match=message):
            small_config(method="corrected", **fields)


def test_with_one_stage_it_is_backprop_with_accumulation(x64):
    run = small_run(num_stages=1, method="corrected")
    before, (state, _) = detach(run.create().stage_params), take_steps(run, 3)
    expected, _ = take_steps(small_run(num_stages=1, method="pipeline", pipeline__micro_batches=4), 3)
    assert_close(state.stage_params, expected.stage_params)
    assert not np.array_equal(state.stage_params["kernel"], before["kernel"])
