from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from recsys.cli import app, main
from recsys.config import IndexConfig, load_config
from recsys.errors import InputError, Refused
from recsys.ledger.prices import load_card
from recsys.planning import make_plan
from recsys.planning.commands import text
from recsys.planning.plan import seconds_a_query
from recsys.planning.speeds import load_speeds

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def plan() -> dict:
    return make_plan(load_config("internet_scale"))


def test_offers_are_cheapest_first_and_add_up(plan: dict) -> None:
    assert {"train", "embed llama_1b", "index", "serve", "users", "store"} == set(plan["offers"])
    for found in plan["offers"].values():
        prices = [o["on_demand"] for o in found]
        assert prices == sorted(prices)
        assert all(o["assumes"] for o in found)
        assert {a for o in found for a in o["assumes"]} <= set(plan["assumptions"])
    aws = next(t for t in plan["totals"] if t["provider"] == "AWS")
    cheapest = [min(o["on_demand"] for o in found if o["provider"] == "AWS") for found in plan["offers"].values()]
    assert aws["on_demand"] == pytest.approx(sum(cheapest))
    assert aws["spot"]["low"] <= aws["spot"]["high"] <= aws["on_demand"]
    assert not aws["missing"]
    mille = plan["per_mille"]["whole"]["usd"]
    assert mille == pytest.approx(aws["on_demand"] / 1e13 * 1000)
    assert plan["per_mille"]["whole"]["break_even_lift"] == pytest.approx(mille / 2.0)


def test_figures_by_hand(plan: dict) -> None:
    # 100 M ads of 60 tokens; an H100 at 40 % of 989 TFLOP/s does 2 x 1.24e9 operations a token
    rate = 989e12 * 0.4 / (2 * 1.24e9)
    year = (2 * 100e6 + 1e9) * 60
    h100 = next(o for o in plan["offers"]["embed llama_1b"] if o["price_row"] == "aws-p5-48xlarge")
    assert h100["machines"] * h100["hours"] == pytest.approx(year / (8 * rate) / 3600)
    assert h100["on_demand"] == pytest.approx(55.04 * year / (8 * rate) / 3600)
    assert plan["needs"]["serve"]["pairs_a_second_at_peak"] == pytest.approx(1e13 / 5 / (365 * 86400) * 200 * 2)
    assert plan["needs"]["store"]["logs_gb"] == pytest.approx(1e13 / 12 * 3 * 250 / 1e9)
    s3 = next(o for o in plan["offers"]["store"] if o["price_row"] == "aws-s3-standard")
    assert s3["on_demand"] == pytest.approx(0.023 * 12 * plan["needs"]["store"]["gb"])


def test_a_refresh_that_must_be_quick_takes_more_machines_for_the_same_work() -> None:
    slow, quick = (make_plan(load_config("internet_scale", [f"scale.refresh_hours={h}"])) for h in (24, 0.1))
    one, many = (next(o for o in p["offers"]["embed llama_1b"] if o["price_row"] == "aws-p5-48xlarge")
                 for p in (slow, quick))
    assert one["machines"] < many["machines"]
    assert one["on_demand"] == pytest.approx(many["on_demand"])


def test_prices_in_quarantine_price_nothing(plan: dict) -> None:
    used = {o["price_row"] for found in plan["offers"].values() for o in found}
    assert "gcp-a3-h100-us-central1" in plan["left_out"]
    assert not used & {"gcp-a3-h100-us-central1", "azure-nc40ads-h100-v5", "azure-nc40ads-h100-v5-eastus"}
    with pytest.raises(Refused, match="quarantined"):
        make_plan(load_config("internet_scale", ["scale.machines=[azure-nc40ads-h100-v5]"]))


def test_only_named_machines_are_reckoned_with() -> None:
    found = make_plan(load_config("internet_scale", ["scale.machines=[lambda-8x-h100]"]))
    assert {o["provider"] for c, offers in found["offers"].items() if c != "store" for o in offers} == {"Lambda"}
    assert not found["offers"]["serve"]  # needs processors and memory that the row does not give
    with pytest.raises(InputError, match="aws-p9"):
        make_plan(load_config("internet_scale", ["scale.machines=[aws-p9]"]))


def test_what_no_machine_can_do_is_missing_from_every_total_and_has_no_price() -> None:
    found = make_plan(load_config("internet_scale", ["scale.training_hours=0.000001"]))
    assert not found["offers"]["train"]
    assert all("train" in t["missing"] for t in found["totals"])
    assert "whole" not in found["per_mille"]
    lines = text(found, 1)
    assert any(line.startswith("train: no machine does it") for line in lines)
    assert not any("everything (" in line for line in lines)
    assert "train: it does not end in time" in found["left_out"]["lambda-8x-h100"]
    nothing = make_plan(load_config("internet_scale", ["scale.machines=[lambda-8x-h100]"]))["per_mille"]
    assert "content" not in nothing  # an index without machines is not free


def test_the_verb_and_its_errors(capsys: pytest.CaptureFixture[str]) -> None:
    found = CliRunner().invoke(app, ["plan", "internet_scale", "--json"])
    assert found.exit_code == 0
    assert json.loads(found.output)["experiment"] == "internet_scale"
    with pytest.raises(SystemExit) as ended:
        main(["plan", "marketplace"])
    assert ended.value.code == 2
    assert "scale" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["plan", "internet_scale", "--set", "scale.machines=[azure-nc40ads-h100-v5]"])
    assert ended.value.code == 3
    with pytest.raises(SystemExit) as ended:
        main(["plan", "internet_scale", "--set", "scale.parameters={other: 1.0}"])
    assert ended.value.code == 2


def test_the_page_on_scale_shows_what_the_command_says(plan: dict) -> None:
    page = (ROOT / "docs" / "scale.md").read_text()
    shown = re.search(r"```text\n(.*?)\n```", page, re.S)
    assert shown is not None
    assert shown[1] == "\n".join(line.rstrip() for line in text(plan, 2))


def test_a_query_costs_what_the_benchmark_says_and_more_in_a_larger_shard(plan: dict) -> None:
    speeds, index = load_speeds(), IndexConfig()
    rate = speeds.cpu.search
    assert seconds_a_query(rate.vectors, rate.dim, index, speeds) == pytest.approx(rate.cores / rate.queries_a_second)
    assert seconds_a_query(rate.vectors, 2 * rate.dim, index, speeds) == pytest.approx(
        2 * rate.cores / rate.queries_a_second)
    sizes = [seconds_a_query(n, 128, index, speeds) for n in (10_000, 1_000_000, 20_000_000, 40_000_000)]
    assert sizes == sorted(sizes)
    card = load_card(load_config("internet_scale").money.price_card)
    processors = {row.id: row.vcpus for row in card.rows}
    queries = plan["needs"]["index"]["queries_a_second_at_peak"]
    for found in plan["offers"]["index"]:
        shard = math.ceil(100_000_000 / found["shards"])
        cores = queries * found["shards"] * seconds_a_query(shard, 256, index, speeds)
        assert found["machines"] == max(2 * found["shards"], math.ceil(cores / processors[found["price_row"]]))
