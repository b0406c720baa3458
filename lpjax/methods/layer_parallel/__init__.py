"""Layer-parallel training with an AuxNet that generates the stages' inputs (arXiv:2112.05387).

method      what the method says of itself
step        the step, in the order of its drawing
stage       a stage's passes on its local loss
lagrangian  the constrained problem and every rule that follows from it
aux_step    the AuxNet's forward pass, the correction of what it emitted, and its fit
multiplier  where multipliers are found and how the stored ones move
"""
