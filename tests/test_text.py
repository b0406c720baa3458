"""Text: its windows, next-token prediction, the language model, and its training by every method."""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, detach, on_host, plain_sgd, small_run

from lpjax import predict
from lpjax.config.schema import DataConfig
from lpjax.data import SOURCES
from lpjax.data.source import Spec, Text
from lpjax.data.subset import reduced, reduced_spec
from lpjax.errors import BadInput
from lpjax.export import from_run, model_file, sample
from lpjax.methods import moving
from lpjax.models.gpt import gpt
from lpjax.models.transformer import attention, rotated
from lpjax.network.network import composed
from lpjax.nn import chain, losses
from lpjax.nn.chain import Mode, make_chain
from lpjax.nn.count import chain_size
from lpjax.training import loop, resume

TEXT = SOURCES["text"]
TOKENS, VOCABULARY = 8, 256


def config(path, **fields):
    return DataConfig(**{"name": "text", "dir": str(path), "sequence": TOKENS, "crop": 0} | fields)


def whole(data, spec, split):
    """All windows of a split."""
    count = spec.num_train if split == "train" else spec.num_test
    return data.windows(split, np.arange(count))


def test_a_file_is_mapped_and_its_last_twentieth_held_out(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(content := bytes(np.random.default_rng(0).integers(0, 256, 1003, np.uint8)))
    spec, data = TEXT.describe(config(path)), TEXT.load(config(path))
    assert (spec.image_shape, spec.classes, spec.num_train, spec.num_test) == ((TOKENS,), 256, 119, 7)
    assert isinstance(data.train, np.memmap)
    assert data.sha256 == hashlib.sha256(content).hexdigest()
    tokens, labels = whole(data, spec, "train")
    assert tokens.reshape(-1).tobytes() == content[: 119 * TOKENS]
    np.testing.assert_array_equal(labels.reshape(-1), list(content[1 : 119 * TOKENS + 1]))
    tokens, labels = whole(data, spec, "test")
    assert (labels >= 0).sum() == 49, "a label for each held-out byte but the first"
    assert (labels[-1] >= 0).tolist() == [True] + [False] * 7
    np.testing.assert_array_equal(labels[labels >= 0], list(content[-49:]))


def test_every_twentieth_file_of_a_folder_is_held_out(tmp_path):
    (tmp_path / "b").mkdir()
    for i in range(40):
        (tmp_path / ("a" if i < 20 else "b/a")).with_suffix(f".{i:02}").write_bytes(bytes([i]) * 20)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / ".hidden").write_text("no")
    spec, data = TEXT.describe(config(tmp_path)), TEXT.load(config(tmp_path))
    assert data.test.tobytes() == b"".join(bytes([i]) * 20 + b"\0" for i in (19, 39))
    assert len(data.train) == 38 * 21
    assert {note.partition(":")[0] for note in spec.notes} == {"left out, no regular files", STRAYS}
    fields = config(tmp_path, train_examples=3, validation_examples=2)
    spec, part = reduced_spec(spec, fields), reduced(data, fields)
    assert (spec.num_train, spec.num_test) == (3, 2)
    assert part.train.tobytes() == data.train[: 3 * TOKENS + 1].tobytes()
    last = (38 * 21 - 1) // TOKENS
    np.testing.assert_array_equal(part.windows("test", np.arange(2)), data.windows("train", np.arange(last - 2, last)))


STRAYS = "left out, hidden, or added by an archive or a disk"


@pytest.mark.parametrize(
    "make, fields, message",
    [
        (lambda path: path.mkdir(), {}, "no file that can be read in it: expected at least one"),
        (lambda path: None, {}, "no such file or folder"),
        (os.mkfifo, {}, "expected a regular file or a folder"),
        (lambda path: path.write_bytes(b"x" * 159), {}, r"7 bytes held out .*: expected more than data.sequence=8"),
        (
            lambda path: path.write_bytes(b"x" * 999),
            {"flip": True},
            "data.flip=True: expected False for data.name=text",
        ),
    ],
)
def test_what_is_no_text_is_refused(make, fields, message, tmp_path):
    make(tmp_path / "text")
    with pytest.raises((BadInput, FileNotFoundError), match=message):
        reduced_spec(TEXT.describe(config(tmp_path / "text", **fields)), config(tmp_path / "text", **fields))


def test_windows_are_of_text_and_can_be_exported():
    for fields, spec, message in (
        ({"name": "digits", "sequence": 64}, None, "data.sequence=64: expected 128, its default, for data.name=digits"),
        ({"crop": 0}, Spec((2**20 + 1,), 256, 9, 9, task=losses.NEXT_TOKEN), "data.sequence=1048577: expected at most"),
    ):
        own = DataConfig(**fields)
        with pytest.raises(BadInput, match=message):
            reduced_spec(spec or SOURCES[own.name].describe(own), own)


def test_the_default_is_the_standard_library():
    spec, data = TEXT.describe(DataConfig(name="text")), TEXT.load(DataConfig(name="text"))
    assert spec.num_train > 20_000
    assert len(data.train) // 128 == spec.num_train
    assert b"def dataclass(" in data.train.tobytes() + data.test.tobytes()
    assert len(data.sha256) == 64


def test_next_token_loss_is_a_mean_over_the_labelled_positions():
    logits = jax.random.normal(jax.random.key(0), (3, 5, 7), float)
    labels = jnp.array([[1, 2, 3, 4, 5], [0, 6, -1, -1, -1], [-1] * 5], jnp.int32)
    loss, correct = losses.NEXT_TOKEN.loss(logits, labels, 0.0), losses.NEXT_TOKEN.correct(logits, labels, 1)
    for i, count in enumerate((5, 2)):
        own, aims = np.asarray(jax.nn.log_softmax(logits))[i, :count], np.asarray(labels)[i, :count]
        assert loss[i] == pytest.approx(-own[np.arange(count), aims].mean())
        assert correct[i] == pytest.approx((own.argmax(-1) == aims).mean())
    assert losses.NEXT_TOKEN.predictions(labels).tolist() == [5, 2, 0]
    assert losses.NEXT_TOKEN.loss(logits, labels, 0.1)[2] == 0
    assert losses.NEXT_TOKEN.metrics(math.log(4)) == pytest.approx({"perplexity": 4, "bits_per_byte": 2})


@pytest.mark.parametrize("activation, hidden, matrices", [("gelu", 64, 2), ("swiglu", 42, 3)])
def test_the_model_has_its_parameters_and_sees_no_later_token(activation, hidden, matrices):
    blocks, width = 3, 16
    model = make_chain(gpt(blocks=blocks, width=width, heads=2, classes=VOCABULARY, activation=activation), (TOKENS,))
    each = 4 * width**2 + matrices * width * hidden + 2 * width
    assert chain_size(model) == blocks * each + 2 * VOCABULARY * width + width
    assert [repeat.count for repeat in model.repeats] == [1, blocks, 1], "equal blocks are one loop"
    params, stats = chain.init(model, jax.random.key(0))
    x = jnp.arange(TOKENS, dtype=float)[None]
    run = jax.jit(lambda x: chain.apply(model, params, stats, x, Mode(train=False))[0])
    changed = (run(x) != run(x.at[0, 5].set(99))).any(-1)[0]
    assert changed.tolist() == [False] * 5 + [True] * 3
    assert -jax.nn.log_softmax(run(x)).mean() == pytest.approx(math.log(VOCABULARY), rel=0.05), "a guess to begin with"


def test_attention_in_double_precision_is_that_in_single(x64):
    arrays = jax.random.normal(jax.random.key(0), (3, 2, TOKENS, 2, 4), float)
    single = attention(*arrays.astype(jnp.float32), causal=True)
    np.testing.assert_allclose(attention(*arrays, causal=True), single, atol=1e-5)
    assert np.std(single) > 0.1


def test_rotated_heads_meet_by_their_distance():
    """<query at i, key at j> depends on i - j alone."""
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 6), float)
    rows = [rotated(jnp.broadcast_to(own, (1, TOKENS, 1, 6)))[0, :, 0] for own in (query, key)]
    products = rows[0] @ rows[1].T
    for distance in range(1 - TOKENS, TOKENS):
        diagonal = jnp.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-5)
    assert abs(products[0, 1] - products[1, 0]) > 1e-3


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"tied_embedding": True}, "the embedding is in the first stage and the head in the last"),
        ({"heads": 5}, "expected a multiple of 2"),
        ({"activation": "relu"}, "expected one of gelu, swiglu"),
        ({"dropout": 1.0}, "expected 0 to below 1"),
        ({"heads": 0}, "model.heads=0: expected a whole number of at least 1"),
        ({"blocks": 0}, "model.blocks=0: expected"),
        ({"hidden": 0}, "model.hidden=0: expected"),
    ],
)
def test_bad_models(fields, message):
    with pytest.raises(BadInput, match=message):
        gpt(**{"blocks": 1, "width": 16, "heads": 2, "classes": VOCABULARY} | fields)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A text in which each byte tells the next."""
    path = tmp_path_factory.mktemp("text") / "alphabet"
    path.write_bytes(bytes(range(97, 108)) * 62)
    return str(path)


def text_run(path, **fields):
    model = {"function": "gpt", "blocks": 4, "width": 8, "heads": 2, "dropout": 0.1}
    data = {"name": "text", "dir": path, "sequence": TOKENS, "crop": 0}
    aux = {"function": "own_units", "blocks_per_stage": 1, "width": 0.5}
    return small_run(model=model, data=data, aux=aux, batch_size=8, **{**plain_sgd(0.3), **fields})


@pytest.mark.parametrize(
    "method, K, mesh, fields",
    [
        pytest.param("serial", 4, {"data": 2}, {}, marks=pytest.mark.slow),
        ("pipeline", 2, {"stage": 2}, {"pipeline__micro_batches": 4}),
        ("delayed", 4, {"stage": 4}, {"delayed__micro_batches": 8}),
        ("local", 2, {"stage": 2}, {}),
        ("coarse_adjoint", 2, {"stage": 2}, {}),
        pytest.param("layer_parallel", 2, {"stage": 2}, {"exchange__stale": True}, marks=pytest.mark.slow),
    ],
)
def test_every_method_trains_it_alike_on_every_mesh_and_goes_on_as_it_was(method, K, mesh, fields, path, x64):
    shapes = {"stage": 1}, {"stage": 1} | mesh
    one, several = (text_run(path, method=method, num_stages=K, mesh=shape, **fields) for shape in shapes)
    found = []
    for run in (one, several):
        state, batches, history = run.create(), run.feed.train(), []
        for step in range(8):
            if step == 6:
                arrays, place = resume.snapshot(run, state), batches.get_state()
            state, metrics = run.step(state, next(batches))
            history.append(jax.device_get(metrics))
        found.append((history, on_host(state)))
    assert_close(found[0][0], found[1][0])
    assert found[0][0][-1]["task_loss"] < found[0][0][K]["task_loss"] - 0.3, "it learns"
    state, _, _ = resume.restore(several, arrays)
    batches = several.feed.train()
    batches.set_state(place)
    for _ in range(2):
        state, _ = several.step(state, next(batches))
    assert_close(on_host(state), found[1][1], rtol=0, atol=0)


def test_bits_per_byte_of_training_begin_with_the_first_whole_batch(path, tmp_path):
    run = text_run(path, method="delayed", num_stages=4, delayed__micro_batches=2, log_every=1, num_steps=5)
    loop.train(run, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses_of = [line["task_loss"] for line in lines if line["kind"] == "train"]
    bits = [line.get("bits_per_byte") for line in lines if line["kind"] == "train"]
    assert max(losses_of[:2]) < 3, "the last stage has had a part of a batch, or none"
    assert losses_of[2] == pytest.approx(math.log(VOCABULARY), rel=0.1)
    assert bits == [None, None, *(pytest.approx(loss / math.log(2)) for loss in losses_of[2:])]


def test_labels_of_bytes_in_a_test_and_as_they_are_sent(path, x64):
    run = text_run(path, method="serial", num_stages=2, mesh={"stage": 1, "data": 2}, eval__sample=20)
    state, data = run.create(), TEXT.load(run.config.data)
    got = run.evaluate(state, run.feed)
    params = detach(run.network.params.unpack_all(state.stage_params))
    tokens, labels = whole(data, run.spec, "test")

    def network(x):
        x = jnp.asarray(x).astype(float)
        for stage, own in zip(run.network.stages, params, strict=True):
            x, _ = chain.apply(stage, own, chain.init(stage, jax.random.key(0))[1], x, Mode(train=False))
        return np.asarray(x)

    known, logits = labels >= 0, network(tokens)
    values = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.maximum(labels, 0)[..., None], 2)[..., 0]
    assert not known.all(), "the last window is shorter"
    assert got.test_loss == pytest.approx(-values[known].mean())
    assert got.test_accuracy == pytest.approx((logits.argmax(-1) == labels)[known].mean())
    assert got.test_bits_per_byte == pytest.approx(got.test_loss / math.log(2))
    assert got.test_examples == len(tokens)
    window = tokens[:1].copy()
    for i in range(TOKENS // 4, TOKENS):
        key = jax.random.fold_in(jax.random.key(run.config.seed), i)
        window[0, i] = jax.random.categorical(key, network(window)[0, i - 1])
    text = bytes(window[0])
    assert (got.test_prompt, got.test_sample) == tuple(part.decode(errors="replace") for part in (text[:2], text[2:]))
    batch = next(run.feed.train())
    examples = moving.tagged(run.network, run.config, state, moving.make_tags(batch, 0))
    np.testing.assert_array_equal(examples.targets.labels, batch.label, "as stages are sent them")
    assert dataclasses.asdict(run.spec)["sha256"] == data.sha256


def test_windows_that_are_slow_to_read_are_waited_for(path, monkeypatch):
    batches, windows = text_run(path, method="serial", num_stages=2, mesh={"stage": 1}).feed.train(), Text.windows
    monkeypatch.setattr(Text, "windows", lambda *args: (time.sleep(0.1), windows(*args))[1])
    next(batches)
    assert batches.waited >= 0.1


def test_an_exported_model_goes_on_as_the_composed_network_does(path, tmp_path, capsys):
    """Also behind a prompt that is longer than the window, of which it sees the end."""
    run = text_run(path, method="serial", num_stages=2, mesh={"stage": 1})
    state, _ = run.step(run.create(), next(run.feed.train()))
    params, stats = from_run.composed_trees(run, state)
    from_run.write(tmp_path / "model", run, params, stats, step=1, test_accuracy=0.5, ema=False)
    model, text = model_file.load(tmp_path / "model"), bytearray(b"abcdefghij")
    for byte in sample.continued(model, bytes(text), 3, temperature=0.0):
        x = jnp.asarray(np.frombuffer(text[-TOKENS:], np.uint8)[None]).astype(float)
        logits = np.asarray(composed(run.network, *detach((params, stats)), x, Mode(train=False))[0])[0]
        np.testing.assert_allclose(model.logits(x.astype(jnp.uint8))[0], logits, atol=1e-4)
        assert byte == logits[-1].argmax()
        text.append(byte)
    endless = sample.continued(model, b"abc", 10**12, seed=1)
    assert list(itertools.islice(endless, 3)) == list(sample.continued(model, b"abc", 3, seed=1)), "drawn as asked for"
    short = dataclasses.replace(model.description, image_shape=(2,))
    lines = from_run.card(short, {}).partition("```python\n")[2].partition("```")[0].splitlines()
    found = {"np": np}
    exec("\n".join(line for line in lines if line.startswith(("prompt", "tokens"))), found)
    assert found["tokens"].tobytes() == b"f ", "the end of a prompt that is longer than the window"
    said = []
    for seed in (1, 1, 2):
        options = [f"--model={tmp_path / 'model'}", "--prompt=abc", "--bytes=20", "--top_k=40", f"--seed={seed}"]
        assert predict.main(options) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]
    assert said[0].startswith("abc")
    assert "--prompt" in (tmp_path / "model/README.md").read_text()
    assert predict.main([f"--model={tmp_path / 'model'}", "image.png"]) == 2
    assert "the model is of text: give it --prompt=TEXT" in capsys.readouterr().err
    for option in ("--temperature=-1", f"--seed={2**64}"):
        assert predict.main([f"--model={tmp_path / 'model'}", "--prompt=abc", option]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert f"{option.split('=')[0]}=" in told.err
    with pytest.raises(SystemExit):
        predict.main([f"--model={tmp_path / 'model'}", "--prompt=abc", "--json"])
    assert "--json is of images: leave it out" in capsys.readouterr().err


def test_bytes_are_drawn_from_the_likeliest():
    logits = np.log([0.1, 0.6, 0.3])
    keys = jax.random.split(jax.random.key(0), 300)
    drawn = np.array([sample.next_byte(logits, 1.0, 2, key) for key in keys])
    assert set(drawn) == {1, 2}
    assert np.mean(drawn == 1) == pytest.approx(2 / 3, abs=0.1)
    assert np.mean([sample.next_byte(logits, 0.2, None, key) == 1 for key in keys[:50]]) > 0.9
    assert sample.next_byte(logits, 0.0, None, keys[0]) == 1
