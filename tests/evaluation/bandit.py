"""A small clustered bandit with a known truth, shared by the tests of this room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from recsys.config import ExperimentConfig


@dataclass(frozen=True)
class Bandit:
    """``contexts`` x ``ads`` click rates, a logging policy and named target policies."""

    rate: np.ndarray
    logging: np.ndarray
    targets: dict[str, np.ndarray]
    price: np.ndarray

    @classmethod
    def make(cls, seed: int = 0, contexts: int = 12, ads: int = 6, click_rate: float = 0.12) -> Bandit:
        rng = np.random.default_rng(seed)
        rate = click_rate * np.exp(rng.normal(-0.1, 0.5, (contexts, ads)))
        logging = rng.dirichlet(np.full(ads, 5.0), contexts)
        good = rate**2 / (rate**2).sum(axis=1, keepdims=True)
        targets = {"logged": logging, "uniform": np.full((contexts, ads), 1 / ads), "good": good}
        return cls(np.minimum(rate, 0.9), logging, targets, rng.uniform(0.1, 1.0, (contexts, ads)))

    def truth(self, name: str) -> dict[str, float]:
        clicks = self.targets[name] * self.rate
        return {"ctr": float(clicks.sum(axis=1).mean()),
                "revenue_per_mille": float(1000 * (clicks * self.price).sum(axis=1).mean())}

    def log(self, users: int, seed: int, per_user: int = 5) -> tuple[pa.Table, np.ndarray]:
        """IMPRESSIONS of one slot a request, and each row's context."""
        rng = np.random.default_rng(seed)
        user = np.repeat(np.arange(users), rng.integers(1, 2 * per_user, users))
        context = rng.integers(0, len(self.rate), users)[user]  # all rows of a user share a context
        again = rng.random(len(user)) < 0.5
        context = np.where(again, rng.integers(0, len(self.rate), len(user)), context)
        ad = (rng.random((len(user), 1)) > self.logging[context].cumsum(axis=1)).sum(axis=1)
        ad = np.minimum(ad, self.logging.shape[1] - 1)
        click = rng.random(len(user)) < self.rate[context, ad]
        names = [f"r{i}" for i in range(len(user))]
        return pa.table({
            "impression_id": names, "request_id": names, "slot": pa.array(np.zeros(len(user)), pa.int32()),
            "user_id": [f"u{u}" for u in user], "ad_id": [f"a{a}" for a in ad],
            "propensity": self.logging[context, ad], "click": pa.array(click.astype(np.int8)),
            "dwell_ms": np.where(click, rng.uniform(0, 20_000, len(user)), 0.0),
        }), context

    def policy(self, name: str, context: np.ndarray, model: bool = True, wrong: float = 1.0) -> pa.Table:
        """POLICY rows of a target; ``wrong`` scales the outcome model away from the truth."""
        n, k = len(context), self.rate.shape[1]
        columns: dict[str, Any] = {
            "request_id": np.repeat([f"r{i}" for i in range(n)], k), "slot": pa.array(np.zeros(n * k), pa.int32()),
            "ad_id": np.tile([f"a{a}" for a in range(k)], n), "probability": self.targets[name][context].ravel(),
            "price_per_click": self.price[context].ravel(),
        }
        if model:
            columns["expected_click"] = np.minimum(wrong * self.rate[context], 1.0).ravel()
        return pa.table(columns)


def config(arms: list[str], **evaluation: Any) -> ExperimentConfig:
    """An experiment file with these arms, the first being the baseline."""
    return ExperimentConfig.model_validate({
        "name": "test", "data": {"recipe": "none"}, "split": {"kind": "user"}, "arms": {name: {} for name in arms},
        "evaluation": {"bootstrap": 300, **evaluation},
    })
