"""Settings of the method local."""

from dataclasses import dataclass

from lpjax.config.schema.limits import at_least


@dataclass(frozen=True)
class LocalConfig:
    """Local losses.

    Attributes:
      blocks: Of the stage's own units in each local classifier, before the network's head.
    """

    blocks: int = at_least(0, 1)
