"""What every file in experiments/results/ says of how it was made."""

import datetime
import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lpjax.parallel import platform


def provenance(argv: Sequence[str]) -> dict[str, Any]:
    """Of an experiment that starts now, by its name and arguments."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return {
        "command": shlex.join(["python", "-m", "experiments", *argv]),
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "hardware": cpu_name(),
        "versions": platform.versions(),
    }


def cpu_name() -> str:
    """Model and number of cores of this machine's processor."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return f"{names[0] if names else 'an unknown processor'}, {os.cpu_count()} cores"
