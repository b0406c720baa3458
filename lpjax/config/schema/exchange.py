"""What layer_parallel sends between owners of examples and stages."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ExchangeConfig:
    """What owners and stages send each other in layer_parallel.

    Attributes:
      bfloat16: Rounded to bfloat16, half the bytes.
      stale: The stages work on what was sent in the step before, so that the exchange can be under way meanwhile.
    """

    bfloat16: bool = False
    stale: bool = False
