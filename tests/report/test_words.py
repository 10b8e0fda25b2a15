from __future__ import annotations

import copy

import pytest

from recsys.evaluation.threats import threats
from recsys.report import words
from tests.report import samples


def plain(text: str) -> str:
    return text.replace("\u202f", " ").replace("\u2212", "-")


@pytest.mark.parametrize(("value", "text"), [
    (0.0941, "+9.4 %"), (-0.0141, "-1.4 %"), (0.0045, "+0.45 %"), (0.0, "0.0 %"), (0.00000066, "+0.000066 %"),
    (None, "–"), (float("nan"), "–"), (-1e-12, "0.0000000 %"), (0.99999, "+100.0 %"),
])
def test_a_lift_in_words(value: float | None, text: str) -> None:
    assert plain(words.signed_percent(value)) == text


@pytest.mark.parametrize(("value", "text"), [
    (0.0, "$0.00"), (0.0765, "$0.0765"), (1234.5, "$1,234.50"), (0.0000128, "$0.000013"), (-0.0365, "-$0.0365"),
    (None, "–"), (float("inf"), "–"),
])
def test_money_is_never_in_scientific_notation(value: float | None, text: str) -> None:
    assert plain(words.money(value)) == text


def test_rates_keep_three_digits_because_arms_differ_by_little() -> None:
    assert [plain(words.value_of("ctr", v)) for v in (0.0160, 0.0166, 0.25, 0.0)] == ["1.60 %", "1.66 %", "25.0 %",
                                                                                   "0.0 %"]


def test_ends_of_an_interval_have_the_same_decimals() -> None:
    assert plain(words.interval_text({"low": 0.009, "high": 0.067})) == "+0.9 % to +6.7 %"
    assert words.interval_text(None) == words.interval_text({"low": None, "high": 1.0}) == "–"


@pytest.mark.parametrize(("value", "text"), [(8532.0, "8,500×"), (2.345, "2.35×"), (-0.6, "-0.6×")])
def test_a_multiple(value: float, text: str) -> None:
    assert plain(words.times(value)) == text


@pytest.mark.parametrize(("low", "high", "word"), [
    (.01, .1, "better"), (-.1, -.01, "worse"), (-.1, .1, "inconclusive")])
def test_the_reading_follows_the_interval_alone(low: float, high: float, word: str) -> None:
    assert words.verdict({"lift": {"estimate": .05, "low": low, "high": high}})[1] == word


def test_headline_names_the_best_arm_and_its_cheaper_substitute() -> None:
    lift = samples.marketplace()
    text = plain(words.headline(lift, samples.money(lift)))
    assert text.startswith("smollm2 is estimated to lift click-through rate by +9.4 % over ids_only "
                           "(95 % interval +6.2 % to +12.7 %).")
    assert "minilm is not significantly below it" in text


def test_headline_without_a_clear_arm_does_not_claim_no_effect() -> None:
    text = plain(words.headline(samples.minimal()))
    assert "No arm stands out from a" in text
    assert "consistent with anything from -2.0 % to +4.0 %" in text
    assert "not evidence of no effect" in text


@pytest.mark.parametrize(("interval", "minimum", "says", "not_says"), [
    ((-.024, -.054, .007), .01, "That is below the minimum effect of 1.0 % that was asked for.", "no effect."),
    ((.005, .002, .008), .01, "That is below the minimum effect of 1.0 % that was asked for.", "No arm stands out"),
    ((-.03, -.05, -.01), 0.0, "That is below zero.", "no effect."),
    ((-.001, -.05, .05), .01, "That is not evidence of no effect.", "minimum effect"),
])
def test_headline_and_verdict_say_the_same(interval: tuple, minimum: float, says: str, not_says: str) -> None:
    from recsys.config import ExperimentConfig
    from recsys.evaluation.decision import GoalTest, decide

    estimate, low, high = interval
    config = ExperimentConfig.model_validate({
        "name": "x", "data": {"recipe": "none"}, "split": {"kind": "time"}, "arms": {"a": {}, "b": {}},
        "decision": {"minimum_effect": minimum}})
    lift = samples.minimal() | {"minimum_effect": minimum, "healthy": True}
    lift["arms"]["b"]["lift"] = samples.interval(estimate, low, high)
    inside = low <= minimum <= high
    test = GoalTest(estimate, .01, .5 if inside else 1e-4, 5000, "confirmatory")
    lift["decision"] = decide(lift, {"b": test}, config)
    text = plain(words.headline(lift))
    assert text.startswith("Not enough data: b. " if inside else "Roll back: b. ")
    assert says in text
    assert not_says not in text


def test_headline_names_a_harmed_guardrail_beside_an_open_goal() -> None:
    lift = samples.minimal() | {"decision": {"verdict": {"b": "Roll back"}, "goal": {"b": "open"}, "guardrails": {
        "b": {"hide": {"status": "harmed"}, "engagement": {"status": "kept"}}}}}
    assert words.headline(lift).endswith("Harmed beyond what is tolerated: hide rate.")


def test_headline_of_a_failed_health_check_gives_no_number() -> None:
    text = words.headline(samples.broken())
    assert "health check failed" in text
    assert "%" not in text


def test_an_exploratory_arm_is_called_so() -> None:
    lift = copy.deepcopy(samples.marketplace())
    lift["arms"]["smollm2"]["label"] = "exploratory"
    assert words.headline(lift).startswith("Exploratory")


def test_the_report_never_claims_proof() -> None:
    for lift in (samples.marketplace(), samples.broken(), samples.minimal()):
        said = words.headline(lift) + " ".join(t["why"] + str(t["evidence"]) for t in threats(lift))
        assert not any(word in said.lower() for word in ("prove", "certain", "guarantee"))


def test_the_llama_family_arm_is_named_where_another_is_ahead() -> None:
    lift = copy.deepcopy(samples.marketplace())
    lift["arms"]["minilm"]["lift"] = {"estimate": 0.2, "low": 0.15, "high": 0.25}
    lift["arms"]["smollm2"]["encoder"] = {"name": "smollm2", "kind": "llama", "model": "smollm2-135m"}
    text = plain(words.headline(lift))
    assert text.startswith("minilm is estimated")
    assert "The Llama-family arm smollm2: +9.4 % (+6.2 % to +12.7 %)." in text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (3e-29, "< 0.0001"), (0.00012, "0.00012"), (0.0479, "0.048"),
                                             (1.0, "1")])
def test_a_p_value(value: float | None, text: str) -> None:
    assert words.p_value(value) == text


def test_units_and_points() -> None:
    assert [words.plural(u) for u in ("user", "story", "request")] == ["users", "stories", "requests"]
    assert [words.points(v) for v in (None, 0.0, 0.0357, 0.00929)] == ["–", "0 points", "3.6 points", "0.93 points"]
