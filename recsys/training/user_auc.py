"""GAUC: the AUC within users, averaged over users; what ranks one user's ads against each other is all that counts.

GAUC = sum over users of impressions x AUC / sum of impressions, over the users whose labels are of both kinds (Zhou et
al. 2018, "Deep Interest Network for Click-Through Rate Prediction", section 5.3). The AUC of a user is exact (ties
count half), so the rows must be kept until the end. Memory is bounded by keeping a sample of whole users: those whose
hash lies below a limit, which is halved whenever more than ``limit`` rows would be kept. Which users are kept thus
depends on the users and their numbers of rows alone, not on the order of the rows or on how they were spread over
processes. Below the limit nothing is left out; above it the error is that of a random sample of users (about
0.3 / sqrt(users kept)), and equal for every model that is measured on the same rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from recsys.features.integers import splitmix64
from recsys.training.grouping import ascending, starts_of_runs

ROWS = 1 << 21
NO_USER = 0
"""``stable_hash`` of a missing ``user_id``: such rows are of no one user and are left out."""


class UserAuc:
    """Rows by user, kept to be ranked within users at the end.

    Args:
        heads: number of predictions a row.
        limit: rows kept at most; one takes 8 + 12 x heads bytes.
    """

    def __init__(self, heads: int = 1, limit: int = ROWS) -> None:
        self._heads, self.limit, self.halvings = heads, limit, 0
        self._parts: list[dict[str, np.ndarray]] = []
        self._rows = 0

    def update(self, user: np.ndarray, logits: np.ndarray, hits: np.ndarray, misses: np.ndarray) -> None:
        """Add rows: int64 [n] hashes of users, and [n, heads] log odds, weighted successes and failures."""
        user, values = np.asarray(user, np.int64), np.stack([logits, hits, misses]).astype(np.float32)
        if not user.all():
            known = np.flatnonzero(user != NO_USER)
            user, values = user[known], values[:, known]
        self._add({"user": user, "values": values})

    def _add(self, part: dict[str, np.ndarray]) -> None:
        if self.halvings:
            part = _kept(part, self.halvings)
        self._parts.append(part)
        self._rows += len(part["user"])
        while self._rows > self.limit and self.halvings < 63:
            self.halve(self.halvings + 1)

    def halve(self, halvings: int) -> None:
        """Keep a 2 ** -halvings share of the users."""
        self.halvings = max(halvings, self.halvings)
        self._parts = [_kept(part, self.halvings) for part in self._parts]
        self._rows = sum(len(part["user"]) for part in self._parts)

    def state(self) -> dict[str, np.ndarray]:
        """``user`` int64 [n], ``values`` float32 [3, n, heads] (log odds, successes, failures), ``halvings`` int64."""
        return {**self._joined(), "halvings": np.array(self.halvings)}

    def merge(self, state: dict[str, np.ndarray]) -> None:
        """Add another's state; the result is that of all rows in one."""
        self.halve(int(state["halvings"]))
        self._add({"user": state["user"], "values": state["values"]})

    def survivors(self) -> np.ndarray:
        """int64 [64]: how many rows k halvings would leave."""
        user = self._joined()["user"]
        return np.array([_chosen(user, k).sum() for k in range(64)], np.int64)

    def _joined(self) -> dict[str, np.ndarray]:
        if not self._parts:
            return {"user": np.zeros(0, np.int64), "values": np.zeros((3, 0, self._heads), np.float32)}
        if len(self._parts) > 1:
            self._parts = [{"user": np.concatenate([p["user"] for p in self._parts]),
                            "values": np.concatenate([p["values"] for p in self._parts], axis=1)}]
        return self._parts[0]

    def result(self, head: int = 0) -> dict[str, Any]:
        """gauc (None where no user has labels of both kinds), gauc_users counted in it, gauc_sample: share of users."""
        part = self._joined()
        auc, impressions = auc_by_group(part["user"], *part["values"][:, :, head])
        total = float(impressions.sum())
        gauc = float((auc * impressions).sum() / total) if total > 0 else None
        return {"gauc": gauc, "gauc_users": len(auc), "gauc_sample": 2.0**-self.halvings}


def auc_by_group(group: np.ndarray, logits: np.ndarray, hits: np.ndarray,
                 misses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exact AUC of every group that has successes and failures; ties count half.

    Args:
        group: int64 [n].
        logits, hits, misses: float32 [n]: predictions, weights of successes and of failures.

    Returns:
        float64 [g]: AUC, and the sum of hits and misses, of the g groups with both.
    """
    if not len(group):
        return np.zeros(0), np.zeros(0)
    # One sort of whole numbers: the group's rank above the prediction's bits, which are put into the numbers' order.
    order = ascending(group)
    code = np.empty(len(group), np.uint64)
    code[order] = np.cumsum(np.concatenate([[0], group[order][1:] != group[order][:-1]]))
    bits = (logits + np.float32(0)).view(np.uint32)  # -0 becomes 0
    bits = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    key = (code << np.uint64(32)) | bits
    order = ascending(key)
    key = key[order]
    ties = starts_of_runs(key)
    h, m = (np.add.reduceat(a[order].astype(np.float64), ties) for a in (hits, misses))
    of = (key[ties] >> np.uint64(32)).astype(np.int64)
    first = starts_of_runs(of)
    before = np.cumsum(m) - m
    pairs = np.add.reduceat(h * (before - before[first][of] + 0.5 * m), first)
    positive, negative = np.add.reduceat(h, first), np.add.reduceat(m, first)
    both = (positive > 0) & (negative > 0)
    return pairs[both] / (positive * negative)[both], (positive + negative)[both]


def _chosen(user: np.ndarray, halvings: int) -> np.ndarray:
    if not halvings:
        return np.ones(len(user), bool)
    # Mixed once more: ids that are not hashes yet are spread, too.
    return np.asarray(splitmix64(user.view(np.uint64)) >> np.uint64(64 - halvings) == 0)


def _kept(part: dict[str, np.ndarray], halvings: int) -> dict[str, np.ndarray]:
    chosen = _chosen(part["user"], halvings)
    return {"user": part["user"][chosen], "values": part["values"][:, chosen]}
