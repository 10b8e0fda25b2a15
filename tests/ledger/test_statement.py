"""Known answers by hand; the numbers of the physics tests follow from 2N FLOP a token."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.ledger import (
    arm_costs,
    book,
    break_even_lift,
    cost_per_mille,
    costs_per_mille,
    load_card,
    statement,
    substitution,
    tokens_per_second,
    usd_per_million_tokens,
)
from recsys.ledger.statement import break_even_price, roi
from recsys.ledger.substitution import frontier, pair_difference

LLAMA_8B = 8.03e9


@pytest.mark.parametrize(("peak", "mfu", "rate", "price", "usd"), [
    (989e12, 0.40, 24_633, 6.88, 0.078),  # H100, AWS on demand
    (989e12, 0.40, 24_633, 1.78, 0.020),  # H100, AWS spot
    (312e12, 0.40, 7_771, 2.745, 0.098),  # A100
    (121e12, 0.35, 2_637, 0.8048, 0.085),  # L4
])
def test_llama_8b_throughput_and_price_a_million_tokens(peak, mfu, rate, price, usd) -> None:
    rate_ = tokens_per_second(LLAMA_8B, peak, mfu)
    assert rate_ == pytest.approx(rate, abs=1)
    assert usd_per_million_tokens(price, rate_) == pytest.approx(usd, abs=0.0005)


def test_offline_embeddings_break_even_below_a_hundredth_of_a_percent() -> None:
    million_tokens = 10e6 * 60 / 1e6
    for usd, total, cpm in ((0.02, 12.0, 0.000012), (0.10, 60.0, 0.00006)):
        assert million_tokens * usd == pytest.approx(total)
        assert cost_per_mille(total, 1e9) == pytest.approx(cpm)
        assert break_even_lift(cpm, 2.0) < 0.0001


def test_online_scoring_of_fifty_candidates_breaks_even_at_5_to_19_percent() -> None:
    million_tokens_a_mille = 50 * 100 * 1000 / 1e6
    low, high = (break_even_lift(million_tokens_a_mille * usd, 2.0) for usd in (0.020, 0.078))
    assert low == pytest.approx(0.05)
    assert high == pytest.approx(0.195)


def test_impossible_physics_and_no_revenue_are_refused() -> None:
    with pytest.raises(InputError):
        tokens_per_second(LLAMA_8B, 989e12, 1.2)
    with pytest.raises(InputError):
        break_even_lift(0.1, 0.0)
    with pytest.raises(InputError):
        cost_per_mille(1.0, 0)


def interval(estimate: float, low: float, high: float) -> dict:
    return {"estimate": estimate, "low": low, "high": high}


LIFT = {
    "goal": "ctr", "baseline": "ids",
    "arms": {
        "ids": {"lift": interval(0, 0, 0), "secondary": {"revenue_per_mille": {"value": 4.0}}},
        "llama": {"lift": interval(0.05, 0.02, 0.08),
                  "secondary": {"revenue_per_mille": {"value": 4.2, "lift": interval(0.05, 0.01, 0.09)}}},
    },
}


def costs() -> list[dict]:
    card = load_card("2026-11")
    rows = []
    for arm, seconds in (("ids", 3600.0), ("llama", 7200.0)):
        usages = [{"stage": "train", "seconds": seconds, "model_id": "m"}]
        rows += book(usages, card, "aws-c6a-large", "x", arm, now=dt.datetime(2026, 11, 1, tzinfo=dt.UTC)).to_pylist()
    return rows


def test_statement_by_hand() -> None:
    # 1,000 impressions a refresh: an hour of $0.0765 (spot $0.0296) is $0.0765 (0.0296) per mille.
    # eCPM $4. llama: $0.153 per mille, $0.0765 more than ids; revenue lift 5 % (1..9) = $0.20 (0.04..0.36) per mille.
    result = statement(LIFT, costs(), 1000)
    arm = result["arms"]["llama"]
    assert result["ecpm"] == {"value": 4.0, "metric": "revenue_per_mille", "assumed": False,
                              "source": "the baseline's, as measured"}
    assert arm["model_revenue"] == 0.0
    assert arm["cost_per_mille"] == pytest.approx(interval(0.153, 0.0592, 0.153))
    assert arm["incremental_cost_per_mille"] == pytest.approx(interval(0.0765, 0.0296, 0.0765))
    assert arm["incremental_revenue_per_mille"] == pytest.approx(interval(0.20, 0.04, 0.36))
    assert arm["net_per_mille"] == pytest.approx(interval(0.1235, -0.0365, 0.3304))
    assert arm["break_even_lift"] == pytest.approx(interval(0.019125, 0.0074, 0.019125))
    assert arm["roi"] == pytest.approx(interval(0.2 / 0.0765 - 1, 0.04 / 0.0765 - 1, 0.36 / 0.0296 - 1))
    assert result["arms"]["ids"]["roi"] is None
    assert result["arms"]["ids"]["net_per_mille"]["estimate"] == 0.0
    assert len(result["price_sources"]) == 1


def test_without_measured_revenue_the_ecpm_is_assumed_and_said_to_be() -> None:
    lift = {"goal": "ctr", "baseline": "u", "arms": {
        "u": {"lift": interval(0, 0, 0)}, "a": {"lift": interval(0.1, -0.1, 0.3), "cost_per_mille_usd": 0.5,
                                                "cost_per_mille_interval": {"low": 0.2, "high": 0.5}}}}
    result = statement(lift, [], 10)
    assert result["ecpm"]["assumed"] is True
    assert "assumed" in result["notes"][1]
    arm = result["arms"]["a"]
    assert arm["incremental_revenue_per_mille"] == pytest.approx(interval(0.2, -0.2, 0.6))
    assert arm["net_per_mille"] == pytest.approx(interval(-0.3, -0.7, 0.4))
    assert arm["roi"] == pytest.approx(interval(-0.6, -2.0, 2.0))  # a loss weighs most on the smallest outlay


def test_roi_of_free_work_has_no_value() -> None:
    assert roi(interval(1, 0, 2), interval(0, 0, 0)) is None


def test_arm_costs_add_up_and_keep_pretraining_apart() -> None:
    usage = {"stage": "embed", "model_id": "a/b", "seconds": 3600.0, "tokens": 500_000, "flops": 1.0}
    rows = book([usage, usage], load_card("2026-11"), "aws-c6a-large", "x", "arm").to_pylist()
    arm = arm_costs(rows)["arm"]
    assert arm["total"] == pytest.approx(interval(0.153, 0.0592, 0.153))
    assert arm["stages"].keys() == {"embed"}
    assert arm["tokens"] == 1_000_000
    assert arm["api_alternative"] == pytest.approx({"low": 0.008, "high": 0.15})
    assert len(arm["sunk"]) == 1
    assert costs_per_mille(rows, 153)["arm"]["estimate"] == pytest.approx(1.0)


def point(name: str, lift: float, half: float, cost: float) -> dict:
    return {"name": name, "lift": interval(lift, lift - half, lift + half),
            "cost_per_mille": interval(cost, cost, cost)}


def test_frontier_drops_what_is_dearer_and_no_better() -> None:
    points = [point("base", 0, 0, 0.0), point("cheap", .07, .02, .01), point("dear", .05, .02, .5),
              point("best", .09, .02, .2), point("tie", .09, .02, .3)]
    assert frontier(points) == ["base", "cheap", "best"]


def test_the_cheapest_arm_not_significantly_below_the_best_is_chosen_by_paired_intervals() -> None:
    points = [point("base", 0, 0, 0.0), point("hash", .075, .02, .001), point("mini", .09, .02, .01),
              point("llama", .10, .02, .2)]
    paired = {"mini vs llama": {"difference": interval(-.01, -.02, .005)},
              "llama vs hash": {"difference": interval(.03, .01, .05)}}
    result = substitution(points, paired, "base")
    assert (result["best"], result["chosen"]) == ("llama", "mini")
    below = {p["name"]: p["significantly_below_best"] for p in result["points"]}
    assert below == {"base": True, "hash": True, "mini": False, "llama": False}
    assert "independent" not in result["rule"]
    # The same data without pairs: independent intervals are wider, so the cheaper arm can no longer be told apart.
    alone = substitution(points, {}, "base")
    assert alone["chosen"] == "hash"
    assert "independent" in alone["rule"]


def test_if_nothing_beats_the_baseline_the_baseline_is_chosen() -> None:
    result = substitution([point("base", 0, 0, 0.0), point("llama", .02, .05, 1.0)], {}, "base")
    assert (result["best"], result["chosen"]) == ("llama", "base")


@pytest.mark.parametrize("pairwise", [
    {"a vs b": {"difference": interval(.1, .05, .2)}}, {"b vs a": {"difference": interval(-.1, -.2, -.05)}},
])
def test_pairs_are_read_either_way_round(pairwise: dict) -> None:
    assert pair_difference(pairwise, "a", "b") == pytest.approx(interval(.1, .05, .2))
    assert pair_difference(pairwise, "b", "a") == pytest.approx(interval(-.1, -.2, -.05))
    assert pair_difference(pairwise, "a", "c") is None


def test_incremental_revenue_is_the_paired_difference_where_it_was_measured() -> None:
    lift = {**LIFT, "arms": {**LIFT["arms"], "llama": {**LIFT["arms"]["llama"], "secondary": {"revenue_per_mille": {
        "value": 4.2, "lift": interval(0.05, 0.01, 0.09), "absolute_lift": interval(0.2, 0.05, 0.35)}}}}}
    arm = statement(lift, costs(), 1000)["arms"]["llama"]
    assert arm["incremental_revenue_per_mille"] == interval(0.2, 0.05, 0.35)
    assert arm["revenue_basis"] == "measured"
    assert arm["net_per_mille"] == pytest.approx(interval(0.1235, 0.05 - 0.0765, 0.35 - 0.0296))
    assert statement(LIFT, costs(), 1000)["arms"]["llama"]["revenue_basis"] == "lift of revenue"


def test_break_even_price_by_hand() -> None:
    # Revenue 1 (0.5..2), cost 4 (2..4); prices halve every year: 4 -> 1 takes two years, 4 -> 0.5 three, 2 -> 2 none.
    found = break_even_price(interval(1.0, 0.5, 2.0), interval(4.0, 2.0, 4.0), 0.5)
    assert found["months"] == pytest.approx({"estimate": 24.0, "worst": 36.0, "best": 0.0})
    assert found["multiple"] == pytest.approx(interval(0.25, 0.125, 1.0))
    paying = break_even_price(interval(3.0, 2.5, 3.5), interval(1.0, 0.5, 1.0), 0.25)
    assert paying["months"] == {"estimate": 0.0, "worst": 0.0, "best": 0.0}
    assert paying["multiple"] == pytest.approx(interval(3.0, 2.5, 7.0))
    never = break_even_price(interval(-1.0, -2.0, 1.0), interval(4.0, 4.0, 4.0), 0.5)
    assert never["months"] == pytest.approx({"estimate": None, "worst": None, "best": 24.0})
    saving = break_even_price(interval(-1.0, -1.0, -1.0), interval(-2.0, -2.0, -2.0), 0.5)
    assert (saving["multiple"], saving["months"]["estimate"]) == (None, 0.0)  # it saves more than it loses
    losing = break_even_price(interval(-3.0, -3.0, -3.0), interval(-2.0, -2.0, -2.0), 0.5)
    assert losing["months"]["estimate"] is None
    with pytest.raises(InputError, match="yearly fall"):
        break_even_price(interval(1, 1, 1), interval(1, 1, 1), 1.0)


@given(st.floats(0.001, 10), st.floats(0.001, 10), st.floats(0.01, 0.9))
def test_after_the_months_the_cost_has_fallen_to_the_revenue(revenue: float, cost: float, decline: float) -> None:
    found = break_even_price(interval(revenue, revenue, revenue), interval(cost, cost, cost), decline)
    left = cost * (1 - decline) ** (found["months"]["estimate"] / 12)
    assert left == pytest.approx(min(cost, revenue))
    assert found["multiple"]["estimate"] == pytest.approx(revenue / cost)


def test_an_arm_whose_revenue_was_not_measured_is_named() -> None:
    lift = {**LIFT, "arms": {**LIFT["arms"], "other": {"lift": interval(0.1, 0.0, 0.2)}}}
    made = statement(lift, costs(), 1000)
    assert made["arms"]["other"]["revenue_basis"] == "lift of the goal"
    assert made["arms"]["other"]["incremental_revenue_per_mille"] == pytest.approx(interval(0.4, 0.0, 0.8))
    assert any("No revenue was measured for other" in n for n in made["notes"])
    assert any("25% a year" in n for n in made["notes"])
