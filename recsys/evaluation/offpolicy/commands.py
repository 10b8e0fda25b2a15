"""The verbs ``recsys ope`` and ``recsys thompson-policy``. Heavy libraries are imported inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from recsys.errors import InputError, Refused

_Json = Annotated[bool, typer.Option("--json", help="Print the answer, or {\"refused\": reason}, as JSON on standard "
                                                    "output.")]


def ope(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="IMPRESSIONS as Parquet, with logged propensities and "
                                                             "clicks.")],
    target: Annotated[Path, typer.Option("--target", help="POLICY as Parquet: request_id, slot, ad_id, probability; "
                                         "optional expected_click, price_per_click, logging_probability, cluster.")],
    estimators: Annotated[str | None, typer.Option(help="Comma-separated, e.g. ips,snips,dr,mips,cascade_dr. Default: "
                                                        "all that the files allow.")] = None,
    metric: Annotated[str, typer.Option(help="ctr, engagement or revenue_per_mille.")] = "ctr",
    unit: Annotated[str | None, typer.Option(help="Column of the independent unit. Default: user_id where every row "
                                                  "has one, else request_id.")] = None,
    nuisance: Annotated[str, typer.Option(help="Outcome model: ranker (the target's expected_click), logistic or "
                                               "boosting (cross-fitted on the log), none (q = 0); auto: the ranker's "
                                               "where it is there, else none.")] = "auto",
    features: Annotated[str | None, typer.Option(help="Comma-separated context columns of a fitted outcome model. "
                                                      "Default: the log's columns outside the contract.")] = None,
    clusters: Annotated[Path | None, typer.Option(help="Parquet of ad_id and cluster, for mips.")] = None,
    interval: Annotated[str, typer.Option(help="auto (the evidence decides), or by name: betting (safe, wide), or "
                                               "t, bootstrap, el: refused on little evidence.")] = "auto",
    folds: Annotated[int, typer.Option(min=2, help="Folds of the cross-fit.")] = 3,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999)] = 0.95,
    bootstrap: Annotated[int, typer.Option(min=100, help="Draws of --interval bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of models, draws and orders.")] = 0,
    as_json: _Json = False,
) -> None:
    """What would the target policy have earned on this log? Estimates with intervals, or a refusal (exit code 3)."""
    from recsys.evaluation.intervals import ASKED
    from recsys.evaluation.offpolicy.evaluate import evaluate
    from recsys.evaluation.offpolicy.rows import METRICS

    for option, got, allowed in (("--metric", metric, METRICS), ("--interval", interval, ("auto", *ASKED)),
                                 ("--nuisance", nuisance, ("auto", "ranker", "none", "logistic", "boosting"))):
        if got not in allowed:
            raise InputError("value not allowed", file=option, got=got, expected=", ".join(allowed))
    wanted = _names(estimators)
    if wanted == []:
        raise InputError("no estimator named", file="--estimators", got=estimators, expected="names such as ips,dr, or "
                         "no --estimators for all that the files allow")
    try:
        result = evaluate(log, target, estimators=wanted, metric=metric, unit=unit,  # type: ignore[arg-type]
                          nuisance=nuisance, features=_names(features), clusters=clusters,  # type: ignore[arg-type]
                          interval=interval, folds=folds, confidence=confidence, draws=bootstrap,  # type: ignore[arg-type]
                          seed=seed)
    except Refused as refusal:
        if not as_json:
            raise
        typer.echo(json.dumps({"refused": str(refusal)}, indent=2, allow_nan=False))
        raise typer.Exit(refusal.exit_code) from None
    typer.echo(json.dumps(result, indent=2, allow_nan=False) if as_json else summary(result))


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def summary(result: dict[str, Any]) -> str:
    """The answer for a terminal."""
    d = result["diagnostics"]
    lines = [f"{result['metric']} of the target policy on {result['n']:,} shown slots, {result['units']:,} independent "
             f"units ({result['unit']}); {result['label']}, {result['interval']} intervals at "
             f"{100 * result['confidence']:g} %"]
    if result["logged_value"] is not None:
        lines.append(f"{'logged':<17}{result['logged_value']:.6f}")
    for name, e in result["estimators"].items():
        ends = "" if e["low"] is None else f"  [{e['low']:.6f}, {e['high']:.6f}]"
        level = "" if e.get("level") is None else f"  level {e['level']:g}"
        lines.append(f"{name:<17}{e['estimate']:.6f}{ends}{level}" + (f"  {e['note']}" if "note" in e else ""))
    clipped = ", ".join(f"{k}: {v:.6f}" for k, v in d["clip_sensitivity"].items())
    lines += [
        f"effective sample size {d['ess']:,.0f}, effective clicks {d['effective_clicks']:,.1f} of {d['clicks']:,}; "
        f"weights: mean {d['mean_weight']:.4f} +- {d['mean_weight_se']:.4f} (expected 1), max {d['max_weight']:.2f}, "
        f"top 1 % carry {100 * d['top_1_percent_weight_share']:.1f} %",
        f"support gaps: {100 * d['support_gaps']:.2f} % of the target's probability is on ads that were never shown"
        + (" (intervals are widened: such ads may earn nothing, or all they can); " if d["support_gaps"] else "; ") +
        f"{d['shown_outside_policy']:,} shown ads that the target does not list",
        f"dr with weights clipped at {clipped}",
        "estimators " + ("agree" if d["agreement"]["ok"] else "DISAGREE")
        + f": largest difference {d['agreement']['largest_z']:.1f} standard errors",
    ]
    return "\n".join(lines)


def thompson_policy(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="IMPRESSIONS as Parquet: whose requests get the policy.")],
    prior: Annotated[Path, typer.Option(help="YAML: alpha and beta, one number per ad, or campaign -> those.")],
    ads: Annotated[Path, typer.Option(help="ads.parquet: the order of its rows is the order of the prior.")],
    out: Annotated[Path, typer.Option("--out", help="POLICY, Parquet.")],
    campaign: Annotated[str | None, typer.Option(help="Key of the prior's file.")] = None,
    draws: Annotated[int, typer.Option(min=1, help="Monte Carlo draws.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 12345,
    as_json: _Json = False,
) -> None:
    """The POLICY of Bernoulli Thompson sampling with a fixed prior, as Open Bandit's BTS (docs/ope.md)."""
    from recsys.evaluation.offpolicy.thompson import write_thompson_policy

    rows = write_thompson_policy(log, prior, ads, out, campaign, draws, seed)
    typer.echo(json.dumps({"rows": rows, "out": str(out)}, allow_nan=False) if as_json else f"{out}: {rows:,} rows")
