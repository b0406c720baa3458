"""docs/ says what the code does: its samples run, its names and commands exist, its tables are those of the results."""

import ast
import difflib
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import docs_tables, draw_method
from experiments.compare import load
from lpjax.config.load import default_config
from lpjax.data import SOURCES
from lpjax.methods import configure
from lpjax.nn.count import chain_flops, chain_layers, chain_size, unit_flops
from lpjax.nn.schedule import Plan, to_json
from lpjax.training.run import build_network

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [*DOCS, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
SAMPLE = re.compile(r'^```python(?: title="(?P<file>[\w.]+)")?\n(?P<code>.*?)^```$', re.DOTALL | re.MULTILINE)
SECTIONS = {name for name, value in default_config().items() if hasattr(value, "items")}


def name_of(path):
    return str(path.relative_to(ROOT))


# samples --------------------------------------------------------------------------------------------------------------


def placed(text, match):
    """A sample with as many empty lines before it that errors name the page's lines."""
    return "\n" * text[: match.start("code")].count("\n") + match["code"]


@pytest.mark.parametrize("page", [p for p in DOCS if SAMPLE.search(p.read_text())], ids=name_of)
def test_samples_run(page, tmp_path):
    """A page's samples are one script, run as a person would, with no devices forced; those with a title are files."""
    text, script = page.read_text(), []
    for sample in SAMPLE.finditer(text):
        if sample["file"]:
            (tmp_path / sample["file"]).write_text(placed(text, sample))
        else:
            script += placed(text, sample).splitlines()[len(script) :]
    (tmp_path / f"{page.stem}.py").write_text("\n".join(script))
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, f"{page.stem}.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_there_is_a_sample_that_trains_on_four_stages():
    samples = [sample["code"] for sample in SAMPLE.finditer((ROOT / "docs/own_network.md").read_text())]
    assert any("num_stages = 4" in code for code in samples)
    assert any("train.train(" in code for code in samples)


# names ----------------------------------------------------------------------------------------------------------------


def fields_in(text):
    """Fields of the configuration between backticks, or on the command line, and their values if they are given.

    `section.field` and `section.field=value`, and `field=value` of what is, or is nearly, a field without a section.
    """
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    spans += re.findall(r"--config\.[\w.]+(?:=(?:\"[^\"]*\"|[^\s`]+))?", text)
    fields = [name for name in default_config() if name not in SECTIONS]
    for span in spans:
        found = re.fullmatch(r"(?:--config\.)?([a-z_]+(?:\.[a-z_]+)?)(?:=(\S.*)?)?", span.strip())
        if not found or found[1].endswith(".py") or found[1] == "field":
            continue
        name, value = found[1], found[2]
        section, dot, _ = name.partition(".")
        of_module = section in SECTIONS and importlib.util.find_spec(f"lpjax.{section}") and not value
        if of_module and hasattr(importlib.import_module(f"lpjax.{section}"), name.removeprefix(f"{section}.")):
            continue
        near = bool(value) and not dot and difflib.get_close_matches(name, fields, n=1, cutoff=0.8)
        if span.startswith("--config.") or (dot and section in SECTIONS) or near:
            yield name, value and value.strip('"')


def set_field(name, value):
    """Raises ValueError where the configuration has no such field, or it cannot have the value."""
    section, dot, inner = name.partition(".")
    if section == "model" and inner != "function":  # arguments of the model's function
        return
    known = default_config()
    if section not in known or (dot and inner not in known[section]):
        raise ValueError(f"{name}: no such field")
    if value is None or re.search(r"[A-Z.]{2}|^N$", value):  # a place for one
        return
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        parsed = value
    # With what else these values need.
    values = {"data": {"crop": 0}, "num_epochs": 90}
    values |= {section: {"warmup_epochs": 0.0} for section in ("optimizer", "aux_optimizer")}
    if name == "phases.methods":
        values["phases"] = {"epochs": tuple(range(1, len(parsed)))}
    if name == "phases.epochs":
        values["phases"] = {"methods": ("serial",) * (len(parsed) + 1)}
    if name == "start.optimizer":
        values["start"] = {"workdir": "runs/a"}
    if name.startswith("mesh."):
        values |= {"num_stages": 4, "batch_size": 128}
    if dot:
        values[section] = values.get(section, {}) | {inner: parsed}
    else:
        values[section] = parsed
    configure(values)


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_fields_exist_and_can_have_the_values(page):
    wrong = {}
    for name, value in fields_in(page.read_text()):
        try:
            set_field(name, value)
        except ValueError as error:
            wrong[f"{name}={value}"] = str(error)
    assert not wrong


def test_fields_are_found():
    text = (
        "`aux.width=0.5` `num_stages=4` `penalty.initial` `lpjax.network.aux_net` `data.py` --config.mesh.data=2 `eval`"
    )
    assert dict(fields_in(text)) == {"aux.width": "0.5", "num_stages": "4", "penalty.initial": None, "mesh.data": "2"}
    assert len([field for page in DOCS for field in fields_in(page.read_text())]) > 50
    for name, value in (("aux.widht", None), ("aux.width", "wide"), ("multiplier", "coarse"), ("width", "3")):
        with pytest.raises(ValueError, match=name):
            set_field(name, value)


@pytest.mark.parametrize("page", DOCS, ids=name_of)
def test_what_it_names_in_lpjax_exists(page):
    for dotted in set(re.findall(r"`(lpjax(?:\.\w+)+)`", page.read_text())):
        names = dotted.split(".")
        for count in range(len(names), 0, -1):
            try:
                found = importlib.import_module(".".join(names[:count]))
                break
            except ModuleNotFoundError:
                continue
        for name in names[count:]:
            assert hasattr(found, name), f"{dotted}: {found} has no {name}"
            found = getattr(found, name)


@pytest.mark.parametrize("page", DOCS, ids=name_of)
def test_files_it_names_exist(page):
    names = set(re.findall(r"`((?:lpjax|configs|experiments|tests|docs)/[\w/]+\.\w+)`", page.read_text()))
    made_by_hand = {"accuracy_TABLE"}  # a name for several
    assert not [name for name in names if not (ROOT / name).exists() and Path(name).stem not in made_by_hand]


# commands -------------------------------------------------------------------------------------------------------------


def commands_in(text):
    """`python -m MODULE ..` of the shell blocks and between backticks, as lists of words."""
    for block in re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            for found in re.findall(r"\S*python -m ([^#&]*)", line):
                yield found.rstrip("' ").split()
    for found in re.findall(r"`python -m ([^`]+)`", text):
        yield found.split()


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_commands_could_be_given(page):
    """Their modules, config files and options exist."""
    for module, *words in commands_in(page.read_text()):
        if module in ("venv", "pytest"):
            continue
        spec = importlib.util.find_spec(module)
        assert spec, module
        if spec.submodule_search_locations:  # a package is run by its __main__
            spec = importlib.util.find_spec(f"{module}.__main__")
        source = Path(spec.origin).read_text()
        if "cli.parse(" in source:  # --config and --workdir, too
            source += (ROOT / "lpjax/cli.py").read_text()
        for word in words:
            option, _, value = word.strip("[]").partition("=")
            if not option.startswith("--") or option.startswith("--config."):
                continue
            name = option.removeprefix("--")
            assert f'"{name}"' in source or f'"{option}"' in source, f"{module}: no option {option}"
            if name == "config" and "/" in value:
                assert (ROOT / value).exists(), word


def test_commands_are_found():
    text = "```sh\npython -m lpjax.main --config=a.py \\\n  --workdir=b\n.venv/bin/python -m pytest # all\n```\n"
    assert list(commands_in(text)) == [["lpjax.main", "--config=a.py", "--workdir=b"], ["pytest"]]


# figures --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [ROOT / "README.md", *DOCS], ids=name_of)
def test_tables_are_those_of_the_results(page):
    text = page.read_text()
    assert text == docs_tables.filled(text), "python -m experiments.docs_tables"


def test_every_table_is_shown_and_filled():
    text = "".join(page.read_text() for page in [ROOT / "README.md", *DOCS])
    for name, make in docs_tables.TABLES.items():
        assert len(re.findall(rf"<!-- {name} -->\n", text)) == 1
        assert make() in text


def test_drawings_are_those_of_the_results(tmp_path):
    """In what they say: fonts and paths may differ between versions of matplotlib.  Drawn twice they are the same."""
    arguments = [f"--speedup={ROOT / 'experiments/results/speedup.json'}", f"--folder={tmp_path}"]
    draw_method.main(arguments)
    first = {path.name: path.read_text() for path in tmp_path.iterdir()}
    draw_method.main(arguments)
    assert sorted(first) == ["method.svg", "schedule.svg"]
    for name, drawn in first.items():
        assert (tmp_path / name).read_text() == drawn
        committed = (ROOT / "docs/figures" / name).read_text()
        said = [re.findall(r"<text[^>]*>(.*?)</text>", text, re.DOTALL) for text in (committed, drawn)]
        assert said[0], name
        assert said[0] == said[1], "python -m experiments.draw_method"


def test_the_drawn_steps_are_as_long_as_their_parts():
    """Four stages on four devices, 128 examples, maps of 16 channels at the dearest interface.

    The predictions in the file are the parts, and of what is sent the two all_to_alls; a step also sends the AuxNet's
    gradients, tags, metrics, and the moments of the AuxNet's batch norms.
    """
    results = json.loads((ROOT / "experiments/results/speedup.json").read_text())
    (row,) = [p for p in results["predictions"] if (p["row"], p["stages"]) == ("coarse_tail", draw_method.STAGES)]
    latency, bandwidth = results["link"]["latency"], results["link"]["bandwidth"]
    serial, pipeline, own = draw_method.steps(results).values()
    assert serial.end == pytest.approx(row["parts"]["serial"], rel=1e-9)

    config = load(ROOT / results["config"], row["fields"] | {"cuts": tuple(row["fields"]["cuts"])})
    network = build_network(config, SOURCES["cifar10"].published(config.data))
    norms = [c for piece in network.aux_net for count, one in chain_layers(piece) for c in one.norms * count]
    tags, metrics, passes = 3 * 3 * 4 * 32, 1.5 * 4 * (4 + 5 * 4), 1.5 * 2 * 2 * 4 * sum(norms)
    gradients = 1.5 * 4 * sum(map(chain_size, network.aux_net))
    more = (1 + 2 + 1 + 2 * len(norms)) * latency + (tags + metrics + passes + gradients) / bandwidth
    assert own.end == pytest.approx(row["seconds"] + more, rel=1e-9)

    even = load(ROOT / results["config"], {"method": "pipeline", "num_stages": 4})
    network = build_network(even, SOURCES["cifar10"].published(even.data))
    flops = [chain_flops(stage) for stage in network.stages]
    spared = unit_flops(network.chain.units[0], network.chain.in_shape)
    each = row["parts"]["serial"] / (3 * sum(flops) - spared) / 4  # of a micro-batch
    forward, both = [each * f for f in flops], [each * (3 * f - spared * (k == 0)) for k, f in enumerate(flops)]
    rounds = [[d for d in range(3) if 0 <= number - d < 4] for number in range(4 + 4 - 2)]
    back = [[d for d in range(4) if 0 <= number - (3 - d) < 4] for number in range(4 + 4 - 1)]
    passed = sum(max(forward[d] for d in busy) for busy in rounds) + sum(max(both[d] for d in busy) for busy in back)
    shifts = len(rounds + back) * (latency + 32 * 4 * 16 * 32 * 32 / bandwidth)
    images = 2 * latency + 3 * 32 * 4 * (32 * 32 * 3 + 3) / bandwidth
    metrics = 2 * latency + 1.5 * 4 * (4 + 2) / bandwidth
    assert pipeline.end == pytest.approx(passed + shifts + images + metrics, rel=1e-9)


def test_what_a_device_does_without_a_break_is_drawn_as_one():
    """Two pieces of the AuxNet are one block, on each device; a message is on all; what has a name stays apart."""
    plan = Plan()
    for d in range(2):
        plan.work(d, "aux", stage=0)
        plan.work(d, "aux", stage=1)
    plan.message("all_to_all", "stage", 8, "exchange")
    for k in range(2):
        plan.work(0, "stage", stage=k)
        plan.work(1, "tail", stage=k)
    schedule = {"entries": to_json(plan.items, [0.0] * 9), "sent": [[0, 0]] * 4 + [[1, 20]] + [[0, 0]] * 4}
    step = draw_method.placed(schedule, [1.0] * 4 + [0.0] + [2.0] * 4, {"latency": 1.0, "bandwidth": 10.0})
    first = [(0, 2, "AuxNet", ""), (2, 5, "exchange", "")]
    assert step.end == 9
    assert step.devices == [
        [*first, (5, 7, "forward pass", "F0"), (7, 9, "forward pass", "F1")],
        [*first, (5, 9, "coarse tail", "")],
    ]


def test_every_script_and_result_has_its_line():
    page = (ROOT / "docs/figures.md").read_text()
    for path in [*(ROOT / "experiments").glob("[!_]*.py"), *(ROOT / "experiments/results").glob("*.json")]:
        own = name_of(path)
        if path.stem.startswith("accuracy_"):
            own = "experiments/results/accuracy_TABLE.json"
        assert f"`{own}`" in page, f"docs/figures.md has no line for {own}"


# reference ------------------------------------------------------------------------------------------------------------

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "lpjax").rglob("*.py")
)


def test_every_module_is_in_the_reference_once():
    named = [name for page in DOCS for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)]
    assert sorted(named) == [name for name in MODULES if name != "lpjax"]


def test_fields_of_docstrings_become_lists():
    pytest.importorskip("griffe")
    spec = importlib.util.spec_from_file_location("fields", ROOT / "docs/fields.py")
    fields = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fields)
    drawing = "\n\n    x <- y\n\nArgs:\n  x: an *x*."
    text = "One <u> of x_y.\nlam, beta: of `a_b`\n    and [b]\nnone  nothing\nThis: no field."
    shown = "One &lt;u> of x&#95;y.\n\n- `lam`, `beta`: of `a_b`\n    and &#91;b]\n- `none`: nothing\n\nThis: no field."
    assert fields.as_markdown(text + drawing) == shown + drawing


def undocumented(tree):
    """Public classes and functions of a module without a docstring, with methods and properties of public classes."""
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            yield node.name
        for inner in node.body if isinstance(node, ast.ClassDef) else ():
            public = isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_")
            if public and not ast.get_docstring(inner):
                yield f"{node.name}.{inner.name}"


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_has_a_docstring(module):
    spec = importlib.util.find_spec(module)
    tree = ast.parse(Path(spec.origin).read_text())
    assert ast.get_docstring(tree), module
    assert not list(undocumented(tree))


def test_a_missing_docstring_is_found():
    text = '"""m"""\nclass A:\n    """a"""\n    def f(self): ...\ndef g(): ...\ndef _h(): ...\n'
    assert list(undocumented(ast.parse(text))) == ["A.f", "g"]


def test_rows_are_compared_by_the_seeds_that_both_have():
    """A seed that only the other row has does not count."""
    row = {"runs": [{"seed": 0, "test_accuracy": 0.5}, {"seed": 1, "test_accuracy": 0.6}]}
    base = {"runs": [{"seed": seed, "test_accuracy": value} for seed, value in enumerate((0.49, 0.57, 0.9))]}
    assert docs_tables.seed_by_seed(row, base) == "+2.00 ± 1.00 (2)"
