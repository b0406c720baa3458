"""README.md and docs/: their samples run, their commands could be given, what they name exists."""

import argparse
import ast
import contextlib
import importlib
import pkgutil
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from test_main import environment

from experiments.__main__ import EXPERIMENTS
from experiments.harness.command import arguments
from experiments.harness.rows import load
from lpjax.config import command_line
from lpjax.config.load import default_config
from lpjax.methods import configure

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", *DOCS]
SAMPLE = re.compile(r'^```python(?: title="(?P<file>[\w.]+)")?\n(?P<code>.*?)^```$', re.DOTALL | re.MULTILINE)


def name_of(path):
    return str(path.relative_to(ROOT))


# samples --------------------------------------------------------------------------------------------------------------

RUN = [README, *(ROOT / "docs" / f"{name}.md" for name in ("adding_method", "choosing", "equations", "own_network"))]


def run_samples(page, folder):
    """Run a page's samples as one script, with no devices forced; those with a title are files.

    Errors name the lines of the page.
    """
    text, script = page.read_text(), []
    for sample in SAMPLE.finditer(text):
        code = "\n" * text[: sample.start("code")].count("\n") + sample["code"]
        if sample["file"]:
            (folder / sample["file"]).write_text(code)
        else:
            script += code.splitlines()[len(script) :]
    (folder / "sample.py").write_text("\n".join(script))
    return subprocess.run(
        [sys.executable, "sample.py"], cwd=folder, env=environment(), capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_samples_run(page, tmp_path):
    done = run_samples(page, tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    if page == README:
        (accuracy,) = re.findall(r"^test accuracy (\S+)$", done.stdout, re.MULTILINE)
        assert float(accuracy) > 0.8


# commands -------------------------------------------------------------------------------------------------------------


def commands_in(text):
    """`python -m MODULE ..` of the shell blocks and between backticks, as lists of words."""
    for block in re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            for found in re.findall(r"python -m ([^#&]*)", line):
                yield shlex.split(found + "'" * (found.count("'") % 2))  # one that is quoted itself
    for found in re.findall(r"`python -m ([^`]+)`", text):
        yield shlex.split(found)


def configured(words):
    """The configuration that a command's words make; raises where a field is missing or cannot have its value."""
    given = dict(word.removeprefix("--").partition("=")[::2] for word in words if word.startswith("--config"))
    config = runpy.run_path(str(ROOT / command_line.config_path(given.pop("config"))))["get_config"]()
    for name, value in given.items():
        with contextlib.suppress(SyntaxError, ValueError):
            value = ast.literal_eval(value)
        config.update_from_flattened_dict({name.removeprefix("config."): value})
    return configure(config.to_dict())


PARSE_ARGS = argparse.ArgumentParser.parse_args


class Parsed(BaseException):
    """A command line was parsed."""


def parse(module, words, monkeypatch):
    """As the command would, without running it."""
    if module == "experiments":
        if words and words[0] != "NAME":
            call, _ = arguments(EXPERIMENTS[words[0]], words[1:])
            if call.config:
                load(call.config, call.fields)
        return
    if module not in ("lpjax.main", "lpjax.balance", "lpjax.export"):

        def parse_args(self, args=None, namespace=None):
            raise Parsed(PARSE_ARGS(self, args, namespace))

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        place = module if module.count(".") > 1 or module == "lpjax.predict" else f"{module}.__main__"
        with pytest.raises(Parsed):
            importlib.import_module(place).main([module, *words] if module == "lpjax.data.prepare" else words)
        return
    importlib.import_module("lpjax.export.__main__" if module == "lpjax.export" else module)
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        assert word.startswith("--"), word
        if name != "help" and not name.startswith("config."):
            assert name in flags.FLAGS, word
            if name != "config":
                flags.FLAGS[name].parser.parse(value or "true")
    if "--help" not in words:
        configured(words)


def test_commands_could_be_given(monkeypatch):
    commands = [command for page in PAGES for command in commands_in(page.read_text())]
    assert len(commands) > 40
    for module, *words in commands:
        if words and module not in ("venv", "pytest") and not {"--config=FILE", "--config=mine.py"} & set(words):
            parse(module, words, monkeypatch)


# names ----------------------------------------------------------------------------------------------------------------


def missing(page, text):
    """Links and files, fields of the configuration, and dotted names of a page that there are not."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", text)
    yield from (link for link in links if not (page.parent / link).exists())
    files = re.findall(r"`((?:lpjax|configs|experiments|tests|docs)/[\w/]+\.\w+)`", text)
    yield from (file for file in files if not (ROOT / file).exists())
    names = re.findall(r"`(lpjax(?:\.\w+)+)`", text)
    config = default_config()
    for section, field in re.findall(r"`(?:--config\.)?([a-z_]+)\.([a-z_]+)(?:=[^`]*)?`", text):
        if section in config and section != "model" and field not in ("json", "py") and field not in config[section]:
            names.append(f"lpjax.{section}.{field}")
    for name in names:
        try:
            pkgutil.resolve_name(name)
        except (AttributeError, ImportError):
            yield name


def test_what_pages_name_exists():
    wrong = {name_of(page): list(missing(page, page.read_text())) for page in PAGES}
    assert not {page: names for page, names in wrong.items() if names}


def test_every_module_is_in_the_reference_once():
    named = [name for page in DOCS for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)]
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "lpjax").rglob("*.py")]
    modules = {".".join(path.parts).removesuffix(".__init__") for path in paths} - {"lpjax"}
    assert sorted(named) == sorted(modules)
