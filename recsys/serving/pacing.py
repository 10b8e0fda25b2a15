"""Budgets while serving: the multiplicative pacing of :func:`recsys.auction.run_paced`, one request at a time.

Each ad has its own budget a period. It bids a share m of its bid; after each block of time m is multiplied by
exp(step * (1 - spent / target)), the target being what was left of the budget divided evenly over the blocks that were
left. Spend is expected spend, price times predicted click rate, as there. What differs: an ad leaves before the auction
that its budget might not pay (its bid times its click rate, which no price exceeds), not at it, so that whether it
takes part never depends on who was drawn, and propensities stay exact.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from recsys.config import PacingConfig


class Pacer:
    """State of the budgets of one process; thread-safe.

    Args:
        budget: float64[A], currency a period; infinite: none.
        config: period, blocks, step, and this process's share of the budgets.
        clock: seconds.
    """

    def __init__(self, budget: np.ndarray, config: PacingConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._budget, self._config, self._clock = budget * config.share, config, clock
        self._lock = threading.Lock()
        self._begin(clock())

    def _begin(self, now: float) -> None:
        self._started, self._block = now, 0
        self._left, self._before = self._budget.copy(), self._budget.copy()
        self._m = np.ones(len(self._budget))

    def enter(self, rows: np.ndarray, bids: np.ndarray, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Paced bids of some ads, float64, and which of them can pay whatever this auction may charge, bool."""
        with self._lock:
            self._advance()
            paced = bids * self._m[rows]
            return paced, self._left[rows] >= paced * rates

    def carry_over(self, before: Pacer, rows: np.ndarray) -> None:
        """Go on from an earlier version of the ads.

        Args:
            before: its state.
            rows: int64[A], where each ad stood there, -1 for a new one.
        """
        old, at = rows >= 0, np.maximum(rows, 0)
        with self._lock, before._lock:
            def moved(values: np.ndarray) -> np.ndarray:
                return np.where(old & np.isfinite(before._budget[at]), values[at], 0.0)

            with np.errstate(invalid="ignore"):
                spent, in_block = before._budget - before._left, before._before - before._left
            self._started, self._block = before._started, before._block
            self._left = np.maximum(self._budget - moved(spent), 0.0)
            self._before = self._left + moved(in_block)
            self._m = np.where(old, before._m[at], 1.0)

    def charge(self, rows: np.ndarray, amounts: np.ndarray) -> None:
        """Take the expected charges of the ads that were shown."""
        with self._lock:
            np.subtract.at(self._left, rows, amounts)

    @property
    def spent(self) -> np.ndarray:
        """Expected spend of this period so far: float64[A]; 0 for ads without a budget."""
        with self._lock:
            limited = np.isfinite(self._budget)
            return np.where(limited, self._budget, 0.0) - np.where(limited, self._left, 0.0)

    @property
    def multiplier(self) -> np.ndarray:
        """Share of its bid that each ad bids now: float64[A]."""
        with self._lock:
            return self._m.copy()

    def _advance(self) -> None:
        c = self._config
        while (now := self._clock()) - self._started >= (self._block + 1) * c.period_seconds / c.blocks:
            if now - self._started >= c.period_seconds:
                periods = int((now - self._started) // c.period_seconds)
                self._begin(self._started + periods * c.period_seconds)
                continue
            limited = np.isfinite(self._budget)
            target = np.where(limited, self._before, 0.0) / (c.blocks - self._block)
            spent = np.where(limited, self._before, 0.0) - np.where(limited, self._left, 0.0)
            share = np.divide(spent, target, out=np.zeros_like(target), where=target > 0)
            self._m = np.where(limited, np.clip(self._m * np.exp(c.step * (1 - share)), 1e-3, 1.0), 1.0)
            self._before = self._left.copy()
            self._block += 1
