"""The profit-and-loss statement of an experiment: what each arm's model cost beside what its lift is worth.

Pure functions on plain dicts. Money is US dollars; "per mille" is per thousand impressions; a lift is a fraction
(0.05 is 5 %); an interval is ``{"estimate", "low", "high"}``. A model earns nothing by itself: its revenue is zero by
construction, and all it can bring is the extra ad revenue of its lift.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

from recsys.errors import InputError, Refused
from recsys.ledger.substitution import substitution

Interval = dict[str, float]

REVENUE_METRIC = "revenue_per_mille"
"""The secondary metric of a lift report that is ad revenue, in dollars per thousand impressions."""
REFERENCE_ECPM = 2.0
"""Dollars per mille assumed, and said to be assumed, where an experiment measured no revenue."""
PRICE_DECLINE = 0.25
"""Assumed yearly fall of the price of computing: FLOP/s per dollar of GPUs doubled every 2.46 years from 2006 to 2021,
which is 25 % a year (Hobbhahn, Besiroglu 2022, Trends in GPU price-performance, Epoch AI)."""


def tokens_per_second(parameters: float, peak_flops: float, utilisation: float) -> float:
    """Tokens a second of a forward pass: peak FLOP/s x utilisation / (2 FLOP x parameters).

    The 2N rule (Kaplan et al., 2020, section 2.1) leaves out attention and holds for batches that fill the device.
    """
    if min(parameters, peak_flops) <= 0 or not 0 < utilisation <= 1:
        raise InputError("not a physical device", got=(parameters, peak_flops, utilisation),
                         expected="parameters > 0, FLOP/s > 0, utilisation in (0, 1]")
    return peak_flops * utilisation / (2.0 * parameters)


def usd_per_million_tokens(price_per_hour: float, tokens_a_second: float) -> float:
    """Dollars a million tokens on a machine that is rented by the hour and kept busy."""
    return price_per_hour / (tokens_a_second * 3600.0) * 1e6


def cost_per_mille(cost: float, impressions: float) -> float:
    """A one-off cost spread evenly over impressions, in dollars per thousand of them."""
    if impressions <= 0:
        raise InputError("no impressions to spread a cost over", got=impressions, expected="more than 0")
    return cost / impressions * 1000.0


def break_even_lift(model_cost_per_mille: float, baseline_ecpm: float) -> float:
    """The lift of ad revenue at which the model pays for itself: cost per mille / baseline eCPM (a fraction)."""
    if baseline_ecpm <= 0:
        raise InputError("no revenue to lift", got=baseline_ecpm, expected="an eCPM > 0")
    return model_cost_per_mille / baseline_ecpm


def break_even_price(revenue: Interval, cost: Interval, decline_per_year: float) -> dict[str, Any]:
    """How far prices are from the point where revenue and cost meet, as a multiple and as time.

    The multiple is revenue / cost: at 3 prices could triple before the arm stops paying, at 0.5 they have to halve
    before it starts to. The months are how long that halving takes if all prices fall by the same share every year:
    ln(cost / revenue) / -ln(1 - decline) * 12, 0 where the arm pays today, None where it has no revenue to pay with.
    Worst (low) pairs the lowest revenue with the highest cost, best (high) the other two.

    Args:
        revenue: extra revenue, per anything.
        cost: extra cost, per the same.
        decline_per_year: share by which prices fall in a year, 0..1; an assumption.

    Returns:
        {"multiple": interval or None where a cost is not > 0, "months": {"estimate", "worst", "best"},
        "decline_per_year"}.
    """
    if not 0 < decline_per_year < 1:
        raise InputError("not a yearly fall of prices", got=decline_per_year, expected="a share in (0, 1)")

    def months(earned: float, spent: float) -> float | None:
        if spent <= earned:
            return 0.0
        return None if earned <= 0 else 12 * math.log(spent / earned) / -math.log1p(-decline_per_year)

    multiple = None
    if cost["low"] > 0:
        ends = [r / c for r, c in product((revenue["low"], revenue["high"]), (cost["low"], cost["high"]))]
        multiple = {"estimate": revenue["estimate"] / cost["estimate"], "low": min(ends), "high": max(ends)}
    return {"multiple": multiple, "decline_per_year": decline_per_year,
            "months": {"estimate": months(revenue["estimate"], cost["estimate"]),
                       "worst": months(revenue["low"], cost["high"]), "best": months(revenue["high"], cost["low"])}}


def roi(revenue: Interval, cost: Interval) -> Interval | None:
    """Return on investment, revenue / cost - 1, over all corners of both intervals; None where a cost is not > 0."""
    if cost["low"] <= 0:
        return None
    corners = [r / c - 1 for r, c in product((revenue["low"], revenue["high"]), (cost["low"], cost["high"]))]
    return {"estimate": revenue["estimate"] / cost["estimate"] - 1, "low": min(corners), "high": max(corners)}


def arm_costs(costs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Add up COSTS rows (as dicts) by arm.

    Returns:
        arm -> {"total": interval, "stages": {stage: interval}, "tokens", "seconds", "sunk": [descriptions],
        "api_alternative": {"low", "high"} or None, "price_sources": [citation (as of)]}. Rows without an interval
        count with their EffectiveCost as both ends.
    """
    out: dict[str, dict[str, Any]] = {}
    for row in costs:
        arm = out.setdefault(str(row.get("x_ArmId")), {
            "total": _zero(), "stages": {}, "tokens": 0, "seconds": 0.0, "sunk": [], "api_alternative": None,
            "price_sources": []})
        if row.get("x_Stage") == "pretrain":
            arm["sunk"].append(row["ChargeDescription"])
            continue
        cost = float(row["EffectiveCost"])
        low, high = row.get("x_CostLow"), row.get("x_CostHigh")
        part = {"estimate": cost, "low": cost if low is None else low, "high": cost if high is None else high}
        stage = str(row.get("x_Stage"))
        arm["total"] = _add(arm["total"], part)
        arm["stages"][stage] = _add(arm["stages"].get(stage, _zero()), part)
        arm["tokens"] += row.get("x_TokensIn") or 0
        arm["seconds"] += row.get("x_Seconds") or 0.0
        _alternative(arm, row)
        source = f"{row.get('x_PriceSource')} (as of {row.get('x_PriceAsOf')})"
        if source not in arm["price_sources"]:
            arm["price_sources"].append(source)
    return out


def _alternative(arm: dict[str, Any], row: Mapping[str, Any]) -> None:
    details = json.loads(row.get("SkuPriceDetails") or "{}").get("api_alternative")
    if details is not None:
        at = arm["api_alternative"] or {"low": 0.0, "high": 0.0}
        arm["api_alternative"] = {"low": at["low"] + details["cost"][0], "high": at["high"] + details["cost"][1]}


def costs_per_mille(costs: Iterable[Mapping[str, Any]], impressions_per_refresh: int) -> dict[str, Interval]:
    """Arm -> cost per thousand impressions as an interval: what ``lift.json`` carries."""
    return {arm: _per_mille(c["total"], impressions_per_refresh) for arm, c in arm_costs(costs).items()}


def statement(
    lift: Mapping[str, Any],
    costs: Iterable[Mapping[str, Any]],
    impressions_per_refresh: int,
    *,
    reference_ecpm: float = REFERENCE_ECPM,
    price_decline_per_year: float = PRICE_DECLINE,
) -> dict[str, Any]:
    """The statement of every arm of a lift report, and the substitution curve.

    Args:
        lift: the contents of ``lift.json``.
        costs: COSTS rows as dicts (``table.to_pylist()``).
        impressions_per_refresh: impressions served between two refreshes of the models, over which costs are spread.
        reference_ecpm: dollars per mille assumed where the experiment measured no revenue; revenue is then taken to
            move with the goal metric, and the statement says that both are assumptions.
        price_decline_per_year: for the months to break-even, see :func:`break_even_price`.

    Returns:
        {"currency", "impressions_per_refresh", "ecpm": {"value", "source", "metric", "assumed"}, "arms": {name:
        {"model_revenue": 0.0, "cost", "cost_per_mille", "incremental_cost_per_mille", "revenue_lift",
        "incremental_revenue_per_mille", "revenue_basis", "net_per_mille", "net_per_refresh", "roi",
        "break_even_lift", "break_even_price", "api_alternative", "stages", "sunk", ...}}, "substitution": ...,
        "price_sources", "notes"}.

        Incremental cost is the arm's minus the baseline's at the same prices, because training the ranker is paid in
        both. The worst net pairs the lowest revenue with the highest cost, the best net the other two: prices and
        lifts are unknown in different ways, so no probability is claimed for the corners.

        Incremental revenue is the paired interval of the difference in revenue where the report has it
        (``revenue_basis`` measured); else the lift of revenue times eCPM, or the lift of the goal times eCPM.

    Raises:
        Refused: the report shows no lift.
    """
    if lift.get("refused"):
        raise Refused(f"no statement without a lift: {lift['refused']}")
    baseline = str(lift["baseline"])
    by_arm = arm_costs(costs)
    ecpm = _ecpm(lift, baseline, reference_ecpm)
    per_mille = {name: _per_mille(by_arm[name]["total"], impressions_per_refresh) if name in by_arm
                 else _given_cost(arm) for name, arm in lift["arms"].items()}
    arms = {name: _arm(name, arm, per_mille, baseline, ecpm, by_arm.get(name), price_decline_per_year)
            for name, arm in lift["arms"].items()}
    for arm in arms.values():
        arm["net_per_refresh"] = {k: v * impressions_per_refresh / 1000 for k, v in arm["net_per_mille"].items()}
    points = [{"name": n, "lift": _lift_of(a), "cost_per_mille": per_mille[n]} for n, a in lift["arms"].items()]
    notes = ["A model has no revenue of its own: it is zero by construction. What counts is ad revenue with it, minus "
             "ad revenue without it, minus what it cost."]
    if ecpm["assumed"]:
        notes.append(f"No revenue was measured here: an eCPM of ${reference_ecpm:g} is assumed, and revenue is taken "
                     f"to move with {lift.get('goal', 'the goal metric')}.")
    elif guessed := [n for n, a in arms.items() if a["revenue_basis"] == "lift of the goal"]:
        notes.append(f"No revenue was measured for {', '.join(guessed)}: it is taken to move with "
                     f"{lift.get('goal', 'the goal metric')}.")
    notes.append(f"Months to break-even assume that all prices fall by {price_decline_per_year:.0%} a year.")
    return {"currency": "USD", "impressions_per_refresh": impressions_per_refresh, "ecpm": ecpm, "arms": arms,
            "substitution": substitution(points, lift.get("pairwise") or {}, baseline), "notes": notes,
            "price_sources": sorted({s for c in by_arm.values() for s in c["price_sources"]})}


def _arm(name: str, arm: Mapping[str, Any], per_mille: Mapping[str, Interval], baseline: str,
         ecpm: Mapping[str, Any], booked: Mapping[str, Any] | None, decline: float) -> dict[str, Any]:
    extra = _difference(per_mille[name], per_mille.get(baseline, _zero()))
    if name == baseline:
        revenue_lift, revenue, basis = _zero(), _zero(), "baseline"
    else:
        revenue_lift, revenue, basis = _revenue(arm, ecpm)
    net = {"estimate": revenue["estimate"] - extra["estimate"], "low": revenue["low"] - extra["high"],
           "high": revenue["high"] - extra["low"]}
    details = booked or {"total": None, "stages": {}, "tokens": None, "seconds": None, "sunk": [],
                         "api_alternative": None}
    return {
        "model_revenue": 0.0, "cost": details["total"], "cost_per_mille": per_mille[name],
        "incremental_cost_per_mille": extra, "revenue_lift": revenue_lift, "incremental_revenue_per_mille": revenue,
        "revenue_basis": basis, "net_per_mille": net, "roi": None if name == baseline else roi(revenue, extra),
        "break_even_lift": {k: break_even_lift(extra[k], ecpm["value"]) for k in ("estimate", "low", "high")},
        "break_even_price": None if name == baseline else break_even_price(revenue, extra, decline),
        **{k: details[k] for k in ("stages", "tokens", "seconds", "sunk", "api_alternative")},
    }


def _ecpm(lift: Mapping[str, Any], baseline: str, reference: float) -> dict[str, Any]:
    secondary = lift["arms"][baseline].get("secondary") or {}
    value = (secondary.get(REVENUE_METRIC) or {}).get("value")
    if value is not None and value > 0:
        return {"value": float(value), "metric": REVENUE_METRIC, "assumed": False,
                "source": "the baseline's, as measured"}
    return {"value": reference, "metric": None, "assumed": True, "source": "assumed"}


def _revenue(arm: Mapping[str, Any], ecpm: Mapping[str, Any]) -> tuple[Interval, Interval, str]:
    """(lift of revenue, extra revenue per mille, what they rest on)."""
    measured = ((arm.get("secondary") or {}).get(ecpm["metric"]) or {}) if ecpm["metric"] else {}
    known = bool(measured.get("lift"))
    lift = _interval(measured["lift"]) if known else _lift_of(arm)
    if known and measured.get("absolute_lift"):
        return lift, _interval(measured["absolute_lift"]), "measured"
    basis = "lift of revenue" if known else "lift of the goal"
    return lift, {k: lift[k] * ecpm["value"] for k in ("estimate", "low", "high")}, basis


def _lift_of(arm: Mapping[str, Any]) -> Interval:
    return _interval(arm.get("lift") or _zero())


def _given_cost(arm: Mapping[str, Any]) -> Interval:
    value = arm.get("cost_per_mille_usd") or 0.0
    return {"estimate": value, "low": value, "high": value} | dict(arm.get("cost_per_mille_interval") or {})


def _interval(value: Mapping[str, Any]) -> Interval:
    estimate = float(value["estimate"])
    low, high = value.get("low"), value.get("high")
    return {"estimate": estimate, "low": estimate if low is None else float(low),
            "high": estimate if high is None else float(high)}


def _zero() -> Interval:
    return {"estimate": 0.0, "low": 0.0, "high": 0.0}


def _add(a: Interval, b: Interval) -> Interval:
    return {k: a[k] + b[k] for k in ("estimate", "low", "high")}


def _difference(a: Interval, b: Interval) -> Interval:
    # The same prices apply to both, so low goes with low and high with high; a cheaper arm turns the ends around.
    ends = sorted((a["low"] - b["low"], a["high"] - b["high"]))
    estimate = a["estimate"] - b["estimate"]
    return {"estimate": estimate, "low": min(ends[0], estimate), "high": max(ends[1], estimate)}


def _per_mille(total: Interval, impressions: int) -> Interval:
    return {k: cost_per_mille(v, impressions) for k, v in total.items()}
