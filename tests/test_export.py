"""The model folder: its program is the composed network, runs without lpjax, and can only compute."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_makers import CIFAR10_NAMES, arguments, make_cifar10, make_folder, make_idx
from helpers import dataset, small_run
from jax import export as jax_export
from safetensors.numpy import load_file
from test_main import ROOT, environment

from lpjax.config.schema import DataConfig
from lpjax.data import SOURCES, prepare
from lpjax.data.source import Spec
from lpjax.export import fold, from_run, model_file
from lpjax.export import program as programs
from lpjax.models import preact_resnet, resnet
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


def test_the_sums_are_those_of_sha256sum(folder):
    subprocess.run(
        ["sha256sum", "--check", "--strict", model_file.CHECKSUMS], cwd=folder, check=True, capture_output=True
    )


def test_the_card_and_the_description(run, folder):
    card = (folder / model_file.CARD).read_text()
    for words in (
        "# resnet on digits",
        "`resnet(depth=8, width=4)`",
        "step 7 of a run of 2 epochs",
        "| test accuracy | 0.5000 on 360 images |",
        "| parameters | 4,934 |",
        "| batch norm | as trained, not folded |",
    ):
        assert words in card
    description = model_file.load(folder).description
    assert description.class_names == tuple("0123456789")
    assert (description.image_shape, description.crop) == ((8, 8, 1), 1.0)
    assert description.provenance["config"]["model"]["arguments"] == {"depth": 8, "width": 4}
    assert "dir" not in description.provenance["config"]["data"], "the place of the data is nobody's business"
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        (folder / model_file.CARD).stat().st_mode & 0o777
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"model": PREACT},
        {"model": MLP, "aux__function": "own_units", "data__crop": 0},
        {"num_stages": 1},
        {"method": "serial", "standardise": False},
    ],
    ids=["pre-activation", "one's own, which asks for len(x)", "one stage", "not standardised"],
)
def test_other_networks(fields):
    run = small_run(**fields)
    trees = random_trees(run)
    program = from_run.make_program(run, *trees)
    close(jax.jit(program.call)(images(run, 4)), logits(run, *trees, images(run, 4)))
    programs.check(program, (8, 8, 1), 10)


def test_bfloat16(run):
    narrow, trees = small_run(bfloat16=True), random_trees(run)
    program = from_run.make_program(narrow, *trees)
    close(jax.jit(program.call)(images(run, 9)), logits(run, *trees, images(run, 9)), 0.05)


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
    assert "| batch norm | 7 folded into" in (tmp_path / "model" / model_file.CARD).read_text()
    assert "| test accuracy | not known |" in (tmp_path / "model" / model_file.CARD).read_text()


def convs(*parts):
    return {((part, "conv", "kernel"), (part, "norm"), (part,)) for part in parts}


def between(first, second):
    return ((first, "conv", "kernel"), (second, "norm"), (second,))


@pytest.mark.parametrize(
    "unit, shape, expected",
    [
        (resnet.ConvBlock(6, 1, 3), (8, 8, 6), {(("conv", "kernel"), ("norm",), ())}),
        (resnet.basic_block(6, 1), (8, 8, 6), convs("first", "second")),
        (
            resnet.PostActivationBlock("bottleneck", 6, 2, True),
            (8, 8, 24),
            convs("first", "second", "third", "shortcut"),
        ),
        # All have six channels, so that only what they do tells a norm before a convolution from one after it.
        (preact_resnet.PreActivationBlock("basic", 6, 1, 0.3), (8, 8, 6), {between("first", "second")}),
        (
            preact_resnet.PreActivationBlock("bottleneck", 6, 2, 0.0),
            (8, 8, 24),
            {between("first", "second"), between("second", "third")},
        ),
        (preact_resnet.PreActivationHead(6), (8, 8, 6), set()),
        (layers.STANDARDISE, (8, 8, 6), set()),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_can_be_folded(unit, shape, expected):
    assert set(fold.foldable_pairs(unit, shape)) == expected


# ---------------------------------------------------------------- writing


def test_a_folder_that_is_not_free(folder, tmp_path):
    before, model = {path.name: path.read_bytes() for path in folder.iterdir()}, model_file.load(folder)
    with pytest.raises(ValueError, match=r"model: exists: expected no such folder, or an empty one; choose another"):
        model_file.write(folder, model.description, model.program, {}, "")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file: exists"):
        model_file.check_free(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new/deeper"):
        model_file.write(tmp_path / name, model.description, model.program, {}, "")
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(
            [*FILES, model_file.CARD, model_file.CHECKSUMS]
        )


def test_whole_or_not_at_all(folder, tmp_path, monkeypatch):
    model = model_file.load(folder)

    def full(*args, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(model_file.json, "dumps", full)
    with pytest.raises(OSError, match="No space"):
        model_file.write(tmp_path / "model", model.description, model.program, {}, "")
    assert not list(tmp_path.iterdir())


def test_classes_without_names_go_by_their_numbers(run):
    described = from_run.describe(dataclasses.replace(run, spec=Spec((8, 8, 1), 3, 1, 1)))
    assert described.class_names == ("0", "1", "2")


def test_class_names_that_load_would_refuse(folder, tmp_path):
    model = model_file.load(folder)
    description = dataclasses.replace(model.description, class_names=("d\x1b[31mog", *"123456789"))
    with pytest.raises(ValueError, match=r"class_names=.*: expected printable names of at most 200"):
        model_file.write(tmp_path / "model", description, model.program, {}, "")


@pytest.mark.parametrize("package", ["flatbuffers", "safetensors.numpy"])
def test_missing_packages(package, run, folder, tmp_path, monkeypatch):
    model = model_file.load(folder)
    monkeypatch.delitem(sys.modules, "jax._src.export.serialization", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"an exported model needs more packages; pip install 'lpjax\[export\]'"):
        model_file.write(tmp_path / "model", model.description, model.program, {}, "")
    if package == "flatbuffers":
        with pytest.raises(ValueError, match=r"pip install 'lpjax\[export\]'"):
            model_file.load(folder)


# ---------------------------------------------------------------- hostile folders


@pytest.mark.parametrize("name", [*FILES, model_file.CHECKSUMS])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "emptied", "removed", "a folder"])
def test_damage_is_named(name, damage, copied):
    path = copied / name
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "flipped":
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "truncated":
        path.write_bytes(content[:middle])
    elif damage == "emptied":
        path.write_bytes(b"")
    else:
        path.unlink()
        if damage == "a folder":
            path.mkdir()
    pattern = rf"model/({re.escape(name)}|model\.\w+): damaged|{re.escape(name)} is missing"
    with pytest.raises((ValueError, OSError), match=f"({pattern}).*copy the folder again, or export the model again"):
        model_file.load(copied)


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing: no such folder: expected one that python -m lpjax\.export"):
        model_file.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    "change, message",
    [
        ("[]", "expected an object with the fields"),
        ("{", "Expecting property name"),
        ("[" * 100_000, "recursion"),
        ("\xff", "can't decode|Expecting value|utf-8"),
        ({"format": "lpjax model 2"}, "another format: expected 'lpjax model 1'"),
        ({"more": 1}, "expected an object with the fields"),
        ({"crop": float("nan")}, "NaN: expected finite numbers"),
        ({"crop": 0}, "crop='0': expected a share"),
        ({"crop": "1"}, "crop='1': expected a share"),
        ({"crop": True}, "crop='True': expected a share"),
        ({"mean": [1e999]}, "Infinity: expected finite"),
        ({"mean": 0.5}, "mean='0.5': expected 1 finite numbers"),
        ({"std": [1.0, 1.0]}, r"std='\(1.0, 1.0\)': expected 1 finite numbers"),
        ({"class_names": 10}, "class_names='10': expected"),
        ({"class_names": [1] * 10}, "class_names=.*: expected printable"),
        ({"class_names": ["\x1b[2J"] * 10}, "class_names=.*: expected printable"),
        ({"class_names": ["x" * 201] * 10}, "class_names=.*: expected printable"),
        ({"class_names": []}, "class_names=.*: expected printable"),
        ({"class_names": ["a", "b"]}, r"float32\[b,10\]: expected uint8\[b,8,8,1\] -> float32\[b,2\]"),
        ({"image_shape": [8, 8]}, "image_shape=.*: expected height, width and channels"),
        ({"image_shape": [10**6, 10**6, 1]}, "image_shape=.*: expected height, width and channels, 1 to 8192"),
        ({"image_shape": [8, True, 1]}, "image_shape=.*: expected"),
        ({"image_shape": [16, 8, 1]}, r"expected uint8\[b,16,8,1\]"),
        ({"provenance": []}, "provenance=.*: expected an object"),
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


def test_a_description_too_large_to_read(copied):
    path = copied / model_file.DESCRIPTION
    path.write_bytes(b" " * (2**24 + 1))
    sign(copied)
    with pytest.raises(ValueError, match=r"model.json: 16,777,217 bytes: expected at most 16,777,216"):
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


def calls_python(x):
    shape = jax.ShapeDtypeStruct((x.shape[0], 10), jnp.float32)
    return jax.pure_callback(lambda x: np.zeros((len(x), 10), np.float32), shape, x)


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
        (lambda: exported(lambda x: (constant(x), x)), "expected uint8"),
        (lambda: exported(constant, jax.ShapeDtypeStruct((4, 8, 8, 1), np.uint8)), r"uint8\[4,8,8,1\] .*expected"),
        (lambda: exported(constant, jax.ShapeDtypeStruct((4, 8, 8, 1), np.float32)), r"float32\[4,8,8,1\] .*expected"),
    ],
    ids=["library", "hidden in a loop", "classes", "a dict", "two outputs", "batch of four", "floats"],
)
def test_programs_that_are_refused(make, message, copied):
    program = make()
    forge(copied, program)
    with pytest.raises(ValueError, match=rf"model/model\.stablehlo: a program .*{message}"):
        model_file.load(copied)


def test_what_load_would_refuse_is_not_written(folder, tmp_path):
    description = model_file.load(folder).description
    program = exported(calls_library, disabled_checks=ANY_FUNCTION)
    with pytest.raises(ValueError, match=r"stablehlo\.custom_call @any_function: expected one that only computes"):
        model_file.write(tmp_path / "model", description, program, {}, "")
    assert not list(tmp_path.iterdir())


def test_operations_that_reach_outside(copied):
    """jax.export makes none of these; another program might."""
    text = """
        func.func public @main(%x: tensor<2xf32>) -> tensor<2xf32> {
          %token = stablehlo.create_token : !stablehlo.token
          %out = "stablehlo.outfeed"(%x, %token) {outfeed_config = ""}
            : (tensor<2xf32>, !stablehlo.token) -> !stablehlo.token
          return %x : tensor<2xf32>
        }"""
    from jax.extend.mlir.dialects import stablehlo

    serialised = stablehlo.serialize_portable_artifact_str(text, stablehlo.get_minimum_version())
    program = dataclasses.replace(exported(constant), mlir_module_serialized=serialised)
    forge(copied, program)
    with pytest.raises(ValueError, match=r"a program with the operation stablehlo\.outfeed"):
        model_file.load(copied)


def test_a_program_of_several_devices(copied):
    forge(copied, dataclasses.replace(exported(constant), nr_devices=2))
    with pytest.raises(ValueError, match="a program for 2 devices"):
        model_file.load(copied)


@pytest.mark.parametrize("content", [b"", b"no program", bytes(10_000)], ids=["empty", "text", "zeros"])
def test_files_that_are_no_program(content, copied):
    (copied / model_file.PROGRAM).write_bytes(content)
    sign(copied)
    with pytest.raises(ValueError, match=r"model\.stablehlo: .*export the model again"):
        model_file.load(copied)


# ---------------------------------------------------------------- command line


QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def cli(*arguments, config="configs/digits.py"):
    command = [sys.executable, "-m", "lpjax.export", f"--config={config}", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(**QUICK), capture_output=True, text=True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--output is missing"),
        (["--output={tmp}"], "expected no such folder, or an empty one"),
        (["--output={tmp}/new", "--config.dry_run=True"], "dry_run=True: the batch-norm statistics"),
        (["--output={tmp}/new", "--workdir={tmp}/run"], "there is no checkpoint"),
    ],
)
def test_mistakes_exit_with_2(arguments, message, tmp_path):
    (tmp_path / "file").write_text("")
    done = cli(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_from_training_to_a_model(tmp_path):
    fields = [f"--config.{f}" for f in ("model.depth=8", "model.width=4", "num_steps=3", "method=serial")]
    workdir, model = tmp_path / "run", tmp_path / "model"
    command = [sys.executable, "-m", "lpjax.main", "--config=configs/digits.py", *fields, f"--workdir={workdir}"]
    subprocess.run(command, cwd=ROOT, env=environment(**QUICK), check=True, capture_output=True)
    done = cli(*fields, f"--workdir={workdir}", f"--output={model}", "--fold_batch_norm")
    assert done.returncode == 0, done.stderr
    result = json.loads((workdir / "result.json").read_text())
    loaded = model_file.load(model)
    assert loaded.description.provenance["step"] == 3
    assert loaded.description.provenance["test_accuracy"] == pytest.approx(result["test_accuracy"])
    data = dataset(small_run())
    accuracy = (np.asarray(loaded.logits(data.test_images)).argmax(1) == data.test_labels).mean()
    assert accuracy == pytest.approx(result["test_accuracy"], abs=1 / 360)


# ---------------------------------------------------------------- names of classes


def test_names_of_classes(tmp_path):
    def names(data_set, **fields):
        return SOURCES[data_set].describe(DataConfig(name=data_set, dir=str(tmp_path), **fields)).class_names

    make_idx(tmp_path, (28, 28))
    make_folder(tmp_path, {f"{name}/1.png": b"" for name in ("dog", "cat")}, {"dog/1.png": b""})
    assert names("digits") == names("mnist") == tuple("0123456789")
    assert names("fashion_mnist")[::9] == ("T-shirt/top", "Ankle boot")
    assert names("folder") == ("cat", "dog")
    assert names("idx") is None


def test_names_of_classes_that_tensorflow_datasets_stores(tmp_path):
    archive, *_ = make_cifar10(tmp_path)
    assert prepare.main(["prepare", *arguments("cifar10", archive, tmp_path / "data")]) == 0
    found = SOURCES["cifar10"].describe(DataConfig(name="cifar10", dir=str(tmp_path / "data")))
    assert list(found.class_names) == CIFAR10_NAMES
