"""Settings of the method pipeline."""

from dataclasses import dataclass

from lpjax.config.schema.limits import at_least


@dataclass(frozen=True)
class PipelineConfig:
    """Pipelined backprop.

    Attributes:
      micro_batches: M, that a stage column's batch is cut into.
    """

    micro_batches: int = at_least(1, 4)
