"""Parts of common training recipes: top-5 accuracy, label smoothing."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, dataset, detach, plain_sgd, small_config, take_steps

from lpjax.data import SOURCES, digits
from lpjax.network.network import composed
from lpjax.nn import losses
from lpjax.nn.chain import Mode
from lpjax.training import evaluate
from lpjax.training.run import prepare


@pytest.fixture
def thirty_classes(monkeypatch):
    """The digits, each in three classes by its position."""

    def load(config):
        data, thirds = digits.load(config), lambda labels: labels + np.arange(len(labels), dtype=np.int32) % 3 * 10
        return replace(data, train_labels=thirds(data.train_labels), test_labels=thirds(data.test_labels))

    def describe(config):
        return replace(digits.describe(config), classes=30, class_names=None)

    monkeypatch.setitem(SOURCES, "digits", replace(digits, describe=describe, load=load))


@pytest.mark.parametrize("top", [1, 5])
def test_a_label_is_among_the_largest_logits(top):
    logits = np.random.default_rng(0).integers(0, 9, (200, 30)).astype(np.float32)  # with ties
    labels = np.arange(200, dtype=np.int32) % 30
    best = np.argsort(-logits, axis=1, kind="stable")[:, :top]  # of equal ones the first
    right = losses.correct(jnp.asarray(logits), jnp.asarray(labels), top)
    np.testing.assert_array_equal(right, (best == labels[:, None]).any(1))
    assert losses.correct(jnp.zeros((30, 30)), jnp.arange(30), top).sum() == top, "as often as a guess"
    assert not losses.correct(jnp.full((30, 30), jnp.nan), jnp.arange(30), top).any()
    one = jnp.zeros((1, 30)).at[0, 7].set(jnp.nan)
    assert not losses.correct(one, jnp.array([7]), top).any(), "NaN is never right"
    assert losses.correct(one, jnp.array([0]), top).all() == (top > 1), "and larger than others"


def test_top5_accuracy_is_of_the_composed_network(thirty_classes):
    """On all test images, the last batch padded, on a mesh."""
    run = prepare(small_config(method="serial", mesh__stage=2, mesh__data=2, batch_size=32))
    state, _ = run.step(run.create(), next(run.feed.train()))
    got, network = run.evaluate(state, run.feed), run.network
    assert got.test_examples == 360  # 32 does not divide it
    calibrated = evaluate.make_calibrate(network, run.config, run.mesh, run.step_inputs)
    stats = calibrated(evaluate.replicated(state, run.mesh), run.feed)
    params = network.params.unpack_all(state.stage_params)
    x = run.step_inputs.normalised(jnp.asarray(dataset(run).test_images))
    logits = np.asarray(composed(network, *detach((params, stats)), x, Mode(train=False))[0])
    best, labels = np.argsort(-logits, axis=1)[:, :5], dataset(run).test_labels
    np.testing.assert_allclose(got.test_accuracy, (best[:, 0] == labels).mean(), atol=1e-6)
    np.testing.assert_allclose(got.test_top5_accuracy, (best == labels[:, None]).any(1).mean(), atol=1e-6)
    words = f"test accuracy {got.test_accuracy:.4f}, top-5 {got.test_top5_accuracy:.4f}"
    assert 0 < got.test_accuracy < got.test_top5_accuracy < 1
    assert evaluate.in_words(got._asdict()) == words


# label smoothing ------------------------------------------------------------------------------------------------------


def test_label_smoothing_is_optax_s(x64):
    logits = jax.random.normal(jax.random.key(0), (40, 7)) * 3
    labels = jax.random.randint(jax.random.key(1), (40,), 0, 7)
    smoothed = optax.smooth_labels(jax.nn.one_hot(labels, 7), 0.3)
    np.testing.assert_allclose(losses.task_loss(logits, labels, 0.3), optax.softmax_cross_entropy(logits, smoothed))


WITH_LABELS = {
    "serial": {"method": "serial"},
    "pipeline": {"method": "pipeline"},
    "layer_parallel": {},  # stages' tails, and the AuxNet's own head
    "coarse_adjoint": {"method": "coarse_adjoint"},
    "local": {"method": "local"},
}


@pytest.mark.parametrize("name", WITH_LABELS)
def test_every_loss_of_training_has_smoothed_labels_and_no_test_has(name, monkeypatch, x64):
    """Against runs that have optax's smoothing in place of the cross entropy, wherever that is called in a step."""
    fields = {"num_stages": 2, "mesh__stage": 1, "data__crop": 0, **plain_sgd(0.3), **WITH_LABELS[name]}
    run = prepare(small_config(**fields, label_smoothing=0.2))
    state, metrics = take_steps(run, 2)

    def smoothed(logits, labels, smoothing):
        assert smoothing == 0
        targets = optax.smooth_labels(jax.nn.one_hot(labels, 10, dtype=logits.dtype), 0.2)
        return optax.softmax_cross_entropy(logits, targets)

    plain = prepare(small_config(**fields))
    with monkeypatch.context() as patched:
        patched.setattr(losses, "task_loss", smoothed)
        expected, expected_metrics = take_steps(plain, 2)
    assert_close(state, expected)
    assert_close(metrics, expected_metrics)
    if name == "serial":
        tested = replace(state, key=jax.random.wrap_key_data(state.key))
        assert run.evaluate(tested, run.feed) == plain.evaluate(tested, plain.feed)
