"""Where compiled programs are kept, and that compiling is said."""

import sys
from types import SimpleNamespace

import jax
import pytest

from lpjax.parallel import compilation


class Settings(SimpleNamespace):
    """JAX's configuration as a process begins with it: the test suite has a cache of its own."""

    jax_compilation_cache_dir = None
    jax_enable_compilation_cache = True
    jax_compilation_cache_max_size = -1
    jax_persistent_cache_min_compile_time_secs = 1.0

    def update(self, name, value):
        setattr(self, name, value)


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """`compilation.keep` in a process with these settings and an empty cache folder; returns its settings."""
    pytest.importorskip("filelock")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))

    def keep(**settings):
        config = Settings(**settings)
        monkeypatch.setattr(compilation, "jax", SimpleNamespace(config=config, __version__=jax.__version__))
        compilation.keep()
        return config

    return keep


def test_programs_are_kept_in_the_users_cache_folder_and_bounded(kept, tmp_path):
    config = kept()
    assert config.jax_compilation_cache_dir.startswith(f"{tmp_path}/caches/lpjax/compiled/jax{jax.__version__}-")
    assert config.jax_compilation_cache_max_size == compilation.CACHE_BYTES
    assert kept(jax_compilation_cache_max_size=7).jax_compilation_cache_max_size == 7


def test_unlike_machines_do_not_share_programs(kept, monkeypatch):
    here = kept().jax_compilation_cache_dir
    assert kept().jax_compilation_cache_dir == here
    monkeypatch.setattr("os.cpu_count", lambda: 1000)
    more_cores = kept().jax_compilation_cache_dir
    monkeypatch.setattr(compilation.Path, "read_text", lambda path: "flags\t: none\n")
    assert len({here, more_cores, kept().jax_compilation_cache_dir}) == 3


def test_what_the_environment_says_goes_first(kept):
    assert kept(jax_compilation_cache_dir="/elsewhere").jax_compilation_cache_dir == "/elsewhere"
    assert kept(jax_enable_compilation_cache=False).jax_compilation_cache_dir is None


@pytest.mark.parametrize("fault", ["a file is in its place", "filelock is not installed", "there is no home"])
def test_nothing_is_kept_where_that_is_impossible(kept, monkeypatch, tmp_path, fault):
    if fault == "a file is in its place":
        (tmp_path / "caches").write_text("")
    elif fault == "filelock is not installed":
        monkeypatch.setitem(sys.modules, "filelock", None)
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(compilation.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert kept().jax_compilation_cache_dir is None


def test_compiling_is_said():
    def compiled(name, seconds, kept=False):
        if kept:
            jax.monitoring.record_event_duration_secs("/jax/compilation_cache/cache_retrieval_time_sec", seconds)
        jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", seconds, fun_name=name)

    lines = []
    with compilation.said(lines.append):
        compiled("jit(quick)", 0.1)
        compiled("jit(read)", 2.0, kept=True)
        compiled("jit(train_step)", 24.6)
    compiled("jit(later)", 3.0)
    assert lines == ["compiled train_step in 25 s"]
