"""The devices and packages of this process."""

import importlib.metadata
import math
import os
import platform
import re
import subprocess
import sys

import jax

from lpjax.errors import BadInput, require

_KNOWN_FLAGS = frozenset({"--xla_force_host_platform_device_count", "--xla_cpu_enable_fast_math",
                          "--xla_cpu_collective_call_warn_stuck_timeout_seconds",
                          "--xla_cpu_collective_call_terminate_timeout_seconds"})  # fmt: skip


def provide_devices(count: int) -> None:
    """Make `count` CPU devices, unless XLA_FLAGS already says how many.

    Starts JAX's back end.  To be called before anything else does; importing lpjax does not.

    Args:
      count: Devices of this process; other platforms have those they have.

    Raises:
      BadInput: JAX_PLATFORMS names a platform that is not here, or XLA_FLAGS a flag that XLA does not know.
    """
    xla_flags = os.environ.get("XLA_FLAGS", "")
    _check_flags(xla_flags)
    # A slow device is not a dead one: the default gives up on a collective after a minute.
    for name, value in (("warn_stuck", 300), ("terminate", 1800)):
        flag = f"--xla_cpu_collective_call_{name}_timeout_seconds"
        if flag not in xla_flags:
            xla_flags = f"{xla_flags} {flag}={value}".strip()
    os.environ["XLA_FLAGS"] = xla_flags
    if "xla_force_host_platform_device_count" not in xla_flags:
        jax.config.update("jax_num_cpu_devices", count)
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where no platform is left
        raise BadInput(
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: expected platforms that this machine and the "
            f"installed jaxlib have; unset it, or set it to cpu ({str(error) or 'JAX finds none of them'})"
        ) from error


def _check_flags(xla_flags: str) -> None:
    """Try flags of the user's own in another process: XLA ends the process at one that it does not know."""
    if all(flag.partition("=")[0] in _KNOWN_FLAGS for flag in xla_flags.split()):
        return
    tried = subprocess.run(
        [sys.executable, "-c", "from jaxlib import xla_client; xla_client.make_cpu_client()"],  # without JAX: quick
        capture_output=True,
        text=True,
        errors="replace",
    )
    if found := re.search(r"Unknown flags? in XLA_FLAGS: (.*)", tried.stderr):
        raise BadInput(
            f"XLA_FLAGS={xla_flags}: this version of XLA does not know {found[1].strip()}; take it out of the variable"
        )


def devices_of_a_process(mesh_shape: tuple[int, int], processes: int) -> int:
    """How many devices of the mesh each process has.

    Args:
      mesh_shape: Devices along 'stage' and 'data'.
      processes: How many there are.

    Raises:
      BadInput: They cannot have equally many.
    """
    (stage, data), devices = mesh_shape, math.prod(mesh_shape)
    require(
        devices % processes == 0,
        f"mesh.stage={stage} * mesh.data={data} = {devices} devices on {processes} processes: expected a multiple, so "
        f"that each has equally many; change the mesh or the number of processes",
    )
    return devices // processes


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    packages = ("lpjax", "jax", "jaxlib", "flax", "optax", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def device_name() -> str:
    """The devices in words, such as "4 x cpu"."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}"
