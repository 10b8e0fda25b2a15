"""What must never end in a number: each trap is sprung, and so is its honest twin, which must pass."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.config import ExperimentConfig, ShareSplit
from recsys.contracts import read_parquet
from recsys.datasets.split import split_dataset
from recsys.errors import Refused
from recsys.evaluation.ab.analysis import Plan
from recsys.evaluation.certify.propensities import counted
from recsys.evaluation.certify.worlds import softmax
from recsys.evaluation.lift import offpolicy_lift, randomized_lift
from recsys.evaluation.offpolicy.evaluate import evaluate
from recsys.evaluation.randomized import week_in_broken_window
from recsys.ledger.prices import PriceCard
from recsys.stage import write_json

UPWORTHY = Path("upworthy") / "packages.parquet"


@dataclass(frozen=True)
class Trap:
    """One way to be fooled.

    Attributes:
        name: of the trap.
        spring: what a careless analyst would do; gets a folder; ends in Refused, or the trap is open.
        twin: the same done properly; must not.
        names: words of the reason.
        mends: words of what would mend it.
    """

    name: str
    spring: Callable[[Path], Any]
    twin: Callable[[Path], Any]
    names: str
    mends: str


def run_traps(data_home: Path | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Spring every trap.

    Args:
        data_home: folder of raw data sets, for the Upworthy trap; without it that one is skipped.
        seed: of the simulated logs.

    Returns:
        {"trap", "ends": refusal | number | skipped, "reason", "caught", "twin_passes"} each; ``caught`` only
        where the reason names the trap and what would mend it; null where skipped.
    """
    found: list[dict[str, Any]] = []
    for trap in _traps(data_home, seed):
        if trap.name.startswith("Upworthy") and (data_home is None or not (data_home / UPWORTHY).is_file()):
            found.append({"trap": trap.name, "ends": "skipped", "caught": None, "twin_passes": None,
                          "reason": f"no {UPWORTHY} in the data home (set RECSYS_DATA_HOME)"})
            continue
        ends, reason = _ends(trap.spring)
        twin, _ = _ends(trap.twin)
        caught: bool = ends != "number" and trap.names in reason and trap.mends in reason
        found.append({"trap": trap.name, "ends": ends, "reason": reason, "caught": caught,
                      "twin_passes": twin == "number"})
    return found


def _ends(act: Callable[[Path], Any]) -> tuple[str, str]:
    with tempfile.TemporaryDirectory(prefix="recsys-trap-") as folder:
        try:
            act(Path(folder))
        except Refused as refused:
            return "refusal", str(refused)
    return "number", ""


def _traps(home: Path | None, seed: int) -> list[Trap]:
    return [
        Trap("text-free memoriser on a random split", lambda f: _split(f, "row", seed),
             lambda f: _split(f, "story", seed), "only remembers texts", "use split: {kind: story}"),
        Trap("effective sample size 2", lambda f: _ope(f, seed, sharp=True), lambda f: _ope(f, seed),
             "effective sample size", "evaluate a policy nearer the logging one"),
        Trap("spot price above on-demand", lambda f: _price({"spot": {"low": 1.0, "high": 2.5}}),
             lambda f: _price({}), "the spot price is above the list price", "mend the row"),
        Trap("zero price", lambda f: _price({"on_demand": 0.0, "spot": None}), lambda f: _price({}),
             "a price is zero", "mend the row"),
        Trap("reconstructed propensity: frequency of the ad", lambda f: _ope(f, seed, counted_by="all"),
             lambda f: _ope(f, seed), "reconstructed", "log the probability"),
        Trap("reconstructed propensity: within a segment", lambda f: _ope(f, seed, counted_by="segment"),
             lambda f: _ope(f, seed), "reconstructed", "log the probability"),
        Trap("reconstructed propensity: 1 % jitter a row", lambda f: _ope(f, seed, counted_by="segment", jitter=0.01),
             lambda f: _ope(f, seed), "reconstructed", "log the probability"),
        Trap("peeking", lambda f: Plan("control", looks=5, method="fixed").sequential,
             lambda f: Plan("control", looks=5).sequential, "looked at 5 times", "use the always-valid one"),
        Trap("interval around the direct method", lambda f: _ope(f, seed, estimators=["dm"]),
             lambda f: _ope(f, seed, estimators=["dm", "dr"]), "direct method", "ask for dr"),
        Trap("Upworthy's weeks of broken randomisation", lambda f: _srm(home, True), lambda f: _srm(home, False),
             "tests have p < 0.01", "leave out the tests"),
        Trap("clustered data analysed per impression", lambda f: _ope(f, seed, unit="impression_id"),
             lambda f: _ope(f, seed, unit="user_id"), "intervals are too narrow", "analyse by user_id"),
        Trap("clustered data analysed per impression, in a lift report", lambda f: _impressions(seed, "request_id"),
             lambda f: _impressions(seed, "user_id"), "intervals are too narrow", "analyse by user_id"),
    ]


def _split(folder: Path, kind: Any, seed: int) -> None:
    """Headline tests that were run twice, as editors do; cut by request, or by story."""
    rng, data = np.random.default_rng(seed), folder / "data"
    data.mkdir()
    test = np.repeat(np.arange(240), 3)
    headline = [f"headline {t // 2} {k}" for t, k in zip(test, np.tile(np.arange(3), 240), strict=True)]
    pq.write_table(pa.table({
        "impression_id": [f"i{i}" for i in range(len(test))], "request_id": [f"t{t}" for t in test],
        "ad_id": headline, "group_id": [f"story {t // 2}" for t in test],
        "trials": np.full(len(test), 3000), "successes": rng.binomial(3000, 0.015, len(test))}),
        data / "impressions.parquet")
    write_json(data / "dataset.json", {"name": "headlines", "stories": True})
    write_json(data / "manifest.json", {"key": "headlines", "inputs": {}})
    split_dataset(data, ShareSplit(kind=kind, test_share=0.2), seed, folder / "split")


def _ope(folder: Path, seed: int, *, sharp: bool = False, counted_by: str = "", jitter: float = 0.0,
         estimators: list[str] | None = None, unit: str | None = None) -> dict[str, Any]:
    """``recsys ope`` on a log of 400 users x 10 rows and 8 ads in 4 segments."""
    rng, users, ads = np.random.default_rng(seed), 400, 8
    user = np.repeat(np.arange(users), 10)
    segment, n = (user % 4), len(user)
    logging = softmax(rng.normal(0, 0.7, (4, ads)), floor=0.2)
    target = softmax(rng.normal(0, 0.7, (4, ads)))
    steps = logging[segment].cumsum(axis=1)
    ad = np.minimum((rng.random((n, 1)) > steps).sum(axis=1), ads - 1)
    p = logging[segment, ad]
    if counted_by:
        p = counted(segment if counted_by == "segment" else np.zeros_like(segment), ad)
        p = np.clip(p * (1 + jitter * rng.uniform(-1, 1, n)), 1e-6, 1.0)
    names = [f"r{i}" for i in range(n)]
    pq.write_table(pa.table({
        "impression_id": names, "request_id": names, "user_id": [f"u{u}" for u in user], "user_segment": segment,
        "ad_id": [f"a{a}" for a in ad], "propensity": p, "click": (rng.random(n) < 0.1).astype(np.int8)}),
        folder / "log.parquet")
    policy = target[segment]
    if sharp:  # two rows that the target loves, and hardly anything elsewhere that was shown
        policy = np.full((n, ads), 1.0)
        policy[np.arange(n), ad] = 1e-6
        policy[[0, 1], ad[[0, 1]]] = 1e6
        policy /= policy.sum(axis=1, keepdims=True)
    pq.write_table(pa.table({
        "request_id": np.repeat(names, ads), "slot": pa.array(np.zeros(n * ads), pa.int32()),
        "ad_id": np.tile([f"a{a}" for a in range(ads)], n), "probability": policy.ravel(),
        "expected_click": np.full(n * ads, 0.1)}), folder / "policy.parquet")
    return evaluate(folder / "log.parquet", folder / "policy.parquet", estimators=estimators, unit=unit, draws=200)


def _price(change: dict[str, Any]) -> tuple[float, float]:
    row = {"id": "box", "kind": "machine", "provider": "any", "service": "compute", "sku": "box", "unit": "hour",
           "on_demand": 2.0, "spot": {"low": 0.7, "high": 0.9}, "source": "list"}
    card = PriceCard.model_validate({"name": "trap", "as_of": "2026-01-01", "sources": {"list": "a list"},
                                     "rows": [row | change]})
    return card.get("box").price_range


def _srm(home: Path | None, inside: bool) -> None:
    """``recsys lift`` of the headlines' tests, by weeks: picking the longest headline against any."""
    assert home is not None
    table = read_parquet(home / UPWORTHY)
    table = table.filter(pc.greater(table["impressions"], 0))
    broken = week_in_broken_window(table["test_week"].cast(pa.int64()))
    table = table.filter(pa.array(broken if inside else ~broken))
    pooled = pa.table({"request_id": table["clickability_test_id"].cast(pa.string()),
                       "ad_id": table["headline"].cast(pa.string()), "trials": table["impressions"].cast(pa.int64()),
                       "successes": table["clicks"].cast(pa.int64())}).group_by(["request_id", "ad_id"]).aggregate(
                           [("trials", "sum"), ("successes", "sum")]).rename_columns(
                               ["request_id", "ad_id", "trials", "successes"])
    pooled = pooled.append_column("group_id", pooled["request_id"]).append_column(
        "impression_id", pa.array([f"i{i}" for i in range(pooled.num_rows)]))
    config = _experiment(["uniform", "longest"], method="randomized", unit="group_id")
    _shown(randomized_lift(pooled, {"uniform": None, "longest": pc.utf8_length(pooled["ad_id"]).to_numpy()}, config))


def _impressions(seed: int, unit: str) -> None:
    """``recsys lift`` of a log whose rows of one user hang together."""
    rng, users, ads = np.random.default_rng(seed), 500, 4
    user = np.repeat(np.arange(users), 10)
    n = len(user)
    ad = rng.integers(0, ads, n)
    click = rng.random(n) < rng.beta(0.5, 2.0, users)[user]
    names = [f"r{i}" for i in range(n)]
    log = pa.table({"impression_id": names, "request_id": names, "user_id": [f"u{u}" for u in user],
                    "ad_id": [f"a{a}" for a in ad], "propensity": np.full(n, 1 / ads), "click": click.astype(np.int8)})
    policies = {}
    for name, first in (("uniform", 1 / ads), ("first", 0.4)):
        chances = np.r_[first, np.full(ads - 1, (1 - first) / (ads - 1))]
        policies[name] = pa.table({
            "request_id": np.repeat(names, ads), "slot": pa.array(np.zeros(n * ads), pa.int32()),
            "ad_id": np.tile([f"a{a}" for a in range(ads)], n), "probability": np.tile(chances, n)})
    _shown(offpolicy_lift(log, policies, _experiment(list(policies), unit=unit)))


def _experiment(arms: list[str], **evaluation: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate({"name": "trap", "data": {"recipe": "none"}, "split": {"kind": "user"},
                                            "arms": {name: {} for name in arms}, "evaluation": evaluation})


def _shown(report: dict[str, Any]) -> None:
    """End as the report does: in its refusal, if no arm's estimate is anywhere in it; else in its numbers."""
    numbers = [arm[key] for arm in report["arms"].values() for key in ("lift", "absolute_lift", "value", "p_value")]
    if report["refused"] and not any(n is not None for n in numbers):
        raise Refused(report["refused"])
