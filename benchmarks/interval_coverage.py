"""How often do nominal 95 % intervals of a relative lift cover the truth?

    python benchmarks/interval_coverage.py [--replications 300] [--draws 300] [--out FILE]

Simulates clustered off-policy logs (users with their own taste for a set of contexts and their own click
propensity), evaluates two softmax policies by doubly robust estimation with a noisy outcome model, and intervals
their relative lift by every method. The truth is known exactly. What docs/decisions/0005-intervals.md says about
coverage comes from here.
"""

from __future__ import annotations

import argparse
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recsys import __version__
from recsys.errors import Refused
from recsys.evaluation import intervals
from recsys.evaluation.betting import betting_interval
from recsys.evaluation.offpolicy import effective
from recsys.stage import write_json

CONTEXTS, CANDIDATES = 200, 10


@dataclass(frozen=True)
class Regime:
    """One line of the table: how many users, their mean rows, click rate, how far targets are from logging."""

    users: int
    rows_per_user: float
    click_rate: float
    sharpness: float


REGIMES = (
    Regime(200, 5, 0.05, 1.0), Regime(200, 5, 0.02, 2.5), Regime(500, 8, 0.05, 1.0), Regime(500, 8, 0.02, 1.0),
    Regime(500, 20, 0.05, 2.5), Regime(2000, 5, 0.05, 2.5), Regime(2000, 5, 0.02, 1.0), Regime(1000, 10, 0.004, 1.0),
    Regime(5000, 10, 0.004, 1.0), Regime(4000, 5, 0.05, 1.0), Regime(3000, 10, 0.05, 1.0), Regime(3000, 10, 0.03, 2.5),
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
        user = np.repeat(np.arange(users), rng.geometric(1 / mean, users))
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
    facts = []
    for replication in range(replications):
        rows, weights, click, user = world.draw(np.random.default_rng([seed, replication]))
        sums = intervals.cluster_sums(rows[0], rows[1], user)
        ess = min(effective(w) for w in weights)
        clicks = min(effective(w * click) for w in weights)
        top = max(float(np.sort(w)[-max(1, len(w) // 100):].sum() / w.sum()) for w in weights)
        facts.append((ess, clicks, top))
        choice = intervals.choose_interval(ess, clicks, regime.users, top)
        t = intervals.t_interval(sums)
        try:
            boot = intervals.bootstrap_interval(sums, draws=draws, seed=replication)
        except Refused:  # too few clicks to compare with: the method gives no answer
            boot = intervals.Interval(sums.ratio, -np.inf, np.inf)
        made = {"t": t, "bootstrap": boot, "t+bootstrap": intervals.wider_of(t, boot),
                "betting": betting_interval(sums, seed=replication)}
        made["published"] = made[choice.method]
        chosen[choice.method] = chosen.get(choice.method, 0) + 1
        for name, one in made.items():
            hit.setdefault(name, []).append(one.low <= 1 + world.true_lift <= one.high)
            width.setdefault(name, []).append(one.high - one.low)
    middle = np.median(facts, axis=0)
    return {**asdict(regime), "true_lift": world.true_lift, "ess": middle[0], "effective_clicks": middle[1],
            "top_1_percent_weight_share": middle[2], "published_method": chosen,
            "coverage": {name: float(np.mean(h)) for name, h in hit.items()},
            "median_width": {name: float(np.median(w)) if np.isfinite(np.median(w)) else None
                             for name, w in width.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replications", type=int, default=300)
    parser.add_argument("--draws", type=int, default=300, help="bootstrap draws")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/interval_coverage.json"))
    options = parser.parse_args()
    started, table = time.perf_counter(), []
    print(f"{'users':>6} {'ESS':>7} {'clicks':>7} | coverage: t  boot  t+boot  betting | width t, betting | published")
    for at, regime in enumerate(REGIMES):
        line = measure(regime, options.replications, options.draws, seed=at)
        table.append(line)
        c, w = line["coverage"], {k: np.inf if v is None else v for k, v in line["median_width"].items()}
        print(f"{regime.users:>6} {line['ess']:>7.0f} {line['effective_clicks']:>7.0f} | {c['t']:.3f} "
              f"{c['bootstrap']:.3f} {c['t+bootstrap']:.3f} {c['betting']:.3f} | {w['t']:.3f} {w['betting']:.3f} | "
              f"{c['published']:.3f} {line['published_method']}", flush=True)
    write_json(options.out, {
        "what": "coverage of nominal 95 % intervals of a relative lift, clustered off-policy logs, doubly robust",
        "command": "python benchmarks/interval_coverage.py "
                   f"--replications {options.replications} --draws {options.draws}",
        "replications": options.replications,
        "bootstrap_draws": options.draws, "seconds": round(time.perf_counter() - started, 1),
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {"recsys": __version__, "numpy": np.__version__, "python": platform.python_version()},
        "regimes": table,
    })


if __name__ == "__main__":
    main()
