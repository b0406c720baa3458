"""Data that is read as it is needed: order, resuming, damaged files, shares of hosts."""

import gc
import itertools
import json
import threading
import time

import jax
import numpy as np
import pytest
from data_makers import encoded
from helpers import small_config

from lpjax.data import images, stream
from lpjax.data.batch import Batch
from lpjax.data.feed import make_feed
from lpjax.data.source import Stream
from lpjax.data.stream import Streamed
from lpjax.errors import CorruptDataError
from lpjax.parallel.mesh import EXAMPLES, make_mesh

SIDE = 8


class Memory:
    """`ImageFiles` that a test can look into: the pixels of image i are 5 i to 5 i + 4."""

    def __init__(self, count, damaged=()):
        noise = np.random.default_rng(count).integers(0, 5, (count, 12, 10, 3), dtype=np.uint8)
        self.files = [b"no image" if i in damaged else encoded(pixels + 5 * i) for i, pixels in enumerate(noise)]

    def __len__(self):
        return len(self.files)

    def __getitem__(self, position):
        return self.files[position], position % 7

    def name(self, position):
        return f"image_{position}.png"


def make_stream(num_train=40, num_test=11, damaged=(), damaged_test=()):
    train, test = Memory(num_train, damaged), Memory(num_test, damaged_test)
    return Stream(train, test, np.zeros(3), np.ones(3))


def streamed(data, mesh=(1, 1), **fields):
    fields = {"batch_size": 8, "data__image_size": SIDE, "data__threads": 4, "data__prefetch": 16} | fields
    feed = make_feed(data, small_config(**fields), make_mesh(*mesh))
    assert isinstance(feed, Streamed)
    return feed


def take(batches, count):
    return [jax.device_get(batch) for batch in itertools.islice(iter(batches.__next__, None), count)]


def assert_same(some, others):
    for a, b in zip(some, others, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.index, b.index)


def row(batches):
    return np.concatenate([batch.index for batch in batches])


@pytest.fixture(scope="module", autouse=True)
def no_threads_left():
    yield
    gc.collect()  # an exception that was caught holds what it went through
    for thread in threading.enumerate():
        if thread.name.startswith("grain-prefetch"):
            thread.join(timeout=10)
            assert not thread.is_alive()


def test_images_labels_and_index_belong_together():
    for batch in take(streamed(make_stream()).train(), 6):
        assert (batch.image.shape, batch.image.dtype) == ((8, SIDE, SIDE, 3), np.uint8)
        assert batch.label.dtype == batch.index.dtype == np.int32
        np.testing.assert_array_equal(batch.label, batch.index % 7)
        for image, index in zip(batch.image, batch.index, strict=True):
            assert np.unique(image // 5).tolist() == [index]


def test_each_epoch_is_a_permutation_in_a_new_order():
    """Also where a batch of 8 goes from one epoch to the next."""
    epochs = row(take(streamed(make_stream(36)).train(), 9)).reshape(2, 36)
    for order in epochs:
        np.testing.assert_array_equal(np.sort(order), np.arange(36))
    for one, other in itertools.combinations([np.arange(36), *epochs], 2):
        assert (one == other).mean() < 0.5


def test_the_seed_is_of_order_and_augmentation():
    """The augmentation changes with the epoch, too."""
    data = make_stream(num_train=8)
    one, again, other = (take(streamed(data, seed=seed).train(), 2) for seed in (1, 1, 2))
    assert_same(one, again)
    assert not np.array_equal(row(one), row(other))
    for a, b in (*zip(one, other, strict=True), one):
        assert not np.array_equal(a.image[np.argsort(a.index)], b.image[np.argsort(b.index)])


def test_the_number_of_threads_changes_nothing():
    data = make_stream(damaged=(3,))
    one, many = (take(streamed(data, data__threads=n, data__prefetch=p).train(), 12) for n, p in ((1, 1), (8, 64)))
    assert_same(one, many)


@pytest.mark.parametrize("done", [1, 7])
def test_going_on_from_a_state(done):
    feed = streamed(make_stream(damaged=(3, 9)))
    whole = feed.train()
    take(whole, done)
    state = json.loads(json.dumps(whole.get_state()))
    rest = take(whole, 8)
    again = feed.train()
    again.set_state(state)
    assert again.corrupt == state["corrupt"]
    assert_same(take(again, 8), rest)
    assert sorted(again.corrupt) == sorted(whole.corrupt)
    assert len(again.corrupt) == 2, "what was counted before is not counted again"


def test_a_damaged_file_is_skipped_and_reported_once():
    damaged = {3, 17}
    batches = streamed(make_stream(damaged=damaged)).train()
    order = row(taken := take(batches, 19))
    assert {len(batch.index) for batch in taken} == {8}, "batches stay full"
    for epoch in order.reshape(4, 38):
        np.testing.assert_array_equal(np.sort(epoch), [i for i in range(40) if i not in damaged])
    assert sorted(batches.corrupt) == ["image_17.png: not an image file", "image_3.png: not an image file"]


def test_too_many_damaged_files():
    damaged = range(0, 12, 4)
    assert len(take(streamed(make_stream(damaged=damaged), data__max_corrupt=3).train(), 10)) == 10
    batches = streamed(make_stream(damaged=damaged), data__max_corrupt=2).train()
    with pytest.raises(
        CorruptDataError,
        match=r"image_[048]\.png: not an image file; with it 3 image files cannot be decoded: expected at most "
        r"data.max_corrupt=2; replace them, or raise data.max_corrupt",
    ):
        take(batches, 10)


def test_the_test_split_in_order_padded():
    data = make_stream(damaged_test=(4,))
    batches = [jax.device_get(batch) for batch in streamed(data).test()]
    np.testing.assert_array_equal(row(batches), [0, 1, 2, 3, -1, 5, 6, 7, 8, 9, 10, *[-1] * 5])
    for batch in batches:
        assert batch.image.shape == (8, SIDE, SIDE, 3)
        assert batch.index.dtype == batch.label.dtype == np.int32
        for image, label, index in zip(batch.image, batch.label, batch.index, strict=True):
            if index >= 0:
                expected = images.decode(data.test.files[index], size=SIDE, channels=3, rng=None)
                np.testing.assert_array_equal(image, expected)
                assert label == index % 7


def test_a_sample_is_the_same_each_time_and_cropped_as_in_training():
    data = make_stream()
    one, other = ([jax.device_get(b) for b in streamed(data, seed=seed).sample(3)] for seed in (0, 1))
    assert len(np.unique(row(one))) == 24
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.index, b.index)
        np.testing.assert_array_equal(a.image, b.image)
        centres = np.array([images.decode(data.train.files[i], size=SIDE, channels=3, rng=None) for i in a.index])
        assert (a.image != centres).any(axis=(1, 2, 3)).mean() > 0.5, "crops at random"
        assert (abs(a.image.astype(int) - 5 * a.index[:, None, None, None]) < 5).all(), "of these images"
        np.testing.assert_array_equal(a.label, a.index % 7)


def slow(function, seconds):
    return lambda *args: (time.sleep(seconds), function(*args))[1]


def test_batches_lie_over_the_mesh():
    feed, alone = (streamed(make_stream(), mesh=shape) for shape in ((2, 2), (1, 1)))
    for batch, whole in ((next(feed.train()), next(alone.train())), (next(feed.test()), next(alone.test()))):
        for part in (batch.image, batch.label, batch.index):
            assert part.sharding.spec == EXAMPLES
            assert [len(shard.data) for shard in part.addressable_shards] == [2] * 4
        np.testing.assert_array_equal(batch.image, whole.image)
        np.testing.assert_array_equal(batch.index, whole.index)


NAMES = "image", "label", "index"
OWN = [0, 1, 4, 5], [2, 3, 6, 7]
"""Which examples of a batch of 8 two processes have, on a mesh whose columns cross them both."""


def on_processes(monkeypatch, read):
    """What each of two processes hands to JAX, and what one alone does: {name: array} of each batch."""
    monkeypatch.setattr(stream, "_on_mesh", lambda local, mesh: Batch(**local))
    shares = []
    for own in (*OWN, range(8)):
        monkeypatch.setattr(stream, "own_examples", lambda mesh, batch_size, own=own: np.array(own))
        shares.append([{name: getattr(batch, name) for name in NAMES} for batch in read()])
    return shares


@pytest.mark.parametrize(
    "num_train, read",
    [
        (13, lambda feed: take(feed.train(), 7)),
        (40, lambda feed: list(feed.test())),
        (40, lambda feed: list(feed.sample(2))),
    ],
    ids=["train", "test", "sample"],
)
def test_two_processes_read_the_batches_of_one(num_train, read, monkeypatch):
    feed = streamed(make_stream(num_train))
    *parts, whole = on_processes(monkeypatch, lambda: read(feed))
    for part, own in zip(parts, OWN, strict=True):
        for some, batch in zip(part, whole, strict=True):
            for name in NAMES:
                np.testing.assert_array_equal(some[name], batch[name][own])


def test_going_on_with_another_number_of_processes(monkeypatch):
    feed = streamed(make_stream())
    rest = take(feed.train(), 5)[3:]
    with monkeypatch.context() as two:
        two.setattr(stream, "own_examples", lambda mesh, batch_size: np.array(OWN[0]))
        two.setattr(stream, "_on_mesh", lambda local, mesh: Batch(**local))
        part = feed.train()
        take(part, 3)
        state = json.loads(json.dumps(part.get_state()))
    whole = feed.train()
    whole.set_state(state)
    assert_same(take(whole, 2), rest)
