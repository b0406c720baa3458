"""Local losses: every stage has a small classifier of its own and learns by its cross entropy alone.

    DGL       Belilovsky, Eickenberg, Oyallon, "Decoupled Greedy Learning of CNNs", arXiv:1901.08164
    AugLocal  Ma, Wu, Si, Tan, "Scaling Supervised Local Learning with Augmented Auxiliary Networks", arXiv:2402.17318
    MAN       Su et al., "Momentum Auxiliary Network for Supervised Local Learning", arXiv:2407.05623
    TRGL      Karkar, Ayed, de Bezenac, Gallinari, "Module-wise Training of Neural Networks via the Minimizing
              Movement Scheme", arXiv:2309.17357

In step t (K = 3; m: the batch of step m), all at the same time:

    stage 0   F_0(x_t),            C_0, dC_0 dF_0, update  |
    stage 1   F_1(X_0 of t-1),     C_1, dC_1 dF_1, update  | shift: X_k is stage k+1's input of step t+1
    stage 2   F_2(X_1 of t-2), phi,         dF_2,  update  |

    l_k = phi(C_k(F_k(lambda_k; W_k)), y) + tau R_k,  k < K-1;      l_{K-1} = phi(F_{K-1}(lambda_{K-1}; W_{K-1}), y)
                                                                              + tau R_{K-1}

lambda_{k+1} = F_k(lambda_k) of the step before, a constant: no gradient crosses an interface.  This is the paper's
asynchronous form with a buffer of one batch: a stage learns from inputs made by weights of one step ago each.

The classifier C_k is units and the network's head.  It is trained by `aux_optimizer`, lives on its stage's device, and
is thrown away.  `local.classifier` says of which units it is, d = `local.blocks`:

    "own"       (DGL) d units like the stage's own last one that keeps the shape.
    "sampled"   (AugLocal) d of the n units behind the stage, with weights of their own: the one at round(n i / d),
                i = 1 .. d, counted from the cut, and all of them where d >= n.  The last one is always there.  A unit
                puts out what it does in the network: where units before it are left out, it has their strides, too.
                (The authors' code halves a map once a unit, with a small d less often than the network does, and
                their d falls towards the network's end.)
    "momentum"  (MAN) those of "own", and behind them

                    scale * U(x; M_k) + bias,      M_k <- m M_k + (1 - m) W_{k+1},
                                                   m = min(`local.decay`, (1 + t) / (10 + t)) after t steps

                with U the first unit of stage k+1, M_k the running mean of its weights, which no gradient changes, and
                a learnt scale and bias for each channel.  Each stage sends the weights that its step began with to
                the stage before.  (The authors' code has m = 0.999, and in place of scale and bias the output of a
                trained copy of U is added.)

R_k is the sum over the residual blocks of stage k of psi(r), r what a block adds to its shortcut, also where that
changes the shape, and psi the mean of squares over values and over the batch; tau = `local.residue` (1 / (2 tau) in the
authors' code).  A stage without residual blocks has none.

Collectives of a step: two all_gathers over 'stage' (input and tags); ppermutes over 'stage' of outputs and tags, for
"momentum" of a unit's weights, too; psum over 'data' of the gradients, psum over the mesh of the metrics; batch norm's
over 'data'.
"""

from lpjax.methods.local.method import Local as Local
