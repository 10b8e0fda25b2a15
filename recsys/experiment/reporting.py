"""The report and the money, from an experiment's logs alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from recsys.config import ArmConfig, ExperimentConfig, parse_model, read_yaml
from recsys.contracts import IMPRESSIONS, POLICY, read_parquet
from recsys.errors import InputError
from recsys.experiment.arms import arm_usages, latency_ms, policy_settings
from recsys.experiment.registration import look, require_unchanged
from recsys.ledger import book, cloud_costs, costs_per_mille, load_card, read_costs, statement, write_costs
from recsys.stage import read_manifest, sha256_file, sha256_json, write_json


def write_experiment_costs(config: ExperimentConfig, out: Path) -> pa.Table:
    """Book every arm's measured work as COSTS rows: ``out/costs.parquet``."""
    usages = [u for name in config.arms for u in arm_usages(config, name, out)]
    money = config.money
    table = book(usages, load_card(money.price_card), money.machine, config.name, list(config.arms),
                 storage=money.storage, impressions_per_refresh=money.impressions_per_refresh)
    write_costs(table, out / "costs.parquet")
    return table


def make_report(out: str | Path) -> dict[str, Any]:
    """Write ``report/``: ``lift.json``, ``lift.csv``, ``statement.json``, ``lift.html``, from an experiment's folder.

    Reads ``config.yaml``, ``split/test.parquet``, every arm's ``policy.parquet``, ``costs.parquet`` and, for
    simulated data, ``truth.json``; trains and scores nothing.

    Returns:
        The contents of ``lift.json``. Where a health check failed it is ``refused``, and no statement is written.

    Raises:
        InputError: a log is missing. Refused: the evidence does not carry a lift, the decision rule was changed after
        a report was made, or this is one look at growing data more than it plans.
    """
    from recsys.evaluation import offpolicy_lift, randomized_lift, write_lift
    from recsys.report import render_html, write_csv

    out = Path(out)
    if not (out / "config.yaml").is_file():
        raise InputError("not an experiment's folder", file=out, got="no config.yaml",
                         expected="a folder that recsys experiment wrote")
    config = parse_model(ExperimentConfig, read_yaml(out / "config.yaml"), out / "config.yaml")
    require_unchanged(config, out)
    test_file = out / "split" / "test.parquet"
    test = read_parquet(test_file, IMPRESSIONS)
    _check_logs(config, out)
    policies = {n: read_parquet(out / "arms" / n / "policy" / "policy.parquet", POLICY) for n in config.arms}
    costs = read_costs(out / "costs.parquet").to_pylist()
    money: dict[str, dict[str, Any]] = {name: {"cost_per_mille_usd": 0.0} for name in config.arms}
    for name, cost in costs_per_mille(costs, config.money.impressions_per_refresh).items():
        money[name] = {"cost_per_mille_usd": cost["estimate"],
                       "cost_per_mille_interval": {"low": cost["low"], "high": cost["high"]}}
    for name in config.arms:
        money[name]["latency_ms"] = latency_ms(out / "arms" / name)
    common: dict[str, Any] = {"audit": json.loads((out / "split" / "audit.json").read_text()),
                              "data_sha256": sha256_json([sha256_file(out / "split" / f"{p}.parquet")
                                                            for p in ("train", "test")])}
    if config.evaluation.method == "randomized":
        scores = {n: p["score"].to_numpy() if "score" in p.column_names else None for n, p in policies.items()}
        lift = randomized_lift(test, scores, config, money, **common)
    else:
        truth = out / "truth.json"
        lift = offpolicy_lift(test, policies, config, money,
                              json.loads(truth.read_text()) if truth.is_file() else None, **common)
    lift["decision"] |= look(config, out, lift["data_sha256"])
    lift["seed"] = config.seed
    for name, arm in config.arms.items():
        lift["arms"][name]["encoder"] = _encoder(config, arm)
    if (out / "retrieval.json").is_file():
        lift["retrieval"] = json.loads((out / "retrieval.json").read_text())
    write_lift(out / "report" / "lift.json", lift)
    write_csv(lift, out / "report" / "lift.csv")
    if lift["refused"]:  # a statement is made of lifts; an old one would be of other lifts
        (out / "report" / "statement.json").unlink(missing_ok=True)
        render_html(lift, None, out / "report" / "lift.html")
        return lift
    books = statement(lift, costs, config.money.impressions_per_refresh, reference_ecpm=config.money.reference_ecpm,
                      price_decline_per_year=config.money.price_decline_per_year)
    books["clouds"] = cloud_costs(costs, load_card(config.money.price_card), config.money.machine)
    write_json(out / "report" / "statement.json", books)
    render_html(lift, books, out / "report" / "lift.html")
    return lift


def _encoder(config: ExperimentConfig, arm: ArmConfig) -> dict[str, Any] | None:
    """What the report says of an arm's encoder: its kind, and the model where one is named."""
    if not arm.encoders:
        return None
    used = [config.encoders[n] for n in arm.encoders]
    models = " + ".join(e.model or e.kind for e in used) if len(used) > 1 else used[0].model
    return {"name": " + ".join(arm.encoders), "kind": used[0].kind if len(used) == 1 else "joined", "model": models}


def _check_logs(config: ExperimentConfig, out: Path) -> None:
    """Refuse to publish policies under a configuration or a test part that did not make them."""
    test = sha256_file(out / "split" / "test.parquet")
    for name in config.arms:
        folder = out / "arms" / name / "policy"
        manifest = read_manifest(folder)
        if manifest is None:
            raise InputError("the arm has no policy", file=folder, expected="a finished run of recsys experiment")
        if manifest["config"] != policy_settings(config, name) or manifest["inputs"].get("test") != test:
            raise InputError("the policy was made with another configuration or test part", file=folder,
                             got="other settings or data", expected="run recsys experiment again")
