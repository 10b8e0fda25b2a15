from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import InputError, Refused
from recsys.evaluation import intervals
from recsys.evaluation.betting import betting_interval, betting_mean, empirical_bernstein
from recsys.evaluation.health import srm
from recsys.evaluation.likelihood import empirical_likelihood


def test_srm_known_answer():
    statistic, p_value = srm([821_588, 815_482])
    assert statistic == pytest.approx(22.774, abs=1e-3)
    assert p_value == pytest.approx(1.8218e-6, rel=1e-4)
    with pytest.raises(InputError, match="planned shares"):
        srm([5])


def test_t_interval_of_single_row_clusters_is_students():
    x = np.random.default_rng(0).normal(3, 2, 40)
    made = intervals.t_interval(intervals.cluster_sums(x, 1.0, np.arange(40)))
    se = x.std(ddof=1) / np.sqrt(40)
    assert made.se == pytest.approx(se)
    assert made.high - made.estimate == pytest.approx(2.0226909 * se)  # t quantile, 39 degrees of freedom


def test_rows_of_one_cluster_count_once():
    """Copying every row of a user ten times adds no evidence; per-impression analysis would think it does."""
    x = np.random.default_rng(1).random(50) < 0.3
    once = intervals.t_interval(intervals.cluster_sums(x, 1.0, np.arange(50)))
    copied = intervals.t_interval(intervals.cluster_sums(np.repeat(x, 10), 1.0, np.repeat(np.arange(50), 10)))
    naive = intervals.t_interval(intervals.cluster_sums(np.repeat(x, 10), 1.0, np.arange(500)))
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))
    assert naive.high - naive.low < 0.4 * (once.high - once.low)


def test_bootstrap_agrees_with_t_where_both_are_right():
    rng = np.random.default_rng(2)
    sums = intervals.ClusterSums(rng.gamma(4, size=2000), rng.gamma(5, size=2000))
    t, boot = intervals.t_interval(sums, null=1.0), intervals.bootstrap_interval(sums, null=1.0)
    assert (boot.low, boot.high) == pytest.approx((t.low, t.high), abs=0.15 * (t.high - t.low))
    assert boot.se == pytest.approx(t.se, rel=0.1)
    assert intervals.bootstrap_interval(sums, seed=5) == intervals.bootstrap_interval(sums, seed=5)
    hull = intervals.wider_of(t, boot)
    assert hull.low <= min(t.low, boot.low)
    assert hull.high >= max(t.high, boot.high)


def test_choice_follows_the_rule():
    assert intervals.choose_interval(20_000, 900, 4000) == intervals.Choice(
        "t+el", "confirmatory", "effective sample size 20,000, effective clicks 900, clusters 4,000")
    assert intervals.choose_interval(5_000, 300, 4000).method == "t+el"
    few = intervals.choose_interval(20_000, 40, 4000)
    assert (few.method, few.label) == ("el", "exploratory")
    assert intervals.choose_interval(20_000, 6, 4000).method == "el"
    for ess, clicks, clusters in ((500, 300, 4000), (20_000, 4, 4000), (9_000, 90, 4000), (20_000, 900, 40)):
        choice = intervals.choose_interval(ess, clicks, clusters)
        assert (choice.method, choice.label) == ("betting", "exploratory")


def test_the_hull_of_t_and_empirical_likelihood():
    rng = np.random.default_rng(6)
    sums = intervals.ClusterSums((rng.random(20_000) < 0.01) * rng.gamma(2, size=20_000), np.ones(20_000))
    choice = intervals.choose_interval(20_000, 150, 20_000)
    made = intervals.interval(sums, choice, null=0.02)
    t, el = intervals.t_interval(sums, null=0.02), empirical_likelihood(sums, null=0.02)
    assert el.low > t.low  # skewed as the data are
    assert (made.low, made.high) == (t.low, el.high)
    assert made.p_value == max(t.p_value, el.p_value)
    assert (made.method, made.label, made.se) == ("t+el", "confirmatory", t.se)


def test_units_count_by_how_many_equal_ones_they_are_worth():
    """One user with half of the rows: t intervals cover 54 % there (docs/decisions/0013), so none is published."""
    assert intervals.effective(np.ones(50)) == pytest.approx(50)
    one_half = np.append(np.full(149, 80.0), 149 * 80.0)
    with pytest.raises(Refused, match=r"clusters 150 \(worth 4\.0 of equal size\)"):
        intervals.choose_interval(24_000, 900, 150, sizes=[one_half])
    tenth = np.append(np.ones(1999), 1999 / 9)
    choice = intervals.choose_interval(24_000, 900, 2000, sizes=[np.ones(2000), tenth])
    assert (choice.method, choice.label) == ("betting", "exploratory")
    assert intervals.choose_interval(24_000, 900, 2000, sizes=[np.ones(2000)]).method == "t+el"


def test_clicks_of_one_user_count_once():
    clicks, user = np.ones(40), np.repeat(np.arange(4), 10)
    assert intervals.effective(clicks) == pytest.approx(40)
    assert intervals.effective(clicks, user) == pytest.approx(4)
    assert intervals.effective(np.append(clicks, np.zeros(100)), np.append(user, np.arange(100))) == pytest.approx(4)
    heavy = np.array([10.0, 1.0, 1.0])  # units can only leave fewer, never more
    assert intervals.effective(heavy, np.array([0, 1, 1])) <= intervals.effective(heavy)


def test_what_is_published_covers_where_a_few_users_hold_most_rows():
    """Pareto activity, 120 samples: of the published ones at least 92 % cover, of t intervals fewer than 80 %."""
    published, plain, refused = [], [], 0
    for seed in range(120):
        rng = np.random.default_rng([11, seed])
        size = np.ceil(5 * (1 + rng.pareto(0.9, 300)))
        click = rng.binomial(size.astype(int), 0.04 * rng.choice([0.4, 1.6], 300)).astype(float)
        sums = intervals.ClusterSums(click, size)
        t = intervals.t_interval(sums)
        plain.append(t.low <= 0.04 <= t.high)
        try:
            choice = intervals.choose_interval(size.sum(), click.sum(), 300, sizes=[size])
        except Refused:
            refused += 1
            continue
        made = intervals.interval(sums, choice, draws=100, seed=seed)
        published.append(made.low <= 0.04 <= made.high)
    assert np.mean(plain) < 0.8
    assert refused
    assert len(published) > 30
    assert np.mean(published) >= 0.92


@pytest.mark.parametrize(("ess", "clicks", "clusters"), [(2.0, 500, 500), (5000, 0, 500), (5000, 500, 3)])
def test_too_little_evidence_is_refused(ess, clicks, clusters):
    with pytest.raises(Refused, match="effective sample size"):
        intervals.choose_interval(ess, clicks, clusters)


def test_a_method_asked_for_by_name_never_says_more_than_the_rule():
    many, few = (intervals.choose_interval(20_000, clicks, 500) for clicks in (400, 40))
    assert intervals.asked_for(many, "auto") is many
    for method in ("t", "bootstrap", "el"):
        made = intervals.asked_for(many, method)
        assert (made.method, made.label) == (method, "exploratory")
        assert "asked for by name" in made.reason
    assert intervals.asked_for(few, "el") is few
    for method in ("t", "bootstrap"):
        with pytest.raises(Refused, match="covers less than it says; ask for auto"):
            intervals.asked_for(few, method)
    assert intervals.asked_for(many, "betting").label == "confirmatory"
    with pytest.raises(InputError, match="no such interval"):
        intervals.asked_for(many, "wald")


def test_bootstrap_of_counts_is_the_bootstrap_of_clusters():
    """Rare clicks: drawing how often each distinct pair of sums comes is the same law as drawing clusters."""
    rng = np.random.default_rng(7)
    clicks = (rng.random(4000) < 0.02).astype(float)
    counted = intervals.bootstrap_interval(intervals.ClusterSums(clicks, np.ones(4000)), draws=4000)
    nearly = clicks + 1e-12 * rng.random(4000)  # as many distinct pairs as clusters
    drawn = intervals.bootstrap_interval(intervals.ClusterSums(nearly, np.ones(4000)), draws=4000, seed=1)
    width = drawn.high - drawn.low
    assert counted.se == pytest.approx(drawn.se, rel=0.05)
    assert (counted.low, counted.high) == pytest.approx((drawn.low, drawn.high), abs=0.06 * width)


def test_ratio_without_denominator_is_refused():
    with pytest.raises(Refused, match="denominator"):
        intervals.t_interval(intervals.ClusterSums(np.ones(5), np.zeros(5)))
    with pytest.raises(Refused, match="at least two"):
        intervals.cluster_sums([1.0, 2.0], 1.0, np.zeros(2, dtype=np.int64))


def test_betting_mean_covers_where_the_normal_interval_does_not():
    """200 samples of 60 draws at 3 %: Wald covers about 83 %, betting its nominal 95 %."""
    rng = np.random.default_rng(3)
    samples = (rng.random((200, 60)) < 0.03).astype(float)
    bets = [betting_mean(x, 0, 1) for x in samples]
    covered = np.mean([b.low <= 0.03 <= b.high for b in bets])
    half = 1.96 * samples.std(axis=1, ddof=1) / np.sqrt(60)
    wald = np.mean(np.abs(samples.mean(axis=1) - 0.03) <= half)
    assert covered >= 0.95
    assert wald < 0.90


def test_betting_mean_is_tighter_than_bernstein_and_wider_than_t():
    x = np.random.default_rng(4).beta(2, 8, 2000)
    bet, bernstein = betting_mean(x, 0, 1), empirical_bernstein(x, 0, 1)
    t = intervals.t_interval(intervals.cluster_sums(x, 1.0, np.arange(2000)))
    widths = [i.high - i.low for i in (t, bet, bernstein)]
    again = betting_mean(1 - x, 0, 1)
    assert (1 - again.high, 1 - again.low) == pytest.approx((bet.low, bet.high), abs=1e-9)  # both ends by one rule
    assert widths == sorted(widths)
    assert bet.low <= 0.2 <= bet.high


def test_empirical_bernstein_known_answer():
    """n = 100, half zeros and half ones: V = 25/99, ln(4/0.05) = 4.3820; computed by hand from the theorem."""
    made = empirical_bernstein(np.tile([0.0, 1.0], 50), 0, 1)
    half = np.sqrt(2 * (25 / 99) * 4.382026634673881 / 100) + 7 * 4.382026634673881 / (3 * 99)
    assert made.high - made.estimate == pytest.approx(half)


def test_bounded_methods_refuse_values_outside_the_bounds():
    with pytest.raises(InputError, match="row 1: value outside its bounds"):
        betting_mean([0.5, 1.5, 0.2], 0, 1)
    with pytest.raises(InputError, match="low < high"):
        empirical_bernstein([0.5, 0.5], 1, 1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3), groups=st.integers(60, 300))
def test_intervals_scale_with_the_numerator_and_contain_the_estimate(seed, scale, groups):
    rng = np.random.default_rng(seed)
    sums = intervals.ClusterSums(rng.gamma(2, size=groups), rng.gamma(3, size=groups))
    scaled = intervals.ClusterSums(sums.numerator * scale, sums.denominator)
    for method in (intervals.t_interval, betting_interval):
        one, other = method(sums), method(scaled)
        assert one.low <= one.estimate <= one.high
        assert (other.low, other.high) == pytest.approx((one.low * scale, one.high * scale), rel=1e-6)


def test_betting_of_a_ratio_reckons_with_what_rows_could_have_earned():
    """Two clicks of small weight, in a log with weights of 50: the upper end must not rest on the clicks' weights."""
    rng = np.random.default_rng(8)
    weight = np.where(rng.random(2000) < 0.01, 50.0, 0.5)
    click = np.zeros(2000)
    click[np.flatnonzero(weight < 1)[:3]] = 1
    blind = betting_interval(intervals.ClusterSums(weight * click, np.ones(2000)))
    told = betting_interval(intervals.ClusterSums(weight * click, np.ones(2000), weight))
    assert told.high > 10 * blind.high
    known = betting_mean(weight * click, 0, 50)
    assert told.high == pytest.approx(known.high, rel=0.25)  # the same bound, the same bets but for the first few


def test_ends_of_a_betting_ratio_are_where_its_gamblers_get_rich():
    """Against a scan of ratios: none between the ends is refused, and those just outside are."""
    rng = np.random.default_rng(9)
    sums = intervals.ClusterSums((rng.random(500) < 0.1) * rng.gamma(2, size=500), rng.gamma(5, size=500))
    made = betting_interval(sums)
    order = np.random.default_rng(0).permutation(500)
    a, b = sums.numerator[order], sums.denominator[order]
    se = intervals.t_interval(sums).se

    def refused(r: float) -> bool:
        for z in (a - r * b, r * b - a):
            wealth, seen, worst = 0.0, 0.0, 2 * max(0.0, -z.min())
            for at, x in enumerate(z):
                stake = min(np.sqrt(2 * np.log(40) * at / (500 * seen)), 0.5 / worst) if seen else 0.0
                wealth += np.log1p(stake * x)
                seen += x * x
                if wealth >= np.log(40):
                    return True
        return False

    assert not any(refused(r) for r in np.linspace(made.low + 0.02 * se, made.high - 0.02 * se, 9))
    assert refused(made.low - 0.005 * se)
    assert refused(made.high + 0.005 * se)
