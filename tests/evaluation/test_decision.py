"""The verdict table, the adjustments, and the hash of the rule."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.config import ExperimentConfig
from recsys.evaluation import decision
from recsys.evaluation.decision import GoalTest, adjust, decide, give_verdict, read_goal, read_guardrail
from tests.evaluation.bandit import config


def ruled(arms: tuple[str, ...] = ("base", "a"), method: str = "offpolicy", **rule) -> ExperimentConfig:
    plain = config(list(arms), method=method).resolved()
    return ExperimentConfig.model_validate({**plain, "decision": rule})


def interval(estimate: float, low: float, high: float) -> dict:
    return {"estimate": estimate, "low": low, "high": high}


def report(healthy: bool = True, **secondary) -> dict:
    return {"healthy": healthy, "arms": {"base": {}, "a": {"latency_ms": 3.0, "secondary": secondary}}}


GUARDS = ("kept", "harmed", "unclear")


@pytest.mark.parametrize(("goal", "guards", "verdict"), [
    ("met", [], "Ship"), ("met", ["kept", "kept"], "Ship"), ("met", ["kept", "unclear"], "Review"),
    ("met", ["unclear", "harmed"], "Roll back"), ("missed", ["kept"], "Roll back"),
    ("missed", ["harmed"], "Roll back"), ("open", ["kept"], "Not enough data"),
    ("open", ["unclear"], "Not enough data"), ("open", ["harmed"], "Roll back"),
])
def test_verdict_table(goal, guards, verdict) -> None:
    assert give_verdict(goal, dict(enumerate(guards))) == verdict


def test_properties_of_the_verdict_table() -> None:
    for goal, guards, healthy, sure in itertools.product(("met", "missed", "open"),
                                                         itertools.product(GUARDS, repeat=2), (True, False),
                                                         (True, False)):
        verdict = give_verdict(goal, dict(enumerate(guards)), healthy, sure)
        assert verdict in decision.VERDICTS
        if verdict == "Ship":
            assert healthy
            assert sure
            assert goal == "met"
            assert set(guards) == {"kept"}
        if verdict == "Roll back":
            assert healthy
            assert sure
            assert goal == "missed" or "harmed" in guards
        # A guardrail that gets worse never brings an arm nearer to shipping.
        rank = {"Ship": 2, "Review": 1, "Not enough data": 1, "Roll back": 0}
        worse = give_verdict(goal, {0: "harmed", 1: guards[1]}, healthy, sure)
        assert rank[worse] <= rank[verdict]
        if not healthy:
            assert verdict == "Review"


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.5))
def test_guardrails_are_read_alike_in_both_directions(estimate: float, below: float, above: float, harm: float) -> None:
    low, high = estimate - below, estimate + above
    status = read_guardrail(low, high, "higher", harm)
    assert read_guardrail(-high, -low, "lower", harm) == status
    assert (status == "kept") == (low >= -harm)
    assert (status == "harmed") == (high < -harm)
    # Tolerating more harm never turns a kept guardrail into another.
    if status == "kept":
        assert read_guardrail(low, high, "higher", harm + 0.1) == "kept"


@given(st.floats(-0.5, 0.5), st.floats(0, 0.2), st.floats(0, 1))
def test_a_goal_is_read_only_where_it_is_significant(estimate: float, minimum: float, p: float) -> None:
    goal = read_goal(estimate, minimum, p, 0.05)
    assert (goal == "open") == (p >= 0.05 or estimate == minimum)
    if goal != "open":
        assert (goal == "met") == (estimate > minimum)


def test_adjustments_by_hand() -> None:
    p = {"a": 0.01, "b": 0.02, "c": 0.04}
    assert adjust(p, "none", 0.05) == p
    # Holm: 3 * .01, max(that, 2 * .02), max(that, .04); Benjamini-Hochberg: min over the later of p * 3 / rank.
    assert adjust(p, "holm", 0.05) == pytest.approx({"a": 0.03, "b": 0.04, "c": 0.04})
    assert adjust(p, "bh", 0.05) == pytest.approx({"a": 0.03, "b": 0.03, "c": 0.04})
    assert adjust({}, "holm", 0.05) == {}


def test_more_arms_make_a_ship_rarer() -> None:
    found = GoalTest(0.05, 0.02, 0.02, 5000, "confirmatory")
    nothing = GoalTest(0.0, 0.02, 0.9, 5000, "confirmatory")
    arms = {"healthy": True, "arms": {n: {} for n in ("base", "a", "b", "c")}}
    for method, verdict in (("none", "Ship"), ("holm", "Not enough data"), ("bh", "Not enough data")):
        setting = ruled(("base", "a", "b", "c"), multiplicity=method)
        made = decide(arms, {"a": found, "b": nothing, "c": nothing}, setting)
        assert made["verdict"]["a"] == verdict
        assert made["p_value"]["a"] == 0.02
    assert decide(arms, {"a": found}, ruled(multiplicity="holm"))["verdict"]["a"] == "Ship"


def test_guardrails_decide_between_ship_review_and_roll_back() -> None:
    rule = ruled(guardrails=[{"metric": "hide", "better": "lower", "tolerated": 0.05},
                             {"metric": "latency_ms", "better": "lower", "limit": 10}])
    good = {"a": GoalTest(0.05, 0.01, 1e-6, 5000, "confirmatory")}
    for change, verdict in ((interval(0, -.02, .02), "Ship"), (interval(0, -.1, .1), "Review"),
                            (interval(.2, .1, .3), "Roll back")):
        made = decide(report(hide={"lift": change}), good, rule)
        assert made["verdict"]["a"] == verdict
        assert made["guardrails"]["a"]["hide"]["change"] == change
        assert "hide" in made["why"]["a"] or verdict == "Ship"
    missing = decide(report(), good, rule)
    assert missing["verdict"]["a"] == "Review"
    assert "hide rate (not measured)" in missing["why"]["a"]
    slow = report(hide={"lift": interval(0, -.01, .01)})
    slow["arms"]["a"]["latency_ms"] = 11.0
    assert decide(slow, good, rule)["verdict"]["a"] == "Roll back"


def test_bad_health_and_weak_evidence_ship_nothing() -> None:
    good = GoalTest(0.05, 0.01, 1e-6, 50, "exploratory")
    assert decide(report(), {"a": good}, ruled())["verdict"]["a"] == "Review"
    betting = GoalTest(0.5, None, None, 50, "exploratory")
    made = decide(report(), {"a": betting}, ruled())
    assert made["verdict"]["a"] == "Not enough data"
    assert made["detectable_lift"]["a"] is None
    sick = decide(report(healthy=False), {"a": GoalTest(0.05, 0.01, 1e-6, 5000, "confirmatory")}, ruled())
    assert sick["verdict"]["a"] == "Review"


def test_reasons_name_guardrails_in_words() -> None:
    rule = ruled(guardrails=[{"metric": "revenue_per_mille", "better": "higher", "tolerated": 0.02}])
    why = decide(report(), {"a": GoalTest(0.05, 0.01, 1e-6, 5000, "confirmatory")}, rule)["why"]["a"]
    assert "ad revenue per thousand (not measured)" in why
    assert "revenue_per_mille" not in why


def test_words_never_claim_proof() -> None:
    for p, estimate in ((1e-6, .05), (1e-6, -.05), (.5, .01)):
        made = decide(report(), {"a": GoalTest(estimate, .01, p, 5000, "confirmatory")}, ruled(minimum_effect=0.02))
        words = made["why"]["a"]
        assert not any(w in words for w in ("prove", "proof", "certain", "no difference"))
        assert "estimated" in words or "consistent with" in words
    assert "not evidence of no effect" in words


def test_planned_looks_share_the_error_and_always_valid_costs_more() -> None:
    test = {"a": GoalTest(0.045, 0.02, 0.0245, 5000, "confirmatory")}
    assert decide(report(), test, ruled())["verdict"]["a"] == "Ship"
    made = decide(report(), test, ruled(looks=3))
    assert made["alpha"] == pytest.approx(0.05 / 3)
    assert made["verdict"]["a"] == "Not enough data"
    always = decide(report(), test, ruled(peeking="always_valid"))
    assert always["p_value"]["a"] > 0.05
    assert always["verdict"]["a"] == "Not enough data"
    # Guardrail intervals widen alike.
    rule = {"guardrails": [{"metric": "hide", "better": "lower", "tolerated": 0.03}]}
    hide = {"hide": {"lift": interval(0, -.0196, .0196), "se": .01}}
    wide = decide(report(**hide), test, ruled(looks=3, **rule))["guardrails"]["a"]["hide"]["change"]
    assert wide["high"] == pytest.approx(.01 * 2.394, rel=1e-3)
    assert decide(report(**hide), test, ruled(peeking="always_valid", **rule))["guardrails"]["a"]["hide"]["change"][
        "high"] > wide["high"]


def test_the_hash_is_of_the_whole_rule() -> None:
    first = decision.rule_sha256(decision.decision_rule(ruled()))
    assert first == decision.rule_sha256(decision.decision_rule(ruled()))
    changes = [{"minimum_effect": 0.02}, {"multiplicity": "bh"}, {"peeking": "always_valid"}, {"looks": 2},
               {"guardrails": [{"metric": "hide", "better": "lower"}]}]
    hashes = {decision.rule_sha256(decision.decision_rule(ruled(**c))) for c in changes}
    hashes.add(decision.rule_sha256(decision.decision_rule(ruled(method="randomized"))))
    assert len(hashes | {first}) == len(changes) + 2


@pytest.mark.parametrize(("rule", "words"), [
    ({"confidence": 0.9}, "decision.confidence"), ({"minimum_effect": -0.1}, "minimum_effect"),
    ({"guardrails": [{"metric": "hide", "better": "lower"}] * 2}, "every guardrail metric once"),
    ({"guardrails": [{"metric": "latency_ms", "better": "lower"}]}, "a limit for latency_ms"),
    ({"guardrails": [{"metric": "joy", "better": "higher"}]}, "engagement"),
])
def test_bad_rules_are_named(rule: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ruled(**rule)
