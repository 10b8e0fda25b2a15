"""How often do nominal 95 % intervals cover the truth? Of one policy's value, and of the relative lift of two.

    python benchmarks/interval_coverage.py [--replications 400] [--lift-replications 150] [--draws 300]

Values: the importance-weighted (IPS) click rate of a target policy over 40 ads, base click rate 0.4 %, logged
uniformly or with poor overlap; a row's value lies between 0 and the largest weight, which is known. Lifts: clustered
logs (users with their own taste and click propensity), two softmax policies by doubly robust estimation with a noisy
outcome model. The truth is known exactly. Writes benchmarks/results/interval_coverage.json, whose ``certificate`` is
the hash of its cells; docs/decisions/0005 and 0013 say what follows from it.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from common import save

from recsys.errors import Refused
from recsys.evaluation import intervals
from recsys.evaluation.betting import betting_interval, betting_mean, empirical_bernstein
from recsys.evaluation.intervals import effective
from recsys.evaluation.likelihood import empirical_likelihood
from recsys.stage import sha256_json

CONTEXTS, CANDIDATES = 200, 10
ADS, BASE, NOMINAL = 40, 0.004, 0.95
SAFE = ("betting", "empirical_bernstein", "default")
VALUE_CELLS = (("uniform", 2_000), ("uniform", 10_000), ("uniform", 50_000), ("uniform", 100_000),
               ("uniform", 200_000), ("poor", 2_000), ("poor", 10_000), ("poor", 50_000), ("poor", 200_000))


@dataclass(frozen=True)
class Regime:
    """One line of the table: how many users, their mean rows, click rate, how far targets are from logging."""

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


class World:
    """Contexts x candidates with known click rates, a logging policy and two target policies."""

    def __init__(self, regime: Regime, seed: int) -> None:
        rng = np.random.default_rng(seed)
        shape = (CONTEXTS, CANDIDATES)
        taste = rng.normal(0, 0.8, shape)
        rate = np.exp(taste - 0.32)
        self.rate = np.minimum(regime.click_rate * rate, 0.6)
        self.logging = self._softmax(0.5 * rng.normal(0, 1, shape), floor=0.25)
        self.arms = [self._softmax(regime.sharpness * (share * taste + (1 - share) * rng.normal(0, 0.8, shape)))
                     for share in (0.75, 0.5)]
        self.models = [self.rate * np.exp(rng.normal(0, 0.4, shape)) for _ in self.arms]
        self.regime = regime
        self.value = [float((pi * self.rate).sum(axis=1).mean()) for pi in self.arms]
        self.true_lift = self.value[0] / self.value[1] - 1

    @staticmethod
    def _softmax(score: np.ndarray, floor: float = 0.0) -> np.ndarray:
        weight = np.exp(score - score.max(axis=1, keepdims=True))
        return (1 - floor) * weight / weight.sum(axis=1, keepdims=True) + floor / score.shape[1]

    def draw(self, rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray, np.ndarray]:
        """One log: DR rows and weights of each arm, clicks, user codes."""
        users, mean = self.regime.users, self.regime.rows_per_user
        heavy = self.regime.pareto
        size = (rng.geometric(1 / mean, users) if heavy is None
                else np.minimum(np.ceil(mean * (1 + rng.pareto(heavy, users))), 100_000).astype(int))
        user = np.repeat(np.arange(users), size)
        home = rng.integers(0, CONTEXTS, (users, 3))  # a user lives in three contexts: rows of a user are alike
        context = home[user, rng.integers(0, 3, len(user))]
        ad = (rng.random((len(user), 1)) > np.cumsum(self.logging[context], axis=1)).sum(axis=1)
        ad = np.minimum(ad, CANDIDATES - 1)
        # Own click propensity with mean 1; the exact truth stays the mean over contexts.
        eager = rng.choice([0.4, 1.6], users)[user]
        click = (rng.random(len(user)) < eager * self.rate[context, ad]).astype(float)
        rows, weights = [], []
        for pi, q in zip(self.arms, self.models, strict=True):
            weight = pi[context, ad] / self.logging[context, ad]
            weights.append(weight)
            rows.append((pi * q).sum(axis=1)[context] + weight * (click - q[context, ad]))
        return rows, weights, click, user


def measure(regime: Regime, replications: int, draws: int, seed: int) -> dict[str, Any]:
    """Coverage and median width of every method over independent logs of one world."""
    world = World(regime, seed)
    hit: dict[str, list[bool]] = {}
    width: dict[str, list[float]] = {}
    chosen: dict[str, int] = {}
    facts, units = [], []
    for replication in range(replications):
        rows, weights, click, user = world.draw(np.random.default_rng([seed, replication]))
        sums = intervals.cluster_sums(rows[0], rows[1], user)
        ess = min(effective(w) for w in weights)
        clicks = min(effective(w * click) for w in weights)
        top = max(float(np.sort(w)[-max(1, len(w) // 100):].sum() / w.sum()) for w in weights)
        facts.append((ess, clicks, top))
        sizes = [np.bincount(user), *(np.bincount(user, w) for w in weights)]
        units.append(min(map(effective, sizes)))
        try:
            method: str = intervals.choose_interval(ess, clicks, regime.users, top, sizes).method
        except Refused:
            method = "refused"
        t = intervals.t_interval(sums)
        try:
            boot = intervals.bootstrap_interval(sums, draws=draws, seed=replication)
        except Refused:  # too few clicks to compare with: the method gives no answer
            boot = intervals.Interval(sums.ratio, -np.inf, np.inf)
        made = {"t": t, "bootstrap": boot, "t+bootstrap": intervals.wider_of(t, boot),
                "el": empirical_likelihood(sums), "betting": betting_interval(sums, seed=replication)}
        if method != "refused":
            made["published"] = made[method]
        chosen[method] = chosen.get(method, 0) + 1
        for name, one in made.items():
            hit.setdefault(name, []).append(one.low <= 1 + world.true_lift <= one.high)
            width.setdefault(name, []).append(one.high - one.low)
    middle = np.median(facts, axis=0)
    return {**asdict(regime), "true_lift": world.true_lift, "ess": middle[0], "effective_clicks": middle[1],
            "effective_units": float(np.median(units)), "top_1_percent_weight_share": middle[2],
            "published_method": chosen,
            "coverage": {name: float(np.mean(h)) for name, h in hit.items()},
            "median_width": {name: float(np.median(w)) if np.isfinite(np.median(w)) else None
                             for name, w in width.items()}}


class ValueWorld:
    """Contexts x 40 ads, a target policy, and a logging policy that is uniform or shies from what the target likes."""

    def __init__(self, logging: str, seed: int = 1) -> None:
        rng = np.random.default_rng(seed)
        shape = (CONTEXTS, ADS)
        taste, noise = rng.normal(0, 1, shape), rng.normal(0, 1, shape)
        self.rate = BASE * np.exp(0.5 * taste - 0.125)
        self.target = World._softmax(1.3 * (0.6 * taste + 0.8 * noise))
        uniform = np.full(shape, 1 / ADS)
        self.logging = uniform if logging == "uniform" else World._softmax(-0.55 * np.log(self.target), floor=0.1)
        self.weight = self.target / self.logging
        self.value = float((self.target * self.rate).sum(axis=1).mean())
        # One increasing sequence over all contexts: a draw of (context, ad) is one binary search.
        self.cumulative = (np.cumsum(self.logging, axis=1) / self.logging.sum(axis=1, keepdims=True)
                           + np.arange(CONTEXTS)[:, None]).ravel()

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Weights and clicks of n rows."""
        at = np.minimum(np.searchsorted(self.cumulative, rng.random(n) * CONTEXTS), CONTEXTS * ADS - 1)
        return self.weight.ravel()[at], rng.random(n) < self.rate.ravel()[at]


def measure_value(logging: str, n: int, replications: int, draws: int, seed: int) -> dict[str, Any]:
    """Coverage and median width (over the truth) of every method on independent logs of one cell."""
    world = ValueWorld(logging, seed)
    bound = float(world.weight.max())
    made: dict[str, list[intervals.Interval]] = {}
    chosen: dict[str, int] = {}
    facts = []
    for replication in range(replications):
        rng = np.random.default_rng([seed, n, replication])
        weight, click = world.draw(n, rng)
        value = weight * click
        sums = intervals.ClusterSums(value, np.ones(n))
        top = float(np.sort(weight)[-n // 100:].sum() / weight.sum())
        facts.append((effective(weight), effective(value), top))
        one = {"t": intervals.t_interval(sums), "bootstrap": bootstrap_of_rare(value, draws, rng),
               "el_chi2": empirical_likelihood(sums, calibrated=False), "el": empirical_likelihood(sums),
               "betting": betting_mean(value, 0, bound, seed=replication),
               "empirical_bernstein": empirical_bernstein(value, 0, bound)}
        try:
            method: str = intervals.choose_interval(*facts[-1][:2], n, top).method
            one["default"] = (intervals.wider_of(one["t"], one["bootstrap"]) if method == "t+bootstrap"
                              else one[method])
        except Refused:
            method = "refused"
        chosen[method] = chosen.get(method, 0) + 1
        for name, interval in one.items():
            made.setdefault(name, []).append(interval)
    middle = np.median(facts, axis=0)
    coverage = {m: float(np.mean([i.low <= world.value <= i.high for i in found])) for m, found in made.items()}
    width = {m: float(np.median([i.high - i.low for i in found])) / world.value for m, found in made.items()}
    error = {m: float(np.sqrt(NOMINAL * (1 - NOMINAL) / len(found))) for m, found in made.items()}
    return {"logging": logging, "n": n, "ess": middle[0], "effective_clicks": middle[1],
            "top_1_percent_weight_share": middle[2], "largest_weight": bound, "truth": world.value,
            "default_method": chosen, "coverage": coverage, "median_width_over_truth": width,
            "safe_methods_cover": all(coverage[m] >= NOMINAL - 2 * error[m] for m in SAFE if m in coverage),
            "betting_at_most_bernstein": width["betting"] <= width["empirical_bernstein"],
            "default_narrower_than_betting": 1 - width["default"] / width["betting"] if "default" in width else None}


def bootstrap_of_rare(value: np.ndarray, draws: int, rng: np.random.Generator) -> intervals.Interval:
    """The percentile bootstrap of a mean, drawn over distinct values: the same law, without drawing every zero."""
    distinct, counts = np.unique(value, return_counts=True)
    means = rng.multinomial(len(value), counts / len(value), draws) @ distinct / len(value)
    low, high = np.quantile(means, [0.5 - NOMINAL / 2, 0.5 + NOMINAL / 2])
    return intervals.Interval(float(value.mean()), float(low), float(high), method="bootstrap")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replications", type=int, default=400, help="logs per cell of the values")
    parser.add_argument("--lift-replications", type=int, default=150, help="logs per cell of the lifts")
    parser.add_argument("--draws", type=int, default=300, help="bootstrap draws")
    parser.add_argument("--seed", type=int, default=2, help="of the worlds; thresholds were chosen on 1")
    options = parser.parse_args()
    started, values, lifts = time.perf_counter(), [], []
    for logging, n in VALUE_CELLS:
        line = measure_value(logging, n, options.replications, options.draws, options.seed)
        values.append(line)
        print(f"{logging:<8}{n:>7} ESS {line['ess']:>6.0f} clicks {line['effective_clicks']:>4.0f} | "
              + "  ".join(f"{m} {c:.3f} ({line['median_width_over_truth'][m]:.2f})"
                          for m, c in line["coverage"].items()) + f" | {line['default_method']}", flush=True)
    for at, regime in enumerate(REGIMES):
        line = measure(regime, options.lift_replications, options.draws, seed=100 * options.seed + at)
        lifts.append(line)
        c, w = line["coverage"], line["median_width"]
        print(f"{regime.users:>6} users, ESS {line['ess']:>6.0f} clicks {line['effective_clicks']:>4.0f} | "
              + "  ".join(f"{m} {c[m]:.3f} ({np.inf if w[m] is None else w[m]:.2f})" for m in c)
              + f" | {line['published_method']}", flush=True)
    print(save("interval_coverage", {
        "what": "coverage of nominal 95 % intervals; width: median", "certificate": sha256_json([values, lifts]),
        "seed": options.seed, "replications": options.replications, "lift_replications": options.lift_replications,
        "bootstrap_draws": options.draws, "seconds": round(time.perf_counter() - started, 1),
        "values": values, "lifts": lifts}))


if __name__ == "__main__":
    main()
