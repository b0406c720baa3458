"""Eight CPU devices, strict promotion, shapes checked at every annotated boundary, one compilation cache for all."""

import atexit
import gc
import os
import shutil
import tempfile
from importlib.metadata import version

DEVICES = 8
FLAGS = [f"--xla_force_host_platform_device_count={DEVICES}"]
if version("jaxlib").startswith("0.10."):  # a flag that XLA does not know ends the process
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # the older emitters compile in half the time
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])

# Programs here are compiled once and run a few times, in processes that tests start, too.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

# Many tests compile the same few networks: in pytest's workers, and in processes that tests start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="lpjax-tests-")
    os.environ["JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("lpjax", "beartype.beartype")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
assert jax.device_count() == DEVICES, f"{jax.device_count()} devices, expected {DEVICES}: is XLA_FLAGS set elsewhere?"

gc.freeze()  # what was imported stays; looking for garbage among all that JAX keeps takes a tenth of the time
gc.set_threshold(100_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def _forget():
    """What a module's tests have compiled is of no use to the next one, and takes gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Double precision, so that two routes to one number agree to 1e-9."""
    with jax.enable_x64(True):
        yield
