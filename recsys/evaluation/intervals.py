"""Intervals for ratios of sums over clusters: Student t, bootstrap, and the rule that picks one.

Every number that evaluation publishes is a ratio of two sums over independent clusters (users, stories):

* a mean over rows is (sum of outcomes) / (number of rows);
* a relative lift is (sum of arm A's outcomes) / (sum of arm B's outcomes) - 1, both on the same log.

So there is one kind of input, :class:`ClusterSums`, and each method is one function of it. Rows of one
cluster may depend on each other in any way; clusters are taken as independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from recsys.errors import InputError, Refused

Floats = NDArray[np.float64]
Method = Literal["t", "bootstrap", "t+bootstrap", "el", "t+el", "betting"]

MIN_ESS, MIN_CLICKS, MIN_CLUSTERS = 30.0, 2.0, 10
DISTINCT = 8  # clusters per distinct pair of sums from which a bootstrap draws counts of pairs
EXPLORATORY_ESS, EXPLORATORY_CLICKS, EXPLORATORY_CLUSTERS = 1_000.0, 100.0, 100
FULL_ESS, FEW_CLICKS = 10_000.0, 5.0  # where the sample is that large, few clicks are enough for el


@dataclass(frozen=True)
class Interval:
    """A point estimate and the interval around it.

    Attributes:
        estimate: the point estimate.
        low: lower end.
        high: upper end.
        se: standard error where the method has one.
        p_value: two-sided, against the null that belongs to the quantity (a lift or a difference of 0).
        method: how the interval was made.
        label: ``confirmatory`` or ``exploratory``.
    """

    estimate: float
    low: float
    high: float
    se: float | None = None
    p_value: float | None = None
    method: str = "t"
    label: str = "confirmatory"

    def shifted(self, by: float) -> Interval:
        """The same interval moved by a constant (a ratio becomes a lift by -1)."""
        return replace(self, estimate=self.estimate + by, low=self.low + by, high=self.high + by)

    def scaled(self, by: float) -> Interval:
        """The same interval in another unit; ``by`` > 0."""
        se = None if self.se is None else self.se * by
        return replace(self, estimate=self.estimate * by, low=self.low * by, high=self.high * by, se=se)

    def as_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ClusterSums:
    """Numerator and denominator summed within each cluster.

    Attributes:
        numerator: float64[G].
        denominator: float64[G].
        largest: float64[G], the numerator that each cluster would have had if all of its rows had been clicked; read
            by :func:`recsys.evaluation.betting.betting_interval`, and None where it is not known.
    """

    numerator: Floats
    denominator: Floats
    largest: Floats | None = None

    @property
    def ratio(self) -> float:
        """Sum of the numerator over sum of the denominator.

        Raises:
            Refused: the denominator's sum is not above zero, so that the ratio means nothing.
        """
        below = float(self.denominator.sum())
        if not below > 0:
            raise Refused(f"the denominator of the ratio sums to {below:.4g}: no clicks, or too few, to compare with")
        return float(self.numerator.sum()) / below

    def distinct(self) -> tuple[Floats, Floats]:
        """Distinct (numerator, denominator) pairs, float64[k, 2], and how many clusters have each, float64[k]."""
        # complex numbers sort as pairs, and fast
        found, counts = np.unique(self.numerator + 1j * self.denominator, return_counts=True)
        return np.stack([found.real, found.imag], axis=1), counts.astype(np.float64)


def cluster_sums(numerator: ArrayLike, denominator: ArrayLike, clusters: NDArray[np.int64]) -> ClusterSums:
    """Sum two float[n] row vectors within clusters; ``clusters`` holds int codes 0..G-1, one per row."""
    count = int(clusters.max()) + 1 if len(clusters) else 0
    total = [np.bincount(clusters, np.broadcast_to(np.asarray(x, float), clusters.shape), count).astype(np.float64)
             for x in (numerator, denominator)]
    present = np.bincount(clusters, minlength=count) > 0
    if present.sum() < 2:
        raise Refused(f"{int(present.sum())} cluster(s): an interval needs at least two independent units")
    return ClusterSums(total[0][present], total[1][present])


def t_interval(sums: ClusterSums, confidence: float = 0.95, null: float | None = None) -> Interval:
    """Delta-method (linearised) t interval of a ratio, robust to any dependence within clusters.

    With R = sum a / sum b, cluster c has influence z_c = (a_c - R b_c) / mean(b); SE^2 = sum z_c^2 / (G (G - 1)),
    degrees of freedom G - 1.

    Args:
        sums: G clusters.
        confidence: coverage aimed at.
        null: value of the ratio under the null hypothesis, for the p-value.

    References:
        Liang, Zeger (1986). Longitudinal data analysis using generalized linear models. Biometrika 73(1).
        Deng, Knoblich, Lu (2018). Applying the delta method in metric analytics. KDD.
    """
    ratio, groups = sums.ratio, len(sums.numerator)
    influence = (sums.numerator - ratio * sums.denominator) / sums.denominator.mean()
    se = float(np.sqrt((influence @ influence) / (groups * (groups - 1))))
    half = float(stdtrit(groups - 1, 0.5 + confidence / 2)) * se
    p_value = None if null is None else two_sided(ratio - null, se, groups - 1)
    return Interval(ratio, ratio - half, ratio + half, se, p_value, "t")


def two_sided(difference: float, se: float, df: float) -> float:
    """P-value of a difference of 0, by Student's t."""
    if se == 0.0:
        return 1.0 if difference == 0.0 else 0.0
    return float(2 * stdtr(df, -abs(difference) / se))


def bootstrap_interval(
    sums: ClusterSums, confidence: float = 0.95, draws: int = 2000, seed: int = 0, null: float | None = None
) -> Interval:
    """Percentile interval of the ratio when whole clusters are drawn again with replacement (multinomial).

    Numerator and denominator are drawn together, so what two arms share on the same rows cancels as it does
    in the estimate. Draws are made in blocks of about 4 million counts.

    References:
        Field, Welsh (2007). Bootstrapping clustered data. JRSS B 69(3).
    """
    rng, groups = np.random.default_rng(seed), len(sums.numerator)
    pairs, counts = sums.distinct()
    totals, step = np.empty((draws, 2)), max(1, 4_000_000 // groups)
    for at in range(0, draws, step):
        rows = min(step, draws - at)
        if len(counts) <= groups / DISTINCT:  # clicks are rare: the same law without drawing every zero
            drawn = rng.multinomial(groups, counts / groups, rows)
            totals[at:at + rows] = drawn @ pairs
        else:
            picked = rng.integers(0, groups, (rows, groups)) + np.arange(rows)[:, None] * groups
            drawn = np.bincount(picked.ravel(), minlength=rows * groups).reshape(rows, groups)
            totals[at:at + rows] = drawn @ np.stack([sums.numerator, sums.denominator], axis=1)
    fine = totals[:, 1] > 0
    if fine.mean() < 0.99:
        raise Refused("more than 1 % of the bootstrap draws have no click to compare with: too few clicks")
    ratios = totals[fine, 0] / totals[fine, 1]
    low, high = np.quantile(ratios, [0.5 - confidence / 2, 0.5 + confidence / 2])
    p_value = None
    if null is not None:
        tail = min((ratios <= null).sum(), (ratios >= null).sum())
        p_value = float(min(1.0, 2 * (tail + 1) / (len(ratios) + 1)))
    return Interval(sums.ratio, float(low), float(high), float(ratios.std(ddof=1)), p_value, "bootstrap")


def wider_of(first: Interval, second: Interval) -> Interval:
    """Hull of two intervals of the same estimate, with the larger standard error and p-value."""
    p_values = [p for p in (first.p_value, second.p_value) if p is not None]
    errors = [s for s in (first.se, second.se) if s is not None]
    return Interval(first.estimate, min(first.low, second.low), max(first.high, second.high),
                    max(errors, default=None), max(p_values, default=None), f"{first.method}+{second.method}")


@dataclass(frozen=True)
class Choice:
    """Which interval is published, under which label, and why."""

    method: Method
    label: Literal["confirmatory", "exploratory"]
    reason: str


def effective(x: ArrayLike, units: NDArray[np.int64] | None = None) -> float:
    """Kish's effective count of non-negative numbers: (sum x)^2 / sum x^2.

    A number that is the share s of the sum leaves fewer than 1 / s^2, however many others there are.

    Args:
        x: float[n].
        units: int64[n], codes of independent units; what one unit has counts once, if that leaves fewer: ten clicks
            of one user are not ten clicks.
    """
    m = np.asarray(x, dtype=np.float64)
    squares = float(m @ m)
    count = float(m.sum()) ** 2 / squares if squares > 0 else 0.0
    return count if units is None or not len(m) else min(count, effective(np.bincount(units, m)))


def choose_interval(ess: float, effective_clicks: float, clusters: int, sizes: Sequence[ArrayLike] = ()) -> Choice:
    """The rule fixed before results exist (docs/decisions/0026-certification.md).

    Args:
        ess: effective sample size of the worst arm involved, (sum w)^2 / sum w^2.
        effective_clicks: (sum w r)^2 / sum (w r)^2 of the worst arm involved, over rows or units, the less.
        clusters: number of independent units.
        sizes: float64[clusters] each: rows, or weight, of every unit. Their :func:`effective` count, the least of
            them, stands for ``clusters`` in the rule; default: units of one size.

    Raises:
        Refused: the evidence cannot carry any interval.
    """
    units = min((effective(m) for m in sizes), default=float(clusters))
    counted = f"clusters {clusters:,}" + (f" (worth {units:,.1f} of equal size)" if units < 0.995 * clusters else "")
    if ess < MIN_ESS or units < MIN_CLUSTERS or effective_clicks < MIN_CLICKS:
        raise Refused(
            f"effective sample size {ess:.1f}, effective clicks {effective_clicks:.1f}, {counted}: no "
            f"interval is published below {MIN_ESS:.0f}, {MIN_CLICKS:.0f} and {MIN_CLUSTERS}; log more, or evaluate a "
            "policy nearer the logging one"
        )
    facts = f"effective sample size {ess:,.0f}, effective clicks {effective_clicks:,.0f}, {counted}"
    if units >= EXPLORATORY_CLUSTERS:
        if ess >= EXPLORATORY_ESS and effective_clicks >= EXPLORATORY_CLICKS:
            return Choice("t+el", "confirmatory", facts)
        if ess >= FULL_ESS and effective_clicks >= FEW_CLICKS:
            return Choice("el", "exploratory", facts)
    return Choice("betting", "exploratory", facts)


ASKED: tuple[Method, ...] = ("betting", "t", "bootstrap", "el")  # methods that may be asked for by name


def asked_for(choice: Choice, method: str) -> Choice:
    """The rule's choice, or the method that somebody asked for by name.

    Betting is safe at any evidence. The others hold where events are many: there they are given, but as exploratory,
    since nobody picked them before the results; elsewhere they cover less than they say (docs/certification.md).

    Args:
        choice: :func:`choose_interval`'s.
        method: ``auto``, or one of :data:`ASKED`.

    Raises:
        Refused: the evidence is too little for that method.
    """
    if method in ("auto", choice.method):
        return choice
    if method == "betting":
        return replace(choice, method="betting")
    if method not in ASKED:
        raise InputError("no such interval", got=method, expected=", ".join(("auto", *ASKED)))
    if choice.method != "t+el":
        raise Refused(f"{choice.reason}: at this evidence a {method} interval covers less than it says; ask for auto "
                      "or betting, or log more")
    return Choice(method, "exploratory", f"{choice.reason}; {method} was asked for by name")  # type: ignore[arg-type]


def interval(
    sums: ClusterSums, choice: Choice, confidence: float = 0.95, draws: int = 2000, seed: int = 0,
    null: float | None = None,
) -> Interval:
    """The interval of the chosen method around ``sums.ratio``, labelled as chosen."""
    from recsys.evaluation.betting import betting_interval
    from recsys.evaluation.likelihood import empirical_likelihood

    if choice.method == "betting":
        made = betting_interval(sums, confidence, seed=seed)
    elif choice.method in ("el", "t+el"):
        made = empirical_likelihood(sums, confidence, null)
        if choice.method == "t+el":
            made = wider_of(t_interval(sums, confidence, null), made)
    elif choice.method == "bootstrap":
        made = bootstrap_interval(sums, confidence, draws, seed, null)
    else:
        made = t_interval(sums, confidence, null)
        if choice.method == "t+bootstrap":
            made = wider_of(made, bootstrap_interval(sums, confidence, draws, seed, null))
    return replace(made, label=choice.label)
