"""Two arms compared on one metric: absolute and relative lift, raw and adjusted, at one look or at any.

The moments of an arm are tea-tasting's ``Aggregates`` (delta method for ratios of means over units, which is the
cluster-robust variance when a unit is a cluster of rows), and so are CUPED and the absolute interval. Written
here is what it lacks: the relative lift after Fieller, always-valid intervals, and what they can detect.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import stdtrit
from tea_tasting.aggr import Aggregates
from tea_tasting.metrics import RatioOfMeans

from recsys.errors import Refused
from recsys.evaluation.ab.units import Metric, Units
from recsys.evaluation.intervals import Interval
from recsys.evaluation.sequential import always_valid_multiplier, always_valid_p
from recsys.evaluation.welch import relative_lift

TUNING = 5_000.0  # units at which an always-valid interval is tightest, unless the plan says otherwise


def aggregates(units: Units, arm: str, metric: Metric, cap: float | None = None) -> Aggregates:
    """Mean, variances and covariances (over units, ddof 1) of a metric's columns in one arm.

    Args:
        units: lines of the log.
        arm: which arm.
        metric: which columns.
        cap: largest numerator of a unit (winsorising); None leaves it as it is.
    """
    names = list(dict.fromkeys(c for c in (metric.numerator, metric.denominator, metric.covariate,
                                           metric.covariate_denominator) if c is not None))
    columns = np.stack([units.of(arm, c) for c in names])
    if columns.shape[1] < 2:
        raise Refused(f"arm {arm} has {columns.shape[1]} unit(s): at least two are needed")
    if cap is not None:
        columns[0] = np.minimum(columns[0], cap)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, spread = columns.mean(axis=1), np.atleast_2d(np.cov(columns))
    if not np.isfinite(spread).all():
        at = int(np.argmax(np.abs(columns).max(axis=1)))
        raise Refused(f"{names[at]} reaches {np.abs(columns[at]).max():.4g} in arm {arm}, and the square of that is no "
                      "number any more: mend the value, or rescale the column")
    pairs = {(a, b): float(spread[i, j]) for i, a in enumerate(names) for j, b in enumerate(names)}
    return Aggregates(columns.shape[1], dict(zip(names, mean.tolist(), strict=True)),
                      {n: pairs[n, n] for n in names}, pairs)


@dataclass(frozen=True)
class Contrast:
    """A variant against the baseline on one metric.

    Attributes:
        baseline: the baseline's (adjusted) value; ``variant`` the variant's.
        variant: see ``baseline``.
        absolute: difference; its p-value is the comparison's.
        relative: difference over the baseline's value (Fieller); None where that value is not clearly above zero.
        unbounded: why there is no ``relative``.
        detectable: relative lift found with 80 % power at this size; None where the baseline's value is not above zero.
        variances: per unit, of the baseline and the variant.
    """

    baseline: float
    variant: float
    absolute: Interval
    relative: Interval | None
    unbounded: str | None
    detectable: float | None
    variances: tuple[float, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"baseline": self.baseline, "variant": self.variant, "absolute": self.absolute.as_dict(),
                "relative": None if self.relative is None else self.relative.as_dict(),
                "relative_refused": self.unbounded,
                "detectable_relative_lift": self.detectable}


def compare(control: Aggregates, treatment: Aggregates, metric: Metric, confidence: float = 0.95, *,
            tuning: float | None = None) -> Contrast:
    """Absolute and relative lift of a metric between two independent arms.

    Args:
        control: moments of the baseline (:func:`aggregates`).
        treatment: moments of the variant.
        metric: with a covariate, both values are CUPED-adjusted: value - theta (covariate - pooled covariate).
        confidence: coverage aimed at.
        tuning: None for one look (Welch t); else always-valid intervals, tightest at this many units.

    Raises:
        Refused: the metric has no spread in either arm, or its denominator is not above zero.

    References:
        Deng, Xu, Kohavi, Walker (2013). Improving the sensitivity of online controlled experiments by utilizing
        pre-experiment data. WSDM. Deng, Knoblich, Lu (2018). Applying the delta method in metric analytics. KDD.
    """
    for arm in (control, treatment):
        if metric.denominator is not None and not arm.mean(metric.denominator) > 0:
            raise Refused(f"the denominator {metric.denominator} of {metric.name} is not above zero in every arm")
    a, b = metric.numerator, metric.denominator
    test = RatioOfMeans(a, b, metric.covariate, metric.covariate_denominator, confidence_level=confidence,
                        equal_var=False, use_t=True)
    variances = _adjusted_variances(control, treatment, metric)
    if not np.isfinite(variances).all():
        raise Refused(f"the variance of {metric.name} is no number any more: rescale its columns")
    if not max(variances) > 0:
        raise Refused(f"{metric.name} has the same value in all units: there is nothing to compare")
    found = test.analyze_aggregates(control, treatment)
    se = float(np.sqrt(variances[0] / control.count() + variances[1] / treatment.count()))
    absolute = Interval(float(found.effect_size), float(found.effect_size_ci_lower), float(found.effect_size_ci_upper),
                        se, found.pvalue, "welch")
    n = control.count() + treatment.count()
    if tuning is not None:
        absolute = always_valid(absolute, n, confidence, tuning)
    relative, unbounded, detectable = None, None, None
    try:
        relative = relative_lift(float(found.control), variances[0] / control.count(), float(found.treatment),
                                 variances[1] / treatment.count(), absolute)
    except Refused as reason:
        unbounded = f"no relative lift of {metric.name}, read the difference: {reason}"
    if found.control > 0:  # the interval of this true lift excludes 0 in four of five experiments (at the last look)
        detectable = ((absolute.high - absolute.low) / 2 + float(stdtrit(n - 2, 0.8)) * se) / float(found.control)
    return Contrast(float(found.control), float(found.treatment), absolute, relative, unbounded, detectable, variances)


def _adjusted_variances(control: Aggregates, treatment: Aggregates, metric: Metric) -> tuple[float, float]:
    columns = (metric.numerator, metric.denominator, metric.covariate, metric.covariate_denominator)
    if metric.covariate is None:
        return tuple(float(arm.ratio_var(*columns[:2])) for arm in (control, treatment))  # type: ignore[return-value]
    both = control + treatment
    spread = both.ratio_var(*columns[2:])
    theta = both.ratio_cov(*columns) / spread if spread else 0.0
    return tuple(float(arm.ratio_var(*columns[:2]) + theta**2 * arm.ratio_var(*columns[2:])
                       - 2 * theta * arm.ratio_cov(*columns)) for arm in (control, treatment))  # type: ignore


def always_valid(fixed: Interval, n: int, confidence: float = 0.95, tuning: float = TUNING) -> Interval:
    """The interval that holds at every look, from one made for a single look (:mod:`recsys.evaluation.sequential`).

    Args:
        fixed: estimate and standard error.
        n: units of both arms at this look.
        confidence: coverage over all looks together.
        tuning: n at which the interval is tightest; fixed before results exist.
    """
    if fixed.se is None or not tuning > 0:
        raise Refused("an always-valid interval needs a standard error and a positive tuning parameter")
    half = fixed.se * always_valid_multiplier(n, 1 - confidence, tuning)
    if fixed.se > 0:
        p_value = always_valid_p(fixed.estimate / fixed.se, n, 1 - confidence, tuning)
    else:
        p_value = 1.0 if fixed.estimate == 0 else 0.0
    return replace(fixed, low=fixed.estimate - half, high=fixed.estimate + half, p_value=p_value,
                   method="always_valid")
