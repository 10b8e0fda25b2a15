"""Measured work priced on every cloud, by hand; poison rows stay out of every table and total."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
import yaml

from recsys.config import find_resource
from recsys.ledger import book, cloud_costs, load_card

NOW = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
USAGES = [
    {"stage": "embed", "model_id": "a/b", "seconds": 3600.0, "tokens": 1_000_000, "flops": 989e12 * 0.4 * 3600},
    {"stage": "serve", "seconds": 7200.0}, {"stage": "store", "bytes": 1_000_000_000, "months": 1.0},
]


def priced(card=None, machine: str = "aws-c6a-large"):
    card = card or load_card("2026-11")
    return cloud_costs(book(USAGES, card, machine, "x", "arm", now=NOW).to_pylist(), card, machine)


def find(found, **want):
    return [r for r in found["rows"] if all(r[k] == v for k, v in want.items())]


def test_seconds_on_every_cloud() -> None:
    found = priced()
    for provider, hour, spot in (("AWS", 0.0765, (0.0296, 0.0350)), ("Google Cloud", 0.06701, (0.03094, 0.03094)),
                                 ("Azure", 0.086, (0.0602, 0.0602))):
        (row,) = find(found, stage="serve", basis="seconds", provider=provider)
        assert row["on_demand"] == pytest.approx(2 * hour)
        assert (row["spot"]["low"], row["spot"]["high"]) == pytest.approx((2 * spot[0], 2 * spot[1]))
        assert row["source"]
        assert row["as_of"]


def test_flops_on_every_accelerator_of_every_cloud() -> None:
    found = priced()
    # An hour of an H100 at 40 % of 989 TFLOP/s by construction; A100s take 989/312 hours, an L4 989*.4/(121*.35).
    prices = {(r["provider"], r["offer"].split(" ")[0]): r["on_demand"] for r in find(found, basis="flops")}
    assert prices == pytest.approx({
        ("AWS", "H100-80GB"): 6.88, ("AWS", "A100-40GB"): 2.745 * 989 / 312, ("AWS", "A100-80GB"): 3.43 * 989 / 312,
        ("AWS", "L4"): 0.8048 * 989 * .4 / (121 * .35), ("Google Cloud", "H100-80GB"): 10.98,
        ("Google Cloud", "A100-40GB"): 3.673 * 989 / 312, ("Azure", "A100-80GB"): 3.673 * 989 / 312})
    (aws,) = find(found, basis="flops", provider="AWS", price_row="aws-p4d-24xlarge")
    assert aws["spot"]["low"] == pytest.approx(0.79 * 989 / 312)  # an eighth of the machine


def test_tokens_by_api_and_bytes_by_store() -> None:
    found = priced()
    tokens = {r["price_row"]: r["on_demand"] for r in find(found, basis="tokens")}
    assert tokens["api-openai-3-small"] == pytest.approx(0.02)
    assert tokens["api-gemini-embedding-001"] == pytest.approx(0.15)
    assert len(tokens) == 7
    assert not find(found, basis="tokens", stage="serve")
    assert {r["provider"]: r["on_demand"] for r in find(found, basis="bytes")} == pytest.approx(
        {"AWS": 0.023, "Google Cloud": 0.020, "Azure": 0.018})


def test_totals_add_up_what_the_arm_takes_on_one_cloud() -> None:
    totals = {t["provider"]: t for t in priced()["totals"]}
    assert totals["AWS"]["on_demand"] == pytest.approx(3 * 0.0765 + 0.023)
    assert totals["AWS"]["spot"]["low"] == pytest.approx(3 * 0.0296 + 0.023)  # a store has no spot price
    assert totals["Azure"]["on_demand"] == pytest.approx(3 * 0.086 + 0.018)


def test_a_total_says_that_it_rests_on_an_undated_price() -> None:
    from recsys.experiment.commands import _clouds

    found = priced()
    assert {t["provider"]: t["undated"] for t in found["totals"]} == {
        "AWS": [], "Google Cloud": [], "Azure": ["azure-dc2as-v5"]}
    assert {r["price_row"] for r in found["rows"] if not r["dated"]} == {
        r["price_row"] for r in found["rows"] if r["as_of"] == "unknown"}
    lines = [line for line in _clouds(found) if "undated price" in line]
    assert len(lines) == 1
    assert "Azure" in lines[0]


def test_gpu_work_is_compared_with_the_same_accelerator() -> None:
    found = priced(machine="aws-p4de-24xlarge")
    rows = {r["provider"]: r for r in find(found, stage="serve", basis="seconds")}
    # Two hours of a machine of eight accelerators; Azure sells the same one singly, Google none on the card.
    assert rows["AWS"]["on_demand"] == pytest.approx(2 * 27.44)
    assert rows["Azure"]["on_demand"] == pytest.approx(2 * 8 * 3.673)
    assert "Google Cloud" not in rows


POISON = {
    1: {"on_demand": 0.001, "host_included": False}, 2: {"on_demand": 0.06, "spot": {"low": 0.06, "high": 0.06}},
    3: {"on_demand": 0.06, "spot": {"low": 0.006, "high": 0.006}}, 4: {"on_demand": None},
    5: {"on_demand": 0.01, "spot": {"low": 0.005, "high": 0.5}}, 6: {"on_demand": 0.0},
}


@pytest.mark.parametrize("rule", sorted(POISON))
def test_a_row_that_breaks_a_quarantine_rule_is_kept_marked_and_in_no_total(rule: int, tmp_path: Path) -> None:
    value = yaml.safe_load(find_resource("data", "prices/2026-11").read_text())
    row = next(r for r in value["rows"] if r["id"] == "gcp-e2-standard-2")
    row.pop("spot")
    row |= POISON[rule]
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(value))
    card = load_card(str(tmp_path / "card.yaml"))
    assert card.find("gcp-e2-standard-2").reasons()
    found = priced(card)
    assert found["left_out"]["gcp-e2-standard-2"]
    assert not find(found, price_row="gcp-e2-standard-2")
    google = [t for t in found["totals"] if t["provider"] == "Google Cloud"]
    assert google[0]["on_demand"] == pytest.approx(0.020)  # storage alone is left


def test_a_poison_token_price_is_in_no_total(tmp_path: Path) -> None:
    value = yaml.safe_load(find_resource("data", "prices/2026-11").read_text())
    for row in value["rows"]:
        if row["id"] == "api-together-bge-base":
            row["on_demand"] = 0.0
        elif row["id"] == "api-gemini-embedding-001":
            row["on_demand"] = None
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(value))
    card = load_card(str(tmp_path / "card.yaml"))
    assert card.token_price_range() == (0.008, 0.13)
    assert len(find(priced(card), basis="tokens")) == 5
    assert set(card.quarantined()) >= {"api-together-bge-base", "api-gemini-embedding-001"}


def test_a_host_billed_apart_is_summed_in_every_table() -> None:
    (row,) = find(priced(), price_row="gcp-a2-highgpu-1g")
    assert row["on_demand"] == pytest.approx((2.934 + 0.739) * 989 / 312)
