"""Settings of the methods."""

from dataclasses import dataclass
from typing import Literal

from lpjax.config.schema.limits import at_least, bounded


@dataclass(frozen=True)
class ExchangeConfig:
    """What owners and stages send each other in layer_parallel.

    Attributes:
      bfloat16: Rounded to bfloat16, half the bytes.
      stale: The stages work on what was sent in the step before, so that the exchange can be under way meanwhile.
    """

    bfloat16: bool = False
    stale: bool = False


@dataclass(frozen=True)
class SerialConfig:
    """Backprop, by serial and by data_parallel.

    Attributes:
      deep_supervision: Weight, in the loss, of those of classifiers at the ends of all stages but the last; their
        gradients go through all of the network before them.  They are made as `local.classifier` and `local.blocks`
        say, and `aux_optimizer` trains them.  0: none.
    """

    deep_supervision: float = at_least(0, 0.0)


@dataclass(frozen=True)
class PipelineConfig:
    """Pipelined backprop.

    Attributes:
      micro_batches: M, that a stage column's batch is cut into.
      keep: From forward to backward passes: "activations", what convolutions and matrix products return, or "inputs" of
        the devices alone, so that forward passes are computed again.
    """

    micro_batches: int = at_least(1, 4)
    keep: Literal["activations", "inputs"] = "activations"


@dataclass(frozen=True)
class DelayedConfig:
    """Delayed gradients.

    Attributes:
      variant: "fdg", where neither forward nor backward passes wait, or "ddg", where only the backward passes do not.
      micro_batches: M, that a stage column's batch is cut into; the larger, the fewer updates a gradient is late.
      weights: At which weights a micro-batch's passes are run: "forward", both at those of its forward pass, "newest",
        each at the newest, or "batch", at those of its batch, the same version in all stages.
      keep: From forward to backward passes: "activations", what convolutions and matrix products return, or "inputs" of
        the stages alone, so that forward passes are computed again.
      shrink: Factor on a gradient each time it goes to the stage before, in (0, 1]; 1 for none.
    """

    variant: Literal["fdg", "ddg"] = "fdg"
    micro_batches: int = at_least(1, 1)
    weights: Literal["forward", "newest", "batch"] = "forward"
    keep: Literal["activations", "inputs"] = "inputs"
    shrink: float = bounded(1.0, above=0, at_most=1, remedy="1 is none")


@dataclass(frozen=True)
class CorrectedConfig:
    """Delayed gradients, corrected by an AuxNet.

    Attributes:
      micro_batches: M, that a stage column's batch is cut into; the larger, the fewer updates a gradient is late.
    """

    micro_batches: int = at_least(1, 4)


@dataclass(frozen=True)
class LocalConfig:
    """Local losses.

    Attributes:
      classifier: Of what units a stage's classifier is made, before the network's head: "own", units like the stage's
        own last one, "sampled", units drawn evenly from the stages behind it, with new weights, or "momentum", those of
        "own" and the next stage's first unit, at a running mean of its weights.
      blocks: Units of each classifier, beside that one and the head.
      decay: Of the running mean with "momentum", once it is that long.
      residue: Weight, in each stage's loss, of the mean square of what its residual blocks add to their shortcuts,
        summed over the blocks.
    """

    classifier: Literal["own", "sampled", "momentum"] = "own"
    blocks: int = at_least(0, 1)
    decay: float = bounded(0.999, at_least=0, below=1)
    residue: float = at_least(0, 0.0)
