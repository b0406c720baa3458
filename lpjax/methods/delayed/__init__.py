r"""Delayed gradients: backward passes use what the stage behind computed a while ago, on the matching micro-batch.

    DDG  Huo, Gu, Yang, Huang, "Decoupled Parallel Backpropagation with Convergence Guarantee", arXiv:1804.10574
    FDG  Zhuang, Wang, Liu, Lin, "Fully Decoupled Neural Network Learning Using Delayed Gradients", arXiv:1906.09108
    with accumulation: Zhuang et al., "Accumulated Decoupled Learning", arXiv:2012.03747; Narayanan et al.,
    "Memory-Efficient Pipeline-Parallel DNN Training" (PipeDream-2BW), arXiv:2006.09503

A batch is cut into M micro-batches.  One enters stage 0 a tick; a step is M ticks and an update.  In tick t (K = 3;
F m, B m: forward and backward pass of the micro-batch that entered in tick m):

    FDG  stage 0  F t     B t-4  |         DDG  stage 0  F t              B t-2  |
         stage 1  F t-1   B t-3  | shift        stage 1       F t         B t-1  | shift
         stage 2  F t-2   B t-2  |              stage 2            F t    B t    |

FDG runs all stages at the same time: what a stage sends arrives in the next tick.  DDG only takes the wait out of the
backward passes (its forward pass is the serial one, a stage after the other), and has M = 1.  A micro-batch's backward
pass comes so many ticks after its forward pass, `lateness`:

    FDG   2 (K-1-k)                DDG   K-1-k                0 for the last stage, and for K = 1 (backprop)

`delayed.weights` says at which weights W_k^v of stage k, v their updates, the two passes of a micro-batch are run that
entered in tick m (FDG):

    "forward"   both at those of its forward pass, v = floor((m+k) / M).  Its gradient is exact, through weights of
                several steps, and the stage's are ceil(2 (K-1-k) / M) updates newer at most when it is used.  The
                gradients of a step's M ticks are summed.
    "newest"    each at those of its own tick, so no weights are kept: the gradient is not exact.
    "batch"     both, and in all stages, at v = floor(m / M).  Gradients are summed by batch, and used
                d = ceil(2 (K-1) / M) steps after it: backprop with gradient accumulation, d updates late.

Micro-batch m of a column has its examples m, m + M, m + 2M .. , and batch norm sees a micro-batch.  Gradient shrinking
(FDG): a gradient is multiplied by `delayed.shrink` each time it goes to the stage before.  A stage whose first gradient
has not come yet has gradient 0.

`delayed.keep` says what a stage keeps from a micro-batch's forward pass to its backward pass.  With "inputs" it
computes the forward pass again: a forward pass of all stages but the last more than backprop.  With "activations" (as
the authors' codes do) it keeps what convolutions and matrix products return, from which the rest is soon computed, in a
ring of 2 (K-1) rows; every device has room in each for the largest stage, so this takes 2 (K-1) / M of what that stage
keeps of a batch, K/S times.  The weights of the backward pass are those that `delayed.weights` says, also with
"newest", where what is kept is of older ones (as in PETRA, arXiv:2406.02052).  Batch norm uses a micro-batch's
statistics in both passes; running averages have them once, from a tick's forward pass with "activations", from its
backward pass with "inputs".

Collectives of a step: two all_gathers over 'stage' (input and tags); in each tick ppermutes over 'stage' of outputs,
tags and gradients (DDG: K-1 of outputs); psum over 'data' of the stages' gradients, psum over the mesh of the metrics;
batch norm's over 'data'.
"""

from lpjax.methods.delayed.method import Delayed as Delayed
