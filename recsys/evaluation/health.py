"""Checks that stand above the numbers of a report: a failed one greys the lifts out, a fatal one refuses them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike
from scipy.special import bdtrc, chdtrc

from recsys.errors import InputError
from recsys.evaluation.columns import encode

SRM_ALPHA = 1e-3
LOSS_SHARE = 0.01  # of the slots
SRM_SHARE = 0.1  # of many small tests: real logs have a few odd ones (arms added late), a broken splitter most


def check(name: str, ok: bool, detail: str) -> dict[str, Any]:
    """One line of the health banner."""
    return {"check": name, "ok": bool(ok), "detail": detail}


def srm(counts: ArrayLike, shares: ArrayLike | None = None) -> tuple[float, float]:
    """Sample ratio mismatch: chi-square statistic and p-value of counts against planned shares.

    Args:
        counts: float[k], units per arm.
        shares: float[k], planned; default equal.

    References:
        Fabijan et al. (2019). Diagnosing sample ratio mismatch in online controlled experiments. KDD.
    """
    seen = np.asarray(counts, dtype=np.float64)
    planned = np.ones(len(seen)) if shares is None else np.asarray(shares, dtype=np.float64)
    if len(seen) < 2 or len(seen) != len(planned) or not (planned > 0).all() or seen.sum() <= 0:
        raise InputError("counts not allowed", got=seen.tolist(), expected="two or more arms with planned shares > 0")
    expected = seen.sum() * planned / planned.sum()
    statistic = float(((seen - expected) ** 2 / expected).sum())
    return statistic, float(chdtrc(len(seen) - 1, statistic))


def srm_of_groups(trials: ArrayLike, groups: ArrayLike, pooled: bool = False) -> dict[str, Any]:
    """Sample ratio mismatch over many small tests at once: are there more small p-values than chance makes?

    Args:
        trials: float[n], viewers of each arm; equal shares were planned within a group.
        groups: int[n], codes 0..G-1.
        pooled: an arm may be the sum of two or three equal arms (repeated rows that were added up), so its planned
            share is the nearest such multiple of the group's smallest arm.

    Returns:
        A health line; not ok where more than a tenth of the groups have p < 0.01, and so many have themselves a
        binomial probability below 0.001 under equal allocation.
    """
    count, code = np.asarray(trials, dtype=np.float64), np.asarray(groups, dtype=np.int64)
    parts = _parts(count, code) if pooled else np.ones(len(count))
    arms, total = np.bincount(code), np.bincount(code, count)
    use = (arms >= 2) & (total > 0)
    if not use.any():
        return check("sample ratio", True, "no test with two or more arms to check")
    expected = (total / np.maximum(np.bincount(code, parts), 1.0))[code] * parts
    safe = np.where(expected > 0, expected, 1.0)
    statistic = np.bincount(code, (count - expected) ** 2 / safe)
    small, tests = int((chdtrc(arms[use] - 1, statistic[use]) < 0.01).sum()), int(use.sum())
    # bdtrc(k, n, p) is the chance of more than k of n
    overall = 1.0 if small == 0 else float(bdtrc(small - 1, tests, 0.01))
    ok = overall >= SRM_ALPHA or small <= SRM_SHARE * tests
    return check("sample ratio", ok,
                 f"{small} of {tests} tests have p < 0.01 for equal allocation (about {tests / 100:.0f} expected; "
                 f"p = {overall:.2g})" + ("" if ok else "; mend the splitter, or leave the tests it made out"))


def _parts(count: np.ndarray, code: np.ndarray) -> np.ndarray:
    least = np.full(int(code.max()) + 1, np.inf)
    np.minimum.at(least, code, count)
    parts: np.ndarray = np.rint(count / np.maximum(least[code], 1.0))
    return np.where((parts >= 1) & (parts <= 3), parts, 1.0)


def duplicates(table: pa.Table, decision: tuple[str, ...] = ("request_id", "slot")) -> dict[str, Any]:
    """Health line: no impression and no decision (one slot of a request, one arm of a test) stands in the log twice.

    Args:
        table: ``impression_id`` and the columns of ``decision`` that it has; keys may be 64-bit hashes (uint64), which
            are sorted: ten times as fast. Rows without an impression are left aside.
        decision: columns that together name a decision.
    """
    keys = {"an impression": ["impression_id"], "a decision": [k for k in decision if k in table.column_names]}
    worst, named = 0, [what for what, names in keys.items() if names]
    for names in filter(None, keys.values()):
        known = table.select(names)
        if len(names) == 1 and (column := known.column(0)).null_count:
            known = known.filter(pc.is_valid(column))
        if len(names) == 1 and known.schema.types[0] == pa.uint64():
            key = np.sort(known.column(0).to_numpy())
            worst = max(worst, int((key[1:] == key[:-1]).sum()))
        else:
            worst = max(worst, known.num_rows - known.group_by(names).aggregate([]).num_rows)
    return check("duplicate exposures", worst == 0,
                 f"{worst:,} of {table.num_rows:,} rows repeat {' or '.join(named)}")


def logging_loss(table: pa.Table) -> list[dict[str, Any]]:
    """Health line: no slot is missing above one that was logged; none where the log has no slots.

    A request that has slot 2 was shown slots 0 and 1 as well, so that what lacks was lost between serving and here.
    """
    if "slot" not in table.column_names or table.column("slot").null_count:
        return []
    code = encode(table.column("request_id"))[1]
    slot = table.column("slot").to_numpy().astype(np.int64)
    deepest = np.full(int(code.max()) + 1, -1, dtype=np.int64)
    np.maximum.at(deepest, code, slot)
    expected = int((deepest + 1).sum())
    lost = expected - len(np.unique(code * (int(slot.max()) + 1) + slot))
    return [check("logging loss", lost <= LOSS_SHARE * expected,
                  f"{lost:,} of {expected:,} slots down to the deepest one logged are missing (up to "
                  f"{100 * LOSS_SHARE:g} % is let pass)")]


def exposure(table: pa.Table) -> list[dict[str, Any]]:
    """Health line: every shown ad was among its request's candidates; none where the log has no candidates."""
    if "candidates" not in table.column_names or table.column("candidates").null_count:
        return []
    lists = table.column("candidates").combine_chunks()
    lists = pa.concat_arrays(lists.chunks) if isinstance(lists, pa.ChunkedArray) else lists
    parent = pc.list_parent_indices(lists)
    shown = table.column("ad_id").combine_chunks()
    shown = pa.concat_arrays(shown.chunks) if isinstance(shown, pa.ChunkedArray) else shown
    hit = pc.equal(lists.flatten(), shown.take(parent).cast(lists.type.value_type)).to_numpy(zero_copy_only=False)
    outside = table.num_rows - len(np.unique(parent.to_numpy()[hit]))
    return [check("exposure", outside == 0,
                  f"{outside:,} of {table.num_rows:,} shown ads were not among their request's candidates")]


def support(gaps: Mapping[str, float], most: float) -> dict[str, Any]:
    """Health line: arms keep to ads that the log shows (``gaps``: arm -> its probability of others)."""
    worst = max(gaps, key=lambda name: gaps[name])
    return check("support", gaps[worst] <= most, f"at most {100 * gaps[worst]:.3g} % of an arm's probability "
                 f"({worst}) is on ads that the log never shows"
                 + (" (intervals are widened by all that these could earn)" if gaps[worst] else ""))


def aa(found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Health line: on random halves of their own units, lifts are found no more often than the level says.

    Fails where an arm's rejections are so many that chance makes them less than once in a thousand reports. Too few
    only mean that intervals are wider than they need be. Refused ones (few units or events) are left aside; no line
    without any.

    Args:
        found: arm -> :func:`recsys.evaluation.aa.aa_of_sums`' answer, or {"refused"}.
    """
    known = {name: one for name, one in found.items() if "refused" not in one}
    if not known:
        return []
    ok = all(one["excess_p"] * len(known) >= SRM_ALPHA for one in known.values())
    alpha = next(iter(known.values()))["alpha"]
    return [check("A/A", ok, ", ".join(f"{name} {100 * one['rejected']:.1f} %" for name, one in known.items())
                  + f" of random halves without a difference rejected, expected {100 * alpha:g} %")]


def split_audit(audit: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Health line of the split's ``audit.json``, where the caller has one: what the two parts hold and share.

    A shared story is a failure here only if the audit says that rows belong to stories; elsewhere (the same ads
    before and after a date) sharing is what serving looks like.
    """
    if audit is None:
        return []
    counted = {name: audit[name] for name in ("requests", "groups", "texts") if isinstance(audit.get(name), dict)}
    detail = "; ".join(f"{name}: {part.get('train', 0):,} train, {part.get('test', 0):,} test, "
                       f"{part.get('shared', 0):,} shared" for name, part in counted.items())
    leaks = [counted[n].get("shared", 0) for n in ("groups", "texts") if n in counted] if audit.get("stories") else []
    requests = counted.get("requests", {}).get("shared", 0)
    ok = not any(leaks) and not requests
    return [check("split audit", ok, (detail or "no counts in the audit") + (
        "" if ok else "; what is shared can be remembered: split by story, or by request"))]


def unit_of_analysis(table: pa.Table, unit: str) -> dict[str, Any]:
    """Health line: units that share a user (or a story) are not analysed as if they were independent."""
    for wider in ("user_id", "group_id"):
        if wider == unit or wider not in table.column_names:
            continue
        known = table.select([unit, wider]).filter(pc.is_valid(table.column(wider)))  # one null hides nothing
        pairs = known.group_by([unit, wider]).aggregate([])
        units, groups = (len(pc.unique(pairs.column(n))) for n in (unit, wider))
        nested = pairs.num_rows == units  # every unit lies in one of the wider groups
        if nested and groups < units:
            return check("unit of analysis", False, f"{units:,} values of {unit} lie in {groups:,} of {wider}: their "
                         f"outcomes may depend on each other, so intervals are too narrow; analyse by {wider}")
    return check("unit of analysis", True, f"independent unit: {unit}")
