"""The model folder: its program is the composed network, runs without lpjax, and can only compute."""

import csv
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
import jax.numpy as jnp
import numpy as np
import pytest
from data_makers import encoded
from helpers import dataset, small_run
from jax import export as jax_export
from PIL import Image
from safetensors.numpy import load_file
from test_main import ROOT, environment

from lpjax import predict
from lpjax.data import images as image_files
from lpjax.export import fold, from_run, model_file
from lpjax.export import program as programs
from lpjax.network.network import composed
from lpjax.nn import layers
from lpjax.nn.chain import Mode

PREACT = {"function": "wide_resnet", "depth": 10, "widen": 1}
MLP = {"function": "configs.digits_mlp:residual_mlp", "blocks": 3, "width": 8}
FILES = (model_file.PROGRAM, model_file.ARRAYS, model_file.DESCRIPTION)


def random_trees(run):
    """Parameters and statistics of the stages, as unlike their first values as training makes them."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        kernel = path[-1].key == "kernel"
        values = rng.normal(0, 2**0.5, leaf.shape) if kernel else rng.uniform(0.5, 1.5, leaf.shape)
        return (values / np.prod(leaf.shape[1:-1]) ** 0.5 if kernel else values).astype(np.float32)

    return jax.tree.map_with_path(draw, (run.network.params.trees, run.network.stats.trees))


def logits(run, params, stats, images):
    """Of the composed network, as training has it."""
    params, stats = jax.tree.map(jnp.asarray, (params, stats))
    return composed(run.network, params, stats, run.step_inputs.normalised(jnp.asarray(images)), Mode(train=False))[0]


def images(run, count):
    return dataset(run).test_images[:count]


def close(actual, expected, tolerance=1e-5):
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())
    assert np.abs(expected).max() > 0.1


@pytest.fixture(scope="module")
def run():
    return small_run()


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "model"
    from_run.write(folder, run, *random_trees(run), step=7, test_accuracy=0.5)
    return folder


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


def sign(folder):
    """The sums of what is in the folder now: what whoever made it would write."""
    lines = subprocess.run(["sha256sum", *FILES], cwd=folder, capture_output=True, check=True).stdout
    (folder / model_file.CHECKSUMS).write_bytes(lines)


def test_the_program_is_the_composed_network_for_any_batch(run, folder):
    model, expected = model_file.load(folder), logits(run, *random_trees(run), images(run, 9))
    for count in (1, 9):
        found = model.logits(images(run, count))
        assert (found.shape, found.dtype) == ((count, 10), np.float32)
        close(found, expected[:count])


def test_its_statistics_are_those_of_the_evaluation(run):
    state, data = run.create(), dataset(run)
    expected = run.evaluate(state, run.feed).test_accuracy
    program = from_run.make_program(run, *from_run.composed_trees(run, state))
    classes = np.asarray(program.call(data.test_images)).argmax(1)
    assert (classes == data.test_labels).mean() == pytest.approx(expected)


def test_the_named_arrays_are_the_whole_network(run, folder):
    """Applied unit by unit, without stages."""
    tree = {}
    for name, array in load_file(folder / model_file.ARRAYS).items():
        *path, last = name.split(".")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = jnp.asarray(array)
    data = dataset(run)
    description = model_file.load(folder).description
    np.testing.assert_allclose(description.mean, data.mean)
    x = (images(run, 5) / 255.0 - np.array(description.mean)) / np.array(description.std)
    x, mode = jnp.asarray(x, jnp.float32), Mode(train=False)
    for position, unit in enumerate(run.network.chain.units):
        if stats := tree["interfaces"].get(str(position)):
            x, _ = layers.STANDARDISE.apply({}, stats, x, mode)
        params = tree["units"][str(position)]
        x, _ = unit.apply(params, params.pop("stats", {}), x, mode)
    assert sorted(tree["interfaces"]) == [str(cut) for cut in run.network.cuts]
    assert len(run.network.cuts) == 3
    close(model_file.load(folder).logits(images(run, 5)), x)


ALONE = """
import sys

class OnlyJax:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused!r}:
            raise ImportError(name + " is refused")

sys.meta_path.insert(0, OnlyJax())
"""


def test_it_runs_with_jax_alone_as_the_card_says(run, folder):
    code = re.search(r"```python\n(.*?)```", (folder / model_file.CARD).read_text(), re.DOTALL)[1]
    code, changed = re.subn(r"images = .*", f"images = np.array({images(run, 3).tolist()}, np.uint8)", code)
    code, changed_too = re.subn(r"print\((.*)\)", r"print(np.asarray(\1, float).tolist())", code)
    assert changed == changed_too == 1
    refused = ["lpjax", "flax", "optax", "orbax", "ml_collections", "absl", "jaxtyping", "safetensors", "PIL", "rich"]
    done = subprocess.run(
        [sys.executable, "-c", ALONE.format(refused=refused) + code],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = jax.nn.softmax(model_file.load(folder).logits(images(run, 3)))
    np.testing.assert_allclose(json.loads(done.stdout), expected, rtol=0, atol=1e-5)


def test_no_file_tells_where_it_was_made(folder):
    for path in folder.iterdir():
        for place in (ROOT, sys.prefix, os.path.expanduser("~"), folder.parent):
            assert str(place).encode() not in path.read_bytes(), f"{place} in {path.name}"


def test_the_card_and_the_description(folder):
    card = (folder / model_file.CARD).read_text()
    for words in ("step 7 of a run of 2 epochs", "| test accuracy | 0.5000 on 360 images |", "as trained, not folded"):
        assert words in card
    description = model_file.load(folder).description
    assert description.class_names == tuple("0123456789")
    assert (description.image_shape, description.crop) == ((8, 8, 1), 1.0)
    assert description.provenance["config"]["model"]["arguments"] == {"depth": 8, "width": 4}
    assert "dir" not in description.provenance["config"]["data"], "the place of the data is nobody's business"


@pytest.mark.parametrize(
    "fields",
    [
        {"model": PREACT},
        {"model": MLP, "aux__function": "own_units", "data__crop": 0},
        {"method": "serial", "standardise": False},
    ],
    ids=["pre-activation", "one's own, which asks for len(x)", "not standardised"],
)
def test_other_networks(fields):
    run = small_run(**fields)
    trees = random_trees(run)
    program = from_run.make_program(run, *trees)
    close(jax.jit(program.call)(images(run, 4)), logits(run, *trees, images(run, 4)))
    programs.check(program, (8, 8, 1), (10,))


# ---------------------------------------------------------------- folding


@pytest.fixture
def optimised():
    """XLA as it is outside the tests."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def compiled(program):
    return jax.jit(program.call).lower(jax.ShapeDtypeStruct((4, 8, 8, 1), np.uint8)).compile()


@pytest.mark.parametrize(
    "model, norms",
    [({"depth": 14, "width": 4}, 13), (PREACT, 3)],  # of WRN-10 those between the two convolutions of a block
    ids=["resnet", "pre-activation"],
)
def test_folding_changes_nothing_and_saves_work(model, norms, optimised):
    run = small_run(model=model, num_stages=2)  # so that there are blocks in a scan
    params, stats = random_trees(run)
    program = from_run.make_program(run, params, stats)
    before = jax.tree.map(np.copy, (params, stats))
    folded_params, folded_stats, count = fold.fold(run.network, params, stats)
    assert count == norms
    jax.tree.map(np.testing.assert_array_equal, (params, stats), before)
    folded = from_run.make_program(run, folded_params, folded_stats)
    plain, cheap = compiled(program), compiled(folded)
    close(cheap(images(run, 4)), plain(images(run, 4)))
    assert cheap.cost_analysis()["flops"] < plain.cost_analysis()["flops"]
    multiplies = [len(re.findall(r" multiply\(", compiled.as_text())) for compiled in (plain, cheap)]
    repeats = [repeat for stage in run.network.stages for repeat in stage.repeats]  # each is compiled once
    pairs = [fold.foldable_pairs(repeat.unit, repeat.in_shape) for repeat in repeats]
    assert multiplies[0] - multiplies[1] >= sum(map(len, pairs))


def test_a_folded_model_says_so(run, tmp_path):
    from_run.write(tmp_path / "model", run, *random_trees(run), fold_batch_norm=True)
    model = model_file.load(tmp_path / "model")
    assert model.description.provenance["folded_batch_norms"] == 7
    assert 0 < model.description.provenance["logits_changed_by"] < 1e-4
    arrays = load_file(tmp_path / "model" / model_file.ARRAYS)
    assert {float(v) for name, array in arrays.items() if name.endswith("scale") for v in array} == {1.0}
    card = (tmp_path / "model" / model_file.CARD).read_text()
    assert "| batch norm | 7 folded into" in card
    assert "| test accuracy | not known |" in card


# ---------------------------------------------------------------- writing


def test_a_folder_that_is_not_free(folder, tmp_path):
    before, model = {path.name: path.read_bytes() for path in folder.iterdir()}, model_file.load(folder)
    with pytest.raises(ValueError, match=r"model: exists: expected no such folder, or an empty one; choose another"):
        model_file.write(folder, model.description, model.program, {}, "")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    for name in ("", "new/deeper"):  # an empty one; none
        model_file.write(tmp_path / name, model.description, model.program, {}, "")
        assert {*FILES, model_file.CARD, model_file.CHECKSUMS} <= {path.name for path in (tmp_path / name).iterdir()}


def test_whole_or_not_at_all(folder, tmp_path, monkeypatch):
    model = model_file.load(folder)

    def full(*args, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(model_file.json, "dumps", full)
    with pytest.raises(OSError, match="No space"):
        model_file.write(tmp_path / "model", model.description, model.program, {}, "")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- hostile folders


@pytest.mark.parametrize("name", [*FILES, model_file.CHECKSUMS])
def test_damage_is_named(name, folder, tmp_path):
    content = (folder / name).read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    pattern = rf"({re.escape(name)}|model\.\w+): damaged|{re.escape(name)} is missing"
    for number, damaged in enumerate((flipped, content[:middle], None)):
        copied = shutil.copytree(folder, tmp_path / str(number))
        (copied / name).unlink()
        if damaged is not None:
            (copied / name).write_bytes(damaged)
        with pytest.raises((ValueError, OSError), match=f"({pattern}).*copy the folder again, or export the model"):
            model_file.load(copied)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("model.json", lambda text: text.replace(b"\n", b"\r\n"), "its line ends were changed to CR LF, as git does"),
        (
            "model.stablehlo",
            lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:1",
            "a pointer of git-lfs",
        ),
        (
            "SHA256SUMS",
            lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:1",
            "a pointer of git-lfs, not the file: do git lfs pull",
        ),
        ("model.safetensors", lambda _: b"", "empty: copied in part"),
        ("model.safetensors", lambda data: data[:100], r"damaged, or copied in part \(100 bytes\)"),
    ],
)
def test_what_became_of_a_model_on_its_way(name, change, message, folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "model")
    (copied / name).write_bytes(change((copied / name).read_bytes()))
    with pytest.raises(ValueError, match=f"{re.escape(name)}: {message}"):
        model_file.load(copied)


def test_line_ends_of_the_checksums_may_change(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "model")
    sums = copied / "SHA256SUMS"
    sums.write_bytes(sums.read_bytes().replace(b"\n", b"\r\n"))
    model_file.load(copied)


@pytest.mark.parametrize(
    "change, message",
    [
        ("[" * 100_000, "recursion"),
        ({"format": "lpjax model 2"}, "another format: expected 'lpjax model 1'"),
        ({"more": 1}, "expected an object with the fields"),
        ({"crop": float("nan")}, "NaN: expected finite numbers"),
        ({"std": [1.0, 1.0]}, r"std='\(1.0, 1.0\)': expected 1 finite numbers"),
        ({"class_names": ["\x1b[2J"] * 10}, "class_names=.*: expected printable"),
        ({"image_shape": [10**6, 10**6, 1]}, "image_shape=.*: expected height, width and channels, 1 to 8192"),
        ({"image_shape": [16, 8, 1]}, r"expected uint8\[b,16,8,1\]"),
    ],
    ids=str,
)
def test_forged_descriptions(change, message, copied):
    path = copied / model_file.DESCRIPTION
    text = change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change)
    path.write_bytes(text.encode("latin-1"))
    sign(copied)
    with pytest.raises(ValueError, match=rf"model/model\.(json|stablehlo): .*({message})"):
        model_file.load(copied)


def exported(function, *shapes, **options):
    (b,) = jax_export.symbolic_shape("b")
    shapes = shapes or (jax.ShapeDtypeStruct((b, 8, 8, 1), np.uint8),)
    return jax_export.export(jax.jit(function), **options)(*shapes)


def forge(folder, program):
    (folder / model_file.PROGRAM).write_bytes(program.serialize())
    sign(folder)


def constant(x):
    return jnp.zeros((x.shape[0], 10), jnp.float32)


def calls_library(x):
    return constant(x) + jax.ffi.ffi_call("any_function", jax.ShapeDtypeStruct((10,), jnp.float32))()[None]


def hides_a_call(x):
    """In the body of a loop, in a function."""
    call = jax.jit(lambda y: y + jax.ffi.ffi_call("any_function", jax.ShapeDtypeStruct((10,), jnp.float32))()[None])
    return jax.lax.fori_loop(0, 3, lambda i, y: call(y), constant(x))


ANY_FUNCTION = [jax_export.DisabledSafetyCheck.custom_call("any_function")]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: exported(calls_library, disabled_checks=ANY_FUNCTION), "stablehlo.custom_call @any_function"),
        (lambda: exported(hides_a_call, disabled_checks=ANY_FUNCTION), "stablehlo.custom_call @any_function"),
        (lambda: exported(lambda x: constant(x)[:, :9]), r"float32\[b,9\]: expected .*float32\[b,10\]"),
        (lambda: exported(lambda x: {"logits": constant(x)}), "to .*logits.*: expected one array to one array"),
        (lambda: exported(constant, jax.ShapeDtypeStruct((4, 8, 8, 1), np.float32)), r"float32\[4,8,8,1\] .*expected"),
    ],
    ids=["library", "hidden in a loop", "classes", "a dict", "floats"],
)
def test_programs_that_are_refused(make, message, copied):
    program = make()
    forge(copied, program)
    with pytest.raises(ValueError, match=rf"model/model\.stablehlo: a program .*{message}"):
        model_file.load(copied)


# ---------------------------------------------------------------- command line


QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def cli(*arguments):
    command = [sys.executable, "-m", "lpjax.export", "--config=configs/digits.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(**QUICK), capture_output=True, text=True)


def test_mistakes_exit_with_2(tmp_path):
    done = cli(f"--output={tmp_path}/new", f"--workdir={tmp_path}/run", "--config.model.depth=8")
    assert done.returncode == 2, done.stderr
    assert "there is no checkpoint" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- predictions for image files


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
    code = predict.main([f"--model={folder}", *map(str, arguments)])
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
        (b"text", r"bad\.png: not an image file: expected a whole file in one of the formats AVIF, BMP, .*WEBP"),
        (EPS, r"bad\.png: not an image file"),  # Pillow would start Ghostscript
        (encoded(NOISE)[:1000], r"bad\.png: image file is truncated"),
        (png(10_000, 10_000), r"bad\.png: 10000x10000 pixels, more than 50,000,000"),  # of which Pillow warns
        (png(50_000, 50_000), r"bad\.png: .*2500000000.*: expected a whole file .* of at most 50,000,000 pixels"),
        (tiff("F"), r"bad\.png: pixels of more than 8 bits .*convert"),
        (None, r"bad\.png"),
    ],
    ids=["text", "EPS", "truncated", "bomb", "larger bomb", "32 bits", "missing"],
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
    assert err.splitlines() == [
        f"lpjax: left out, hidden, or added by an archive or a disk: {inside / '.cache'} (1)",
        f"lpjax: left out, no images in a format that is read: {inside / 'labels.txt'} (1)",
    ]
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
    assert "empty: no image files in this folder" in err


def test_a_folder_of_links_with_a_damaged_image(folder, digits, tmp_path, capsys):
    """Linked folders are gone through; what is an image, but damaged, is an error and not left out."""
    paths, _ = digits
    elsewhere, given = tmp_path / "elsewhere", tmp_path / "given"
    elsewhere.mkdir()
    given.mkdir()
    shutil.copy(paths[1], elsewhere / "1.png")
    (given / "linked").symlink_to(elsewhere)
    (given / "cut.png").write_bytes(paths[2].read_bytes()[:60])
    code, lines, err = call(capsys, folder, "--json", "--top=1", given)
    found = [json.loads(line) for line in lines]
    assert (code, [line["image"] for line in found]) == (2, [f"{given}/cut.png", f"{given}/linked/1.png"])
    assert "error" in found[0]
    assert "cut.png" in err
    assert "classes" in found[1]


def test_csv(folder, digits, tmp_path, capsys):
    paths, pixels = digits
    named = tmp_path / 'a, "b"\n.png'
    shutil.copy(paths[1], named)
    (tmp_path / "bad.png").write_bytes(b"text")
    code, lines, _ = call(capsys, folder, "--csv", "--top=2", paths[0], named, tmp_path / "bad.png")
    rows = list(csv.DictReader(f"{line}\n" for line in lines))
    assert code == 2
    assert [row["image"] for row in rows] == [str(paths[0])] * 2 + [str(named)] * 2 + [str(tmp_path / "bad.png")]
    for (first, second), p in zip((rows[:2], rows[2:4]), expected(folder, pixels[:2]), strict=True):
        best = np.argsort(-p)[:2]
        assert [first["class"], second["class"]] == [str(i) for i in best]
        np.testing.assert_allclose([float(first["probability"]), float(second["probability"])], p[best], rtol=1e-4)
        assert first["error"] == ""
    assert (rows[4]["class"], rows[4]["probability"]) == ("", "")
    assert "not an image file" in rows[4]["error"]


# ---------------------------------------------------------------- how an image becomes an example


def decode(pixels, shape, share=1.0):
    return image_files.decode_foreign(encoded(pixels), shape, share=share, max_pixels=10**6)


def test_the_middle_of_the_image_by_the_models_shape():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode(pixels, (40, 40, 3)), pixels[:, 10:50])
    np.testing.assert_array_equal(decode(pixels, (20, 20, 3), share=0.5), pixels[10:30, 20:40])
    np.testing.assert_array_equal(decode(pixels, (20, 60, 3)), pixels[10:30])  # thrice as wide as high
    np.testing.assert_array_equal(decode(pixels, (40, 10, 3)), pixels[:, 25:35])
    np.testing.assert_array_equal(decode(pixels[..., 0], (40, 40, 1))[..., 0], pixels[:, 10:50, 0])
    assert decode(pixels, (8, 8, 1)).shape == (8, 8, 1)
