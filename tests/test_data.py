"""Data: the digits' fixed split, the order of an epoch, augmentation that can be replayed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpjax.config import DataConfig
from lpjax.data import SOURCES
from lpjax.data.augment import augment, normalise
from lpjax.data.feed import epoch_order, steps_per_epoch, train_batches
from lpjax.mesh import make_mesh

DIGITS = SOURCES["digits"].load(None)


def test_digits_are_what_the_source_says():
    source = SOURCES["digits"]
    assert DIGITS.train_images.shape == (source.num_train, *source.image_shape)
    assert DIGITS.test_images.shape == (source.num_test, *source.image_shape)
    assert set(DIGITS.train_labels) == set(DIGITS.test_labels) == set(range(source.classes))
    assert DIGITS.train_images.dtype == np.uint8
    assert DIGITS.train_images.max() == 255
    assert np.bincount(DIGITS.test_labels).min() >= 34, "the split keeps the classes' shares"


def test_the_split_is_disjoint_and_fixed():
    again = SOURCES["digits"].load(None)
    np.testing.assert_array_equal(again.test_images, DIGITS.test_images)
    from sklearn.datasets import load_digits

    everything = np.concatenate([DIGITS.train_images, DIGITS.test_images]).reshape(1797, 64)
    original = np.round(load_digits().data * (255 / 16)).astype(np.uint8)
    np.testing.assert_array_equal(everything[np.lexsort(everything.T)], original[np.lexsort(original.T)])


def test_normalised_training_images():
    x = normalise(jnp.asarray(DIGITS.train_images), jnp.asarray(DIGITS.mean, float), jnp.asarray(DIGITS.std, float))
    np.testing.assert_allclose([x.mean(), x.std()], [0, 1], atol=1e-4)


def test_an_epoch_is_a_permutation_by_seed_and_epoch():
    order = epoch_order(3, 5, 100)
    np.testing.assert_array_equal(np.sort(order), np.arange(100))
    np.testing.assert_array_equal(order, epoch_order(3, 5, 100))
    assert not np.array_equal(order, epoch_order(3, 6, 100))
    assert not np.array_equal(order, epoch_order(4, 5, 100))


def test_batches_and_a_restart_in_the_middle():
    mesh, settings = make_mesh(2, 2), {"seed": 1, "batch_size": 600, "num_steps": 5}
    batches = list(train_batches(DIGITS, mesh, **settings))
    assert len(batches) == 5
    for step, batch in enumerate(batches):
        index = epoch_order(1, step // 2, 1437)[step % 2 * 600 :][:600]
        np.testing.assert_array_equal(batch.index, index)
        np.testing.assert_array_equal(batch.image, DIGITS.train_images[index])
        np.testing.assert_array_equal(batch.label, DIGITS.train_labels[index])
    (last,) = train_batches(DIGITS, mesh, **settings, first_step=4)
    np.testing.assert_array_equal(last.image, batches[4].image)


def test_a_set_smaller_than_a_batch():
    assert steps_per_epoch(10, 5) == 2
    with pytest.raises(ValueError, match="batch_size=11: the training set has 10 examples"):
        steps_per_epoch(10, 11)


def test_a_crop_is_the_image_moved():
    images, index = jnp.asarray(DIGITS.train_images[:64]), jnp.arange(64)
    out = np.asarray(augment(images, index, jax.random.key(0), DataConfig(crop=2)))
    padded = np.pad(DIGITS.train_images[:64], ((0, 0), (2, 2), (2, 2), (0, 0)))
    moves = set()
    for i in range(64):
        found = [
            (dy, dx)
            for dy in range(5)
            for dx in range(5)
            if np.array_equal(padded[i, dy : dy + 8, dx : dx + 8], out[i])
        ]
        assert found, f"image {i} is no crop of itself"
        moves.update(found)
    assert len(moves) > 15, "all directions occur"


def test_a_flip_is_a_mirror_image_half_the_time():
    images, index = jnp.asarray(DIGITS.train_images[:200]), jnp.arange(200)
    out = np.asarray(augment(images, index, jax.random.key(0), DataConfig(crop=0, flip=True)))
    same = (out == DIGITS.train_images[:200]).all((1, 2, 3))
    mirrored = (out == DIGITS.train_images[:200, :, ::-1]).all((1, 2, 3))
    assert (same | mirrored).all()
    assert 60 < mirrored.sum() < 140


def test_augmentation_depends_on_the_example_not_its_place():
    images, config, key = jnp.asarray(DIGITS.train_images[:8]), DataConfig(crop=1, flip=True), jax.random.key(1)
    whole = augment(images, jnp.arange(8), key, config)
    np.testing.assert_array_equal(augment(images[5:7], jnp.array([5, 6]), key, config), whole[5:7])
    assert not np.array_equal(augment(images, jnp.arange(8), jax.random.key(2), config), whole)


def test_no_augmentation_is_the_image_itself():
    images = jnp.asarray(DIGITS.test_images[:4])
    assert augment(images, jnp.arange(4), jax.random.key(0), DataConfig(crop=0)) is images
