"""Simulated logs whose truth is known exactly: of one policy's value, and of the relative lift of two.

``ValueWorld`` is the grid of the certification: one target policy over 40 ads on independent rows, on users whose
rows depend on each other, or on a log that drifts. ``LiftWorld`` has users with random, even heavy-tailed, numbers of
rows and two target policies, estimated on the same rows by doubly robust estimation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recsys.evaluation.intervals import Floats

Overlap = Literal["good", "soft", "poor"]
Kind = Literal["iid", "clustered", "drifting"]
CONTEXTS, ADS, CANDIDATES = 200, 40, 10
USER_ROWS, RUN_ROWS = 10, 5  # rows of a user; rows in which one ad stays before the user
EAGERNESS = (0.4, 1.6)  # of users, equally likely: their own factor on the click rate, mean 1
BURST = 0.5  # click rate of a row while a user is interested in the ad
EPOCHS = 8


def softmax(score: Floats, floor: float = 0.0) -> Floats:
    """Probabilities over the last axis, at least ``floor`` / ads each."""
    weight = np.exp(score - score.max(axis=-1, keepdims=True))
    made: Floats = (1 - floor) * weight / weight.sum(axis=-1, keepdims=True) + floor / score.shape[-1]
    return made


@dataclass(frozen=True)
class Sample:
    """One log of n rows: weight float64[n], click float64[n], unit int64[n] (0..G-1, each of equally many rows)."""

    weight: Floats
    click: Floats
    unit: NDArray[np.int64]


class ValueWorld:
    """Contexts x 40 ads with known click rates, a target policy and a logging policy.

    Args:
        ctr: base click rate (mean over contexts and ads).
        overlap: ``good``: the log likes what the target likes (effective sample share about 0.7); ``soft``: it is
            uniform (0.3); ``poor``: it shies from what the target likes (0.07).
        kind: ``iid``; ``clustered``: users of ten rows with their own click propensity, who see one ad five times
            running and click it in bursts; ``drifting``: tastes, click rates (from half to one and a half times)
            and the logging policy change over eight epochs, and the truth is the mean over the log's whole time.
        seed: of the world.
    """

    def __init__(self, ctr: float, overlap: Overlap, kind: Kind, seed: int) -> None:
        rng = np.random.default_rng(seed)
        shape = (CONTEXTS, ADS)
        taste, noise, later = rng.normal(0, 1, shape), rng.normal(0, 1, shape), rng.normal(0, 1, shape)
        score = 1.3 * (0.6 * taste + 0.8 * noise)
        self.target = softmax(score)
        at = np.linspace(0, 1, EPOCHS) if kind == "drifting" else np.zeros(1)
        mix = at[:, None, None] * np.pi / 2
        level = 0.5 + at[:, None, None] if kind == "drifting" else 1.0
        self.rate = level * ctr * np.exp(0.5 * (np.cos(mix) * taste + np.sin(mix) * later) - 0.125)
        first = {"good": softmax(0.6 * score, floor=0.2), "soft": np.full(shape, 1 / ADS),
                 "poor": softmax(-0.55 * np.log(self.target), floor=0.1)}[overlap]
        # A drifting log begins with that policy and ends with one that has learnt something else.
        share = 0.5 * at[:, None, None]
        self.logging = (1 - share) * first + share * softmax(0.5 * later)
        self.weight = self.target / self.logging
        self.value = float((self.target * self.rate).sum(axis=2).mean())
        self.bound = float(self.weight.max())
        self.kind = kind
        # One increasing sequence over all epochs and contexts: a draw of (context, ad) is one binary search.
        steps = np.cumsum(self.logging, axis=2) / self.logging.sum(axis=2, keepdims=True)
        self._cumulative = (steps.reshape(-1, ADS) + np.arange(len(at) * CONTEXTS)[:, None]).ravel()

    def _ads(self, cell: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Flat positions (epoch, context, ad) of ads drawn by the logging policy in cells (epoch, context)."""
        at = np.searchsorted(self._cumulative, cell + rng.random(len(cell)))
        return np.minimum(at, cell * ADS + ADS - 1)

    def draw(self, n: int, rng: np.random.Generator) -> Sample:
        """One log of n rows."""
        rate, weight = self.rate.ravel(), self.weight.ravel()
        if self.kind == "clustered":
            users, runs = n // USER_ROWS, USER_ROWS // RUN_ROWS
            home = np.repeat(rng.integers(0, CONTEXTS, users), runs)
            eager = np.repeat(rng.choice(EAGERNESS, users), runs)
            ad = self._ads(home, rng)
            interested = np.repeat(rng.random(len(ad)) < np.minimum(eager * rate[ad] / BURST, 1.0), RUN_ROWS)
            click = interested & (rng.random(n) < BURST)
            return Sample(np.repeat(weight[ad], RUN_ROWS), click.astype(float), np.repeat(np.arange(users), USER_ROWS))
        epoch = np.arange(n) * len(self.rate) // n
        ad = self._ads(epoch * CONTEXTS + rng.integers(0, CONTEXTS, n), rng)
        return Sample(weight[ad], (rng.random(n) < rate[ad]).astype(float), np.arange(n))


@dataclass(frozen=True)
class Regime:
    """A setting of the lifts: how many users, their mean rows, click rate, how far targets are from logging."""

    users: int
    rows_per_user: float
    click_rate: float
    sharpness: float
    pareto: float | None = None  # shape of the users' numbers of rows; below 1 a few users hold most rows


REGIMES = (
    Regime(200, 5, 0.05, 1.0), Regime(200, 5, 0.02, 2.5), Regime(500, 8, 0.05, 1.0), Regime(500, 8, 0.02, 1.0),
    Regime(500, 20, 0.05, 2.5), Regime(2000, 5, 0.05, 2.5), Regime(2000, 5, 0.02, 1.0), Regime(1000, 10, 0.004, 1.0),
    Regime(5000, 10, 0.004, 1.0), Regime(4000, 5, 0.05, 1.0), Regime(3000, 10, 0.05, 1.0), Regime(3000, 10, 0.03, 2.5),
    Regime(300, 5, 0.05, 1.0, pareto=0.9), Regime(3000, 5, 0.05, 1.0, pareto=1.3),
)


@dataclass(frozen=True)
class Pair:
    """One log seen by two arms: doubly robust rows and weights of each, clicks, users; n rows."""

    rows: tuple[Floats, Floats]
    weights: tuple[Floats, Floats]
    click: Floats
    user: NDArray[np.int64]


class LiftWorld:
    """Contexts x candidates with known click rates, a logging policy and two target policies.

    Args:
        regime: sizes and rates.
        seed: of the world.
        null: make the true lift exactly zero, by moving the worse arm towards the better candidates.
    """

    def __init__(self, regime: Regime, seed: int, null: bool = False) -> None:
        rng = np.random.default_rng(seed)
        shape = (CONTEXTS, CANDIDATES)
        taste = rng.normal(0, 0.8, shape)
        self.rate = np.minimum(regime.click_rate * np.exp(taste - 0.32), 0.6)
        self.logging = softmax(0.5 * rng.normal(0, 1, shape), floor=0.25)
        self.arms = [softmax(regime.sharpness * (share * taste + (1 - share) * rng.normal(0, 0.8, shape)))
                     for share in (0.75, 0.5)]
        self.models = [self.rate * np.exp(rng.normal(0, 0.4, shape)) for _ in self.arms]
        self.regime = regime
        if null:
            low, high = sorted(range(2), key=lambda a: self._value(self.arms[a]))
            better = softmax(regime.sharpness * 2 * taste)
            share = ((self._value(self.arms[high]) - self._value(self.arms[low]))
                     / (self._value(better) - self._value(self.arms[low])))
            self.arms[low] = (1 - share) * self.arms[low] + share * better
        self.true_lift = self._value(self.arms[0]) / self._value(self.arms[1]) - 1

    def _value(self, arm: Floats) -> float:
        return float((arm * self.rate).sum(axis=1).mean())

    def draw(self, rng: np.random.Generator) -> Pair:
        """One log."""
        users, mean = self.regime.users, self.regime.rows_per_user
        heavy = self.regime.pareto
        size = (rng.geometric(1 / mean, users) if heavy is None
                else np.minimum(np.ceil(mean * (1 + rng.pareto(heavy, users))), 100_000).astype(int))
        user = np.repeat(np.arange(users), size)
        home = rng.integers(0, CONTEXTS, (users, 3))  # a user lives in three contexts: rows of a user are alike
        context = home[user, rng.integers(0, 3, len(user))]
        ad = (rng.random((len(user), 1)) > np.cumsum(self.logging[context], axis=1)).sum(axis=1)
        ad = np.minimum(ad, CANDIDATES - 1)
        eager = rng.choice(EAGERNESS, users)[user]
        click = (rng.random(len(user)) < eager * self.rate[context, ad]).astype(float)
        weights = [pi[context, ad] / self.logging[context, ad] for pi in self.arms]
        rows = [(pi * q).sum(axis=1)[context] + w * (click - q[context, ad])
                for pi, q, w in zip(self.arms, self.models, weights, strict=True)]
        return Pair((rows[0], rows[1]), (weights[0], weights[1]), click, user)
