"""The lift told apart by segments that the experiment file named beforehand: corrected, and shrunk to the whole.

A segment is a value of a column that is known before anything is shown (surface, device, kind of user). Every number
is over the same clusters as the whole's. Three readings per arm and column:

* each segment's own lift, with its p-value against no lift adjusted over all segments of all arms;
* whether the segments differ at all: Wald's test of equal lifts, with the cluster-robust covariance of all segments (a
  user who is in several makes them dependent), adjusted over arms and columns. It leans on the central limit theorem,
  so it is over the segments whose own evidence is confirmatory;
* each lift shrunk towards the arm's overall lift (:mod:`recsys.evaluation.shrinkage`): the best of a dozen noisy
  segments looks better than it is, and shrinking takes that back. Its interval is normal as well, and left out where
  the segment's evidence is not confirmatory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import fdtrc, stdtr

from recsys.errors import InputError, Refused
from recsys.evaluation.columns import encode
from recsys.evaluation.comparison import Comparison, ends
from recsys.evaluation.decision import adjust, level_of, look_p
from recsys.evaluation.intervals import Floats, cluster_sums, t_interval
from recsys.evaluation.shrinkage import shrink

if TYPE_CHECKING:  # a sixth of a second of pydantic that `recsys ab` has no use for
    from recsys.config import ExperimentConfig

POOLED, ABSENT = "other", "not known"
_SAME_REQUEST = ("slot",)  # known before the ad is, yet not one value a request


@dataclass(frozen=True)
class Segments:
    """One column's segments: ``codes`` int64[n] point into ``labels``."""

    labels: list[str]
    codes: NDArray[np.int64]

    def of(self, rows: NDArray[np.int64]) -> Segments:
        """The same for chosen rows."""
        return Segments(self.labels, self.codes[rows])


def read_segments(table: pa.Table, columns: Sequence[str], most: int = 12) -> dict[str, Segments]:
    """Segments of a log's rows by each named column.

    Args:
        table: IMPRESSIONS; ``request_id`` tells which rows belong together.
        columns: names; numbers with more than ``most`` values are cut at their quartiles, of other columns the
            ``most`` most frequent values are kept and the rest is pooled; nulls are a segment.
        most: see ``columns``.

    Raises:
        InputError: a column is missing, or differs within a request: then it may say which ad was shown.
    """
    request = encode(table.column("request_id"))[1] if columns else None
    found = {}
    for name in columns:
        if name not in table.column_names:
            raise InputError("missing column", file="log", column=name, got=sorted(table.column_names),
                             expected="a column to tell segments by (decision.segments)")
        made = segments_of(table.column(name), most)
        if name not in _SAME_REQUEST:
            _require_one_per_request(made, request, name)
        found[name] = made
    return found


def segments_of(column: pa.ChunkedArray, most: int = 12) -> Segments:
    """A column's segments, as :func:`read_segments` makes them."""
    return _quartiles(column, most) or _values(column, most)


def _require_one_per_request(made: Segments, request: NDArray[np.int64] | None, name: str) -> None:
    assert request is not None
    first = np.zeros(int(request.max()) + 1, dtype=np.int64)
    first[request[::-1]] = made.codes[::-1]
    if (wrong := made.codes != first[request]).any():
        raise InputError("segment differs within a request", file="log", column=name, row=int(np.argmax(wrong)),
                         got=made.labels[int(made.codes[np.argmax(wrong)])],
                         expected="one value for all rows of a request, known before anything is shown")


def _quartiles(column: pa.ChunkedArray, most: int) -> Segments | None:
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)) or len(pc.unique(column)) <= most:
        return None
    values = pc.cast(column, pa.float64()).to_numpy()
    known = np.isfinite(values)
    edges = np.unique(np.quantile(values[known], [0, 0.25, 0.5, 0.75, 1]))
    codes = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, max(0, len(edges) - 2))
    labels = [f"{a:.4g} to {b:.4g}" for a, b in pairwise(edges)] or [f"{edges[0]:.4g}"]
    if not known.all():
        codes, labels = np.where(known, codes, len(labels)), [*labels, ABSENT]
    return Segments(labels, codes.astype(np.int64))


def _values(column: pa.ChunkedArray, most: int) -> Segments:
    names, code = encode(pc.fill_null(pc.cast(column, pa.string()), ABSENT))
    labels = [str(v) for v in names.to_pylist()]
    count = np.bincount(code, minlength=len(labels))
    order = sorted(range(len(labels)), key=lambda i: (-int(count[i]), labels[i]))
    kept = sorted(labels[i] for i in order[:most])
    place = {label: kept.index(label) for label in kept}
    to = np.array([place.get(label, len(kept)) for label in labels], dtype=np.int64)
    return Segments([*kept, POOLED] if len(order) > most else kept, to[code])


def segment_lifts(c: Comparison, segments: Mapping[str, Segments], config: ExperimentConfig) -> dict[str, Any]:
    """Every arm's lift in every segment.

    Args:
        c: arms on one log, n rows.
        segments: column -> segments of the same rows.
        config: level, multiplicity and looks are the decision rule's.

    Returns:
        column -> {"values": {segment: {"n", "clusters"}}, "arms": {arm: {"heterogeneity": {"statistic", "df",
        "p_value", "p_adjusted", "segments": those it is over} or None for fewer than two, "between_sd": spread of true
        lifts or None, "values": {segment: {"lift", "se", "shrunk", "p_value", "p_adjusted", "interval_method",
        "label"} or {"refused"}}}}}. Empty without segments. ``se`` is the delta method's whatever the interval, because
        shrinking needs one of each; a betting interval has no p-value, counts in the family and is never significant.
    """
    out: dict[str, Any] = {}
    for column, made in segments.items():
        size = np.bincount(made.codes, minlength=len(made.labels))
        units = [len(np.unique(c.clusters[made.codes == g])) for g in range(len(made.labels))]
        parts = [_part(c, np.flatnonzero(made.codes == g)) for g in range(len(made.labels))]
        out[column] = {"values": {label: {"n": int(n), "clusters": u}
                                  for label, n, u in zip(made.labels, size, units, strict=True)},
                       "arms": {name: _arm(c, made, parts, name, config) for name in c.arms if name != c.baseline}}
    _adjusted(out, config)
    return out


def _part(c: Comparison, rows: NDArray[np.int64]) -> Comparison | Refused:
    try:
        return c.part(rows)
    except Refused as refused:
        return refused


def _arm(c: Comparison, made: Segments, parts: Sequence[Comparison | Refused], name: str,
         config: ExperimentConfig) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {}
    for label, part in zip(made.labels, parts, strict=True):
        try:
            if isinstance(part, Refused):
                raise part
            choice, lift = part.choice_of(c.goal, name, c.baseline), part.lift(name, c.baseline, c.goal)
            plain = t_interval(cluster_sums(part.arms[name].rows[c.goal], part.arms[c.baseline].rows[c.goal],
                                            part.clusters), c.confidence)
            # A bootstrap's p-value is no finer than its draws: too coarse for dozens of segments, so its error is used.
            own = 2 * float(stdtr(part.units - 1, -abs(lift.estimate) / lift.se)) if lift.se else lift.p_value
            p_value = look_p(lift.estimate, lift.se, own if lift.method == "t+bootstrap" else lift.p_value, part.units,
                             config)
        except Refused as refused:
            found[label] = {"refused": str(refused)}
            continue
        found[label] = {"lift": ends(lift), "se": plain.se, "p_value": p_value, "interval_method": lift.method,
                        "label": choice.label, "shrunk": None}
    told = [g for g, label in enumerate(made.labels) if "lift" in found[label]]
    noisy = [g for g in told if found[made.labels[g]]["se"] > 0]  # where both arms do the same, nothing is to shrink
    overall = float(c.arms[name].rows[c.goal].sum() / c.arms[c.baseline].rows[c.goal].sum()) - 1
    shrunk = shrink([found[made.labels[g]]["lift"]["estimate"] for g in noisy],
                    [found[made.labels[g]]["se"] for g in noisy], overall)
    z = NormalDist().inv_cdf(0.5 + c.confidence / 2)
    for at, g in enumerate(noisy):
        estimate, half = float(shrunk.estimate[at]), z * float(shrunk.se[at])
        one = found[made.labels[g]]
        if shrunk.between is not None:
            sure = one["label"] == "confirmatory" and _exact(c, name)
            one["shrunk"] = {"estimate": estimate, "low": max(-1.0, estimate - half) if sure else None,
                             "high": estimate + half if sure else None}
    tested = [g for g in told if found[made.labels[g]]["label"] == "confirmatory"]
    return {"heterogeneity": equal_lifts(c, made, name, tested), "between_sd": shrunk.between, "values": found}


def _exact(c: Comparison, name: str) -> bool:
    """Do both arms keep to ads that the log shows?"""
    return all(c.arms[n].reach_of(c.goal).exact for n in (name, c.baseline))


def equal_lifts(c: Comparison, made: Segments, name: str, told: Sequence[int]) -> dict[str, Any] | None:
    """Wald's test that an arm's lift is the same in all of the named segments.

    None for fewer than two segments, and where either arm shows ads that the log never did: they could make the
    difference.

    With psi_cg = (a_cg - R_g b_cg) / sum_c b_cg, the influence of cluster c on the ratio R_g of segment g, the
    covariance of the ratios is G / (G - 1) sum_c psi_c psi_c', whatever clusters the segments share. The statistic over
    its degrees of freedom is referred to F with as many, and G - 1.
    """
    if len(told) < 2 or not _exact(c, name):
        return None
    count, width = int(c.clusters.max()) + 1, len(made.labels)
    key = c.clusters * width + made.codes
    a, b = (np.bincount(key, x, count * width).reshape(count, width)[:, list(told)]
            for x in (c.arms[name].rows[c.goal], c.arms[c.baseline].rows[c.goal]))
    ratio = a.sum(axis=0) / b.sum(axis=0)
    influence = (a - ratio * b) / b.sum(axis=0)
    units = int((np.bincount(c.clusters) > 0).sum())
    spread = influence.T @ influence * units / (units - 1)
    contrast: Floats = np.diff(np.eye(len(told)), axis=0)
    away = contrast @ ratio
    statistic = float(away @ np.linalg.pinv(contrast @ spread @ contrast.T) @ away)
    df = len(told) - 1
    return {"statistic": statistic, "df": df, "p_value": float(fdtrc(df, units - 1, statistic / df)),
            "segments": [made.labels[g] for g in told]}


def _adjusted(out: dict[str, Any], config: ExperimentConfig) -> None:
    """P-values adjusted in two families: lifts of segments, and differences between segments."""
    lifts = {(column, arm, label): line for column, found in out.items() for arm, one in found["arms"].items()
             for label, line in one["values"].items() if "lift" in line}
    tests = {(column, arm): one["heterogeneity"] for column, found in out.items()
             for arm, one in found["arms"].items() if one["heterogeneity"] is not None}
    for family in (lifts, tests):
        names = {" ".join(map(repr, key)): line for key, line in family.items()}
        adjusted = adjust({k: line["p_value"] for k, line in names.items()}, config.decision.multiplicity,
                          level_of(config))
        for key, line in names.items():
            line["p_adjusted"] = adjusted[key]
