"""Pipelined backprop: micro-batches follow each other through the stages; the gradient is exact.

    GPipe  Huang et al., "GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism",
           arXiv:1811.06965
    1F1B   the order of passes: Narayanan et al., "PipeDream: Generalized Pipeline Parallelism for DNN Training",
           arXiv:1806.03377, without its several versions of the weights

In a round a device runs a forward and a backward pass, of the micro-batches that have come to it.  S = 3 devices, M = 5
micro-batches; f m, b m: forward and backward pass of micro-batch m:

    device 0   f0 |  f1 |  f2    |  f3    |  f4 b0 |     b1 |     b2 |     b3 |  b4
    device 1      |  f0 |  f1    |  f2 b0 |  f3 b1 |  f4 b2 |     b3 |     b4 |
    device 2      |     |  f0 b0 |  f1 b1 |  f2 b2 |  f3 b3 |  f4 b4 |        |        | update

    grad W = sum over m of d/dW [ sum over examples of micro-batch m of phi(F_{K-1} o .. o F_0(x; W), y) ] / B

Devices wait for each other at the end of a round, where outputs move one device on and gradients one device back.  The
first and last S-1 of M + 2(S-1) rounds have one pass only, so a step takes as long as GPipe's, all forward passes
before all backward passes: (S-1) / (M+S-1) of it is idle (the bubble).  But a device keeps no more than 2S - 1
micro-batches of what is under way, rather than M.  With `pipeline.keep="activations"`, the default, these are what
convolutions and matrix products return, beside inputs; with "inputs" inputs alone, and all devices but the last, which
has both passes of a micro-batch at once, compute their stages again.

**Batch norm sees a micro-batch**, not the batch: the gradient is that of serial gradient accumulation, which without
batch norm is backprop's.  Micro-batch m of a column has its examples m, m + M, m + 2M .. , on every mesh.

Collectives of a step: two all_gathers over 'stage' (input and tags); two ppermutes over 'stage' a round; psum over
'data' of the gradients, psum over the mesh of the metrics; batch norm's over 'data'.
"""

from lpjax.methods.pipeline.method import Pipeline as Pipeline
