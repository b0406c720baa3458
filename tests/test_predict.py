"""Predictions for image files: the model's own, and nothing but a message for files that are not what they seem."""

import csv
import dataclasses
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib

import jax
import numpy as np
import pytest
from data_makers import encoded
from helpers import dataset, small_run
from PIL import Image
from test_export import random_trees
from test_main import ROOT, environment

from lpjax import predict as command
from lpjax.data import images
from lpjax.export import from_run, model_file


@pytest.fixture(scope="module")
def run():
    return small_run()


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict") / "model"
    from_run.write(folder, run, *random_trees(run))
    return folder


@pytest.fixture
def digits(run, tmp_path):
    """Files of forty test images, 8x8 as the model takes them, and what the model says to them."""
    pixels = dataset(run).test_images[:40]
    paths = [tmp_path / f"{i}.png" for i in range(40)]
    for path, image in zip(paths, pixels, strict=True):
        path.write_bytes(encoded(image[..., 0]))
    return paths, pixels


def expected(folder, pixels):
    return np.asarray(jax.nn.softmax(model_file.load(folder).logits(pixels)))


def call(capsys, folder, *arguments):
    """Exit code, lines of stdout, and stderr."""
    code = command.main([f"--model={folder}", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def test_json_of_more_images_than_a_batch(folder, digits, capsys):
    paths, pixels = digits
    code, lines, err = call(capsys, folder, "--json", "--top=10", *paths)
    assert (code, err) == (0, "")
    for line, path, probabilities in zip(lines, paths, expected(folder, pixels), strict=True):
        found = json.loads(line)
        assert found["image"] == str(path)
        values = [c["probability"] for c in found["classes"]]
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1)
        np.testing.assert_allclose(values, [probabilities[int(c["class"])] for c in found["classes"]], atol=1e-5)


def test_text(folder, digits, capsys):
    paths, pixels = digits
    code, lines, err = call(capsys, folder, "--top=2", *paths[:2])
    assert (code, err) == (0, "")
    wanted = []
    for path, probabilities in zip(paths, expected(folder, pixels[:2]), strict=False):
        best = np.argsort(-probabilities)[:2]
        wanted += [str(path), *(f"  {i}  {probabilities[i]:.4f}" for i in best)]
    assert lines == wanted
    assert len(call(capsys, folder, *paths[:1])[1]) == 1 + 5
    assert len(call(capsys, folder, "--top=99", *paths[:1])[1]) == 1 + 10


def png(width, height, content=b""):
    """A PNG that claims to be of this size."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def tiff(mode):
    file = io.BytesIO()
    Image.new(mode, (8, 8)).save(file, "TIFF")
    return file.getvalue()


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    "content, message",
    [
        (b"text", r"bad\.png: not an image file: expected a whole file in one of the formats BMP, .*WEBP"),
        (b"", r"bad\.png: not an image file"),
        (EPS, r"bad\.png: not an image file"),  # Pillow would start Ghostscript
        (encoded(NOISE)[:1000], r"bad\.png: image file is truncated"),
        (png(8, 8, b"no deflate"), r"bad\.png: "),
        (
            png(8000, 8000),
            r"bad\.png: 8000x8000 pixels, more than 50,000,000: expected .* of at most 50,000,000 pixels",
        ),
        (png(10_000, 10_000), r"bad\.png: 10000x10000 pixels, more than 50,000,000"),  # of which Pillow warns
        (png(50_000, 50_000), r"bad\.png: .*2500000000.*: expected a whole file .* of at most 50,000,000 pixels"),
        (tiff("F"), r"bad\.png: pixels of more than 8 bits .*convert"),
        (None, r"bad\.png"),
    ],
    ids=["text", "empty", "EPS", "truncated", "damaged", "bomb", "larger", "largest", "32 bits", "missing"],
)
def test_a_bad_image_does_not_stop_the_others(content, message, folder, digits, tmp_path, capsys):
    (first, last, *_), pixels = digits
    bad = tmp_path / "bad.png"
    if content is not None:
        bad.write_bytes(content)
    code, lines, err = call(capsys, folder, "--json", "--top=10", first, bad, last)
    assert code == 2
    assert re.search(message, err), err
    assert "Traceback" not in err
    results = [json.loads(line) for line in lines]
    assert re.search(message, results[1]["error"])
    for result, probabilities in zip(results[::2], expected(folder, pixels[:2]), strict=True):
        assert result["classes"][0]["class"] == str(probabilities.argmax())
    code, lines, err = call(capsys, folder, "--top=1", first, bad, last)
    assert (code, lines[::2]) == (2, [str(first), str(last)])
    assert re.search(message, err)


def test_files_that_are_too_large_or_no_files(folder, digits, tmp_path, capsys):
    (good, *_), _ = digits
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(2**26 + 1)  # a hole: it takes no room
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for a writer
    code, lines, err = call(capsys, folder, "--top=1", large, tmp_path / "pipe.png", "/dev/zero", good)
    assert (code, len(lines)) == (2, 2)
    assert "large.png: 67,108,865 bytes: expected at most 67,108,864; use a smaller image" in err
    for name in ("pipe.png", "/dev/zero"):
        assert f"{name}: not a file: expected an image file" in err


def test_names_that_are_commands_to_a_terminal(folder, digits, tmp_path, capsys):
    (good, *_), _ = digits
    named = tmp_path / "a\x1b[2Jb\udcff.png"
    named.write_bytes(good.read_bytes())
    code, lines, err = call(capsys, folder, named, tmp_path / "\x1b[31m.png")
    assert code == 2
    assert lines[0].endswith("a\ufffd[2Jb\ufffd.png")
    assert "\x1b" not in err
    _, lines, _ = call(capsys, folder, "--json", named)
    assert json.loads(lines[0])["image"] == str(named)


def test_folders_patterns_and_stdin(folder, digits, tmp_path, capsys, monkeypatch):
    paths, pixels = digits
    best = [str(p.argmax()) for p in expected(folder, pixels)]
    inside = tmp_path / "photos" / "of may [1]"
    (inside / ".cache").mkdir(parents=True)
    for i in (3, 5):
        shutil.copy(paths[i], inside / f"{i}.PNG")
    shutil.copy(paths[0], inside / ".cache" / "0.png")
    (inside / "labels.txt").write_text("3")
    shutil.copy(paths[7], tmp_path / "photos" / "picture")  # an image whatever its name
    code, lines, err = call(capsys, folder, "--top=1", tmp_path / "photos")
    assert code == 0
    assert lines[::2] == [str(path) for path in (inside / "3.PNG", inside / "5.PNG", tmp_path / "photos/picture")]
    assert [line.split()[0] for line in lines[1::2]] == [best[i] for i in (3, 5, 7)]
    assert err == f"lpjax: left out, as no images: {inside / 'labels.txt'} (1)\n"
    code, lines, err = call(capsys, folder, "--top=1", f"{tmp_path}/1?.png", f"{tmp_path}/*.PNG", "gs://a/b.png")
    assert code == 2
    assert lines[::2] == [f"{tmp_path}/1{i}.png" for i in range(10)]
    assert err.splitlines() == [
        f"lpjax: {tmp_path}/*.PNG: no file matches this pattern; correct it",
        "lpjax: gs://a/b.png: expected a path of this machine; mount what the address names, or copy it there",
    ]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(paths[4].read_bytes())))
    code, lines, err = call(capsys, folder, "--top=1", "-")
    assert (code, err, lines[0], lines[1].split()[0]) == (0, "", "-", best[4])
    (tmp_path / "empty").mkdir()
    code, lines, err = call(capsys, folder, tmp_path / "empty")
    assert (code, lines) == (2, [])
    assert "empty: no files in this folder" in err


def test_csv(folder, digits, tmp_path, capsys):
    paths, pixels = digits
    named = tmp_path / 'a, "b"\n.png'
    shutil.copy(paths[1], named)
    (tmp_path / "bad.png").write_bytes(b"text")
    code, lines, _ = call(capsys, folder, "--csv", "--top=2", paths[0], named, tmp_path / "bad.png")
    rows = list(csv.DictReader(lines))
    assert code == 2
    assert [row["image"] for row in rows] == [str(paths[0])] * 2 + [str(named).replace("\n", "\ufffd")] * 2 + [
        str(tmp_path / "bad.png")
    ]
    for (first, second), p in zip((rows[:2], rows[2:4]), expected(folder, pixels[:2]), strict=True):
        best = np.argsort(-p)[:2]
        assert [first["class"], second["class"]] == [str(i) for i in best]
        np.testing.assert_allclose([float(first["probability"]), float(second["probability"])], p[best], rtol=1e-4)
        assert first["error"] == ""
    assert (rows[4]["class"], rows[4]["probability"]) == ("", "")
    assert "not an image file" in rows[4]["error"]


def test_output_that_is_not_finite(folder, digits, capsys, monkeypatch):
    def broken(self):
        return lambda images: np.where(np.arange(len(images)) == 1, np.nan, 0.0)[:, None] * np.ones(10)

    monkeypatch.setattr(model_file.Model, "logits", property(broken))
    code, lines, err = call(capsys, folder, "--top=1", *digits[0][:3])
    assert (code, len(lines)) == (2, 4)
    assert "1.png: the model's output is not finite" in err


def test_a_damaged_model(folder, digits, tmp_path, capsys):
    copied = shutil.copytree(folder, tmp_path / "model")
    (copied / model_file.PROGRAM).write_bytes(b"")
    code, lines, err = call(capsys, copied, digits[0][0])
    assert (code, lines) == (2, [])
    assert "model.stablehlo: damaged" in err
    code, _, err = call(capsys, tmp_path / "nothing", digits[0][0])
    assert code == 2
    assert "nothing: no such folder" in err


@pytest.mark.parametrize(
    "arguments", [["--top=0", "x.png"], ["--top=x", "x.png"], [], ["--nonsense", "x.png"]], ids=str
)
def test_mistakes_exit_with_2(arguments, folder, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main([f"--model={folder}", *arguments])
    assert "usage: python -m lpjax.predict" in capsys.readouterr().err


def test_as_a_person_runs_it(folder, digits):
    """In a process of its own, with the one device there is."""
    command = [sys.executable, "-m", "lpjax.predict", f"--model={folder}", "--top=1", *map(str, digits[0][:2])]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    best = expected(folder, digits[1][:2])
    assert done.stdout.splitlines()[1::2] == [f"  {p.argmax()}  {p.max():.4f}" for p in best]
    assert "\x1b" not in done.stdout, "no control characters when it is not a terminal"


# ---------------------------------------------------------------- how an image becomes an example


def decode(pixels, shape, share=1.0):
    return images.decode_foreign(encoded(pixels), shape, share=share, max_pixels=10**6)


def test_the_middle_of_the_image_by_the_models_shape():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode(pixels, (40, 40, 3)), pixels[:, 10:50])
    np.testing.assert_array_equal(decode(pixels, (20, 20, 3), share=0.5), pixels[10:30, 20:40])
    np.testing.assert_array_equal(decode(pixels, (20, 60, 3)), pixels[10:30])  # thrice as wide as high
    np.testing.assert_array_equal(decode(pixels, (40, 10, 3)), pixels[:, 25:35])
    np.testing.assert_array_equal(decode(pixels[..., 0], (40, 40, 1))[..., 0], pixels[:, 10:50, 0])
    assert decode(pixels, (8, 8, 1)).shape == (8, 8, 1)


def test_images_are_prepared_as_they_are_tested():
    pixels = np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        decode(pixels, (32, 32, 3), share=images.CENTRE_SHARE),
        images.decode(encoded(pixels), size=32, channels=3, rng=None),
    )


def test_the_bound_is_on_what_the_header_says():
    assert decode(np.zeros((1000, 1000), np.uint8), (8, 8, 1)).shape == (8, 8, 1)
    with pytest.raises(Image.DecompressionBombError, match="1001x1000 pixels, more than 1,000,000"):
        decode(np.zeros((1000, 1001), np.uint8), (8, 8, 1))


def test_a_model_of_other_than_images(folder, digits):
    model = model_file.load(folder)
    description = dataclasses.replace(model.description, image_shape=(8, 8, 2))
    with pytest.raises(ValueError, match="the model takes 2 channels: image files have 1 or 3"):
        command.read_image(command.ImageFile("0.png", digits[0][0]), description)
