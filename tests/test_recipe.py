"""Parts of common training recipes: top-5 accuracy, label smoothing, mixup, averaged weights, clipping."""

import io
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from absl import flags
from absl.testing import flagsaver
from helpers import assert_close, dataset, detach, plain_sgd, small_config, small_run, small_values, take_steps, trees
from rich.console import Console
from safetensors.numpy import load_file

from lpjax.config import command_line
from lpjax.cost import traffic
from lpjax.data import SOURCES, augment, digits
from lpjax.errors import BadInput
from lpjax.export import __main__ as export_main
from lpjax.export import from_run, model_file
from lpjax.methods import METHODS
from lpjax.network.network import composed
from lpjax.nn import losses
from lpjax.nn.chain import Mode
from lpjax.state import step_inputs
from lpjax.training import checkpoint, evaluate, loop, resume, workdir
from lpjax.training.diagnosis import Diagnosis
from lpjax.training.run import prepare, trace

MLP = {"function": "lpjax.configs.digits_mlp:residual_mlp", "blocks": 4, "width": 16}
SMALL = {"num_stages": 2, "model": MLP, "aux__function": "own_units"}


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
    run = prepare(small_config(**SMALL, method="serial", mesh__stage=2, mesh__data=2, batch_size=32, seed=4))
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
    assert labels[-1] in best[-1], "the last batch is padded with this image, and nobody may count it again"
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
    "layer_parallel": {},  # stages' tails, and the AuxNet's own head
    "coarse_adjoint": {"method": "coarse_adjoint"},
    "local": {"method": "local"},
}


@pytest.mark.parametrize("name", WITH_LABELS)
def test_every_loss_of_training_has_smoothed_labels_and_no_test_has(name, x64):
    """Against runs whose task has optax's smoothing in place of the cross entropy."""
    fields = SMALL | {"mesh__stage": 1, "data__crop": 0, **plain_sgd(0.3), **WITH_LABELS[name]}
    run = prepare(small_config(**fields, data__label_smoothing=0.2))
    state, metrics = take_steps(run, 2)

    def smoothed(logits, labels, smoothing):
        assert smoothing == 0
        targets = optax.smooth_labels(jax.nn.one_hot(labels, 10, dtype=logits.dtype), 0.2)
        return optax.softmax_cross_entropy(logits, targets)

    plain = prepare(small_config(**fields))
    network = replace(plain.network, task=replace(losses.CLASSIFICATION, loss=smoothed))
    step = METHODS[plain.config.method].make_step(network, plain.config, plain.mesh, plain.step_inputs)
    expected, expected_metrics = take_steps(replace(plain, step=step), 2)
    assert_close(state, expected)
    assert_close(metrics, expected_metrics)
    if name == "local":
        tested = replace(state, key=jax.random.wrap_key_data(state.key))
        assert run.evaluate(tested, run.feed) == plain.evaluate(tested, plain.feed)


# mixup ----------------------------------------------------------------------------------------------------------------

MIXED = SMALL | {"standardise": True, "data__mixup": 0.4, "data__flip": True, "data__label_smoothing": 0.1}


def test_a_step_on_mixtures_by_hand(x64):
    """Shares, images and soft labels put together outside the step; pairs are (0, B-1), (1, B-2), .."""
    run = small_run(**MIXED, method="data_parallel", mesh__stage=2, mesh__data=2, **plain_sgd(0.3))
    state, batch = run.create(), detach(next(run.feed.train()))
    key, params, stats = jax.device_get(state.key), *trees(run)[:2]
    keys = step_inputs.example_keys(key, jnp.zeros((), int), batch.index)
    shares = augment.mixed_share(keys, 0.4)
    assert 0 <= shares.min() < 0.2 < 0.8 < shares.max() <= 1

    def augmented(images, keys):
        return run.step_inputs.normalised(augment.augment(images, keys, run.config.data))

    own, other = augmented(batch.image, keys), augmented(batch.image[::-1], augment.partner_keys(keys))
    one_hot, share = jax.nn.one_hot(batch.label, 10), shares[:, None]
    labels = optax.smooth_labels(share * one_hot + (1 - share) * one_hot[::-1], 0.1)
    share = share[..., None, None]

    def loss(params):
        x = share * own + (1 - share) * other
        logits = composed(run.network, params, stats, x, Mode(train=True))[0]
        return optax.softmax_cross_entropy(logits, labels).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    new, metrics = run.step(state, next(run.feed.train()))
    assert_close(metrics["task_loss"], value)
    expected = jax.tree.map(lambda p, g: p - 0.3 * g, params, grads)
    assert_close(detach(run.network.params.unpack_all(new.stage_params)), expected)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 8.0])
def test_shares_are_of_the_beta_distribution(alpha):
    shares = np.asarray(augment.mixed_share(jax.random.split(jax.random.key(0), 10_000), alpha))
    assert np.isfinite(shares).all()
    cuts = scipy.stats.beta.ppf(np.arange(1, 10) / 10, alpha, alpha)
    below = [(shares < cut).mean() for cut in cuts if 1e-6 < cut < 1 - 1e-6]
    expected = [n / 10 for n, cut in enumerate(cuts, 1) if 1e-6 < cut < 1 - 1e-6]
    np.testing.assert_allclose(below, expected, atol=0.015)


@pytest.mark.parametrize(
    "lag, fields",
    [
        pytest.param(0, {"method": "pipeline", "pipeline__micro_batches": 1}, marks=pytest.mark.slow),
        (1, {"method": "delayed"}),
        pytest.param(0, {"method": "delayed", "delayed__variant": "ddg"}, marks=pytest.mark.slow),
        pytest.param(1, {"method": "local"}, marks=pytest.mark.slow),
        (1, {"method": "coarse_adjoint"}),
        (0, {"method": "layer_parallel", "penalty__sweeps": 1}),  # so that the last stage has the exact input
    ],
    ids=lambda value: value if isinstance(value, int) else "-".join(map(str, value.values())),
)
def test_labels_go_with_their_mixture_from_stage_to_stage(lag, fields, x64):
    """At fixed weights the last stage has backprop's loss of the batch that entered `lag` steps ago."""
    still = plain_sgd(1e-30) | MIXED
    _, expected = take_steps(small_run(**still, method="serial"), 3)
    _, metrics = take_steps(small_run(**still, **fields, mesh__stage=2), 3)
    for name in ("task_loss", "accuracy"):
        assert_close([m[name] for m in metrics[lag:]], [m[name] for m in expected[: 3 - lag]])


def assert_collectives_are_scheduled(run):
    """Their number by kind; values have twice the bytes in double precision."""
    items = METHODS[run.config.method].work(run.network, run.config)
    sent, planned = traffic.exchanged(trace(run).jaxpr, run.mesh.shape), traffic.scheduled(items, run.mesh.shape)
    assert {kind: own.number for kind, own in sent.items()} == {kind: own.number for kind, own in planned.items()}


@pytest.mark.parametrize(
    "fields", [{"method": "local"}, {"method": "layer_parallel", "exchange__stale": True}], ids=["local", "stale"]
)
def test_mixtures_do_not_depend_on_the_mesh_and_their_exchange_is_in_the_schedule(fields, x64):
    one, many = (small_run(**MIXED, **fields, mesh__stage=S, mesh__data=D) for S, D in ((1, 1), (2, 2)))
    (state, metrics), (expected, expected_metrics) = take_steps(many, 3), take_steps(one, 3)
    assert_close(state, expected)
    assert_close(metrics, expected_metrics)
    assert_collectives_are_scheduled(many)


def test_a_diagnosis_is_on_the_same_mixtures(x64):
    """At fixed weights delayed gradients are backprop's, on batches of one and two steps ago."""
    run = small_run(**MIXED, **plain_sgd(1e-30), method="delayed", mesh__stage=2, diagnose_every=1)
    diagnosis, state, batches = Diagnosis(run), run.create(), run.feed.train()
    for number in range(1, 4):
        state, metrics = diagnosis.step(number, state, next(batches))
    np.testing.assert_allclose(metrics["gradient_cosine"], 1, rtol=1e-9)
    np.testing.assert_allclose(metrics["gradient_ratio"], 1, rtol=1e-9)


def test_mixup_is_refused_with_multipliers_of_each_example():
    with pytest.raises(BadInput, match=r"data.mixup=0.2.*data.mixup=0, or choose"):
        small_config(multiplier="per_example", data__crop=0, data__mixup=0.2)


# average of the weights -----------------------------------------------------------------------------------------------

AVERAGED = SMALL | {"method": "local", "ema_decay": 0.3, "data__crop": 0}


@pytest.mark.parametrize("shape", [(1, 1), (2, 2)])
def test_the_average_of_the_weights_is_tested_beside_them(shape, x64):
    """By hand from the weights after each step; decay 0.1 in the first step, 2 / 11 in the second, .. up to 0.3."""
    run = small_run(**AVERAGED, mesh__stage=shape[0], mesh__data=shape[1], eval__calibration_batches=2)
    state, batches, plain = run.create(), run.feed.train(), small_run(**AVERAGED | {"ema_decay": None})
    expected = jax.device_get(state.stage_params)
    for decay in (0.1, 2 / 11, 3 / 12, 0.3, 0.3):
        state, _ = run.step(state, next(batches))
        new = jax.device_get(state.stage_params)
        expected = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, expected, new)
    assert_close(jax.device_get(state.ema), expected)
    assert_close(new, take_steps(plain, 5)[0].stage_params)
    tested = run.evaluate(state, run.feed)
    averaged = run.evaluate(evaluate.with_average(state), run.feed)
    assert (tested.ema_loss, tested.ema_accuracy) == (averaged.test_loss, averaged.test_accuracy)
    assert tested.ema_loss != tested.test_loss
    assert averaged.ema_loss is averaged.ema_accuracy is None
    sizes, others = (METHODS["local"].holds(own.network, own.config, 1) for own in (run, plain))
    assert sizes.pop("average") == 4 * run.network.params.length * 2 // shape[0]
    assert sizes.keys() == others.keys()


def test_an_average_goes_on_and_starts_at_the_weights_of_another_run(tmp_path):
    """Bit for bit from its own checkpoint, with all that is drawn and averaged; from one without it at its weights."""
    recipe = AVERAGED | {"data__mixup": 0.2, "data__label_smoothing": 0.1, "optimizer__name": "adamw", "log_every": 1}

    def trained(name, **fields):
        loop.train(prepare(small_config(**recipe | fields)), tmp_path / name, Console(file=io.StringIO()))
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        arrays = checkpoint.newest_good(tmp_path / name / "checkpoints")[0].arrays
        return arrays, [{key: line[key] for key in line if key not in workdir.CLOCK} for line in lines]

    (whole, lines), _ = trained("whole", num_steps=4), trained("halves", num_steps=2)
    again, again_lines = trained("halves", num_steps=4)
    assert lines == again_lines
    assert whole.keys() == again.keys()
    assert all(np.array_equal(whole[name], again[name]) for name in whole)
    assert any(name.startswith("network.ema.") for name in whole)
    assert {"ema_accuracy", "ema_loss"} < lines[-1].keys()

    without, _ = trained("without", num_steps=2, ema_decay=None)
    assert not any(name.startswith("network.ema.") for name in without)
    with pytest.raises(workdir.WorkdirError, match=r"ema_decay: None in the checkpoint, 0\.3 now"):
        trained("without", num_steps=3)
    run = prepare(small_config(**recipe))
    state, fresh, _ = resume.restore(run, without)
    assert any(name.startswith("network.ema.") for name in fresh)
    assert_close(jax.device_get(state.ema), jax.device_get(state.stage_params), rtol=0, atol=0)


def test_the_average_is_exported(monkeypatch, tmp_path, capsys):
    """Of a run's folder by the command: it has the averaged network's arrays; refused where there is no average."""
    fields = AVERAGED | {"method": "serial", "num_steps": 2}
    run = prepare(small_config(**fields))
    loop.train(run, tmp_path / "run", Console(file=io.StringIO()))
    state, _, meta = resume.load(run, tmp_path / "run")
    monkeypatch.setitem(vars(flags.FLAGS), "__flags_parsed", True)
    for name, decay, code in (("model", 0.3, 0), ("none", None, 2)):
        parsed = small_values(**fields | {"ema_decay": decay}), tmp_path / "run"
        monkeypatch.setattr(command_line, "parse", lambda argv, parsed=parsed: parsed)
        with flagsaver.flagsaver(output=str(tmp_path / name), ema=True):
            assert export_main.main([]) == code
    assert "--ema with ema_decay=None" in capsys.readouterr().err
    arrays = load_file(tmp_path / "model" / model_file.ARRAYS)
    for own, same in ((state, False), (evaluate.with_average(state), True)):
        expected = from_run.named_arrays(run, *from_run.composed_trees(run, own))
        assert all(np.array_equal(arrays[name], expected[name]) for name in arrays) == same
    card = (tmp_path / "model" / "README.md").read_text()
    assert "Moving average of the weights, decay 0.3." in card
    assert f"{meta['evaluation']['ema_accuracy']:.4f} on" in card


# clipping -------------------------------------------------------------------------------------------------------------


def test_a_norm_of_the_network_is_of_all_devices_and_its_exchange_is_in_the_schedule(x64):
    fields = SMALL | {"optimizer__clip_norm": 0.1, "optimizer__clip_over": "network"}
    pipeline = {"method": "pipeline", "pipeline__micro_batches": 1}
    expected, metrics = take_steps(small_run(**fields, method="serial"), 2)
    assert np.linalg.norm(metrics[0]["gradient_norm"]) > 0.1
    two = take_steps(small_run(**fields, **pipeline, mesh__stage=2), 2)
    assert_close(two[0].stage_params, expected.stage_params)
    assert_collectives_are_scheduled(small_run(**fields, mesh__stage=2, mesh__data=2))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"method": "local"}, "with method=local: in a step its stages have gradients of different batches"),
        ({"method": "delayed"}, "with method=delayed.*set optimizer.clip_over=stage"),
        ({"optimizer__clip_norm": None}, "without optimizer.clip_norm.*set optimizer.clip_norm"),
        ({"aux_optimizer__clip_norm": 1.0, "aux_optimizer__clip_over": "network"}, "aux_optimizer.clip_over=network"),
    ],
    ids=str,
)
def test_norms_that_the_network_has_not_are_refused(fields, message):
    with pytest.raises(BadInput, match=message):
        small_config(**{"optimizer__clip_norm": 1.0, "optimizer__clip_over": "network"} | fields)
