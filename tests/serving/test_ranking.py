"""Decisions of a small real model: what is eligible, in which order, at what price, and what the log says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.auction import run_auctions, slot_prices
from recsys.config import RankingConfig, parse_model
from recsys.contracts import IMPRESSIONS, read_parquet, validate
from recsys.datasets.candidates import expand_candidates
from recsys.datasets.info import DatasetInfo
from recsys.errors import InputError, Refused
from recsys.evaluation.policy import ranker_policy
from recsys.serving.protocol import load_scorer
from recsys.serving.ranking import Ranking, replayed
from recsys.serving.served_log import LogFull
from tests.serving.conftest import ADS, make_ads


@pytest.fixture(scope="module")
def scorer(model: Path):
    return load_scorer(model, "cpu")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    ads = make_ads().append_column("surface", pa.array(["feed" if i % 4 else "discovery" for i in range(ADS)]))
    pq.write_table(ads, tmp_path / "ads.parquet")
    pq.write_table(pa.table({
        "user_id": [f"u{i}" for i in range(10)], "age": [20.0 + 4 * i for i in range(10)],
        "history": [[f"a{j}" for j in range(i % 4)] for i in range(10)]}), tmp_path / "users.parquet")
    return tmp_path


def config(files: Path, **more: Any) -> RankingConfig:
    return parse_model(RankingConfig, {
        "ads": files / "ads.parquet", "users": {"parquet": files / "users.parquet"}, "filters": ["surface={surface}"],
        "context": {"device": "string"}, "log": {"folder": str(files / "log")}, **more}, "test")


@pytest.fixture
def make(files, scorer):
    made: list[Ranking] = []

    def ranking(**more: Any) -> Ranking:
        made.append(Ranking(config(files, **more), lambda _: scorer))
        return made[-1]

    yield ranking
    for r in made:
        r.close()


def request(user: str | None = "u3", **more: Any) -> dict[str, Any]:
    return {"user_id": user, "surface": "feed", "k": 3, "request_id": "r1", "context": {"device": "phone"}, **more}


def log_of(files: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(f) for f in sorted((files / "log").glob("impressions-*.parquet"))])


PURE = {"temperature": 0.0, "epsilon": 0.0, "depth": 30}


def test_without_exploration_it_is_the_auction_over_the_models_scores(make, scorer, files):
    decision = make(policy=PURE).rank(request())
    ads = pq.read_table(files / "ads.parquet")
    feed = ads.filter(pa.compute.equal(ads["surface"], "feed"))
    table = feed.append_column("user_id", pa.array(["u3"] * len(feed))).append_column(
        "age", pa.array([32.0] * len(feed))).append_column("history", pa.array([["a0", "a1", "a2"]] * len(feed)))
    rate, bids = scorer.score(table)["click"], feed["bid"].to_numpy()
    cleared = run_auctions(bids[None], rate[None], [1.0, 1.0, 1.0], bid_exponent=0.5, reserve=0.05)
    assert decision.shown == [feed["ad_id"][i].as_py() for i in cleared.winner[0]]
    np.testing.assert_allclose(decision.prices, cleared.price[0], rtol=1e-12)
    answer = decision.answer()
    assert [ad["propensity"] for ad in answer["ads"]] == [1.0, 1.0, 1.0]
    np.testing.assert_allclose([ad["p_click"] for ad in answer["ads"]], rate[cleared.winner[0]], rtol=1e-12)
    assert answer["user_known"] is True


@pytest.mark.parametrize("mechanism", ["gsp", "vcg", "first_price"])
def test_prices_are_those_of_the_mechanism_in_whatever_order_was_drawn(make, mechanism):
    ranking = make(policy={"epsilon": 1.0, "depth": 5, "mechanism": mechanism, "bid_exponent": 1.0})
    d = ranking.rank(request())
    full = make(policy={**PURE, "depth": 100, "bid_exponent": 1.0}).rank(request())  # all that take part
    prices = slot_prices(full.bids[None], full.heads["click"][None], 3, mechanism=mechanism, reserve=0.05,
                         position=[1.0, 1.0, 1.0])
    at = [full.candidates.index(ad) for ad in d.shown]
    assert len(full.candidates) == 30
    np.testing.assert_allclose(d.prices, prices[0, np.arange(3), at], rtol=1e-9)


def test_the_log_says_what_was_decided_and_the_decision_can_be_made_again_from_it(make, files):
    ranking = make(policy={"epsilon": 0.3, "temperature": 0.5, "depth": 8})
    decisions = [ranking.rank(request(f"u{i}", request_id=f"r{i}")) for i in range(10)]
    assert ranking.close()
    log = validate(log_of(files), IMPRESSIONS)
    assert log.num_rows == 30
    assert log["impression_id"].to_pylist() == [f"r{i}-{s}" for i in range(10) for s in range(3)]
    for row in log.to_pylist():
        d = decisions[int(row["request_id"][1:])]
        assert row["ad_id"] == d.shown[row["slot"]]
        assert row["propensity"] == d.slate.propensity[row["slot"]]  # equal to the last bit
        assert row["candidates"] == d.candidates
        assert len(row["candidates"]) == 8
        assert (row["device"], row["source"], row["user_known"]) == ("phone", "all", True)
        again = replayed(row, ranking.config.policy, 3)
        assert d.candidates[again.position[row["slot"]]] == row["ad_id"]
        assert again.propensity[row["slot"]] == row["propensity"]
        assert again.conditional[row["slot"]] == row["conditional_propensity"]
    assert log["age"].to_pylist()[3] == 24.0  # the features that the model saw, to train on


@pytest.fixture(scope="module")
def of_rows(model_of_rows: Path):
    return load_scorer(model_of_rows, "cpu")


def rows_config(files: Path, **users: Any) -> RankingConfig:
    pq.write_table(pa.table({"user_id": ["u0", "u1", "hollow"], "age": [20.0, 60.0, None], "segment": [1, 7, None]}),
                   files / "users.parquet")
    return config(files, users={"parquet": files / "users.parquet", **users}, policy=PURE)


@pytest.mark.parametrize("user", ["nobody", None, "hollow"])
def test_who_is_not_known_gets_the_fallback_where_a_column_has_no_missing_value(files, of_rows, user):
    with Ranking(rows_config(files, fallback={"segment": 5}), lambda _: of_rows) as ranking:
        decision = ranking.rank(request(user))
        assert decision.user_known is (user == "hollow")
        assert ranking.counts["users_unknown"] == (user != "hollow")
    log = log_of(files)
    assert log["segment"].to_pylist() == [5, 5, 5]  # what the model saw
    assert log["age"].null_count == 3
    shown = pa.table({"ad_id": decision.shown, "age": pa.nulls(3, pa.float64()), "segment": [5, 5, 5]})
    np.testing.assert_allclose([ad["p_click"] for ad in decision.answer()["ads"]], of_rows.score(shown)["click"])


@pytest.mark.parametrize(("fallback", "says"), [
    ({}, "a user who is not known cannot be scored: null id"), ({"segment": 8}, "id out of range"),
    ({"segment": "x"}, "wrong type"), ({"segmnt": 1}, "no such column of the users")], ids=str)
def test_a_service_that_could_not_score_an_unknown_user_does_not_start(files, of_rows, fallback, says):
    with pytest.raises(InputError, match=says) as caught:
        Ranking(rows_config(files, fallback=fallback), lambda _: of_rows)
    assert "fallback" in str(caught.value)
    assert "\n" not in str(caught.value)


def changed(table: pa.Table, **columns: Any) -> pa.Table:
    kept = [n for n in table.column_names if n not in columns]
    return pa.table({**{n: table[n] for n in kept}, **{n: c for n, c in columns.items() if c is not None}})


@pytest.mark.parametrize(("columns", "says"), [
    ({"age": None}, "column age: a column of the model that nothing brings"),
    ({"age": ["old"] * ADS}, "a.parquet, column age: wrong type"),
    ({"age": [1.0] * (ADS - 1) + [1e308]}, f"a.parquet, column age, row {ADS - 1}: value not allowed"),
    ({"segment": [1, None] * (ADS // 2)}, "a.parquet, column segment, row 1: null id"),
    ({"segment": [0.5] * ADS}, "a.parquet, column segment: wrong type"),
], ids=str)
def test_ads_that_the_model_cannot_take_stop_the_start_and_are_no_new_version(files, of_rows, columns, says):
    ads, path = changed(make_ads(), age=[30.0] * ADS, segment=[3] * ADS), files / "a.parquet"
    mine = config(files).model_copy(update={"ads": path, "users": None, "filters": ()})
    pq.write_table(ads, path)
    with Ranking(mine, lambda _: of_rows) as ranking:
        pq.write_table(changed(ads, **columns), path)
        with pytest.raises(InputError, match=says):
            ranking.refresh()
        assert len(ranking.rank(request()).shown) == 3
        pq.write_table(changed(ads, segment=[4] * ADS), path)
        assert ranking.refresh()
    assert log_of(files)["segment"].to_pylist() == [3, 3, 3]
    pq.write_table(changed(ads, **columns), path)
    with pytest.raises(InputError, match=says):
        Ranking(mine, lambda _: of_rows)


def test_tomorrows_evaluation_finds_the_same_policy_in_the_log(make, files, scorer):
    """From log and ads alone: expand the candidates, score, and ranker_policy gives the very propensities."""
    ranking = make(policy={"epsilon": 0.0, "temperature": 0.5, "depth": 8})
    for i in range(10):
        ranking.rank(request(f"u{i}", request_id=f"r{i}"))
    ranking.close()
    log = log_of(files)
    expanded = expand_candidates(log, pq.read_table(files / "ads.parquet"),
                                 DatasetInfo(name="t", ad_features=("topic", "advertiser_id")))
    policy = ranker_policy(expanded, scorer.score(expanded)["click"], ranking.config.policy, 0.05)
    shown = policy.filter(expanded["logged"])
    # The model's float32 sums differ in their last digits with the number of rows at once.
    np.testing.assert_allclose(shown["probability"].to_numpy(), log["propensity"].to_numpy(), rtol=1e-6)


def test_the_same_request_is_decided_alike_and_another_differently(make):
    ranking = make(policy={"epsilon": 1.0})
    assert ranking.rank(request()).shown == ranking.rank(request()).shown
    assert len({tuple(ranking.rank(request(request_id=f"r{i}")).shown) for i in range(20)}) > 10


def test_a_user_that_is_not_there_is_served_counted_and_flagged(make, files):
    ranking = make()
    answers = [ranking.rank(request(user, request_id=f"r{user}")).answer() for user in ("u1", "nobody", None)]
    assert [a["user_known"] for a in answers] == [True, False, False]
    assert all(len(a["ads"]) == 3 for a in answers)
    assert ranking.counts["users_unknown"] == 2
    ranking.close()
    assert log_of(files)["user_known"].to_pylist() == [True] * 3 + [False] * 6


def test_candidates_of_the_request_are_ranked_if_they_may_be_shown(make):
    ranking = make(policy={"epsilon": 1.0})
    d = ranking.rank(request(candidates=["a0", "a1", "a2"]))  # a0 is for another surface
    assert sorted(d.candidates) == ["a1", "a2"]
    assert len(d.shown) == 2
    assert d.source == "request"
    with pytest.raises(InputError, match=r"no such ad.*gone"):
        ranking.rank(request(candidates=["a1", "gone"]))
    empty = ranking.rank(request(candidates=["a0"], request_id="r2")).answer()
    assert empty["ads"] == []
    assert ranking.counts["empty"] == 1


def test_retrieve_gives_candidates_by_bid_and_heeds_filters(make, files):
    found = make().retrieve(request(k=500, where=["topic=t1"]))
    ads = {r["ad_id"]: r for r in pq.read_table(files / "ads.parquet").to_pylist()}
    assert [a["ad_id"] for a in found["ads"]] == sorted(
        (i for i, r in ads.items() if r["topic"] == "t1" and r["surface"] == "feed"), key=lambda i: -ads[i]["bid"])


def test_arms_follow_their_units_and_have_their_own_policies(make, files):
    experiment = {"id": "e", "baseline": "a", "arms": {
        "a": {"share": 0.5, "policy": {"epsilon": 1.0}}, "b": {"share": 0.5, "policy": PURE}}}
    ranking = make(experiment=experiment)
    by_arm: dict[str, set[str]] = {"a": set(), "b": set()}
    for i in range(40):
        answer = ranking.rank(request(f"u{i}", request_id=f"r{i}")).answer()
        by_arm[answer["arm_id"]].add(f"u{i}")
        assert answer["arm_id"] == ranking.rank(request(f"u{i}", request_id=f"again{i}")).answer()["arm_id"]
        assert (answer["ads"][0]["propensity"] == 1.0) == (answer["arm_id"] == "b")
        assert answer["policy_id"].startswith(answer["arm_id"])
    assert min(len(v) for v in by_arm.values()) > 8
    outside = ranking.rank(request(None, request_id="x")).answer()
    assert (outside["experiment_id"], outside["arm_id"]) == (None, None)
    ranking.close()
    experiment["arms"]["b"]["policy"] = {"epsilon": 0.5}
    with pytest.raises(Refused, match="another rule"):
        make(experiment=experiment)


def test_budgets_take_ads_out_and_the_ads_can_be_read_again(make, files):
    ads = pq.read_table(files / "ads.parquet")
    ads = ads.append_column("budget", pa.array([3.0] * ADS))
    pq.write_table(ads, files / "ads.parquet")
    ranking = make(policy=PURE, pacing={"period_seconds": 1e6, "blocks": 1})
    shown = [tuple(ranking.rank(request(request_id=f"r{i}")).shown) for i in range(150)]
    assert len(set(shown)) > 3  # the best have run dry
    pacer = ranking._source.inventory.pacer
    assert pacer is not None
    assert 2.0 < pacer.spent.max() <= 3.0
    spent = pacer.spent
    pq.write_table(ads.slice(0, 20), files / "ads.parquet")
    assert ranking.refresh()
    assert not ranking.refresh()
    np.testing.assert_allclose(ranking._source.inventory.pacer.spent, spent[:20])
    assert set(ranking.rank(request(request_id="r")).candidates) <= set(ads["ad_id"].to_pylist()[:20])


def test_what_cannot_be_logged_is_not_decided(make):
    ranking = make()
    ranking.log.close()
    with pytest.raises(LogFull):
        ranking.rank(request())


def test_a_column_that_nothing_or_that_two_places_bring_is_named(files, scorer):
    with pytest.raises(InputError, match="column age: a column of the model that nothing brings"):
        Ranking(config(files, users=None), lambda _: scorer)
    with pytest.raises(InputError, match="column age: a column of the model that several bring"):
        Ranking(config(files, context={"age": "number"}), lambda _: scorer)


def test_from_a_file(files, model):
    (files / "ranking.yaml").write_text(f"""
model: {model}
ads: {files}/ads.parquet
users: {{parquet: {files}/users.parquet}}
policy: {{epsilon: 0.2, depth: 6}}
""")
    with Ranking.load(files / "ranking.yaml") as ranking:
        assert len(ranking.rank({"surface": "feed", "k": 2}).shown) == 2
        with pytest.raises(InputError, match="not logged here"):
            ranking.feedback({"events": [{"impression_id": "x", "kind": "click"}]})
    (files / "ranking.yaml").write_text("ads: x\nmax_slots: 5\n")
    with pytest.raises(InputError, match="max_slots above 3"):
        Ranking.load(files / "ranking.yaml")


def test_read_parquet_takes_the_log(make, files):
    ranking = make()
    ranking.rank(request())
    ranking.close()
    file = next((files / "log").glob("impressions-*.parquet"))
    assert read_parquet(file, IMPRESSIONS).num_rows == 3
