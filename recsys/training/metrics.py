"""Streaming metrics of predicted log odds against (weighted, possibly binomial) labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_BINS = 1 << 20
_RANGE = 20.0  # log odds beyond +-20 are probabilities beyond 2e-9: they share the outermost bins
_FLUSH = 1 << 18


def base_entropy(rates: Sequence[float]) -> float:
    """Nats a trial that predicting the base rates costs, mean over the heads: what a loss is divided by to be an NE."""
    p = np.clip(np.asarray(rates, np.float64), 1e-12, 1 - 1e-12)
    return float(-(p * np.log(p) + (1 - p) * np.log1p(-p)).mean())


class StreamingMetrics:
    """AUC, normalized entropy, log loss and calibration over any number of batches, in constant memory.

    AUC comes from a histogram of 2^20 bins over log odds -20 .. 20 (a bin is 4e-5 wide); ties within a bin count half.
    Normalized entropy (He et al. 2014, "Practical Lessons from Predicting Clicks on Ads at Facebook"): log loss over
    the entropy of the base rate; 1 is what a constant base-rate prediction gets. Log loss is per trial, in nats.
    """

    def __init__(self) -> None:
        self._hits, self._misses = np.zeros(_BINS), np.zeros(_BINS)
        self._loss = self._predicted = 0.0
        self._rows = 0
        self._pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._pending_rows = 0

    def update(self, logits: np.ndarray, trials: np.ndarray, successes: np.ndarray) -> None:
        """Add rows: log odds, trials and successes (already times the rows' weights), each [n]."""
        z, t, s = (np.asarray(a, np.float64).reshape(-1) for a in (logits, trials, successes))
        self._rows += len(z)
        self._loss += float((t * np.logaddexp(0.0, z) - s * z).sum())
        self._predicted += float((t / (1.0 + np.exp(-np.clip(z, -700, 700)))).sum())
        self._pending.append((z, t, s))
        self._pending_rows += len(z)
        if self._pending_rows >= _FLUSH:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        z, t, s = (np.concatenate(parts) for parts in zip(*self._pending, strict=True))
        bins = np.clip((z + _RANGE) * (_BINS / (2 * _RANGE)), 0, _BINS - 1).astype(np.int64)
        self._hits += np.bincount(bins, s, _BINS)
        self._misses += np.bincount(bins, t - s, _BINS)
        self._pending, self._pending_rows = [], 0

    def result(self) -> dict[str, float | int | None]:
        """auc, normalized_entropy, log_loss, calibration_ratio (sum of predictions / successes), base_rate, trials, n.

        AUC, normalized entropy and calibration are None where the labels are all alike (they are not defined).
        """
        self._flush()
        hits, misses = float(self._hits.sum()), float(self._misses.sum())
        trials = hits + misses
        if trials <= 0:
            return {"auc": None, "normalized_entropy": None, "log_loss": None, "calibration_ratio": None,
                    "base_rate": None, "trials": 0.0, "n": self._rows}
        rate, loss = hits / trials, self._loss / trials
        defined = hits > 0 and misses > 0
        below = np.cumsum(self._misses) - self._misses
        auc = float((self._hits * (below + 0.5 * self._misses)).sum()) / (hits * misses) if defined else None
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)) if defined else None
        return {
            "auc": auc,
            "normalized_entropy": None if entropy is None else float(loss / entropy),
            "log_loss": loss,
            "calibration_ratio": self._predicted / hits if hits > 0 else None,
            "base_rate": rate, "trials": trials, "n": self._rows,
        }
