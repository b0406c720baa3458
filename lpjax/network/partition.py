"""Cutting a chain into K contiguous stages: even by cost, or where the user says.

A stage but the last ends with a parameter-free standardisation (unless switched off), so that what crosses an
interface has mean square 1 per channel.  Without it the stages and the AuxNet can make every violation small by
shrinking their features together.  It is part of the network: serial backprop and inference see it too.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from lpjax.errors import BadInput
from lpjax.nn.chain import Chain
from lpjax.nn.count import unit_flops
from lpjax.nn.layers import STANDARDISE


def even_cuts(costs: Sequence[float], num_stages: int, extra: Sequence[float] | None = None) -> tuple[int, ...]:
    """Make the dearest of K contiguous stages as cheap as possible.

    Dynamic programming over prefixes: `best[k][n] = min over m < n of max(best[k-1][m], cost of m..n-1)`, O(K n^2).

    Args:
      costs: Of the units.
      num_stages: K.
      extra: [K], what each stage costs besides its units, of either sign; None: nothing.

    Returns:
      The K-1 positions where stages 1..K-1 start; every stage has at least one unit.
    """
    extra = [0.0] * num_stages if extra is None else extra
    total = np.concatenate([[0.0], np.cumsum(costs)])
    best = total + extra[0]  # one stage: the whole prefix
    starts: list[np.ndarray] = []
    for k in range(2, num_stages + 1):
        new, start = np.full_like(best, np.inf), np.zeros(len(best), int)
        for n in range(k, len(best)):
            m = np.arange(k - 1, n)
            dearest = np.maximum(best[m], total[n] - total[m] + extra[k - 1])
            start[n] = m[dearest.argmin()]
            new[n] = dearest.min()
        best = new
        starts.append(start)
    cuts: list[int] = []
    n = len(costs)
    for start in reversed(starts):
        n = int(start[n])
        cuts.insert(0, n)
    return tuple(cuts)


def split(
    network: Chain, *, num_stages: int, cuts: Sequence[int] | None = None, standardise: bool = True
) -> tuple[Chain, ...]:
    """Cut a network into its K stages.

    Args:
      network: The whole chain; its first unit is the stem, its last the head.
      num_stages: K, from 1 to the number of units.
      cuts: Positions 0 < c_1 < ... < c_{K-1} < number of units where stages 1..K-1 start; None cuts evenly by FLOPs.
      standardise: End every stage but the last with `STANDARDISE`.

    Returns:
      The stages.

    Raises:
      ValueError: K or the cuts do not fit the chain.
    """
    units = len(network.units)
    if not 1 <= num_stages <= units:
        raise BadInput(
            f"num_stages={num_stages}: the network is a chain of {units} units and a stage needs at least one; "
            f"choose num_stages from 1 to {units} or a deeper model"
        )
    if cuts is None:
        flops = [unit_flops(unit, shape) for unit, shape in zip(network.units, network.shapes[:-1], strict=True)]
        cuts = even_cuts(flops, num_stages)
    bounds = (0, *cuts, units)
    if len(cuts) != num_stages - 1 or any(a >= b for a, b in itertools.pairwise(bounds)):
        raise BadInput(
            f"cuts={tuple(cuts)}: expected num_stages - 1 = {num_stages - 1} increasing positions between 1 and "
            f"{units - 1}; correct them, or leave cuts unset to cut evenly by cost"
        )
    stages = [network.piece(a, b) for a, b in itertools.pairwise(bounds)]
    if standardise:
        stages = [stage.then(STANDARDISE) for stage in stages[:-1]] + stages[-1:]
    return tuple(stages)
