"""Compiled programs: kept for the next process, and said while they are made."""

import contextlib
import hashlib
import os
import platform
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

CACHE_BYTES = 2**30
"""Of programs that are kept; the least recently used ones are deleted."""

CACHED_SECONDS = 0.2
"""Programs that compile faster are not kept."""


def cache_folder() -> Path:
    """The folder where programs are kept, one for each kind of machine: unlike ones may share a home.

    A program is compiled for a CPU's features and for a number of cores, and JAX's own key has neither.

    Raises:
      RuntimeError: There is no home folder.
    """
    features = platform.processor()
    with contextlib.suppress(OSError):
        lines = re.findall(r"^(?:flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        features = lines[0] if lines else features
    key = hashlib.sha256(f"{features} {os.cpu_count()}".encode()).hexdigest()[:8]
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "lpjax" / "compiled" / f"jax{jax.__version__}-{platform.machine()}-{key}"


def keep() -> None:
    """From now on keep programs in `cache_folder`, where the next process finds them.

    What JAX's environment variables say goes first: JAX_COMPILATION_CACHE_DIR names another folder,
    JAX_COMPILATION_CACHE_MAX_SIZE another bound in bytes, and with JAX_ENABLE_COMPILATION_CACHE=false nothing is kept.
    Nor is it where the folder cannot be written to.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return
    try:
        import filelock  # JAX needs it to bound the cache

        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # who can write to it can run code as this user
        with filelock.FileLock(folder / ".lockfile", timeout=1):
            pass
    except (ImportError, OSError, RuntimeError):
        return
    config.update("jax_compilation_cache_dir", str(folder))
    if config.jax_compilation_cache_max_size == -1:
        config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    if config.jax_persistent_cache_min_compile_time_secs == 1.0:  # JAX's default
        config.update("jax_persistent_cache_min_compile_time_secs", CACHED_SECONDS)


@contextlib.contextmanager
def said(say: Callable[[str], None]) -> Iterator[None]:
    """Say of each program that is compiled meanwhile how long that took, if it was a second or more."""
    kept = False

    def listen(event: str, duration_secs: float, **about: str | int) -> None:
        nonlocal kept
        if event.endswith("/cache_retrieval_time_sec"):
            kept = True
        elif event.endswith("/backend_compile_duration"):  # which contains the former
            if duration_secs >= 1 and not kept:
                name = str(about.get("fun_name")).removeprefix("jit(").removesuffix(")")
                say(f"compiled {name} in {duration_secs:.0f} s")
            kept = False

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
