"""The AuxNet."""

from dataclasses import dataclass

from lpjax.config.schema.limits import at_least, bounded


@dataclass(frozen=True)
class AuxConfig:
    """The AuxNet: equations (5) and (6) of `lpjax.methods.layer_parallel.lagrangian`.

    The last three fields are read by layer_parallel alone, `tied` by coarse_adjoint alone, `task_weight` by these two,
    and the others by corrected, too.

    Attributes:
      function: Makes the units of a piece: "convolutions", "own_units", or "module:function" of one's own.
      blocks_per_stage: Residual blocks of a piece besides the transition it must have.
      width: Channels of a piece over those of the interface behind it.
      share: Of the network's forward cost that the AuxNet may have at most; chooses `width`.  Unset: `width` holds.
      grid: Side of the maps that it and the coarse tails compute on, at most.  Unset: those of the stages.
      tail: Pieces of a coarse tail before the last one; bounds what a stage has to compute.  Unset: all there are.
      tied: The last piece is made of units of the last stage (those that "own_units" takes) and of its weights, which
        then learn from all tails.
      task_weight: Weight of the AuxNet's own cross entropy in its training; 0 leaves its head alone, and with
        coarse_adjoint to the tails.
      adjoint_weight: Weight of adjoint matching (9): that its own gradient at each interface, and so that of coarse
        tails, is what the stages behind it found; 0 for none.
      correction_step: eta, the step of the correction; with inner_steps = 1, eta = 1 is the chain rule.
      inner_steps: Optimiser steps of the fit to one correction.
    """

    function: str = "convolutions"
    blocks_per_stage: int = 1
    width: float = 1.0
    share: float | None = bounded(None, above=0, remedy="leave it unset to choose aux.width yourself")
    grid: int | None = at_least(1, None)
    tail: int | None = at_least(0, None)
    tied: bool = False
    task_weight: float = at_least(0, 1.0)
    adjoint_weight: float = at_least(0, 0.0)
    correction_step: float = at_least(0, 1.0)
    inner_steps: int = at_least(1, 1)
