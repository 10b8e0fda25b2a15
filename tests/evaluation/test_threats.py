from __future__ import annotations

from recsys.evaluation.threats import threats
from tests.report import samples


def of(lift: dict, name: str, audit: dict | None = None) -> dict:
    return next(t for t in threats(lift, audit) if t["threat"] == name)


def test_threats_follow_the_design() -> None:
    lift = samples.marketplace()
    names = {t["threat"] for t in threats(lift)}
    assert {"Interference", "Logged propensities", "Several comparisons", "Peeking", "Split"} <= names
    lift |= {"method": "randomized", "multiplicity": "holm", "peeking": "fixed"}
    assert not {"Logged propensities", "Several comparisons", "Peeking"} & {t["threat"] for t in threats(lift)}


def test_threats_say_what_the_log_says_of_them() -> None:
    lift = samples.marketplace()
    assert of(lift, "Novelty and drift")["evidence"] is None
    lift["growth"] = {"halves": {"minilm": {"p_value": None}}}
    assert "Not enough evidence in the two halves" in of(lift, "Novelty and drift")["evidence"]
    lift["growth"] = {"halves": {"minilm": {"p_value": 0.3}, "smollm2": {"p_value": None}, "hashed": {"p_value": 0.01}}}
    assert "hashed differs between the first and the second half" in of(lift, "Novelty and drift")["evidence"]
    lift["growth"]["halves"]["hashed"]["p_value"] = 0.04  # of two: not small enough
    assert "No arm's lift is seen to differ" in of(lift, "Novelty and drift")["evidence"]
    audit = {"requests": {"train": 9, "test": 5, "shared": 1}, "texts": {"train": 4, "test": 3, "shared": 2}}
    split = of(lift, "Split", audit)["evidence"]
    assert split.startswith("1 of 5 test requests are in training too; 2 of 3 test texts")
    for arm in lift["arms"].values():
        arm["diagnostics"]["agreement"] = {"ok": True}
    assert "agree within three" in of(lift, "Logged propensities")["evidence"]
    lift["arms"]["minilm"]["diagnostics"]["agreement"]["ok"] = False
    assert "disagree by more than three standard errors for minilm" in of(lift, "Logged propensities")["evidence"]
