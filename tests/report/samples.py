"""Fabricated reports for the tests of the rendering. No number here was measured."""

from __future__ import annotations

import copy
import datetime as dt
from typing import Any

from recsys.config import ExperimentConfig
from recsys.evaluation.decision import GoalTest, decide, policy_words
from recsys.evaluation.threats import threats
from recsys.ledger import book, cloud_costs, load_card, statement

Json = dict[str, Any]


def interval(estimate: float, low: float, high: float) -> Json:
    return {"estimate": estimate, "low": low, "high": high}


def arm(value: float, lift: Json | None, cost: float, truth: float | None = None, revenue: Json | None = None) -> Json:
    out: Json = {
        "value": value, "value_interval": {"low": value * .96, "high": value * 1.04}, "n": 184_320, "clusters": 12_034,
        "cost_per_mille_usd": cost, "cost_per_mille_interval": {"low": cost * .39, "high": cost},
        "lift": lift or interval(0.0, 0.0, 0.0), "label": "confirmatory", "interval_method": "DR, t",
        "secondary": {"revenue_per_mille": {"value": value * 120, "lift": revenue or interval(0.0, 0.0, 0.0)},
                      "engagement": {"value": value * .4, "lift": interval(.004, -.01, .018)}},
        "diagnostics": {"ess": 14_211.3, "max_weight": 21.4, "mean_weight": 1.003, "mean_weight_se": .006,
                        "top_1_percent_weight_share": .08, "clip_sensitivity": {"10": value * .98},
                        "estimators": {"dr": value * .995, "ips": value * 1.01, "snips": value, "dm": None}},
    }
    if lift is not None:
        out["absolute_lift"] = interval(*(lift[k] * .016 for k in ("estimate", "low", "high")))
    if truth is not None:
        out |= {"true_lift": truth, "covers_truth": lift is None or lift["low"] <= truth <= lift["high"]}
    return out


def marketplace() -> Json:
    return {
        "experiment": "marketplace", "goal": "ctr", "method": "offpolicy", "unit": "user_id", "confidence": 0.95,
        "baseline": "ids_only", "created": "2026-11-23T22:00:00+00:00", "seed": 0,
        "arms": {
            "ids_only": arm(.0160, None, 8.5e-7, 0.0),
            "hashed": arm(.0166, interval(.038, .009, .067), 8.5e-7, .031, interval(.03, -.004, .064)),
            "minilm": arm(.0174, interval(.089, .058, .121), 2.1e-6, .094, interval(.08, .042, .118)),
            "smollm2": arm(.0175, interval(.094, .062, .127), 2e-5, .099, interval(.085, .046, .125)),
        },
        "pairwise": {"minilm vs smollm2": {"difference": interval(-.005, -.024, .014)},
                     "hashed vs smollm2": {"difference": interval(-.056, -.082, -.03)},
                     "hashed vs minilm": {"difference": interval(-.051, -.076, -.026)}},
        "multiplicity": "none: not corrected for the number of arms",
        "health": [{"check": "mean importance weight", "ok": True, "detail": "1.003 ± 0.006"},
                   {"check": "logged propensities", "ok": True, "detail": "all in (0, 1]"},
                   {"check": "split", "ok": True, "detail": "no request on both sides"}],
        "config_sha256": "9f2c" * 16, "data_sha256": "41ab" * 16,
        "versions": {"recsys": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
    }


def decided() -> Json:
    """The marketplace judged by a rule; the rule is real, the numbers are not."""
    lift = copy.deepcopy(marketplace())
    config = ExperimentConfig.model_validate({
        "name": "marketplace", "data": {"recipe": "marketplace"}, "split": {"kind": "time"}, "baseline": "ids_only",
        "arms": {n: {} for n in lift["arms"]}, "decision": {"minimum_effect": .02, "guardrails": [
            {"metric": "engagement", "better": "higher", "tolerated": .02},
            {"metric": "latency_ms", "better": "lower", "limit": 50}]}})
    for name, latency in (("hashed", 2.0), ("minilm", 12.5), ("smollm2", 80.0)):
        lift["arms"][name]["latency_ms"] = latency
    goals = {n: GoalTest(a["lift"]["estimate"], .016, p, 12_034, "confirmatory")
             for (n, a), p in zip(list(lift["arms"].items())[1:], (.26, 1e-5, 1e-5), strict=True)}
    lift |= {"healthy": True, "minimum_effect": .02, **policy_words(config, 3)}
    lift["decision"] = {**decide(lift, goals, config), "registered": "2026-11-23T21:00:00+00:00", "looks": 1}
    return lift


def evidenced() -> Json:
    """The judged marketplace with growth, segments, A/A, the raw lift and threats; their shapes are the report's."""
    lift = decided()
    arms = [n for n in lift["arms"] if n != lift["baseline"]]
    lift["not_checked"] = [{"check": "sample ratio", "why": "nobody was assigned to an arm"}]
    lift["growth"] = {"column": "ts", "looks": 6, "tuning": 5000.0, "confidence": .95, "halves": {
        n: {"first": interval(.08, .03, .13), "second": interval(.1, .05, .15), "p_value": .6} for n in arms},
        "arms": {n: [{"until": f"2026-11-0{i}T12:00+00:00", "n": 30_000 * i, "units": 2000 * i,
                      "lift": interval(.09, .09 - .2 / i, .09 + .2 / i),
                      "one_look": interval(.09, .09 - .1 / i, .09 + .1 / i),
                      **({"method": "betting", "label": "exploratory"} if i < 3 else
                         {"method": "t+el", "label": "confirmatory"})} for i in range(1, 7)] for n in arms}}
    lift["growth"]["halves"]["hashed"] |= {"second": None, "p_value": None}

    def line(at: int, p: float) -> Json:
        return {"lift": interval(.09 + .02 * at, -.05, .3), "se": .03, "p_value": p, "p_adjusted": min(1.0, 3 * p),
                "label": "confirmatory", "interval_method": "t", "shrunk": interval(.09 + .01 * at, .02, .2)}

    lift["segments"] = {column: {
        "values": {v: {"n": 1000 + i, "clusters": 300} for i, v in enumerate(values)},
        "arms": {n: {"heterogeneity": {"statistic": 3.0, "df": len(values) - 1, "p_value": .2, "p_adjusted": .6},
                     "between_sd": .0357, "values": {v: line(i, .001 if i == 0 else .5)
                                                     for i, v in enumerate(values)}} for n in arms}}
        for column, values in (("surface", ["discovery", "feed", "messaging"]),
                               ("user_segment", [f"s{i:02}" for i in range(8)]))}
    weak = lift["segments"]["user_segment"]["arms"]["hashed"]
    for one in weak["values"].values():
        one |= {"label": "exploratory", "interval_method": "betting", "shrunk": {"estimate": .09, "low": None,
                                                                                "high": None}}
    weak["heterogeneity"] = None
    lift["segments"]["surface"]["arms"]["minilm"]["heterogeneity"]["segments"] = ["discovery", "feed"]
    lift["segments"]["surface"]["arms"]["hashed"]["values"]["messaging"] = {"refused": "effective clicks 1.2: too few"}
    lift["aa"] = {n: {"draws": 500, "units": 12_034, "alpha": .05, "rejected": .052, "low": .026, "high": .076,
                      "uniformity_p": .4, "ok": True} for n in arms}
    lift["aa"]["hashed"] |= {"rejected": .2, "ok": False}
    for n in arms:
        lift["arms"][n]["unadjusted"] = {"estimator": "ips", "lift": interval(.085, .04, .13), "se": .02,
                                         "variance_reduction": .123}
        lift["arms"][n]["diagnostics"] |= {"estimator_se": {"dr": 3e-4, "ips": 4e-4, "snips": 4e-4}, "agreement": {
            "ok": n != "hashed", "largest_z": 1.0, "pair": None, "spread": 0.0}}
    lift["threats"] = threats(lift)
    return lift


def broken() -> Json:
    lift = copy.deepcopy(marketplace())
    lift["health"].append({"check": "sample ratio", "ok": False, "detail": "821,588 to 815,482, p = 1.8e-06"})
    return lift


def minimal() -> Json:
    """The keys that the page cannot do without, and nothing else."""
    return {"experiment": "bare", "baseline": "a",
            "arms": {"a": {}, "b": {"lift": interval(.01, -.02, .04)}}}


def costs(lift: Json, seconds: dict[str, float] | None = None) -> list[Json]:
    card, rows = load_card("2026-11"), []
    for name in lift["arms"]:
        usages: list[Json] = [{"stage": "train", "seconds": 40.0}]
        if name in ("minilm", "smollm2"):
            usages.append({"stage": "embed", "seconds": (seconds or {"minilm": 60.0, "smollm2": 900.0})[name],
                           "model_id": f"open/{name}", "tokens": 620_000, "flops": 1e14})
        rows += book(usages, card, "aws-c6a-large", lift["experiment"], name,
                     now=dt.datetime(2026, 11, 23, tzinfo=dt.UTC)).to_pylist()
    return rows


def money(lift: Json) -> Json:
    return statement(lift, costs(lift), 1_000_000)


def money_on_clouds(lift: Json) -> Json:
    return {**money(lift), "clouds": cloud_costs(costs(lift), load_card("2026-11"), "aws-c6a-large")}
