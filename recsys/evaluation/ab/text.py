"""An experiment's result as lines for a terminal."""

from __future__ import annotations

from typing import Any


def render(result: dict[str, Any]) -> str:
    """Health above the numbers, then a block per metric with a line per variant."""
    plan = result["plan"]
    lines = [f"{'ok  ' if c['ok'] else 'FAIL'} {c['check']}: {c['detail']}" for c in result["health"]]
    if "refused" in result:
        return "\n".join([*lines, "", f"refused: {result['refused']}"])
    looks = (f"always-valid intervals, {plan['looks']} look(s) planned" if plan["method"] == "sequential"
             else "one look")
    lines += ["", f"baseline {plan['baseline']}; unit {result['unit']}; {result['rows']:,} rows; "
                  f"{1 - plan['alpha']:.0%} intervals, {looks}; p-values adjusted: {plan['multiplicity']}"]
    for name, metric in result["metrics"].items():
        lines += ["", name]
        if metric["winsorised"]:
            lines.append(f"  numerators cut at {metric['winsorised']['cap']:.6g} "
                         f"({metric['winsorised']['share_of_units']:.3%} of units)")
        for arm, line in metric["variants"].items():
            lines += _variant(plan["baseline"], arm, line)
        for column, found in metric.get("segments", {}).items():
            lines += _segments(column, found, plan["alpha"])
        if "growth" in metric:
            lines += _growth(metric["growth"])
        if name in result.get("aa", {}):
            lines.append(_aa(result["aa"][name]))
    return "\n".join(lines)


def _aa(found: dict[str, Any]) -> str:
    if "refused" in found:
        return f"  A/A on the same units: refused: {found['refused']}"
    return (f"  A/A on the same units: {found['rejected']:.1%} of {found['draws']:,} rejected at {found['alpha']:g} "
            f"(99 % range {found['low']:.1%} to {found['high']:.1%})")


def _variant(baseline: str, arm: str, line: dict[str, Any]) -> list[str]:
    counted = ", ".join(f"{n} {line['numerators'][n]:,.6g} / {line['denominators'][n]:,.10g}" for n in (baseline, arm))
    if "refused" in line:
        return [f"  {arm}: {counted}", f"    refused: {line['refused']}"]
    verdict = "significant" if line["significant"] else "inconclusive (which is not `no effect`)"
    lines = [f"  {arm}: {counted}", f"    {verdict}, p {line['p_value']:.3g}, adjusted {line['p_adjusted']:.3g}, "
             f"decided on {line['decided_on']}; {line['label']}: {line['evidence']}"]
    for kind in ("raw", "cuped"):
        if kind not in line:
            continue
        one = line[kind]
        text = (f"    {kind:<5} {one['baseline']:.6g} -> {one['variant']:.6g}, "
                f"difference {_span(one['absolute'], '.4g')}")
        text += f", relative {_span(one['relative'], '+.2%')}" if one["relative"] is not None else ", no relative lift"
        if one["detectable_relative_lift"] is not None:
            text += f"; finds {one['detectable_relative_lift']:.2%} with 80 % power"
        if kind == "cuped":
            text += f"; variance -{one['variance_reduction']:.1%}"
        lines += [text] + ([f"      {one['relative_refused']}"] if one["relative_refused"] else [])
    if "bayes" in line:
        b = line["bayes"]
        lines.append(f"    Bayes (uniform prior): {b['chance_to_beat']:.1%} chance to beat {baseline}, relative "
                     f"{b['relative_low']:+.2%} to {b['relative_high']:+.2%}")
    return lines


def _segments(column: str, found: dict[str, Any], alpha: float) -> list[str]:
    if "refused" in found:
        return [f"  by {column}: refused: {found['refused']}"]
    lines = []
    for arm, one in found["arms"].items():
        differ = one["heterogeneity"]
        lines.append(f"  {arm} by {column}" + ("" if differ is None else (
            f": segments differ (adjusted p {differ['p_adjusted']:.3g})" if differ["p_adjusted"] <= alpha else
            f": no difference between segments is seen (adjusted p {differ['p_adjusted']:.3g})")))
        for label, line in one["values"].items():
            if "refused" in line:
                lines.append(f"    {label}: refused: {line['refused']}")
                continue
            drawn = "" if line["shrunk"] is None else ", drawn to the whole " + (
                f"{line['shrunk']['estimate']:+.2%}" if line["shrunk"]["low"] is None
                else _span(line["shrunk"], "+.2%"))
            lines.append(f"    {label}: {_span(line['lift'], '+.2%')}{drawn}; adjusted p {line['p_adjusted']:.3g}"
                         + (", exploratory" if line["label"] == "exploratory" else ""))
    return lines


def _growth(found: dict[str, Any]) -> list[str]:
    lines = []
    for arm, path in found["arms"].items():
        if not path:
            lines.append(f"  {arm} as the data grew: too few units for bounds that hold at every look")
            continue
        clear = next((p for p in path if p["lift"]["low"] > 0 or p["lift"]["high"] < 0), None)
        half = found["halves"][arm]
        lines.append(f"  {arm} as the data grew, always-valid: {_span(path[-1]['lift'], '+.2%')} at {path[-1]['n']:,} "
                     "rows, " + (f"clear of zero from {clear['n']:,} rows" if clear else "never clear of zero"))
        if half["p_value"] is not None:
            lines.append(f"    first half {_span(half['first'], '+.2%')}, second {_span(half['second'], '+.2%')}, p of "
                         f"the difference {half['p_value']:.3g}")
    return lines


def _span(interval: dict[str, Any], how: str) -> str:
    return f"{interval['estimate']:{how}} ({interval['low']:{how}} to {interval['high']:{how}})"
