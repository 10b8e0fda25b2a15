"""Metrics in words, for verdicts and for the page."""

from __future__ import annotations

from collections.abc import Mapping

GOALS = {"cost_per_click": "advertisers' cost per click", "latency_ms": "scoring time per request",
         "cost_per_action": "advertisers' cost per action", "diversity": "diversity (effective number of ads)",
         "fill": "fill at the reserve", "surplus_per_mille": "advertisers' surplus per thousand",
         "welfare_per_mille": "advertisers' value per thousand", "ctr": "click-through rate",
         "engagement": "engaged clicks", "revenue_per_mille": "ad revenue per thousand",
         "conversion": "conversion rate", "hide": "hide rate", "dwell_ms": "dwell time"}


def name_of(metric: str, table: Mapping[str, str] = GOALS) -> str:
    """A metric's key in words."""
    return table.get(metric, metric.replace("_", " "))
