"""Ads that a target policy shows and a log never did: how much of the truth a log cannot know.

Let g be the target's probability of such ads, E the most they can earn (rewards lie in [0, 1], or between 0 and the
price), m what the outcome model gives them, v the model's value of the target, and S the value of the ads that the log
does show. Then the truth is S plus something in [0, E], and an estimator tends to

* ips: S;  dr: S + m;  snips, replay: S / (1 - g);  sndr: v + (S - v + m) / (1 - g), the model plus the mean residual on
  shown ads;
* mrdr: as dr with a model of its own, whose m is anything in [0, E];
* slates: a slate leaves the support at most as often as its slots together do.

So the truth lies between two functions of the estimate, both linear. That is the worst case, not a probability: ads
that the log could have shown and by chance did not count as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.errors import Refused
from recsys.evaluation.intervals import Floats
from recsys.evaluation.offpolicy.estimators import ESTIMATORS, SLATE

MAX_GAP = 0.01  # of the target's probability on ads that were never shown
_MODELLED = ("dr", "switch_dr", "dros", "sub_gaussian_dr", "cascade_dr")
_UNKNOWN_MODEL = ("mrdr", "mips")  # mips gives such ads what their cluster earns


@dataclass(frozen=True)
class Gaps:
    """What the target does beyond the log's support, summed over rows: the probability it puts on ads never shown.

    Attributes:
        mass: that probability.
        worst: the same times the most that such an ad can earn (rewards are not negative).
        model: the same times what the outcome model says it earns.
        slots: one more than the largest slot: how often a slate can leave the support.
    """

    mass: float = 0.0
    worst: float = 0.0
    model: float = 0.0
    slots: int = 1

    def __add__(self, other: Gaps) -> Gaps:
        return Gaps(self.mass + other.mass, self.worst + other.worst, self.model + other.model,
                    max(self.slots, other.slots))

    def per_row(self, rows: int) -> Gaps:
        """Means instead of sums."""
        return Gaps(self.mass / rows, self.worst / rows, self.model / rows, self.slots)


@dataclass(frozen=True)
class Reach:
    """The truths that an estimator's limit x allows: from scale x + below to scale x + above.

    ``below`` and ``above`` are one number, or float64[n] rows of which the mean counts.
    """

    scale: float = 1.0
    below: Floats | float = 0.0
    above: Floats | float = 0.0

    @property
    def exact(self) -> bool:
        """The estimator tends to the truth: nothing is to be widened."""
        return self.scale == 1.0 and not np.any(self.below) and not np.any(self.above)

    def least(self, x: Floats) -> Floats:
        """Rows (or a value) whose mean is the least truth that rows of the estimator allow."""
        made: Floats = self.scale * x + self.below
        return made

    def most(self, x: Floats) -> Floats:
        """As :meth:`least`, the largest truth."""
        made: Floats = self.scale * x + self.above
        return made

    def of(self, rows: NDArray[np.int64]) -> Reach:
        """The same for chosen rows."""
        below, above = (x if np.ndim(x) == 0 else np.asarray(x)[rows] for x in (self.below, self.above))
        return Reach(self.scale, below, above)


def reach(name: str, mass: float, worst: Floats | float, model: Floats | float, model_value: float = 0.0,
          slots: int = 1) -> Reach:
    """What an estimator leaves open beyond the support of its log (formulas: see the module).

    Args:
        name: of the estimator.
        mass: g, per row.
        worst: E, per row; float64[n] rows or their mean.
        model: m, as ``worst``.
        model_value: v, per row.
        slots: of a slate.
    """
    if not mass > 0:
        return Reach()
    if ESTIMATORS[name].kind == "ratio":
        return Reach(1 - mass, 0.0, worst)
    if ESTIMATORS[name].kind == "shifted":
        moved = mass * model_value - model
        return Reach(1 - mass, moved, moved + worst)
    times = slots if name in SLATE else 1
    if name in _UNKNOWN_MODEL:
        return Reach(1.0, -times * worst, times * worst)
    if name in _MODELLED:
        return Reach(1.0, -times * model, times * (worst - model))
    return Reach(1.0, 0.0, times * worst)


def require_support(gap: float, name: str) -> None:
    """Raise :class:`Refused` where more than MAX_GAP of a policy's probability is on ads that the log never shows."""
    if gap > MAX_GAP:
        raise Refused(f"the {name} puts {100 * gap:.2f} % of its probability on ads that this log never shows: nothing "
                      f"is known of them, and no value is published beyond {100 * MAX_GAP:g} %; log more, or evaluate "
                      "a policy nearer the logging one")
