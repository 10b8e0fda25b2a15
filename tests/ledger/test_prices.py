from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from recsys.errors import InputError, Refused
from recsys.ledger import load_card


def card_file(folder: Path, **row: object) -> str:
    base = {"id": "m", "kind": "machine", "provider": "P", "service": "S", "sku": "s", "unit": "hour",
            "on_demand": 10.0, "source": "here"}
    value = {"name": "mine", "as_of": "2026-11-01", "sources": {"here": "a catalog"}, "rows": [{**base, **row}]}
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(value))
    return str(path)


def test_shipped_card_prices_the_demo_machine_with_a_source_and_a_date() -> None:
    card = load_card("2026-11")
    row = card.get("aws-c6a-large")
    assert (row.list_price, row.vcpus, row.memory_gib) == (0.0765, 2, 4)
    assert row.price_range == (0.0296, 0.0765)
    assert "at commit e385a0d" in card.citation(row)
    assert row.as_of == "2026-11-23"
    assert len({r.id for r in card.rows}) == len(card.rows)
    assert all(len(card.citation(r)) > 20 for r in card.rows)


def test_shipped_card_names_a_machine_of_every_large_cloud() -> None:
    providers = {r.provider for r in load_card("2026-11").usable("machine") if not r.accelerators}
    assert providers == {"AWS", "Google Cloud", "Azure"}


def test_host_billed_apart_is_summed() -> None:
    assert load_card("2026-11").get("gcp-a2-highgpu-1g").list_price == pytest.approx(3.673)


def test_token_price_range_spans_the_usable_embedding_rows() -> None:
    assert load_card("2026-11").token_price_range() == (0.008, 0.15)


@pytest.mark.parametrize(("row", "reason"), [
    ({"host_included": False}, "host's price is missing"),
    ({"spot": {"low": 9.998, "high": 10.001}}, "equals the list price to the cent"),
    ({"on_demand": 0.0765, "spot": {"low": 0.0765, "high": 0.0765}}, "equals the list price"),
    ({"spot": {"low": 1.0, "high": 1.0}}, "exactly a tenth"),
    ({"on_demand": 2.1888, "spot": {"low": 0.2189, "high": 0.2189}}, "exactly a tenth"),
    ({"on_demand": None}, "list price is blank"),
    ({"spot": {"low": 3.0, "high": 12.0}}, "above the list price"),
    ({"on_demand": 0.0}, "zero"),
    ({"spot": {"low": 0.0, "high": 3.0}}, "zero"),
    ({"quarantined": "second-hand"}, "second-hand"),
])
def test_a_poison_row_stays_says_why_and_prices_nothing(tmp_path: Path, row: dict, reason: str) -> None:
    card = load_card(card_file(tmp_path, **row))
    assert card.find("m").id == "m"
    assert any(reason in r for r in card.quarantined()["m"])
    assert card.usable() == []
    with pytest.raises(Refused, match=reason) as refused:
        card.get("m")
    assert "mend the row" in str(refused.value)


@pytest.mark.parametrize("row", [
    {"spot": {"low": 1.02, "high": 9.9}},
    {"on_demand": 0.0765, "spot": {"low": 0.0296, "high": 0.0758}},  # one cent below at this size is a real price
    {"host_included": False, "host": 1.0, "spot": {"low": 3.0, "high": 10.5}},
])
def test_an_honest_row_is_usable(tmp_path: Path, row: dict) -> None:
    assert load_card(card_file(tmp_path, **row)).quarantined() == {}


def test_quarantined_row_of_the_shipped_card_names_a_usable_neighbour() -> None:
    with pytest.raises(Refused, match=r"gcp-a3-h100-us-central1.*quarantined.*aws-p5-4xlarge"):
        load_card("2026-11").get("gcp-a3-h100-us-central1")


@pytest.mark.parametrize(("row", "words"), [
    ({"on_demand": -1.0}, "on_demand"),
    ({"source": "nowhere"}, "source one of"),
    ({"unit": "million tokens"}, "machines priced by the hour"),
    ({"onDemand": 3}, "unknown key"),
    ({"spot": {"low": 2.0, "high": 1.0}}, "low <= high"),
])
def test_bad_card_is_one_line(tmp_path: Path, row: dict, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        load_card(card_file(tmp_path, **row))
    assert "\n" not in str(error.value)
    assert "card.yaml" in str(error.value)


def test_unknown_names_are_answered_with_near_ones() -> None:
    with pytest.raises(InputError, match="aws-c6a-large"):
        load_card("2026-11").get("aws-c6a-larg")
    with pytest.raises(InputError, match="2026-11"):
        load_card("2031-01")
