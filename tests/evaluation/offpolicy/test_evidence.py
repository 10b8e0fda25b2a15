"""Slates: bounds and evidence are those of the products of weights, not of a slot's weight."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.evaluation.intervals import effective
from recsys.evaluation.offpolicy.answer import answer
from recsys.evaluation.offpolicy.estimators import Outcomes, Slate
from recsys.evaluation.offpolicy.support import Gaps
from recsys.evaluation.offpolicy.totals import Totals

SLOTS, ADS = 4, 8


def log(requests: int, seed: int, sharp: float = 1.6, ctr: float = 0.03) -> tuple[Outcomes, np.ndarray, float]:
    """Slates logged uniformly, the target's slots drawn independently; rows, their requests, the target's value."""
    world, rng = np.random.default_rng(0), np.random.default_rng(seed)
    target = np.exp(sharp * world.normal(0, 1, (SLOTS, ADS)))
    target /= target.sum(axis=1, keepdims=True)
    rate = ctr * np.exp(world.normal(0, 0.5, (SLOTS, ADS)))
    ad, at = rng.integers(0, ADS, (requests, SLOTS)), np.arange(SLOTS)
    weight = ADS * target[at, ad]
    upto = np.cumprod(weight, axis=1)
    slate = Slate(upto.ravel(), np.ones(weight.size), np.repeat(upto[:, -1], SLOTS), None)
    click = (rng.random(ad.shape) < rate[at, ad]).astype(float)
    return (Outcomes(weight.ravel(), click.ravel(), slate=slate), np.repeat(np.arange(requests), SLOTS),
            float((target * rate).sum(axis=1).mean()))


def totals(made: Outcomes, request: np.ndarray) -> Totals:
    found = Totals(("ips", "sips", "rips"), len(made.reward))
    half = len(request) // 2  # batches end between requests
    for rows in (slice(0, half), slice(half, None)):
        assert made.slate is not None
        part = Slate(made.slate.upto[rows], made.slate.above[rows], made.slate.whole[rows], None)
        found.add(Outcomes(made.weight[rows], made.reward[rows], slate=part), request[rows], 0, Gaps(slots=SLOTS))
    return found


def test_headroom_and_evidence_are_those_of_the_slates_own_weight() -> None:
    made, request, _ = log(2000, 1)
    assert made.slate is not None
    found = totals(made, request)
    for name, weight in (("ips", made.weight), ("rips", made.slate.upto), ("sips", made.slate.whole)):
        ratio = found.sums(name).ratio()
        assert ratio.largest == pytest.approx(np.bincount(request, weight)), name  # every row clicked
    ess, clicks, units, (size, weight) = found.evidence("slate")
    assert ess == pytest.approx(effective(made.slate.whole[::SLOTS]))  # a slate is one, not one per slot
    assert clicks == pytest.approx(effective(made.slate.whole * made.reward, request))
    assert (units, size.sum()) == (2000, len(request))
    assert weight == pytest.approx(np.bincount(request, made.slate.whole))
    facts = found.facts()["slate_weights"]
    assert facts["slate"]["max_weight"] == made.slate.whole.max() > facts["prefix"]["max_weight"] / 2
    assert facts["slate"]["ess"] < facts["prefix"]["ess"] < found.facts()["ess"]


def test_slates_are_intervalled_by_their_own_evidence_and_cover() -> None:
    """60 logs on which a slot's weights carry a confirmatory interval and those of whole slates do not."""
    held: dict[str, list[bool]] = {"ips": [], "sips": [], "rips": []}
    for seed in range(60):
        made, request, truth = log(4000, seed)
        result = answer(totals(made, request), seed=seed)
        assert result["interval"] == "t+el"
        sips = result["estimators"]["sips"]
        if sips["low"] is None:
            assert "weights of a slate average" in sips["note"] or "effective sample size" in sips["note"]
            continue
        assert (sips["method"], sips["label"]) == ("betting", "exploratory")
        for name, hits in held.items():
            one = result["estimators"][name]
            if one["low"] is not None:
                hits.append(one["low"] <= truth <= one["high"])
    for name, hits in held.items():
        assert len(hits) > 50
        assert np.mean(hits) >= 0.95 - 2 * np.sqrt(0.05 * 0.95 / len(hits)), name


def test_too_few_slates_get_no_interval_and_a_reason() -> None:
    made, request, _ = log(400, 3, sharp=1.8, ctr=0.1)
    result = answer(totals(made, request))
    assert result["estimators"]["ips"]["low"] is not None
    assert result["estimators"]["sips"]["low"] is None
    assert result["estimators"]["sips"]["note"].startswith("no interval: ")
