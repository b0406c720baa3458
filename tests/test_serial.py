"""Backprop of the composed network, and evaluation, against plain routes without mesh or packing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, dataset, detach, plain_sgd, small_run, take_steps, trees

from lpjax.data.augment import augment
from lpjax.data.batch import epoch_order
from lpjax.methods.local.classifiers import classifiers
from lpjax.models.resnet import Classifier
from lpjax.network import aux_net
from lpjax.network.network import composed
from lpjax.nn import chain, layers, losses
from lpjax.nn.chain import Mode, Unit
from lpjax.state.step_inputs import example_keys

pytestmark = pytest.mark.usefixtures("x64")


TRAIN = Mode(train=True)
WITH_DROPOUT = {
    "model": {"function": "wide_resnet", "depth": 10, "widen": 1, "dropout": 0.5},
    "num_stages": 3,
}


def without_norm(*, classes):
    def init(key, in_shape):
        return layers.init_linear(key, in_shape[-1], 4), {}

    def apply(params, stats, x, mode):
        return jnp.tanh(layers.linear(params, x)), stats

    return [Unit("dense", init, apply) for _ in range(3)] + [Classifier(classes)]


def normalised(run, images):
    return (jnp.asarray(images, float) / 255 - dataset(run).mean[0]) / dataset(run).std[0]


def test_a_step_descends_the_composed_networks_gradient():
    run = small_run(method="serial", data__crop=0, **plain_sgd(0.5))
    params, stats, _, _ = trees(run)
    batch, old = next(run.feed.train()), run.create()
    x, labels = normalised(run, batch.image), jnp.asarray(batch.label)

    def loss(params):
        logits, new = composed(run.network, params, stats, x, TRAIN)
        return losses.task_loss(logits, labels).mean(), (logits, new)

    (value, (logits, batch_stats)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    state, figures = run.step(old, batch)
    new = detach(run.network.params.unpack_all(state.stage_params))
    assert_close(new, jax.tree.map(lambda p, g: p - 0.5 * g, params, grads))
    running = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, stats, batch_stats)
    assert_close(detach(run.network.stats.unpack_all(state.stage_stats)), running)
    assert_close(figures["task_loss"], value)
    assert_close(figures["accuracy"], np.mean(np.asarray(logits).argmax(-1) == np.asarray(labels)))


def kernels(tree):
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", tree)


def test_nadam_is_that_of_optax_on_the_unpacked_network():
    """With decay of kernels alone, and no mesh, rows or vmap."""
    own = {"name": "nadam", "learning_rate": 0.01, "b1": 0.99, "b2": 0.9, "weight_decay": 0.1, "schedule": "constant"}
    run = small_run(method="serial", data__crop=0, optimizer={**own, "warmup_epochs": 0.0})
    params, stats, _, _ = trees(run)
    assert {True, False} == set(jax.tree.leaves(kernels(params)))
    optimizer = optax.nadamw(0.01, b1=0.99, b2=0.9, weight_decay=0.1, mask=kernels)
    opt, batches, state = optimizer.init(params), run.feed.train(), run.create()

    @jax.jit
    def grads(params, x, labels):
        return jax.grad(lambda p: losses.task_loss(composed(run.network, p, stats, x, TRAIN)[0], labels).mean())(params)

    for _ in range(3):
        batch = next(batches)
        found = grads(params, normalised(run, batch.image), jnp.asarray(batch.label))
        with jax.numpy_dtype_promotion("standard"):
            updates, opt = optimizer.update(found, opt, params)
        params, (state, _) = optax.apply_updates(params, updates), run.step(state, batch)
    assert_close(detach(run.network.params.unpack_all(state.stage_params)), params)


def supervised(**fields):
    """Clipped and with weight decay, and classifiers of other depth than the stages; without augmentation."""
    own = {"clip_norm": 0.5, "weight_decay": 0.1, "schedule": "constant", "warmup_epochs": 0.0}
    optimizers = {"optimizer": own, "aux_optimizer": own | {"learning_rate": 0.05}}
    return small_run(**{"method": "serial", "num_stages": 3, "data__crop": 0, **optimizers, **fields})


@pytest.mark.parametrize("classifier", ["own", "sampled"])
def test_deep_supervision_is_the_gradient_of_all_losses_through_the_network(classifier):
    """loss = that of the network + w times those behind the stages, by autodiff of the function written out."""
    run = supervised(serial__deep_supervision=0.3, local__classifier=classifier, local__blocks=2)
    network, own = run.network, classifiers(run.network, run.config.local)
    batches, state = run.feed.train(), run.create()
    params, old = detach(network.params.unpack_all(state.stage_params)), trees(run)[1]
    ends = detach(own.params.unpack_all(state.carry.params)), detach(own.stats.unpack_all(state.carry.stats))
    optimizers = [
        [optax.chain(optax.clip_by_global_norm(0.5), optax.add_decayed_weights(0.1, mask=kernels),
                     optax.sgd(rate, momentum=0.9, nesterov=True)) for _ in range(3)]
        for rate in (0.1, 0.05)
    ]  # fmt: skip
    opts = [
        [o.init(tree) for o, tree in zip(*pair, strict=True)]
        for pair in ((optimizers[0], params), (optimizers[1], ends[0]))
    ]

    @jax.jit
    def gradient(params, classifiers, x, labels):
        def loss(params, classifiers):
            total, h = 0.0, x
            for k in range(3):
                h, _ = chain.apply(network.stages[k], params[k], old[k], h, TRAIN)
                y = h if k == 2 else chain.apply(own.chains[k], classifiers[k], ends[1][k], h, TRAIN)[0]
                picked = jnp.take_along_axis(jax.nn.log_softmax(y), labels[:, None].astype(int), 1).mean()
                total -= picked if k == 2 else 0.3 * picked
            return total, -picked

        (_, task), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, classifiers)
        return task, grads

    for _ in range(2):
        batch = next(batches)
        task, grads = gradient(params, ends[0], normalised(run, batch.image), jnp.asarray(batch.label))
        new = []
        for i, trained in enumerate((params, ends[0])):
            new.append([])
            for k in range(3):
                with jax.numpy_dtype_promotion("standard"):
                    updates, opts[i][k] = optimizers[i][k].update(grads[i][k], opts[i][k], trained[k])
                new[i].append(optax.apply_updates(trained[k], updates))
        params, ends = tuple(new[0]), (tuple(new[1]), ends[1])
        state, figures = run.step(state, batch)
        assert_close(figures["task_loss"], task)
    assert_close(detach(network.params.unpack_all(state.stage_params)), params)
    assert_close(detach(own.params.unpack_all(state.carry.params)), ends[0])


def test_deep_supervision_gives_the_same_numbers_on_a_mesh_and_nothing_at_weight_0():
    (state, figures), (other, others) = (
        take_steps(supervised(serial__deep_supervision=0.3, method=method, mesh__stage=1, mesh__data=data), 3)
        for method, data in (("serial", 1), ("data_parallel", 4))
    )
    assert_close(other, state)
    assert_close(others, figures)
    (none, alone), (plain, expected) = (
        take_steps(supervised(**own), 3) for own in ({"serial__deep_supervision": 0.0}, {})
    )
    assert none.carry == ()
    assert_close(none, plain, rtol=0, atol=0)
    assert figures[2]["task_loss"] != alone[2]["task_loss"] == expected[2]["task_loss"]


@pytest.mark.parametrize("shape", [(1, 4), (2, 2), (8, 1)])
def test_data_parallel_gives_the_same_numbers(shape):
    one = take_steps(small_run(method="serial"), 3)
    many = take_steps(small_run(method="data_parallel", mesh__stage=shape[0], mesh__data=shape[1]), 3)
    assert_close(many[0], one[0])
    assert_close(many[1], one[1])


def test_accumulated_gradients_are_a_pipelines():
    """With dropout, on one device and on four; batch norm sees a micro-batch."""
    fields = WITH_DROPOUT | {"num_stages": 2, "data__cutout": 3}
    expected, history = take_steps(small_run(method="pipeline", pipeline__micro_batches=4, **fields), 3)
    for method, data in (("serial", 1), ("data_parallel", 2)):
        state, figures = take_steps(small_run(method=method, mesh__data=data, optimizer__accumulate=4, **fields), 3)
        rows = [(own.stage_params, own.stage_stats, own.stage_opt) for own in (state, expected)]
        assert_close(*rows, rtol=1e-12, atol=1e-12)
        assert_close(figures, history, rtol=1e-12, atol=1e-12)


def test_accumulated_gradients_without_batch_norm_are_those_of_the_batch():
    model = {"function": f"{__name__}:without_norm"}
    (state, figures), (expected, history) = (
        take_steps(small_run(method="serial", model=model, data__mixup=0.2, optimizer__accumulate=n), 3) for n in (8, 1)
    )
    assert_close(state.stage_params, expected.stage_params, rtol=1e-12, atol=1e-12)
    assert_close(figures, history, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape, model", [((4, 2), {}), ((1, 1), WITH_DROPOUT)], ids=["on a mesh", "with dropout"])
def test_evaluation_is_of_the_composed_network(shape, model):
    """All test images once, statistics recalibrated on composed passes as in training; AuxNet path and head by running
    ones."""
    run = small_run(mesh__stage=shape[0], mesh__data=shape[1], eval__calibration_batches=3, data__flip=True, **model)
    state, _ = run.step(run.create(), next(run.feed.train()))
    network, got = run.network, run.evaluate(state, run.feed)
    assert got.test_examples == 360
    params, stats = network.params.unpack_all(state.stage_params), network.stats.unpack_all(state.stage_stats)
    params, stats, aux, aux_stats = detach((params, stats, state.aux_params, state.aux_stats))

    order, key = epoch_order(0, 0, run.spec.num_train), jax.device_get(state.key)

    @jax.jit
    def as_in_training(images, index):
        keys = example_keys(key, jnp.zeros((), int), index)
        x = normalised(run, augment(images, keys, run.config.data))
        return composed(network, params, stats, x, Mode(train=True, keys=keys))[1]

    @jax.jit
    def tested(x, calibrated):
        mode, no_shift = Mode(train=False), tuple(jnp.zeros((len(x), *shape)) for shape in network.interfaces[1:])
        lam, head, _ = aux_net.apply(network.aux_net, aux, aux_stats, x, no_shift, mode)
        path, _ = chain.apply(network.stages[-1], params[-1], stats[-1], lam[-1], mode)
        return composed(network, params, calibrated, x, mode)[0], path, head

    batches = [order[i : i + 16] for i in (0, 16, 32)]
    found = [as_in_training(dataset(run).train_images[index], index) for index in batches]
    calibrated = jax.tree.map(lambda *trees: sum(trees) / 3, *found)
    labels = jnp.asarray(dataset(run).test_labels)
    logits, *others = tested(normalised(run, dataset(run).test_images), calibrated)
    np.testing.assert_allclose(got.test_loss, losses.task_loss(logits, labels).mean(), rtol=1e-9)
    for accuracy, out in zip(got[1:4], (logits, *others), strict=True):
        np.testing.assert_allclose(accuracy, np.mean(np.asarray(out).argmax(-1) == np.asarray(labels)), rtol=1e-9)
    assert len({got.test_accuracy, got.aux_path_accuracy, got.aux_head_accuracy}) == 3, "three different figures"


def test_serial_has_no_aux_net_to_evaluate():
    run = small_run(method="serial")
    evaluation = run.evaluate(run.create(), run.feed)
    assert evaluation.aux_path_accuracy is evaluation.aux_head_accuracy is None
    assert 0 <= evaluation.test_accuracy <= 1
