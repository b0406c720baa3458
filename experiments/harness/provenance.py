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
    info, head = Path("/proc/cpuinfo"), ["git", "rev-parse", "HEAD"]
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return {
        "command": shlex.join(["python", "-m", "experiments", *argv]),
        "date": datetime.date.today().isoformat(),
        "commit": subprocess.run(head, check=True, capture_output=True, text=True).stdout.strip(),
        "hardware": f"{names[0] if names else 'an unknown processor'}, {os.cpu_count()} cores",
        "versions": platform.versions(),
    }
