"""Devices."""

from dataclasses import dataclass

from lpjax.config.schema.limits import at_least


@dataclass(frozen=True)
class MeshConfig:
    """The mesh of devices.

    Attributes:
      stage: Devices along 'stage'.  Unset: as many as there are stages, or 1 where every method holds the whole network
        on one device.  It must divide num_stages where each device holds its own stages.
      data: Devices along 'data'; each stage column trains on batch_size / data examples.
    """

    stage: int | None = at_least(1, None)
    data: int = at_least(1, 1)
