"""Layer-serial backprop, the baseline: one device, each stage waits for the one before it, and then for the one behind.

    device 0    F_0(x) F_1 .. F_{K-1}   phi   dF_{K-1} .. dF_1 dF_0   update            T = T_f + T_b

On a larger mesh it is `data_parallel`, which has the step.
"""

from lpjax.methods.data_parallel import make_step

__all__ = ["make_step"]
