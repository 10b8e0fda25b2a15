"""``recsys ope``: files in, an answer with intervals or a refusal out; a stream says what one batch says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from recsys.cli import app
from recsys.errors import InputError, Refused
from recsys.evaluation import offpolicy
from recsys.evaluation.offpolicy import scan, stream, totals
from recsys.evaluation.offpolicy.answer import answer
from recsys.evaluation.offpolicy.commands import summary
from recsys.evaluation.offpolicy.evaluate import evaluate
from tests.evaluation.bandit import Bandit
from tests.evaluation.offpolicy.test_rows import replace

BANDIT = Bandit.make()
TRUTH = BANDIT.truth("good")["ctr"]


def written(folder: Path, users: int = 900, seed: int = 0, policy: str = "good", **options) -> tuple[Path, Path]:
    log, context = BANDIT.log(users, seed)
    target = BANDIT.policy(policy, context, **options)
    log = log.append_column("context", pa.array(context).cast(pa.string()))
    pq.write_table(log, folder / "log.parquet")
    pq.write_table(target, folder / "policy.parquet")
    return folder / "log.parquet", folder / "policy.parquet"


def ope(log: Path, policy: Path, *options: str) -> tuple[int, dict]:
    done = CliRunner().invoke(app, ["ope", str(log), "--target", str(policy), "--json", *options])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, json.loads(done.stdout)


def changed(path: Path, **columns) -> Path:
    pq.write_table(replace(pq.read_table(path), **columns), path)
    return path


def test_answer_has_every_part_and_covers_the_truth(tmp_path: Path):
    code, made = ope(*written(tmp_path, wrong=0.7))
    assert code == 0
    assert set(made["estimators"]) == {"dm", "ips", "snips", "clipped_ips", "sub_gaussian_ips", "dr", "sndr",
                                       "switch_dr", "dros", "sub_gaussian_dr"}
    for name in ("ips", "snips", "dr", "sndr"):
        one = made["estimators"][name]
        assert one["low"] < one["estimate"] < one["high"]
        assert one["low"] < TRUTH < one["high"]
    assert made["estimators"]["dm"]["low"] is None  # never an interval around the model alone
    facts = made["diagnostics"]
    assert 0 < facts["ess"] <= made["n"]
    assert facts["mean_weight"] == pytest.approx(1, abs=3 * facts["mean_weight_se"])
    assert facts["max_weight"] > 1
    assert 0.01 < facts["top_1_percent_weight_share"] < 0.2
    assert facts["support_gaps"] == 0
    assert facts["agreement"]["ok"]
    assert made["unit"] == "user_id"
    assert made["units"] == 900
    assert made["nuisance"] == "ranker"


def test_the_command_is_the_library(tmp_path: Path):
    """One code path with the lift report: the same rows, sums and facts."""
    log, policy = written(tmp_path, wrong=0.7)
    _, made = ope(log, policy)
    seen = offpolicy.read_log(pq.read_table(log))
    arm = offpolicy.join_policy(seen, pq.read_table(policy))
    for name in ("dm", "ips", "snips", "dr", "sndr"):
        assert made["estimators"][name]["estimate"] == pytest.approx(
            offpolicy.pseudo_outcomes(seen, arm, "ctr", name).mean(), rel=1e-12)
    facts = offpolicy.diagnostics(seen, arm)
    for name in ("ess", "effective_clicks", "max_weight", "mean_weight", "mean_weight_se", "support_gaps"):
        assert made["diagnostics"][name] == pytest.approx(facts[name], rel=1e-9)


def test_target_equal_to_logging_is_the_sample_mean(tmp_path: Path):
    log, policy = written(tmp_path, policy="logged", model=False)
    _, made = ope(log, policy)
    clicks = pq.read_table(log)["click"].to_numpy()
    for name in ("ips", "snips", "dr", "sndr", "clipped_ips"):
        assert made["estimators"][name]["estimate"] == pytest.approx(clicks.mean(), rel=1e-9)
    assert made["diagnostics"]["ess"] == pytest.approx(len(clicks))
    assert made["nuisance"] == "none"


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("names", [["ips", "snips", "dr", "dros"], ["rips", "cascade_dr"]])
def test_many_batches_say_what_one_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffle: bool, names: list[str]
):
    """Side by side where requests come in one order, cut by request where not."""
    log, policy = written(tmp_path, wrong=0.7)
    whole = evaluate(log, policy, estimators=names)
    if shuffle:
        table = pq.read_table(policy)
        pq.write_table(table.take(np.random.default_rng(0).permutation(table.num_rows)), policy)
    for module, name, small in ((stream, "WHOLE_ROWS", 10), (stream, "BATCH_ROWS", 700), (stream, "PART_ROWS", 4000),
                                (stream, "READ_ROWS", 333), (scan, "BATCH_ROWS", 500)):
        monkeypatch.setattr(module, name, small)
    parts = evaluate(log, policy, estimators=names)
    for name in names:
        for part in ("estimate", "se"):  # the ends go by the clusters' order too, up to Monte Carlo error
            if whole["estimators"][name][part] is not None:
                assert parts["estimators"][name][part] == pytest.approx(whole["estimators"][name][part], rel=1e-9)
    assert parts["diagnostics"]["top_1_percent_weight_share"] == pytest.approx(
        whole["diagnostics"]["top_1_percent_weight_share"])
    assert parts["units"] == whole["units"]


def test_buckets_of_units_give_the_same_estimate_and_a_like_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log, policy = written(tmp_path, users=3000, wrong=0.7)
    exact = evaluate(log, policy, estimators=["dr"])
    monkeypatch.setattr(scan, "EXACT_ROWS", 10)
    for module in (scan, totals):
        monkeypatch.setattr(module, "MAX_GROUPS", 512)
    hashed = evaluate(log, policy, estimators=["dr"])
    one, other = exact["estimators"]["dr"], hashed["estimators"]["dr"]
    assert other["estimate"] == pytest.approx(one["estimate"], rel=1e-12)
    assert other["se"] == pytest.approx(one["se"], rel=0.15)
    assert hashed["units"] <= 512


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", ["logistic", "boosting"])
def test_fitted_models_narrow_dr_and_give_mrdr(tmp_path: Path, kind: str):
    log, policy = written(tmp_path, users=1000, model=False)
    made = evaluate(log, policy, nuisance=kind, features=["context"], estimators=["dm", "ips", "dr", "sndr", "mrdr"])
    assert made["nuisance"] == kind
    for name in ("dr", "mrdr", "sndr"):
        assert made["estimators"][name]["low"] < TRUTH < made["estimators"][name]["high"]
    assert made["estimators"]["dr"]["se"] < made["estimators"]["ips"]["se"]
    if kind == "boosting":  # the logistic model has no interactions of context and ad, which this world is made of
        assert abs(made["estimators"]["dm"]["estimate"] - TRUTH) < 0.02


def test_clusters_and_replay(tmp_path: Path):
    uniform = Bandit(BANDIT.rate, np.full_like(BANDIT.logging, 1 / 6), BANDIT.targets, BANDIT.price)
    log, context = uniform.log(900, 3)
    policy = uniform.policy("good", context, model=False)
    policy = policy.append_column("logging_probability", pa.array(np.full(policy.num_rows, 1 / 6)))
    pq.write_table(log, tmp_path / "log.parquet")
    pq.write_table(policy, tmp_path / "policy.parquet")
    ads = [f"a{k}" for k in range(6)]
    fine = evaluate(tmp_path / "log.parquet", tmp_path / "policy.parquet",
                    clusters=pa.table({"ad_id": ads, "cluster": list(range(6))}))
    assert fine["estimators"]["mips"]["estimate"] == pytest.approx(fine["estimators"]["ips"]["estimate"])
    assert fine["estimators"]["replay"]["estimate"] == pytest.approx(fine["estimators"]["snips"]["estimate"])
    coarse = evaluate(tmp_path / "log.parquet", tmp_path / "policy.parquet",
                      clusters=pa.table({"ad_id": ads, "cluster": [0] * 6}))
    assert coarse["estimators"]["mips"]["estimate"] == pytest.approx(log["click"].to_numpy().mean())
    with pytest.raises(InputError, match="ad without a cluster"):
        evaluate(tmp_path / "log.parquet", tmp_path / "policy.parquet",
                 clusters=pa.table({"ad_id": ads[:5], "cluster": [0] * 5}))


def test_replay_of_a_log_that_was_not_uniform_is_no_number(tmp_path: Path):
    log, policy = written(tmp_path)
    assert "replay" not in evaluate(log, policy)["estimators"]
    with pytest.raises(InputError, match="uniformly random"):
        evaluate(log, policy, estimators=["replay"])


def frequencies(log: Path, digits: int | None) -> np.ndarray:
    ads = pq.read_table(log)["ad_id"].to_pylist()
    share = {a: ads.count(a) / len(ads) for a in set(ads)}
    return np.array([share[a] if digits is None else round(share[a], digits) for a in ads])


def rows(log: Path) -> int:
    return pq.read_metadata(log).num_rows


TRAPS = {
    "reconstructed": (lambda log: changed(log, propensity=frequencies(log, None)), "reconstructed"),
    "reconstructed and rounded": (lambda log: changed(log, propensity=frequencies(log, 4)), "reconstructed"),
    "wrong": (lambda log: changed(log, propensity=np.full(rows(log), 0.3)), "mean importance weight"),
    "null": (lambda log: changed(log, propensity=[None] * rows(log)), "no logged propensity"),
    "missing": (lambda log: pq.write_table(pq.read_table(log).drop_columns(["propensity"]), log), "is missing"),
    "few rows": (lambda log: pq.write_table(pq.read_table(log).slice(0, 12), log), "effective sample size"),
    "no clicks": (lambda log: changed(log, click=np.zeros(rows(log), np.int8)), "effective clicks"),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_traps_end_in_a_refusal_and_exit_code_3(tmp_path: Path, trap: str):
    log, policy = written(tmp_path)
    spring, words = TRAPS[trap]
    spring(log)
    code, made = ope(log, policy)
    assert code == 3
    assert set(made) == {"refused"}
    assert words in made["refused"]
    plain = CliRunner().invoke(app, ["ope", str(log), "--target", str(policy)])
    assert isinstance(plain.exception, Refused)


def test_effective_sample_size_of_two_is_refused(tmp_path: Path):
    """Two rows carry all the weight; every propensity is true to its weight's mean of 1."""
    n = 2000
    weight = np.full(n, 1e-4)
    weight[:2] = (n - weight[2:].sum()) / 2
    names = [f"r{i}" for i in range(n)]
    pq.write_table(pa.table({"impression_id": names, "request_id": names, "ad_id": ["x"] * n,
                             "propensity": np.where(weight > 1, 0.999 / weight, 0.9),
                             "click": pa.array(np.ones(n), pa.int8())}), tmp_path / "log.parquet")
    own = np.where(weight > 1, 0.999, 0.9 * weight)
    pq.write_table(pa.table({"request_id": np.repeat(names, 2), "slot": pa.array(np.zeros(2 * n), pa.int32()),
                             "ad_id": ["x", "y"] * n, "probability": np.stack([own, 1 - own], axis=1).ravel()}),
                   tmp_path / "policy.parquet")
    code, made = ope(tmp_path / "log.parquet", tmp_path / "policy.parquet")
    assert code == 3
    assert "effective sample size 2.0" in made["refused"]


def test_one_unit_with_half_of_the_rows_is_refused(tmp_path: Path):
    log, policy = written(tmp_path)
    half = rows(log) // 2
    names = ["heavy" if i < half else f"u{i % 400}" for i in range(rows(log))]
    code, made = ope(changed(log, user_id=names), policy)
    assert code == 3
    assert "of equal size" in made["refused"]


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_biased_estimators_of_one_ad_always_have_no_interval_and_are_numbers(tmp_path: Path):
    """SLOPE may go to the level that drops every correction: what is left is the model, and knows no error."""
    log, policy = written(tmp_path)
    ads = np.array(pq.read_table(policy)["ad_id"].to_pylist())
    changed(policy, probability=(ads == "a0").astype(float))
    code, made = ope(log, policy)
    assert code == 0
    for name, one in made["estimators"].items():
        assert np.isfinite(one["estimate"])
        assert (one["low"] is not None) == (name in ("ips", "snips", "dr", "sndr"))
        assert one["low"] is not None or one["note"].startswith("no interval: it would leave out")
    code, made = ope(log, policy, "--estimators", "switch_dr")
    assert code == 0
    assert [made["estimators"]["switch_dr"][k] for k in ("low", "high", "se")] == [None] * 3


def test_an_interval_by_name_and_its_bootstrap_draws(tmp_path: Path):
    log, policy = written(tmp_path, users=1500, wrong=0.7)
    options = ("--estimators", "dr", "--interval")
    found = {}
    for at, more in enumerate((["t"], ["bootstrap"], ["bootstrap", "--bootstrap", "150"], ["el"])):
        code, made = ope(log, policy, *options, *more)
        assert (code, made["interval"], made["label"]) == (0, more[0], "exploratory")
        assert made["estimators"]["dr"]["method"] == more[0]
        found[at] = made["estimators"]["dr"]["high"] - made["estimators"]["dr"]["low"]
    assert len(set(found.values())) == 4  # another number of draws, another interval
    assert max(found.values()) < 1.2 * min(found.values())
    code, made = ope(*written(tmp_path, users=150, seed=1), *options, "bootstrap")
    assert code == 3
    assert "ask for auto or betting" in made["refused"]


def test_direct_method_alone_is_refused(tmp_path: Path):
    code, made = ope(*written(tmp_path), "--estimators", "dm")
    assert code == 3
    assert "direct method" in made["refused"]


def test_honest_propensities_are_not_taken_for_reconstructed(tmp_path: Path):
    """A policy without context: 60 logs whose frequencies come near the probabilities by chance alone."""
    rng, p = np.random.default_rng(0), np.array([0.5, 0.3, 0.2])
    for _ in range(60):
        n = int(rng.integers(200, 3000))
        ad = rng.choice(3, n, p=p)
        cells = scan.Cells()
        cells.add(pa.table({"ad_id": ad.astype(str), "propensity": p[ad]}))
        cells.require_not_reconstructed()


@pytest.mark.parametrize(("arguments", "words"), [
    (["--metric", "money"], "ctr, engagement, revenue_per_mille"), (["--estimators", "magic"], "no such estimator"),
    (["--estimators", "mips"], "logging_probability"), (["--unit", "nobody"], "column nobody"),
    (["--nuisance", "logistic", "--features", "nothing"], "column nothing"),
])
def test_bad_options_are_input_errors(tmp_path: Path, arguments: list[str], words: str):
    log, policy = written(tmp_path)
    done = CliRunner().invoke(app, ["ope", str(log), "--target", str(policy), *arguments])
    assert isinstance(done.exception, InputError)
    assert words in str(done.exception)


def test_bad_files_are_input_errors(tmp_path: Path):
    log, policy = written(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        evaluate(tmp_path / "none.parquet", policy)
    table = pq.read_table(policy)
    pq.write_table(table.drop_columns(["probability"]), policy)
    with pytest.raises(InputError, match="column probability: missing column"):
        evaluate(log, policy)
    pq.write_table(table.slice(6), policy)
    with pytest.raises(InputError, match=f"^{policy}, column probability: .*no candidate of this"):
        evaluate(log, policy)
    changed(log, click=np.full(pq.read_metadata(log).num_rows, 7, np.int8))
    with pytest.raises(InputError, match="column click, row 0"):
        evaluate(log, policy)


def test_errors_of_the_target_name_its_file_and_a_row_only_where_it_is_the_files(tmp_path: Path, monkeypatch):
    log, policy = written(tmp_path, users=300)
    probability = np.array(pq.read_table(policy)["probability"]).copy()
    probability[-1] = -0.1
    changed(policy, probability=probability)
    with pytest.raises(InputError, match=f"^{policy}, column probability, row {len(probability) - 1}: "):
        evaluate(log, policy)
    for module, name, small in ((stream, "WHOLE_ROWS", 10), (stream, "BATCH_ROWS", 200), (stream, "PART_ROWS", 1000)):
        monkeypatch.setattr(module, name, small)
    with pytest.raises(InputError, match=f"^{policy}, column probability: "):
        evaluate(log, policy)


def test_published_intervals_cover_an_enumerated_truth():
    """60 logs of 300 users: every consistent estimator's interval holds the truth at least as often as it says."""
    hits: dict[str, list[bool]] = {}
    for seed in range(60):
        log, context = BANDIT.log(300, seed=500 + seed)
        seen = offpolicy.read_log(log)
        arm = offpolicy.join_policy(seen, BANDIT.policy("good", context, wrong=0.7))
        made = totals.Totals(["ips", "snips", "dr", "sndr"], len(seen))
        made.add(offpolicy.outcomes_of(seen, arm), seen.clusters)
        for name, one in answer(made, draws=100)["estimators"].items():
            hits.setdefault(name, []).append(one["low"] <= TRUTH <= one["high"])
    assert all(np.mean(h) >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / 60) for h in hits.values()), {
        n: np.mean(h) for n, h in hits.items()}


def test_repeated_rows_narrow_units_and_partly_unknown_users_are_refused(tmp_path: Path):
    log, policy = written(tmp_path)
    table = pq.read_table(log)
    code, made = ope(log, policy, "--unit", "impression_id")
    assert code == 3
    assert "analyse by user_id" in made["refused"]
    changed(log, user_id=[None, *table["user_id"].to_pylist()[1:]])
    for more in ([], ["--unit", "impression_id"]):
        code, made = ope(log, policy, *more)
        assert code == 3
        assert "user_id" in made["refused"]
    pq.write_table(pa.concat_tables([table] * 2), log)
    code, made = ope(log, policy)
    assert code == 3
    assert "duplicate exposures" in made["refused"]


def test_a_target_on_ads_that_were_never_shown_is_refused(tmp_path: Path):
    log, policy = written(tmp_path)
    table = pq.read_table(policy)
    first = np.arange(0, table.num_rows, 6)
    new = replace(table.take(pa.array(first)), ad_id=["never"] * len(first), probability=np.full(len(first), 0.02))
    table = replace(table, probability=0.98 * table["probability"].to_numpy())
    pq.write_table(pa.concat_tables([table, new]), policy)
    code, made = ope(log, policy)
    assert code == 3
    assert "never shows" in made["refused"]


GAP = 0.008


def beyond(folder: Path, users: int = 900) -> tuple[Path, Path]:
    """A target that puts GAP of its probability on an ad that the log never shows; the model gives it 0.3 clicks."""
    log, policy = written(folder, users, wrong=0.7)
    table = pq.read_table(policy)
    requests = pc.unique(table["request_id"])
    n = len(requests)
    listed = table.set_column(table.column_names.index("probability"), "probability",
                              pc.multiply(table["probability"], 1 - GAP))
    ghost = pa.table({"request_id": requests, "slot": pa.array(np.zeros(n), pa.int32()), "ad_id": ["ghost"] * n,
                      "probability": np.full(n, GAP), "price_per_click": np.full(n, 2.0),
                      "expected_click": np.full(n, 0.3)})
    pq.write_table(pa.concat_tables([listed, ghost.select(listed.column_names)]), policy)
    return log, policy


def test_a_small_gap_of_support_widens_intervals_to_the_worst_case(tmp_path: Path):
    log, policy = beyond(tmp_path)
    made = evaluate(log, policy, estimators=["ips", "snips", "dr", "sndr", "iips", "rips"])
    assert made["diagnostics"]["support_gaps"] == pytest.approx(GAP)
    assert "intervals are widened" in summary(made)
    wide = {n: e["widened"] for n, e in made["estimators"].items()}
    assert wide["ips"] == {"below": 0.0, "above": pytest.approx(GAP)}
    assert wide["iips"] == wide["rips"] == wide["ips"]  # one slot: no slate leaves it more often
    assert wide["dr"] == {"below": pytest.approx(0.3 * GAP), "above": pytest.approx(0.7 * GAP)}
    for name in ("snips", "sndr"):
        assert 0 < wide[name]["below"] < GAP
        assert 0 < wide[name]["above"] < 1.2 * GAP
    # The truth, whether every such impression is clicked or none.
    for clicked in (0.0, 1.0):
        for name in ("ips", "snips", "dr", "sndr"):
            one = made["estimators"][name]
            assert one["low"] <= (1 - GAP) * TRUTH + GAP * clicked <= one["high"], name


def test_worst_cases_are_what_the_estimators_tend_to(tmp_path: Path):
    """Many rows: each published interval, less its sampling part, is the range of truths that the log allows."""
    log, policy = beyond(tmp_path, users=30_000)
    made = evaluate(log, policy, estimators=["ips", "snips", "dr", "sndr"], draws=100)
    for name, one in made["estimators"].items():
        sampling = 1.96 * one["se"]
        low, high = one["low"] + sampling, one["high"] - sampling
        assert low <= (1 - GAP) * TRUTH + 3 * one["se"], name
        assert high >= (1 - GAP) * TRUTH + GAP - 3 * one["se"], name
        assert high - low < 1.6 * GAP + 2 * one["se"], name


def test_a_gap_in_revenue_is_worth_at_most_its_price(tmp_path: Path):
    log, policy = beyond(tmp_path)
    made = evaluate(log, policy, estimators=["ips", "dr"], metric="revenue_per_mille")
    assert made["estimators"]["ips"]["widened"]["above"] == pytest.approx(1000 * GAP * 2.0)
    assert made["estimators"]["dr"]["widened"]["below"] == pytest.approx(1000 * GAP * 2.0 * 0.3)


def test_without_a_gap_nothing_is_widened(tmp_path: Path):
    log, policy = written(tmp_path)
    assert not [n for n, e in evaluate(log, policy)["estimators"].items() if "widened" in e]


def test_no_estimator_and_a_folder_are_bad_input(tmp_path: Path):
    log, policy = written(tmp_path, users=50)
    for arguments, words in (([str(log), "--estimators", ""], "--estimators: no estimator named; got ''"),
                             ([str(tmp_path)], f"{tmp_path}: not a file; got 'a folder'")):
        done = CliRunner().invoke(app, ["ope", *arguments, "--target", str(policy)])
        assert isinstance(done.exception, InputError)
        assert done.exception.exit_code == 2
        assert words in str(done.exception)


def test_the_answer_quotes_the_certificate(tmp_path: Path):
    from recsys.evaluation.certify.certificate import certificate

    made = evaluate(*written(tmp_path))
    assert made["certificate"] == certificate("offpolicy")
    assert len(made["certificate"]["id"]) == 64
