from __future__ import annotations

import math

import numpy as np

from recsys.evaluation.recall import click_recall


def test_against_sorting() -> None:
    r = np.random.default_rng(0)
    users, ads, clicked = r.normal(size=(3000, 4)), r.normal(size=(50, 4)), r.integers(0, 50, 3000)
    order = np.argsort(-(users @ ads.T), axis=1)
    for k, found in click_recall(users, ads, clicked, (1, 7, 50)).items():
        assert found == np.mean((order[:, :k] == clicked[:, None]).any(axis=1))


def test_ties_count_by_their_chance_and_no_clicks_have_none() -> None:
    users, ads = np.ones((4, 1)), np.array([[3.0], [1.0], [1.0], [0.0]])
    assert click_recall(users, ads, np.array([0, 1, 2, 3]), (2,))[2] == (1 + 0.5 + 0.5 + 0) / 4
    assert math.isnan(click_recall(users[:0], ads, np.empty(0, np.int64), (1,))[1])
