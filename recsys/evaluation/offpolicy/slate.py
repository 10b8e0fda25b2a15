"""Weights of whole slates: rows of one request, one below the other.

Rows whose mean is the estimate per shown slot, so that all estimators are on one scale. With w_k = target
probability / propensity of slot k's ad, and a request's slots taken from the top:

* IIPS        w_l r_l                                 a slot's outcome depends on its own ad (= IPS)
* RIPS        (w_1 ... w_l) r_l                       ... and on the ads above it; McInerney et al. (2020)
* SIPS        (w_1 ... w_L) r_l                       ... and on the whole slate; Swaminathan et al. (2017)
* cascade-DR  (w_1 ... w_l) (r_l - Q_l) + (w_1 ... w_{l-1}) E_pi[Q_l], Q_l = q_l + sum of v below
                                                      as RIPS, doubly robust; Kiyohara et al. (2022)

A product of weights is the weight of the prefix (or slate) where each propensity is the probability of the slot's ad
given the ads above it, as when slots are filled one after another or independently; likewise the target's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recsys.evaluation.intervals import Floats
from recsys.evaluation.offpolicy.estimators import Slate
from recsys.evaluation.offpolicy.join import Log


def slate_weights(log: Log, weight: Floats, q_policy: Floats | None = None) -> Slate:
    """Products of weights over the slots of each row's request; all rows of a request must be in the log.

    Args:
        log: n rows in any order.
        weight: float64[n], w of each row.
        q_policy: float64[n], v of each row.
    """
    code = log.decisions[log.decision]  # request * slots + slot
    order = np.argsort(code, kind="stable")
    request = (code // log.slots)[order]
    start = _start(request)
    # Sums of logarithms would lose a weight of 0, so products are made slot by slot; slates are short.
    upto = weight[order].copy()
    depth = np.arange(len(order)) - start
    for level in range(1, int(depth.max(initial=0)) + 1):
        at = np.flatnonzero(depth == level)
        upto[at] *= upto[at - 1]
    above = np.where(depth == 0, 1.0, np.concatenate([[1.0], upto[:-1]]))
    last = np.append(start[1:] != start[:-1], True)
    whole = upto[last][np.cumsum(np.append(True, start[1:] != start[:-1])) - 1]
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    later = None
    if q_policy is not None:
        value = q_policy[order]
        total = np.cumsum(value)
        later = (total[last][np.cumsum(np.append(True, start[1:] != start[:-1])) - 1] - total)[back]
    return Slate(upto[back], above[back], whole[back], later)


def _start(request: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of the first row of each row's request; ``request`` is sorted."""
    first = np.append(True, request[1:] != request[:-1])
    made: NDArray[np.int64] = np.maximum.accumulate(np.where(first, np.arange(len(request)), 0))
    return made
