from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from recsys.errors import RecsysError
from recsys.features.vocabulary import stable_hash
from recsys.training.grouping import ascending, starts_of_runs
from recsys.training.metrics import StreamingMetrics, auc_and_bound, base_entropy
from recsys.training.world import World
from tests.ranks import run_ranks


def _stream(z: np.ndarray, t: np.ndarray, s: np.ndarray, parts: int = 7) -> dict:
    metrics = StreamingMetrics()
    for rows in np.array_split(np.arange(len(z)), parts):
        metrics.update(z[rows], t[rows], s[rows])
    return metrics.result()


@pytest.mark.parametrize("spread", [0.01, 1.0, 6.0])
def test_equals_scikit_learn_on_binary_labels(spread: float) -> None:
    r = np.random.default_rng(0)
    z = r.normal(size=20_000) * spread - 2
    y = (r.random(20_000) < 1 / (1 + np.exp(-z))).astype(float)
    found, p = _stream(z, np.ones_like(y), y), 1 / (1 + np.exp(-z))
    assert found["auc"] == pytest.approx(roc_auc_score(y, z), abs=1e-4)
    assert found["log_loss"] == pytest.approx(log_loss(y, p), rel=1e-9)
    assert found["calibration_ratio"] == pytest.approx(p.sum() / y.sum(), rel=1e-9)
    assert found["normalized_entropy"] == pytest.approx(log_loss(y, p) / log_loss(y, np.full(len(y), y.mean())))
    assert found["n"] == 20_000


def test_binomial_labels_are_weights() -> None:
    r = np.random.default_rng(1)
    z, t = r.normal(size=300), r.integers(0, 9, 300)
    s = r.binomial(t, 1 / (1 + np.exp(-z)))
    rows = np.concatenate([np.repeat(z, s), np.repeat(z, t - s)])
    y = np.concatenate([np.ones(s.sum()), np.zeros((t - s).sum())])
    found = _stream(z, t, s)
    assert found["auc"] == pytest.approx(roc_auc_score(y, rows), abs=1e-4)
    assert found["log_loss"] == pytest.approx(log_loss(y, 1 / (1 + np.exp(-rows))), rel=1e-9)


def test_constant_base_rate_has_normalized_entropy_one_and_auc_one_half() -> None:
    y = np.array([1.0] * 3 + [0.0] * 17)
    found = _stream(np.full(20, np.log(3 / 17)), np.ones(20), y)
    assert found["normalized_entropy"] == pytest.approx(1, abs=1e-12)
    assert found["auc"] == pytest.approx(0.5, abs=1e-12)
    assert found["calibration_ratio"] == pytest.approx(1, abs=1e-12)


def test_perfect_and_worst_order() -> None:
    y = np.array([0.0, 0, 1, 1])
    assert _stream(np.array([-3.0, -2, 2, 3]), np.ones(4), y)["auc"] == 1.0
    assert _stream(np.array([3.0, 2, -2, -3]), np.ones(4), y)["auc"] == 0.0


def test_undefined_is_none_not_a_number() -> None:
    found = _stream(np.zeros(4), np.ones(4), np.zeros(4))
    assert found["auc"] is None
    assert found["normalized_entropy"] is None
    assert found["calibration_ratio"] is None
    assert found["log_loss"] == pytest.approx(np.log(2))
    assert StreamingMetrics().result()["log_loss"] is None


def test_extreme_log_odds_stay_finite() -> None:
    found = _stream(np.array([-1e4, 1e4, 0.0]), np.ones(3), np.array([0.0, 1, 1]))
    assert np.isfinite(found["log_loss"])
    assert found["auc"] == 1.0


def _rows(seed: int, n: int, heads: int, users: int, weights: bool) -> dict[str, np.ndarray]:
    """Log odds on a coarse grid (many ties) with some far beyond the histogram's range, binomial labels, weights."""
    r = np.random.default_rng(seed)
    z = np.round(r.normal(size=(n, heads)) * 3, 1)
    z[r.random((n, heads)) < 0.02] *= 1000
    trials = r.integers(0, 5, (n, heads)).astype(float)
    successes = r.binomial(trials.astype(int), 1 / (1 + np.exp(-np.clip(z, -30, 30)))).astype(float)
    weight = r.choice([0.0, 0.5, 1.0, 2.0], (n, 1)) if weights else np.ones((n, 1))
    return {"logits": z, "trials": trials * weight, "successes": successes * weight,
            "user": r.integers(1, users + 1, n), "surface": r.integers(-1, 3, n)}


def _of(rows: dict[str, np.ndarray], chosen: np.ndarray | slice = slice(None), **more: int) -> StreamingMetrics:
    metrics = StreamingMetrics(rows["logits"].shape[1], **more)
    metrics.update(**{k: v[chosen] for k, v in rows.items()})
    return metrics


def _sklearn_auc(z: np.ndarray, trials: np.ndarray, successes: np.ndarray) -> float | None:
    if not successes.sum() or not (trials - successes).sum():
        return None
    y = np.repeat([1, 0], len(z))
    return float(roc_auc_score(y, np.tile(z, 2), sample_weight=np.concatenate([successes, trials - successes])))


@given(st.integers(0, 2**32), st.integers(2, 400), st.sampled_from([1e-6, 1e-4, 1.0, 50.0]), st.booleans())
def test_auc_is_within_its_own_bound_of_scikit_learn(seed: int, n: int, spread: float, weights: bool) -> None:
    r = np.random.default_rng(seed)
    rows = _rows(seed, n, 1, 5, weights)
    z = rows["logits"][:, 0] * spread + r.choice([0.0, -4.0, 25.0])
    t, s = rows["trials"][:, 0], rows["successes"][:, 0]
    metrics = StreamingMetrics()
    metrics.update(z, t, s)
    found, truth = metrics.result()["auc"], _sklearn_auc(z, t, s)
    if truth is None:
        assert found is None
        return
    values = metrics.state()["values"]
    auc, bound = auc_and_bound(values[0], values[1])
    assert auc == found
    assert abs(found - truth) <= bound + 1e-9
    if bound == 0:
        assert found == pytest.approx(truth, abs=1e-12)


@pytest.mark.parametrize(("spread", "bound"), [(0.05, 3e-4), (1.0, 2e-5), (3.0, 1e-5)])
def test_the_bound_is_small_where_predictions_spread(spread: float, bound: float) -> None:
    r = np.random.default_rng(0)
    z = r.normal(size=200_000) * spread - 3
    y = (r.random(200_000) < 1 / (1 + np.exp(-z))).astype(float)
    metrics = StreamingMetrics()
    metrics.update(z, np.ones_like(y), y)
    values = metrics.state()["values"]
    auc, most = auc_and_bound(values[0], values[1])
    assert abs(auc - roc_auc_score(y, z)) <= most < bound


def _gauc(rows: dict[str, np.ndarray], head: int) -> tuple[float | None, int]:
    pairs = []
    for user in np.unique(rows["user"]):
        mine = rows["user"] == user
        t, s = rows["trials"][mine, head], rows["successes"][mine, head]
        auc = _sklearn_auc(rows["logits"][mine, head].astype(np.float32), t, s)
        pairs += [] if auc is None else [(auc, t.sum())]
    return (sum(a * w for a, w in pairs) / sum(w for _, w in pairs) if pairs else None), len(pairs)


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 200), st.integers(1, 30), st.booleans())
def test_gauc_is_the_impression_weighted_mean_of_users_aucs(seed: int, n: int, users: int, weights: bool) -> None:
    rows = _rows(seed, n, 2, users, weights)
    metrics = _of(rows)
    for head in range(2):
        found, (gauc, counted) = metrics.result(head), _gauc(rows, head)
        assert found["gauc"] == (None if gauc is None else pytest.approx(gauc, abs=1e-9))
        assert found["gauc_users"] == counted
        assert found["gauc_sample"] == 1.0


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(2, 5), st.sampled_from([1 << 20, 150, 40]))
def test_merged_parts_are_the_whole(seed: int, parts: int, user_rows: int) -> None:
    rows = _rows(seed, 400, 2, 60, True)
    of = np.random.default_rng(seed).integers(0, parts, 400)
    whole, merged = _of(rows, user_rows=user_rows), StreamingMetrics(2, user_rows)
    for part in range(parts):
        merged.merge(_of(rows, of == part, user_rows=user_rows).state())
    for head in range(2):
        _close(merged.result(head), whole.result(head))
    assert len(merged.state()["user.user"]) <= user_rows


LIMITS = (1 << 20, 150)


def _of_rank(world: World) -> list[list[dict]]:
    return [_reduced(world, limit) for limit in LIMITS]


def _reduced(world: World, user_rows: int) -> list[dict]:
    rows = _rows(11, 500, 2, 60, True)
    # Rank 0 has rows of most users, the last rank none at all.
    of = np.minimum(np.random.default_rng(1).integers(0, 5, 500) // 3, world.size - 2)
    metrics = _of(rows, of == world.rank, user_rows=user_rows) if world.rank < world.size - 1 else StreamingMetrics(
        2, user_rows)
    metrics.reduce(world)
    return [metrics.result(head) for head in range(2)]


def test_every_rank_ends_with_the_metrics_of_all_rows() -> None:
    wholes = [_of(_rows(11, 500, 2, 60, True), user_rows=limit) for limit in LIMITS]
    assert [whole.result()["gauc_sample"] < 1 for whole in wholes] == [False, True]
    for found in run_ranks(3, _of_rank):
        for results, whole in zip(found, wholes, strict=True):
            for head in range(2):
                _close(results[head], whole.result(head))


def _close(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for key, value in b.items():
        if isinstance(value, dict):
            _close(a[key], value)
        else:
            assert a[key] == (None if value is None else pytest.approx(value, rel=1e-9, abs=1e-12)), key


def test_by_surface_is_what_each_surface_alone_gives() -> None:
    rows = _rows(3, 3000, 2, 50, True)
    plain = {k: v for k, v in rows.items() if k not in ("user", "surface")}
    for head in range(2):
        found = _of(rows).result(head)
        for name, surface in (("unknown", -1), ("feed", 0), ("discovery", 1), ("messaging", 2)):
            alone = _of(plain, rows["surface"] == surface).result(head)
            _close(found["by_surface"][name], alone)
        _close({k: v for k, v in found.items() if "gauc" not in k and k != "by_surface"}, _of(plain).result(head))
    assert list(_of(rows, rows["surface"] == 1).result()["by_surface"]) == ["discovery"]
    assert "by_surface" not in _of(plain).result()
    assert "gauc" not in _of(plain).result()


def test_sampled_gauc_takes_whole_users_in_any_order_and_is_near_the_exact_one() -> None:
    r = np.random.default_rng(7)
    users = np.sort(r.integers(1, 20_000, 200_000))  # small numbers, not hashes: they are spread all the same
    taste = r.normal(size=20_000)[users]
    z = r.normal(size=200_000) + taste
    y = (r.random(200_000) < 1 / (1 + np.exp(-z))).astype(float)
    rows = {"logits": z[:, None], "trials": np.ones((len(z), 1)), "successes": y[:, None], "user": users}
    exact = _of(rows).result()
    limited = []
    for order in (np.arange(len(z)), r.permutation(len(z))):
        metrics = StreamingMetrics(user_rows=50_000)
        for part in np.array_split(order, 13):
            metrics.update(**{k: v[part] for k, v in rows.items()})
        limited.append(metrics.result())
        kept = np.unique(metrics.state()["user.user"])
        assert len(metrics.state()["user.user"]) == np.isin(users, kept).sum() <= 50_000
    _close(limited[0], limited[1])
    assert limited[0]["gauc_sample"] in (0.25, 0.125)
    assert limited[0]["gauc_users"] == pytest.approx(exact["gauc_users"] * limited[0]["gauc_sample"], rel=0.05)
    assert abs(limited[0]["gauc"] - exact["gauc"]) < 4 * 0.3 / np.sqrt(limited[0]["gauc_users"])


def test_rows_without_a_user_are_left_out_of_gauc() -> None:
    rows = _rows(5, 500, 1, 20, False)
    missing = rows["user"] == 3
    some = rows | {"user": np.where(missing, stable_hash(pa.array([""])).view(np.int64), rows["user"])}
    assert _of(some).result()["gauc"] == _of(rows, ~missing).result()["gauc"]
    assert _of(some).result()["n"] == 500


@given(st.integers(0, 2**32), st.integers(1, 500))
def test_calibration_error_against_a_count_of_the_sorted_rows(seed: int, n: int) -> None:
    r = np.random.default_rng(seed)
    z = np.sort(r.normal(size=n) * 2)
    y = (r.random(n) < 1 / (1 + np.exp(-0.5 * z))).astype(float)
    p = 1 / (1 + np.exp(-z))
    metrics = StreamingMetrics()
    metrics.update(z, np.ones(n), y)
    of = np.floor((np.arange(n) + 0.5) / n * 20).astype(int)
    expected = sum(abs((p - y)[of == b].sum()) for b in range(20)) / n
    tied = np.diff(z).min(initial=1) < 4e-5  # rows that share a cell of the histogram may move to the next bin
    assert metrics.result()["ece"] == pytest.approx(expected, abs=2 * 20 / n if tied else 1e-9)


def test_calibration_error_of_predictions_that_are_right_and_wrong() -> None:
    r = np.random.default_rng(2)
    z = r.normal(size=400_000) - 3
    y = (r.random(400_000) < 1 / (1 + np.exp(-z))).astype(float)
    t = np.ones_like(y)
    right, wrong = _stream(z, t, y), _stream(2 * z, t, y)
    assert right["ece"] < 0.002
    # Sharpened predictions: wrong in every bin, while over- and underestimates could cancel in the ratio.
    assert wrong["ece"] == pytest.approx(np.abs(1 / (1 + np.exp(-2 * z)) - 1 / (1 + np.exp(-z))).mean(), abs=0.002)


def test_base_entropy_turns_a_loss_into_a_normalized_entropy() -> None:
    found = _stream(np.array([0.3, -1, 2, 0.1]), np.ones(4), np.array([1.0, 0, 1, 0]))
    assert found["log_loss"] / base_entropy([found["base_rate"]]) == pytest.approx(found["normalized_entropy"])
    assert base_entropy([0.5, 0.1]) == pytest.approx((np.log(2) - 0.1 * np.log(0.1) - 0.9 * np.log(0.9)) / 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_predictions_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(RecsysError, match="not finite"):
        StreamingMetrics().update(np.array([0.0, bad]), np.ones(2), np.zeros(2))


@given(st.lists(st.integers(0, 2**63 - 1) | st.integers(0, 3), max_size=60))
def test_radix_order_is_the_stable_sort(keys: list[int]) -> None:
    array = np.array(keys, np.int64)
    assert ascending(array).tolist() == np.argsort(array, kind="stable").tolist()
    runs = starts_of_runs(np.sort(array))
    assert np.sort(array)[runs].tolist() == sorted(set(keys))
