from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.errors import InputError, Refused
from recsys.evaluation import health, intervals
from recsys.evaluation.comparison import ArmRows, Comparison
from recsys.evaluation.lift import offpolicy_lift, randomized_lift, table_sha256, write_lift
from recsys.evaluation.lift_json import compute_lift
from recsys.evaluation.offpolicy.evaluate import evaluate
from recsys.ledger import statement
from recsys.report import render_terminal
from recsys.report.page import html
from recsys.stage import sha256_json
from tests.evaluation.bandit import Bandit, config
from tests.evaluation.test_randomized import headline_tests, simulated
from tests.report.test_page import Page
from tests.report.test_schema import check

BANDIT = Bandit.make()
ARMS = ["logged", "uniform", "good"]
TRUTH = {name: BANDIT.truth(name) for name in ARMS}


def report(users: int = 2500, seed: int = 0, arms: list[str] = ARMS, **changes):
    table, context = BANDIT.log(users, seed)
    policies = {name: BANDIT.policy(name, context, wrong=0.8) for name in arms}
    return offpolicy_lift(table, policies, config(arms, **changes), {"good": {"cost_per_mille_usd": 0.02}}, TRUTH)


def test_offpolicy_report_has_what_its_readers_need(tmp_path):
    lift = report()
    write_lift(tmp_path / "lift.json", lift)
    read = json.loads((tmp_path / "lift.json").read_text())
    assert read["baseline"] == "logged"
    assert read["arms"]["logged"]["lift"] == {"estimate": 0.0, "low": 0.0, "high": 0.0}
    good = read["arms"]["good"]
    assert good["lift"]["low"] < good["lift"]["estimate"] < good["lift"]["high"]
    assert good["true_lift"] == pytest.approx(TRUTH["good"]["ctr"] / TRUTH["logged"]["ctr"] - 1)
    assert good["covers_truth"] is True
    assert good["lift"]["low"] > 0  # the good policy is found to be better
    assert good["lift"]["estimate"] == pytest.approx(good["value"] / read["arms"]["logged"]["value"] - 1)
    assert good["absolute_lift"]["estimate"] == pytest.approx(good["value"] - read["arms"]["logged"]["value"])
    assert good["cost_per_mille_usd"] == 0.02
    assert good["secondary"]["revenue_per_mille"]["covers_truth"] is True
    assert set(good["secondary"]) == {"engagement", "revenue_per_mille", "cost_per_click", "diversity"}
    assert good["label"] == "confirmatory"
    assert read["pairwise"]["uniform vs good"]["difference"]["high"] < 0
    assert read["healthy"]
    assert read["config_sha256"] == sha256_json(config(ARMS).resolved())
    assert good["clusters"] == 2500


def test_same_inputs_same_numbers():
    first, second = report(600), report(600)
    for key in ("arms", "pairwise", "health", "data_sha256", "config_sha256"):
        assert first[key] == second[key]


def test_two_arms_with_one_policy_have_no_lift():
    table, context = BANDIT.log(1500, seed=1)
    policies = {"a": BANDIT.policy("good", context), "b": BANDIT.policy("good", context)}
    arm = offpolicy_lift(table, policies, config(["a", "b"]))["arms"]["b"]
    assert arm["lift"]["estimate"] == pytest.approx(0.0, abs=1e-12)
    assert (arm["lift"]["low"], arm["lift"]["high"]) == pytest.approx((0.0, 0.0), abs=1e-9)
    assert "true_lift" not in arm


def test_published_interval_covers_the_truth():
    """200 independent logs with 100 effective clicks and more: coverage of the nominal 95 % interval of the lift."""
    from recsys.evaluation import offpolicy

    methods, covered = set(), []
    true = TRUTH["good"]["ctr"] / TRUTH["logged"]["ctr"]
    for seed in range(200):
        table, context = BANDIT.log(400, seed=1000 + seed)
        log = offpolicy.read_log(table)
        arms = [offpolicy.join_policy(log, BANDIT.policy(n, context, wrong=0.7)) for n in ("good", "logged")]
        rows = [offpolicy.pseudo_outcomes(log, arm) for arm in arms]
        ess = min(offpolicy.effective(a.weight) for a in arms)
        clicks = min(offpolicy.effective(a.weight * log.click, log.clusters) for a in arms)
        choice = intervals.choose_interval(ess, clicks, 400)
        made = intervals.interval(intervals.cluster_sums(*rows, log.clusters), choice, draws=200, seed=seed)
        methods.add(choice.method)
        covered.append(made.low <= true <= made.high)
    assert "t+el" in methods
    assert 0.92 <= np.mean(covered) <= 0.995


def test_little_evidence_is_labelled_exploratory_or_refused():
    arm = report(120, seed=3)["arms"]["good"]
    assert arm["label"] == "exploratory"
    assert arm["interval_method"] == "betting"
    with pytest.raises(Refused, match="effective sample size"):
        report(8, seed=3)


def test_effective_sample_size_of_two_is_refused():
    """Two rows carry nearly all the weight."""
    table, context = BANDIT.log(60, seed=4)
    propensity = table["propensity"].to_numpy().copy()
    propensity[:2] = 1e-3
    table = table.set_column(table.column_names.index("propensity"), "propensity", pa.array(propensity))
    with pytest.raises(Refused):
        offpolicy_lift(table, {"uniform": BANDIT.policy("uniform", context)}, config(["uniform"]))


def test_traps_are_refused():
    table, context = BANDIT.log(300, seed=5)
    policies = {"good": BANDIT.policy("good", context)}
    with pytest.raises(Refused, match="direct method"):
        offpolicy_lift(table, policies, config(["good"]), estimator="dm")
    with pytest.raises(InputError, match="column group_id: missing column"):
        offpolicy_lift(table, policies, config(["good"], unit="group_id"))
    with pytest.raises(InputError, match="the baseline arm is missing"):
        offpolicy_lift(table, policies, config(["other", "good"]))
    wrong = table.set_column(table.column_names.index("propensity"), "propensity",
                             pa.array(np.full(table.num_rows, 0.5)))
    with pytest.raises(Refused, match="mean importance weight"):
        offpolicy_lift(wrong, policies, config(["good"]))


def test_analysis_per_impression_of_clustered_data_fails_the_health_check():
    lift = report(600, unit="request_id")
    line = next(h for h in lift["health"] if h["check"] == "unit of analysis")
    assert not line["ok"]
    assert "analyse by user_id" in line["detail"]
    assert not lift["healthy"]
    require_no_estimate(lift, "analyse by user_id")


def require_no_estimate(lift: dict, *words: str) -> None:
    """Nothing in the report from which a lift could be read, and a reason in its place; its schema holds."""
    made = json.loads(json.dumps(lift))
    check("lift", made)
    for word in (*words, "No lift is shown"):
        assert word in made["refused"]
    for name, arm in made["arms"].items():
        assert [arm[k] for k in ("lift", "absolute_lift", "p_value", "se", "value", "value_interval")] == [None] * 6
        assert arm["refused"] == made["refused"]
        assert not {"numerator", "unadjusted", "true_lift"} & set(arm)
        assert not {"estimators", "clip_sensitivity", "oracle_lift", "bootstrap_check"} & set(arm["diagnostics"])
        for found in arm["secondary"].values():
            assert found["value"] is None
            assert found["lift"] is None
        if name != made["baseline"]:
            assert made["decision"]["verdict"][name] == "Review"
            assert made["decision"]["why"][name] == made["refused"]
    assert made["pairwise"] == made["segments"] == {}
    assert made["growth"] == {"refused": made["refused"]}
    assert not made["decision"]["p_value"]
    assert not made["decision"]["power"]
    said = " ".join(render_terminal(made).split())
    assert f"refused: {made['refused']}"[:60] in said
    assert said.count(" refused ") == len(made["arms"])  # a line each
    text = Page(html(made, None)).text
    assert text.count("No lift is shown") >= 2
    assert "▲" not in text
    with pytest.raises(Refused, match="no statement without a lift"):
        statement(made, [], 1_000_000)


def test_broken_allocation_of_viewers_leaves_no_number_in_the_report():
    table, _ = simulated(150, seed=0)
    trials = table["trials"].to_numpy().copy()
    trials[::2] = (trials[::2] * 1.3).astype(np.int64)
    at = table.column_names.index("trials")
    scores = np.random.default_rng(0).normal(size=table.num_rows)
    setting = config(["uniform", "scores"], method="randomized", unit="group_id")
    table = table.set_column(at, "trials", pa.array(trials))
    lift = randomized_lift(table, {"uniform": None, "scores": scores}, setting)
    require_no_estimate(lift, "sample ratio", "mend the splitter")


def test_a_failed_a_a_test_fails_the_report():
    """Two stories of sixty tests beside sixty of one: a half that holds one of them takes its lift for everybody's."""
    rng = np.random.default_rng(0)
    stories = np.r_[np.repeat([0, 1], 60), np.arange(2, 62)]
    base = np.full(len(stories), 0.02)
    arm = base * np.r_[np.repeat([0.9, 1.1], 60), 1 + 0.02 * rng.normal(size=60)]
    c = Comparison({n: ArmRows({"ctr": x}, float(len(x)), {}, {}) for n, x in (("base", base), ("arm", arm))},
                   "base", "ctr", stories, 0.95, 300, 0, paired=False)
    lift = compute_lift(c, config(["base", "arm"], method="randomized", unit="group_id"), {}, None,
                        [health.check("sample ratio", True, "fine")], "0" * 64)
    assert lift["aa"]["arm"]["excess_p"] < 1e-3
    assert not next(h for h in lift["health"] if h["check"] == "A/A")["ok"]
    require_no_estimate(lift, "A/A", "of random halves without a difference rejected", "analyse by a wider unit")


def test_duplicate_exposures_fail_the_health_check():
    table, context = BANDIT.log(600, seed=6)
    twice = pa.concat_tables([table, table.slice(0, 50)])
    lift = offpolicy_lift(twice, {"good": BANDIT.policy("good", context)}, config(["good"]))
    line = next(h for h in lift["health"] if h["check"] == "duplicate exposures")
    assert not line["ok"]
    assert line["detail"].startswith("50 of")


def test_randomized_report_and_its_coverage():
    """Scores that see the truth through noise; 100 replications of the per-story interval."""
    setting = config(["uniform", "scores"], method="randomized", unit="group_id", bootstrap=200)
    big, rate = simulated(4000, seed=99)
    noise = np.random.default_rng(99).normal(0, 0.3, len(rate))
    from recsys.evaluation import randomized

    def true_lift(table: pa.Table, rate: np.ndarray, scores: np.ndarray) -> float:
        tests = randomized.read_tests(table)
        values = [randomized.value_per_test(tests, randomized.picked(tests, s), rate).mean() for s in (scores, None)]
        return values[0] / values[1] - 1

    truth = true_lift(big, rate, np.log(rate) + noise)
    covered = []
    for seed in range(100):
        table, rate = simulated(150, seed=seed)
        scores = np.log(rate) + np.random.default_rng(seed).normal(0, 0.3, len(rate))
        tests = randomized.read_tests(table)
        rows = [randomized.value_per_test(tests, randomized.picked(tests, s)) for s in (scores, None)]
        made = intervals.t_interval(intervals.cluster_sums(*rows, tests.cluster))
        covered.append(made.low - 1 <= truth <= made.high - 1)
    assert 0.9 <= np.mean(covered) <= 1.0
    lift = randomized_lift(table, {"uniform": None, "scores": scores}, setting)
    arm = lift["arms"]["scores"]
    assert (arm["lift"]["low"], arm["lift"]["high"]) == pytest.approx((made.low - 1, made.high - 1))
    assert arm["clusters"] == 150
    assert arm["n"] == table["request_id"].combine_chunks().dictionary_encode().dictionary.__len__()
    assert arm["diagnostics"]["bootstrap_check"]["low"] == pytest.approx(arm["lift"]["low"], abs=0.02)
    assert arm["diagnostics"]["oracle_lift"]["noisy"] > arm["lift"]["estimate"]
    assert lift["healthy"]
    check("lift", json.loads(json.dumps(lift)))  # the published schema holds for this method too


def test_randomized_report_refuses_too_few_stories_and_reports_per_test_analysis():
    table = headline_tests([2] * 6, [1000] * 12, [10] * 12, list("abcdef"))
    setting = config(["uniform"], method="randomized", unit="group_id")
    with pytest.raises(Refused, match="6 independent units"):
        randomized_lift(table, {"uniform": None}, setting)
    table, _ = simulated(150, seed=0)
    lift = randomized_lift(table, {"uniform": None}, config(["uniform"], method="randomized", unit="request_id"))
    assert not next(h for h in lift["health"] if h["check"] == "unit of analysis")["ok"]


def test_split_audit_fails_on_a_shared_story_but_not_on_returning_ads():
    counts = {"requests": {"train": 9, "test": 3, "shared": 0}, "texts": {"train": 5, "test": 4, "shared": 2}}
    assert health.split_audit({"stories": False, **counts})[0]["ok"]
    line = health.split_audit({"stories": True, **counts})[0]
    assert not line["ok"]
    assert "texts: 5 train, 4 test, 2 shared" in line["detail"]
    assert health.split_audit(None) == []


def test_data_hash_ignores_chunks_and_sees_values():
    table = pa.table({"a": [1, 2, 3], "b": ["x", None, "z"]})
    assert table_sha256(pa.concat_tables([table.slice(0, 1), table.slice(1)])) == table_sha256(table)
    assert table_sha256(table.slice(0, 2)) != table_sha256(table)


def test_importing_the_package_is_cheap():
    import subprocess
    import sys

    code = ("import sys, recsys.evaluation as e; assert 'scipy' not in sys.modules; e.choose_interval; "
            "assert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)


GAP = 0.004


def ghostly(policy: pa.Table, share: float = GAP) -> pa.Table:
    """The policy with a share of its probability on an ad that no log shows."""
    moved = policy.set_column(policy.column_names.index("probability"), "probability",
                              pa.array((1 - share) * policy["probability"].to_numpy()))
    first = policy.take(pa.array(np.flatnonzero(policy["ad_id"].to_numpy(zero_copy_only=False) == "a0")))
    n = first.num_rows
    ghost = {"ad_id": pa.array(["ghost"] * n), "probability": pa.array(np.full(n, share)),
             "expected_click": pa.array(np.full(n, 0.3)), "price_per_click": pa.array(np.full(n, 2.0))}
    return pa.concat_tables([moved, pa.table({c: ghost.get(c, first[c]) for c in policy.column_names})])


def test_a_gap_of_support_widens_the_report_as_it_widens_recsys_ope(tmp_path):
    table, context = BANDIT.log(2500, 0)
    whole = {n: BANDIT.policy(n, context, wrong=0.8) for n in ("logged", "good")}
    policies = {"logged": whole["logged"], "good": ghostly(whole["good"])}
    made = offpolicy_lift(table, policies, config(["logged", "good"]))
    good, plain = made["arms"]["good"], offpolicy_lift(table, whole, config(["logged", "good"]))["arms"]["good"]
    for name, rows in (("log", table), ("good", policies["good"])):
        pq.write_table(rows, tmp_path / f"{name}.parquet")
    alone = evaluate(tmp_path / "log.parquet", tmp_path / "good.parquet", estimators=["dr"])["estimators"]["dr"]
    assert alone["widened"]["above"] > 0
    assert good["value_interval"] == pytest.approx({"low": alone["low"], "high": alone["high"]}, rel=1e-9)
    # what such an ad could earn is a share of the baseline's value, above the sampling error of the lift
    base = made["arms"]["logged"]["value"]
    above, below = good["lift"]["high"] - plain["lift"]["high"], plain["lift"]["low"] - good["lift"]["low"]
    assert above + below == pytest.approx(GAP / base, rel=0.35)
    for clicked in (0.0, 1.0):
        truth = (1 - GAP) * TRUTH["good"]["ctr"] + GAP * clicked
        assert good["lift"]["low"] <= truth / TRUTH["logged"]["ctr"] - 1 <= good["lift"]["high"]
    assert good["se"] > plain["se"]
    assert made["arms"]["logged"]["lift"]["low"] == 0
    assert good["unadjusted"]["lift"]["high"] > plain["unadjusted"]["lift"]["high"] + 0.5 * GAP / base
    paid = [one["secondary"]["revenue_per_mille"]["value_interval"] for one in (good, plain)]
    assert paid[0]["high"] > paid[1]["high"] + 1000 * GAP
    dear = [one["secondary"]["cost_per_click"]["value_interval"] for one in (good, plain)]
    assert dear[0]["low"] < dear[1]["low"] < dear[1]["high"] < dear[0]["high"]
    assert good["secondary"]["diversity"]["lift"] is not None
    check("lift", made)


def test_a_gap_can_take_the_significance_away():
    """Two per cent of lift, and ads unknown to the log that could earn ten: nothing is told of the sign."""
    table, context = BANDIT.log(2500, 0)
    policies = {n: BANDIT.policy(n, context) for n in ("logged", "good")}
    plain = offpolicy_lift(table, policies, config(["logged", "good"]))["arms"]["good"]
    wide = offpolicy_lift(table, policies | {"logged": ghostly(policies["logged"], 0.0099)},
                          config(["logged", "good"]))["arms"]["good"]
    assert plain["p_value"] < wide["p_value"]
    assert wide["lift"]["low"] < plain["lift"]["low"] - 0.03


def test_policies_mostly_beyond_the_log_are_refused_by_the_report_too():
    table, context = BANDIT.log(600, 0)
    policies = {n: BANDIT.policy(n, context) for n in ("logged", "good")}
    with pytest.raises(Refused, match=r"policy of arm good puts 2\.00 % of its probability on ads that this log never"):
        offpolicy_lift(table, policies | {"good": ghostly(policies["good"], 0.02)}, config(["logged", "good"]))
