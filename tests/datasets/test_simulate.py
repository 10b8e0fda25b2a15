"""The simulated log: contracts, determinism, propensities, no leak, prices."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys.contracts import ADS, IMPRESSIONS, read_parquet
from recsys.datasets.info import load_dataset_info
from recsys.datasets.marketplace_world import SLOTS, MarketplaceParams, build_world
from recsys.datasets.simulate import Requests, draw_requests, logging_probabilities, serve, simulate_dataset
from recsys.errors import InputError
from recsys.stage import sha256_file

SMALL = {"users": 300, "advertisers": 40, "ads": 300, "requests": 12_000, "days": 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("marketplace")
    rows = simulate_dataset(SMALL, 7, out)
    assert rows["requests"] == 12_000
    assert rows["impressions"] == pq.read_metadata(out / "impressions.parquet").num_rows
    assert rows["ads"] == 300
    return out


@pytest.fixture(scope="module")
def impressions(folder: Path) -> pa.Table:
    return read_parquet(folder / "impressions.parquet", IMPRESSIONS)


@pytest.fixture(scope="module")
def ads(folder: Path) -> pa.Table:
    return read_parquet(folder / "ads.parquet", ADS)


def test_dataset_says_what_it_holds(folder: Path, impressions: pa.Table, ads: pa.Table) -> None:
    info = load_dataset_info(folder)
    assert info.simulated
    for name in (*info.dense, *info.sparse, *info.sequence, *(label.column for label in info.label.values())):
        assert name in impressions.column_names
    assert set(info.ad_features) <= set(info.sparse) & set(ads.column_names)
    assert set(info.text) <= set(ads.column_names)
    for name in info.dense:
        assert np.isfinite(impressions[name].to_numpy()).all()


def test_same_seed_same_bytes_other_seed_other_world(folder: Path, tmp_path: Path) -> None:
    for name, seed in (("same", 7), ("other", 8)):
        (tmp_path / name).mkdir()
        simulate_dataset(SMALL, seed, tmp_path / name)
    for file in ("impressions.parquet", "ads.parquet", "dataset.json", "truth/world.npz", "truth/params.json"):
        assert sha256_file(folder / file) == sha256_file(tmp_path / "same" / file), file
    assert sha256_file(folder / "impressions.parquet") != sha256_file(tmp_path / "other" / "impressions.parquet")


def test_rows_are_consistent(impressions: pa.Table, ads: pa.Table) -> None:
    frame = impressions.to_pandas()
    assert frame["impression_id"].is_unique
    assert frame["ts"].is_monotonic_increasing
    assert all(ad in shown for ad, shown in zip(frame["ad_id"], frame["candidates"], strict=True))
    assert (frame["candidates"].map(lambda c: len(set(c))) == 10).all()
    slots = frame.groupby("request_id").agg(surface=("surface", "first"), n=("slot", "size"), ads=("ad_id", "nunique"))
    assert (slots["n"] == slots["surface"].map(dict(zip(("feed", "discovery", "messaging"), SLOTS, strict=True)))).all()
    assert (slots["ads"] == slots["n"]).all()
    per_ad = ads.to_pandas().set_index("ad_id").loc[frame["ad_id"]]
    for name in ("advertiser_id", "category", "bid"):
        assert (per_ad[name].to_numpy() == frame[name].to_numpy()).all()
    assert (frame["ts"].to_numpy() >= per_ad["created"].to_numpy()).all()
    assert (frame.loc[frame["click"] == 0, ["dwell_ms", "engaged", "conversion", "value", "price_paid"]] == 0).all(None)
    clicked = frame[frame["click"] == 1]
    assert (clicked["hide"] == 0).all()
    assert (clicked["price_paid"] >= 0.05).all()
    assert (clicked["price_paid"] <= clicked["bid"]).all()
    assert (frame.loc[frame["value"] > 0, "conversion"] == 1).all()


def test_history_is_the_clicks_of_earlier_days(impressions: pa.Table) -> None:
    frame = impressions.select(["user_id", "ts", "ad_id", "click", "history", "user_clicks"]).to_pandas()
    frame["day"] = frame["ts"].dt.floor("D")
    clicks = dict(iter(frame[frame["click"] == 1].groupby("user_id")))
    rows = frame.iloc[np.random.default_rng(0).integers(len(frame), size=300)]
    lengths = []
    for row in rows.itertuples():
        part = clicks.get(row.user_id)
        earlier = [] if part is None else part.loc[part["day"] < row.day, "ad_id"].tolist()
        assert list(row.history) == earlier[-20:]
        assert row.user_clicks == pytest.approx(np.log1p(len(earlier)), rel=1e-6)
        lengths.append(len(earlier))
    assert max(lengths) > 20  # the cut at 20 was exercised


def test_logged_propensity_is_the_marginal_of_the_policy_that_ran() -> None:
    """Serve one request of each surface many times: shares must match the logged marginals."""
    params = MarketplaceParams(**SMALL)
    world, repeats = build_world(params, 3), 20_000
    one = draw_requests(params, world, 3)
    for surface, slots in enumerate(SLOTS):
        row = int(np.flatnonzero(one.surface == surface)[0])
        many = Requests(*(np.repeat(part[row:row + 1], repeats, axis=0)
                          for part in (one.user, one.surface, one.ts, one.candidates)))
        shown = serve(params, world, many, seed=11)
        marginals = logging_probabilities(params, world, many, np.arange(1), slots)[1][0]
        for slot in range(slots):
            here = shown.slot == slot
            for at, ad in enumerate(one.candidates[row]):
                expected = marginals[slot, at]
                seen = (shown.ad[here] == ad).mean()
                assert abs(seen - expected) < 4.5 * np.sqrt(expected * (1 - expected) / repeats)
                logged = shown.propensity[here & (shown.ad == ad)]
                np.testing.assert_allclose(logged, expected, rtol=1e-12)


def test_weights_stay_bounded(impressions: pa.Table) -> None:
    assert pc.min(impressions["propensity"]).as_py() >= 0.25 / 10
    # The control variate of off-policy evaluation: uniform / logged has mean 1.
    weight = 0.1 / impressions["propensity"].to_numpy()
    assert abs(weight.mean() - 1) < 4 * weight.std() / np.sqrt(len(weight))


def test_cold_start_and_late_words(impressions: pa.Table, ads: pa.Table) -> None:
    cut = int(0.8 * impressions.num_rows)
    seen = set(impressions["ad_id"][:cut].to_pylist())
    candidates = pc.list_flatten(impressions["candidates"][cut:]).to_pylist()
    unseen = np.mean([ad not in seen for ad in candidates])
    assert 0.05 < unseen < 0.5
    assert len(set(ads["content_hash"].to_pylist())) > 0.95 * ads.num_rows


def test_without_new_ads_all_are_there_from_the_start(tmp_path: Path) -> None:
    simulate_dataset(SMALL | {"new_ad_share": 0.0, "requests": 200}, 1, tmp_path)
    first = pq.read_table(tmp_path / "impressions.parquet")["ts"][0]
    assert pc.all(pc.less(pq.read_table(tmp_path / "ads.parquet")["created"], first)).as_py()


@pytest.mark.parametrize(("params", "words"), [
    ({"user": 10}, "did you mean 'users'"), ({"users": "many"}, "users: bad value"), ({"candidates": 2}, "candidates"),
    ({"ads": 60, "new_ad_share": 0.9}, "at least candidates"), ({"start": "yesterday"}, "start"),
    ({"exploration": 0.0}, "exploration"),
])
def test_bad_parameters_are_one_line(params: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="simulate") as error:
        simulate_dataset(params, 0, tmp_path)
    assert words in str(error.value).replace("column ", "")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_parameters_are_saved_in_full(folder: Path) -> None:
    assert MarketplaceParams(**json.loads((folder / "truth" / "params.json").read_text())) == MarketplaceParams(**SMALL)
