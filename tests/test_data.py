"""Data in memory: the digits' fixed split, batches of an epoch, augmentation that can be replayed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_config, small_run

from lpjax.config.schema import DataConfig
from lpjax.data import SOURCES, augment, feed
from lpjax.data.batch import epoch_order
from lpjax.data.feed import make_feed
from lpjax.data.source import Dataset, Spec
from lpjax.data.subset import data_notes, reduced, reduced_spec
from lpjax.parallel.mesh import EXAMPLES, make_mesh
from lpjax.state.step_inputs import example_keys

DIGITS = SOURCES["digits"].load(DataConfig())


def keys(index, step=0):
    return example_keys(jax.random.key(0), jnp.array(step), jnp.asarray(index))


def test_digits_are_what_the_source_says():
    spec = SOURCES["digits"].describe(DataConfig())
    assert SOURCES["digits"].published(DataConfig()) == spec
    assert DIGITS.train_images.shape == (spec.num_train, *spec.image_shape)
    assert DIGITS.test_images.shape == (spec.num_test, *spec.image_shape)
    assert set(DIGITS.train_labels) == set(DIGITS.test_labels) == set(range(spec.classes))
    assert (DIGITS.train_images.dtype, DIGITS.train_labels.dtype) == (np.uint8, np.int32)
    assert DIGITS.train_images.max() == 255
    assert np.bincount(DIGITS.test_labels).min() >= 34, "the split keeps the classes' shares"


def test_the_split_is_disjoint_and_fixed():
    again = SOURCES["digits"].load(DataConfig())
    np.testing.assert_array_equal(again.test_images, DIGITS.test_images)
    from sklearn.datasets import load_digits

    everything = np.concatenate([DIGITS.train_images, DIGITS.test_images]).reshape(1797, 64)
    original = np.round(load_digits().data * (255 / 16)).astype(np.uint8)
    np.testing.assert_array_equal(everything[np.lexsort(everything.T)], original[np.lexsort(original.T)])


def test_an_epoch_is_a_permutation_by_seed_and_epoch():
    order = epoch_order(3, 5, 100)
    np.testing.assert_array_equal(np.sort(order), np.arange(100))
    np.testing.assert_array_equal(order, epoch_order(3, 5, 100))
    assert not np.array_equal(order, epoch_order(3, 6, 100))
    assert not np.array_equal(order, epoch_order(4, 5, 100))


def check_batch(batch, images, labels, index):
    np.testing.assert_array_equal(batch.index, index)
    np.testing.assert_array_equal(batch.image, images[index])
    np.testing.assert_array_equal(batch.label, labels[index])
    assert batch.image.sharding.spec == EXAMPLES


def test_training_batches_and_a_restart_in_the_middle():
    data = make_feed(DIGITS, small_config(seed=1, batch_size=600), make_mesh(2, 2))
    assert isinstance(data, feed.Resident)
    batches = data.train()
    states = []
    for step in range(5):
        states.append(batches.get_state())
        index = epoch_order(1, step // 2, 1437)[step % 2 * 600 :][:600]
        check_batch(next(batches), DIGITS.train_images, DIGITS.train_labels, index)
    again = data.train()
    again.set_state(states[3])
    for step in (3, 4):
        np.testing.assert_array_equal(next(again).index, epoch_order(1, step // 2, 1437)[step % 2 * 600 :][:600])
    assert again.corrupt == []


def test_the_whole_test_split_padded():
    batches = list(make_feed(DIGITS, small_config(batch_size=100), make_mesh(2, 2)).test())
    assert [len(batch.index) for batch in batches] == [100] * 4
    index = np.concatenate([batch.index for batch in batches])
    np.testing.assert_array_equal(index, [*range(360), *[-1] * 40])
    for batch, expected in zip(batches, np.split(index, 4), strict=True):
        check_batch(batch, DIGITS.test_images, DIGITS.test_labels, expected)


def test_a_sample_of_the_training_images_is_the_same_each_time():
    first, other = (make_feed(DIGITS, small_config(seed=s, batch_size=64), make_mesh(2, 2)).sample(3) for s in (0, 1))
    seen = []
    for batch, again in zip(first, other, strict=True):
        check_batch(batch, DIGITS.train_images, DIGITS.train_labels, again.index)
        seen.append(batch.index)
    seen = np.concatenate(seen)
    assert len(np.unique(seen)) == len(seen) == 3 * 64
    assert seen.max() > 1000, "from everywhere in the set"


def augmented(images, index, *, step=0, **fields):
    config = DataConfig(**{"crop": 0} | fields)
    return np.asarray(augment.augment(jnp.asarray(images), keys(index, step), config))


def test_a_crop_is_the_image_moved():
    images = DIGITS.train_images[:64]
    out = augmented(images, range(64), crop=2)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    moves = set()
    for i in range(64):
        places = [(dy, dx) for dy in range(5) for dx in range(5)]
        found = [(dy, dx) for dy, dx in places if np.array_equal(padded[i, dy : dy + 8, dx : dx + 8], out[i])]
        assert found, f"image {i} is no crop of itself"
        moves.update(found)
    assert len(moves) > 15, "all directions occur"


def test_a_flip_is_a_mirror_image_half_the_time():
    images = DIGITS.train_images[:200]
    out = augmented(images, range(200), flip=True)
    same, mirrored = (out == images).all((1, 2, 3)), (out == images[:, :, ::-1]).all((1, 2, 3))
    assert (same | mirrored).all()
    assert 60 < mirrored.sum() < 140


def cut(x, index, size, step=0):
    return np.asarray(augment.cut_out(jnp.asarray(x), keys(index, step), size))


@pytest.mark.parametrize("size", [3, 4])
def test_cutout_is_a_square_of_zeros_that_may_hang_over_the_edge(size):
    out = cut(np.ones((300, 8, 10, 2)), range(300), size)
    assert set(np.unique(out)) == {0, 1}
    corners, at_start, at_end = set(), set(), set()
    for image in out:
        np.testing.assert_array_equal(image[..., 0], image[..., 1])
        rows, columns = np.flatnonzero((image[..., 0] == 0).any(1)), np.flatnonzero((image[..., 0] == 0).any(0))
        square = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert not square.any()
        assert (image == 0).sum() == square.size
        for span, side in ((rows, 8), (columns, 10)):
            assert len(span) == size or span[0] == 0 or span[-1] == side - 1, "cut short by the edge only"
            at_start |= {len(span)} if span[0] == 0 else set()
            at_end |= {len(span)} if span[-1] == side - 1 else set()
        corners.add((rows[-1], columns[0]))
    assert at_start == set(range(size - size // 2, size + 1)), "the centre goes to the edge, not beyond"
    assert at_end == set(range(size // 2 + 1, size + 1))
    inside = (8 - size + 1) * (10 - size + 1)
    assert len(corners) > inside, "all places occur, and some over the edge"


@pytest.mark.parametrize(
    "change",
    [
        lambda images, index, step: augmented(images, index, step=step, crop=1, flip=True),
        lambda images, index, step: cut(images / 255, index, 4, step),
    ],
)
def test_augmentation_depends_on_the_example_and_the_step_not_on_its_place(change):
    images = DIGITS.train_images[:8]
    whole = change(images, range(8), 0)
    np.testing.assert_array_equal(change(images[5:7], [5, 6], 0), whole[5:7])
    assert not np.array_equal(change(images, range(8), 1), whole)
    assert not np.array_equal(change(images, range(8, 16), 0), whole)


def test_no_augmentation_is_the_image_itself():
    images = jnp.asarray(DIGITS.test_images[:4])
    assert augment.augment(images, keys(range(4)), DataConfig(crop=0)) is images
    x = images.astype(jnp.float32)
    assert augment.cut_out(x, keys(range(4)), 0) is x


def test_a_reduced_set():
    config = DataConfig(shrink=2, train_examples=3)
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 2), dtype=np.uint8)
    labels = np.arange(5, dtype=np.int32)
    data = reduced(Dataset(images, labels, images[3:], labels[3:], np.zeros(2), np.ones(2)), config)
    assert data.train_images.shape == (3, 2, 3, 2)
    assert data.train_images.dtype == np.uint8
    for n, i, j, c in np.ndindex(3, 2, 3, 2):
        block = images[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
        assert data.train_images[n, i, j, c] == round(float(block.mean()))
    np.testing.assert_array_equal(data.train_labels, [0, 1, 2])
    np.testing.assert_array_equal(data.test_labels, [3, 4])
    assert data.test_images.shape == (2, 2, 3, 2)
    scaled = data.train_images / 255
    np.testing.assert_allclose(data.mean, scaled.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(data.std, scaled.std((0, 1, 2)), rtol=1e-6)
    assert reduced_spec(Spec((4, 6, 2), 5, 5, 2), config) == Spec((2, 3, 2), 5, 3, 2)


def test_a_validation_split_takes_the_place_of_the_test_set():
    config = DataConfig(train_examples=2, validation_examples=2)
    images, labels = np.arange(20, dtype=np.uint8).reshape(5, 2, 2, 1), np.arange(5, dtype=np.int32)
    whole = Dataset(images, labels, images[:1], labels[:1], np.zeros(1), np.ones(1))
    data = reduced(whole, config)
    np.testing.assert_array_equal(data.train_labels, [0, 1])
    np.testing.assert_array_equal(data.test_labels, [3, 4])
    np.testing.assert_array_equal(data.test_images, images[3:])
    np.testing.assert_allclose(data.mean, images[:2].mean() / 255)
    assert reduced_spec(Spec((2, 2, 1), 5, 5, 1), config) == Spec((2, 2, 1), 5, 2, 2)
    rest = reduced(whole, DataConfig(validation_examples=2))
    np.testing.assert_array_equal(rest.train_labels, [0, 1, 2])
    assert reduced_spec(Spec((2, 2, 1), 5, 5, 1), DataConfig(validation_examples=2)).num_train == 3


@pytest.mark.parametrize(
    "data, message",
    [
        ({"shrink": 3}, r"data\.shrink=3: expected a divisor of the sides of the 8 x 8 images"),
        ({"train_examples": 1438}, r"data\.train_examples=1438: expected at most the 1437 examples"),
        ({"validation_examples": 1437}, r"data\.validation_examples=1437: expected fewer than the 1437 examples"),
        ({"validation_examples": 0}, r"data\.validation_examples=0: expected at least 1"),
    ],
)
def test_reductions_that_do_not_fit_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        small_run(data=data)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mean": np.array([np.nan])}, "data.name=own: mean of the images is .nan.: expected finite numbers"),
        (
            {"test_labels": np.full(20, 10, np.int32)},
            "data.name=own, test labels: label 10 of example 0: expected 0 to 9",
        ),
    ],
)
def test_data_that_would_make_the_first_loss_nan(change, message, monkeypatch):
    digits = SOURCES["digits"]
    own = dataclasses.replace(
        digits, name="own", load=lambda config: dataclasses.replace(digits.load(config), **change)
    )
    monkeypatch.setitem(SOURCES, "own", own)
    with pytest.raises(ValueError, match=message):
        small_run(data__name="own", seed=len(message))


def test_notes_on_data_that_is_constant(monkeypatch):
    digits = SOURCES["digits"]
    grey = digits.load(DataConfig())
    twice = [np.concatenate([images, np.full_like(images, 7)], -1) for images in (grey.train_images, grey.test_images)]
    data = Dataset.of((twice[0], grey.train_labels), (twice[1], grey.test_labels))
    spec = digits.describe(DataConfig())
    assert data_notes(grey, spec) == ()
    said = "the images' channels 1 (from 0) are the same everywhere: nothing can be learned from them"
    assert data_notes(data, spec) == (said,)
