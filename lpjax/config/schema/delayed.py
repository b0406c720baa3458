"""Settings of the method delayed."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DelayedConfig:
    """Delayed gradients.

    Attributes:
      variant: "fdg", where neither forward nor backward passes wait, or "ddg", where only the backward passes do not.
      shrink: Factor on a gradient each time it goes to the stage before, in (0, 1]; 1 for none.
    """

    variant: Literal["fdg", "ddg"] = "fdg"
    shrink: float = 1.0
