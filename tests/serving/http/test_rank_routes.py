"""/v1/rank, /v1/retrieve and /v1/feedback over HTTP: decisions are the library's, the log says what was answered."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import RankingConfig, parse_model
from recsys.errors import InputError
from recsys.serving import load_scorer, make_app
from recsys.serving.http import Limits, Settings
from recsys.serving.http.rank_routes import rank_routes
from recsys.serving.ranking import Ranking
from recsys.serving.served_log import LogFull, ServedLog
from tests.serving.conftest import make_ads
from tests.serving.http.client import Client


@pytest.fixture
def config(tmp_path: Path) -> RankingConfig:
    pq.write_table(make_ads(), tmp_path / "ads.parquet")
    pq.write_table(pa.table({"user_id": [f"u{i}" for i in range(10)], "age": [20.0 + 4 * i for i in range(10)],
                             "history": [["a1", "a2"]] * 10}), tmp_path / "users.parquet")
    return parse_model(RankingConfig, {
        "ads": tmp_path / "ads.parquet", "users": {"parquet": tmp_path / "users.parquet"},
        "log": {"folder": str(tmp_path / "log")}}, "test")


def ask(i: int, **more) -> tuple:
    body = {"surface": "feed", "k": 3, "user_id": f"u{i}", "request_id": f"r{i}", **more}
    return "POST", "/v1/rank", {"json": body}


def test_decisions_are_the_librarys_and_are_logged(model: Path, config: RankingConfig, tmp_path: Path) -> None:
    with Client(make_app(model, more=[rank_routes(config)])) as client:
        answers = client.all(*(ask(i) for i in range(10)))  # together: the model sees them in batches
        assert {a.status_code for a in answers} == {200}
        ads = [ad for a in answers for ad in a.json()["ads"]]
        feedback = {"events": [{"impression_id": ad["impression_id"], "kind": "click"} for ad in ads[:4]]}
        assert client.post("/v1/feedback", json=feedback).json() == {"events": 4}
        found = client.post("/v1/retrieve", json={"surface": "feed", "k": 7, "user_id": "u1"}).json()
        assert len(found["ads"]) == 7
        page = client.get("/metrics").text
        assert 'recsys_events_total{of="ranking",what="requests"} 10.0' in page
        assert 'recsys_events_total{of="impressions",what="appended"} 30.0' in page
        assert "/v1/rank" in client.get("/openapi.json").json()["paths"]
    scorer = load_scorer(model)
    with Ranking(config.model_copy(update={"log": None}), lambda _: scorer) as alone:
        for i, answer in enumerate(answers):
            expected = alone.rank(ask(i)[2]["json"]).answer()
            assert [a["ad_id"] for a in answer.json()["ads"]] == [a["ad_id"] for a in expected["ads"]]
            assert [a["propensity"] for a in answer.json()["ads"]] == pytest.approx(
                [a["propensity"] for a in expected["ads"]], rel=1e-4)
    log = pa.concat_tables([pq.read_table(f) for f in (tmp_path / "log").glob("impressions-*.parquet")])  # by the end
    assert sorted(zip(log["impression_id"].to_pylist(), log["propensity"].to_pylist(), strict=True)) == sorted(
        (ad["impression_id"], ad["propensity"]) for ad in ads)
    assert sum(pq.read_table(f).num_rows for f in (tmp_path / "log").glob("feedback-*.parquet")) == 4


def test_what_is_wrong_is_a_400_and_what_cannot_be_done_a_503(model: Path, config: RankingConfig) -> None:
    app = make_app(model, Settings(token="secret", limits=Limits(requests=8)), more=[rank_routes(config)])
    token = {"headers": {"Authorization": "Bearer secret"}}
    with Client(app) as client:
        assert client.all(ask(1))[0].status_code == 401
        for body in (b"", b"{", b"[]", b"{}", b'{"surface": "feed", "k": 0}', b'{"surface": "feed", "k": 1e308}',
                     b'{"surface": "feed", "k": 1, "user_id": "../../etc/passwd\\u0000"}',
                     b'{"surface": "feed", "k": 1, "candidates": ["nowhere"]}', b'{"surface": "feed", "k": NaN}',
                     b'{"surface": "feed", "k": 1, "where": ["a=b"]}'):
            for route in ("/v1/rank", "/v1/retrieve", "/v1/feedback"):
                answer = client.post(route, content=body, **token)
                assert (answer.status_code, list(answer.json())) == (400, ["error"]), (route, body)
        method, url, options = ask(1)
        crowd = client.all(*[(method, url, {**options, **token})] * 40)
        assert {a.status_code for a in crowd} == {200, 503}
        assert client.all((method, url, {**options, **token}))[0].status_code == 200


def test_models_of_the_configuration_must_be_served(model: Path, config: RankingConfig) -> None:
    with pytest.raises(InputError, match="no such model in the service"):
        make_app({"a": model}, more=[rank_routes(config.model_copy(update={"model": "b", "log": None}))])
    make_app({"a": model}, more=[rank_routes(config.model_copy(update={"model": "a", "log": None}))])


def test_a_version_that_could_not_rank_is_not_loaded(model: Path, model_of_rows: Path, config: RankingConfig,
                                                     tmp_path: Path) -> None:
    (tmp_path / "versions").mkdir()
    (tmp_path / "versions" / "1").symlink_to(model)
    with Client(make_app(tmp_path / "versions", more=[rank_routes(config)])) as client:
        (tmp_path / "versions" / "2").symlink_to(model_of_rows)
        answer = client.post("/v2/repository/models/ranker/load")
        assert answer.status_code == 400
        assert "column segment: a column of the model that nothing brings" in answer.json()["error"]
        assert client.all(ask(1))[0].status_code == 200


def test_arms_have_the_services_models_and_a_reload_is_followed(model: Path, config: RankingConfig, tmp_path: Path
                                                                ) -> None:
    (tmp_path / "versions").mkdir()
    (tmp_path / "versions" / "1").symlink_to(model)
    experiment = {"id": "e", "baseline": "a", "arms": {"a": {"share": 0.5}, "b": {"share": 0.5, "model": "other"}}}
    config = parse_model(RankingConfig, {**config.model_dump(mode="json"), "experiment": experiment}, "test")
    with Client(make_app({"ranker": model, "other": tmp_path / "versions"}, more=[rank_routes(config)])) as client:
        def ranked() -> set[tuple[int, str | None]]:
            answers = client.all(*(ask(i, request_id=None) for i in range(20)))
            return {(a.status_code, a.json().get("arm_id")) for a in answers}

        assert ranked() == {(200, "a"), (200, "b")}
        assert client.post("/v2/repository/models/other/load", json={}).status_code == 200
        assert ranked() == {(200, "a"), (200, "b")}
        assert client.post("/v2/repository/models/other/unload", json={}).status_code == 200
        assert ranked() == {(200, "a"), (404, None)}
        assert 'recsys_events_total{of="users",what="missing"}' in client.get("/metrics").text


def test_a_log_that_is_behind_is_a_503(model: Path, config: RankingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(make_app(model, more=[rank_routes(config)])) as client:
        assert client.all(ask(1))[0].status_code == 200
        monkeypatch.setattr(ServedLog, "append", _full)
        for request in (ask(2), ("POST", "/v1/feedback", {"json": {"events": [{"impression_id": "x",
                                                                               "kind": "hide"}]}})):
            answer = client.all(request)[0]
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def _full(*_: object) -> None:
    raise LogFull("the served log is behind")
