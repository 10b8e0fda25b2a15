"""Slate estimators on an enumerated world of two slots, where a slot's click depends on the ad above it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pyarrow as pa
import pytest

from recsys.evaluation.offpolicy.estimators import ESTIMATORS, Outcomes
from recsys.evaluation.offpolicy.join import log_of
from recsys.evaluation.offpolicy.slate import slate_weights

LOGGING = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])  # slot x ad, slots drawn independently
TARGET = np.array([[0.2, 0.1, 0.7], [0.5, 0.3, 0.2]])
FIRST = np.array([0.1, 0.3, 0.2])  # click rate of the top slot's ad


def second(above: int, ad: int, kind: str) -> float:
    """Click rate of the lower slot."""
    return {"own": (0.2, 0.1, 0.4)[ad], "cascade": (0.2, 0.1, 0.4)[ad] * (1.0, 0.3, 0.6)[above]}[kind]


def world(kind: str):
    """Every (ads, clicks) of a slate as its two rows, the chance of each under logging, and the target's value."""
    rows, chance, truth = [], [], 0.0
    for a, b in product(range(3), range(3)):
        rates = FIRST[a], second(a, b, kind)
        truth += TARGET[0, a] * TARGET[1, b] * sum(rates) / 2
        for clicks in product((0, 1), (0, 1)):
            p = LOGGING[0, a] * LOGGING[1, b]
            for rate, click in zip(rates, clicks, strict=True):
                p *= rate if click else 1 - rate
            chance.append(p)
            rows += [(a, 0, clicks[0]), (b, 1, clicks[1])]
    n = len(chance)
    order = np.random.default_rng(0).permutation(2 * n)  # rows of a request need not stand together
    ad, slot, click = (np.array([r[k] for r in rows])[order] for k in range(3))
    request = np.repeat(np.arange(n), 2)[order]
    log = log_of(pa.table({
        "request_id": [f"r{i}" for i in request], "slot": pa.array(slot, pa.int32()), "ad_id": [f"a{a}" for a in ad],
        "propensity": LOGGING[slot, ad], "click": pa.array(click, pa.int8())}), request.astype(np.int64))
    weight = TARGET[slot, ad] / LOGGING[slot, ad]
    q = np.array([FIRST, [second(0, b, "own") for b in range(3)]])
    value = (TARGET * q).sum(axis=1)[slot]
    made = Outcomes(weight, click.astype(float), q[slot, ad], value, slate=slate_weights(log, weight, value))
    return made, np.array(chance)[request], truth


def expected(name: str, made: Outcomes, chance: np.ndarray) -> float:
    return float((ESTIMATORS[name].rows(made) * chance).sum() / 2)


def test_all_are_unbiased_where_a_slot_depends_on_its_own_ad():
    made, chance, truth = world("own")
    for name in ("iips", "sips", "rips", "cascade_dr"):
        assert expected(name, made, chance) == pytest.approx(truth, rel=1e-12)
    assert ESTIMATORS["iips"].rows(made) == pytest.approx(ESTIMATORS["ips"].rows(made))


def test_under_a_cascade_the_independent_one_alone_is_biased():
    made, chance, truth = world("cascade")
    for name in ("sips", "rips", "cascade_dr"):
        assert expected(name, made, chance) == pytest.approx(truth, rel=1e-12)
    assert abs(expected("iips", made, chance) - truth) > 1e-3


def test_variance_falls_with_what_is_assumed_and_with_a_model():
    made, chance, _ = world("own")

    def spread(name: str) -> float:
        """Second moment of a row."""
        return float((ESTIMATORS[name].rows(made)**2 * chance).sum())

    assert spread("iips") < spread("rips") < spread("sips")
    assert spread("cascade_dr") < spread("rips")


def test_products_over_three_slots_by_hand():
    log = log_of(pa.table({
        "request_id": ["x", "y", "x", "x"], "slot": pa.array([2, 0, 0, 5], pa.int32()), "ad_id": list("abcd"),
        "propensity": [0.5] * 4, "click": pa.array([0, 1, 0, 1], pa.int8())}), np.zeros(4, dtype=np.int64))
    slate = slate_weights(log, np.array([2.0, 7.0, 3.0, 0.0]), np.array([0.1, 0.2, 0.3, 0.4]))
    assert slate.upto == pytest.approx([6, 7, 3, 0])
    assert slate.above == pytest.approx([3, 1, 1, 6])
    assert slate.whole == pytest.approx([0, 7, 0, 0])
    assert slate.later == pytest.approx([0.4, 0, 0.5, 0])
