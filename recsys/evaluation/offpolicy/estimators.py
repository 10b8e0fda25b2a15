"""Off-policy estimators as rows whose mean is the estimate.

With w = target probability of the shown ad / propensity, r the reward, q the outcome model of the shown ad and
v = sum_a pi(a) q(a) the model's value of the target policy:

=================  =============================================================================================
dm                 v                                                  a diagnostic only: its error is the model's
ips                w r                                                Horvitz, Thompson (1952)
snips              sum w r / sum w                                    Swaminathan, Joachims (2015)
clipped_ips        min(w, l) r                                        Bottou et al. (2013); Ionides (2008)
sub_gaussian_ips   w / (1 - l + l w) r                                Metelli, Russo, Restelli (2021)
dr                 v + w (r - q)                                      Dudik, Langford, Li (2011)
sndr               mean v + sum w (r - q) / sum w                     Thomas, Brunskill (2016)
switch_dr          v + w 1[w <= l] (r - q)                            Wang, Agarwal, Dudik (2017)
dros               v + l w / (w^2 + l) (r - q)                        Su, Dimakopoulou, Krishnamurthy, Dudik (2020)
sub_gaussian_dr    v + w / (1 - l + l w) (r - q)                      Metelli, Russo, Restelli (2021)
mrdr               dr with q fitted to make its variance least        Farajtabar, Chow, Ghavamzadeh (2018)
mips               w(c) r, w(c) the weight of the ad's cluster        Saito, Joachims (2022)
replay             sum m r / sum m, m = target probability            Li, Chu, Langford, Wang (2011): uniform logs
iips, sips, rips,  see :mod:`recsys.evaluation.offpolicy.slate`
cascade_dr
=================  =============================================================================================

What a slot earns is taken to depend on the ad in that slot alone (the item-position assumption; Li et al. 2018,
"Offline evaluation of ranking policies with click models"), except by the slate estimators.

Every estimator is a few *base* columns per row and a rule that combines their sums. The rule is the same whether a
column is summed over one row or over a cluster, so a log of any length needs only its clusters' sums in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from recsys.errors import InputError
from recsys.evaluation.intervals import Floats

INFINITE = float("inf")


@dataclass(frozen=True)
class Slate:
    """Weights of the slots of a request, seen from each of its rows: float64[n] arrays.

    Attributes:
        upto: product of w over this slot and those above it.
        above: product of w over the slots above it.
        whole: product of w over all slots.
        later: sum over the slots below of v; None without an outcome model.
    """

    upto: Floats
    above: Floats
    whole: Floats
    later: Floats | None


@dataclass(frozen=True)
class Outcomes:
    """What estimators read of n rows: float64[n] arrays.

    Attributes:
        weight: w.
        reward: r.
        q: outcome model of the shown ad; None without a model.
        q_policy: v; None without a model.
        chosen: target probability of the shown ad; read by replay.
        robust: (q, v) of the model fitted for MRDR.
        cluster_weight: weight of the shown ad's cluster; read by MIPS.
        slate: weights over the slots of the row's request.
    """

    weight: Floats
    reward: Floats
    q: Floats | None = None
    q_policy: Floats | None = None
    chosen: Floats | None = None
    robust: tuple[Floats, Floats] | None = None
    cluster_weight: Floats | None = None
    slate: Slate | None = None

    def multiplier(self, weighs: str) -> Floats | None:
        """The weight of a kind (``Estimator.weighs``), float64[n]; None where the rows lack it."""
        if weighs == "slot" or self.slate is None:
            return self.weight if weighs == "slot" else None
        return self.slate.whole if weighs == "slate" else self.slate.upto


Base = Callable[[Outcomes, float], "tuple[Floats, ...] | None"]
Shrink = Callable[[Floats, float], Floats]


@dataclass(frozen=True)
class Estimator:
    """One estimator.

    Attributes:
        name: as in the table above.
        base: rows and the hyper-parameter to base columns; None where the rows lack what it needs.
        kind: ``mean`` (of one column), ``ratio`` (first column / second), ``shifted`` (mean of the first + second /
            third).
        grid: values of the hyper-parameter from least biased to most, for SLOPE; empty without one.
        consistent: tends to the truth with true propensities, whatever the outcome model.
        weighs: what multiplies a row's reward: the weight of its ``slot``, of the slate's ``prefix`` down to it, or of
            the whole ``slate``. Bounds and evidence are those of that weight.
    """

    name: str
    base: Base
    kind: str = "mean"
    grid: tuple[float, ...] = ()
    consistent: bool = True
    weighs: str = "slot"

    def influence(self, columns: tuple[Floats, ...], size: Floats | float = 1.0) -> Floats:
        """Sums of the rows whose overall mean is the estimate.

        Args:
            columns: base columns, summed over groups of rows (a row, a cluster): float64[G] each.
            size: rows of each group.

        Returns:
            float64[G]; its sum over the sum of ``size`` is the estimate, and its deviations from estimate * size
            are the estimator's (first-order) influence.
        """
        if self.kind == "mean":
            return columns[0]
        above, below = columns[-2:]
        rows = float(np.sum(np.broadcast_to(size, above.shape)))
        total = float(below.sum())
        if not total > 0:  # no weight at all: nothing is known, and the effective sample size of 0 says so
            return np.zeros_like(above)
        value = float(above.sum()) / total
        ratio = value * size + (above - value * below) * (rows / total)
        made: Floats = ratio if self.kind == "ratio" else columns[0] + ratio
        return made

    def rows(self, outcomes: Outcomes, parameter: float | None = None) -> Floats | None:
        """float64[n] whose mean is the estimate on these rows; None where the rows lack what it needs."""
        columns = self.base(outcomes, self.default if parameter is None else parameter)
        return None if columns is None else self.influence(columns)

    @property
    def default(self) -> float:
        """The least biased value of the hyper-parameter (nan without one)."""
        return self.grid[0] if self.grid else float("nan")


def _ips(shrink: Shrink) -> Base:
    return lambda o, level: (shrink(o.weight, level) * o.reward,)


def _dr(shrink: Shrink) -> Base:
    def base(o: Outcomes, level: float) -> tuple[Floats, ...] | None:
        weight = shrink(o.weight, level)
        # q = 0 is a model too: DR is then the weighting estimator
        return (weight * o.reward if o.q is None or o.q_policy is None else o.q_policy + weight * (o.reward - o.q),)

    return base


def plain(weight: Floats, level: float) -> Floats:
    """The weight as it is."""
    return weight


def clip(weight: Floats, level: float) -> Floats:
    """min(w, l)."""
    return np.minimum(weight, level)


def switch(weight: Floats, level: float) -> Floats:
    """w where w <= l, else 0."""
    return np.where(weight <= level, weight, 0.0)


def optimistic(weight: Floats, level: float) -> Floats:
    """l w / (w^2 + l), the shrinkage that minimises a bound of the mean squared error; w for infinite l."""
    return weight if np.isinf(level) else weight * (level / (weight * weight + level))


def sub_gaussian(weight: Floats, level: float) -> Floats:
    """w / (1 - l + l w): a weighted harmonic mean of w and 1, at most 1 / l; 0 where w is 0, for l = 1 as well."""
    below = 1.0 - level + level * weight
    return np.divide(weight, below, out=np.zeros_like(below), where=below > 0) if level else weight


def _dm(o: Outcomes, _: float) -> tuple[Floats, ...] | None:
    return None if o.q_policy is None else (o.q_policy,)


def _snips(o: Outcomes, _: float) -> tuple[Floats, ...]:
    return o.weight * o.reward, o.weight


def _sndr(o: Outcomes, _: float) -> tuple[Floats, ...]:
    if o.q is None or o.q_policy is None:
        return np.zeros_like(o.weight), o.weight * o.reward, o.weight
    return o.q_policy, o.weight * (o.reward - o.q), o.weight


def _mrdr(o: Outcomes, _: float) -> tuple[Floats, ...] | None:
    return None if o.robust is None else (o.robust[1] + o.weight * (o.reward - o.robust[0]),)


def _mips(o: Outcomes, _: float) -> tuple[Floats, ...] | None:
    return None if o.cluster_weight is None else (o.cluster_weight * o.reward,)


def _replay(o: Outcomes, _: float) -> tuple[Floats, ...] | None:
    return None if o.chosen is None else (o.chosen * o.reward, o.chosen)


def _iips(o: Outcomes, _: float) -> tuple[Floats, ...] | None:
    return None if o.slate is None else (o.weight * o.reward,)


def _sips(o: Outcomes, _: float) -> tuple[Floats, ...] | None:
    return None if o.slate is None else (o.slate.whole * o.reward,)


def _rips(o: Outcomes, _: float) -> tuple[Floats, ...] | None:
    return None if o.slate is None else (o.slate.upto * o.reward,)


def _cascade_dr(o: Outcomes, _: float) -> tuple[Floats, ...] | None:
    if o.slate is None:
        return None
    if o.q is None or o.q_policy is None or o.slate.later is None:
        return (o.slate.upto * o.reward,)
    to_go = o.q + o.slate.later
    return (o.slate.upto * (o.reward - to_go) + o.slate.above * (o.q_policy + o.slate.later),)


CLIP_GRID = (INFINITE, 100.0, 50.0, 20.0, 10.0, 5.0, 2.0, 1.0)
SHRINK_GRID = (INFINITE, 1e4, 1e3, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0)
MIX_GRID = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)

ESTIMATORS: dict[str, Estimator] = {e.name: e for e in (
    Estimator("dm", _dm, consistent=False),
    Estimator("ips", _ips(plain)),
    Estimator("snips", _snips, "ratio"),
    Estimator("clipped_ips", _ips(clip), grid=CLIP_GRID, consistent=False),
    Estimator("sub_gaussian_ips", _ips(sub_gaussian), grid=MIX_GRID, consistent=False),
    Estimator("dr", _dr(plain)),
    Estimator("sndr", _sndr, "shifted"),
    Estimator("switch_dr", _dr(switch), grid=CLIP_GRID, consistent=False),
    Estimator("dros", _dr(optimistic), grid=SHRINK_GRID, consistent=False),
    Estimator("sub_gaussian_dr", _dr(sub_gaussian), grid=MIX_GRID, consistent=False),
    Estimator("mrdr", _mrdr),
    Estimator("mips", _mips, consistent=False),
    Estimator("replay", _replay, "ratio"),
    Estimator("iips", _iips),
    Estimator("sips", _sips, weighs="slate"),
    Estimator("rips", _rips, weighs="prefix"),
    Estimator("cascade_dr", _cascade_dr, weighs="prefix"),
)}
SLATE = ("iips", "sips", "rips", "cascade_dr")


def estimator(name: str) -> Estimator:
    """Look up an estimator.

    Raises:
        InputError: there is none of that name.
    """
    if name not in ESTIMATORS:
        raise InputError("no such estimator", column=name, expected=", ".join(ESTIMATORS))
    return ESTIMATORS[name]
