"""The simulator's answers about policies, held against its own log and against re-simulated clicks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.auction import gsp_price
from recsys.datasets.marketplace_text import STYLES, SUBTOPICS, vocabulary
from recsys.datasets.marketplace_truth import Marketplace
from recsys.datasets.simulate import simulate_dataset
from recsys.errors import InputError

PARAMS = {"users": 500, "advertisers": 40, "ads": 300, "requests": 20_000, "days": 10}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Marketplace, pa.Table]:
    out = tmp_path_factory.mktemp("truth")
    simulate_dataset(PARAMS, 5, out)
    return Marketplace.load(out), pq.read_table(out / "impressions.parquet")


def shown_policy(log: pa.Table) -> pa.Table:
    """The policy that shows what was shown."""
    policy = log.select(["request_id", "slot", "ad_id"])
    return policy.append_column("probability", pa.array(np.ones(log.num_rows)))


def near(mean: float, values: np.ndarray, sigmas: float = 4.0) -> bool:
    return abs(values.mean() - mean) < sigmas * values.std() / np.sqrt(len(values))


def test_expected_outcomes_of_what_was_shown_match_the_log(world: tuple[Marketplace, pa.Table]) -> None:
    market, log = world
    truth = market.true_outcomes(log, shown_policy(log))
    for name, column in (("click_rate", "click"), ("engagement_rate", "engaged"), ("conversion_rate", "conversion"),
                         ("hide_rate", "hide")):
        assert near(truth[name], log[column].to_numpy().astype(float)), name
    assert near(truth["value_per_mille"] / 1000, log["value"].to_numpy())
    assert "revenue_per_mille" not in truth


def test_click_probability_is_calibrated_in_every_part(world: tuple[Marketplace, pa.Table]) -> None:
    market, log = world
    chance, click = market.click_probability(log, shown_policy(log)), log["click"].to_numpy().astype(float)
    assert 0 < chance.min() < 0.02 < 0.3 < chance.max() < 1
    for low, high in zip(*(lambda q: (q[:-1], q[1:]))(np.quantile(chance, np.linspace(0, 1, 9))), strict=True):
        part = (chance >= low) & (chance <= high)
        assert near(chance[part].mean(), click[part])
    for surface in ("feed", "discovery", "messaging"):
        part = log["surface"].to_numpy(zero_copy_only=False) == surface
        assert near(chance[part].mean(), click[part])


def test_revenue_of_the_log(world: tuple[Marketplace, pa.Table]) -> None:
    market, log = world
    # Prices of clicks are logged only where a click happened; a constant price checks the sum.
    policy = shown_policy(log).append_column("price_per_click", pa.array(np.full(log.num_rows, 0.5)))
    truth = market.true_outcomes(log, policy)
    assert truth["revenue_per_mille"] == pytest.approx(500 * truth["click_rate"])


def test_another_policy_resimulated(world: tuple[Marketplace, pa.Table]) -> None:
    """Click rate and revenue of a policy that never ran, against clicks drawn under it."""
    market, log = world
    policy = market.reference_policy(log, "nothing")
    rng = np.random.default_rng(0)
    bid = market.world.bid[np.array([int(a[1:]) for a in policy["ad_id"].to_pylist()])]
    k = market.params.candidates
    price = gsp_price(bid.reshape(-1, k), np.ones((len(bid) // k, k)), 1)[:, 0].ravel()
    truth = market.true_outcomes(log, policy.append_column("price_per_click", pa.array(price)))
    # One ad drawn in each (request, slot), then one click.
    drawn = np.arange(len(bid) // k) * k + rng.integers(k, size=len(bid) // k)
    chance = market.click_probability(log, policy.take(pa.array(drawn)))
    click = (rng.random(len(chance)) < chance).astype(float)
    assert near(truth["click_rate"], click)
    assert near(truth["revenue_per_mille"], 1000 * click * price[drawn])


def test_inverse_propensity_estimate_agrees_with_the_truth(world: tuple[Marketplace, pa.Table]) -> None:
    market, log = world
    uniform = market.true_outcomes(log, market.reference_policy(log, "nothing"))
    assert near(uniform["click_rate"], 0.1 / log["propensity"].to_numpy() * log["click"].to_numpy())


def test_knowing_more_is_worth_more(world: tuple[Marketplace, pa.Table]) -> None:
    market, log = world
    test = log.slice(int(0.8 * log.num_rows))
    seen = set(log["ad_id"][:int(0.8 * log.num_rows)].to_pylist())
    rate = {name: market.true_outcomes(test, market.reference_policy(test, *arguments))["click_rate"]
            for name, arguments in {"uniform": ("nothing",), "seen": ("meaning", seen), "meaning": ("meaning",),
                                    "oracle": ("everything",)}.items()}
    assert rate["uniform"] < rate["seen"] < rate["meaning"] < rate["oracle"]
    assert rate["oracle"] > 1.5 * rate["uniform"]
    assert rate["meaning"] > 1.02 * rate["seen"]


def test_meaning_drives_the_click_not_the_words(world: tuple[Marketplace, pa.Table]) -> None:
    """Two ads of one subtopic and style have the same meaning logit for every user, whatever they say."""
    market, _ = world
    state, users = market.world, np.arange(50)
    key = [(s, w, tuple(x)) for s, w, x in zip(state.subtopic, state.second, state.styles, strict=True)]
    first: dict[tuple, int] = {}
    pairs = [(first.setdefault(k, i), i) for i, k in enumerate(key)]
    pairs = [(a, b) for a, b in pairs if a != b]
    assert len(pairs) > 5
    for a, b in pairs:
        logits = [state.meaning_logit(users, np.full(50, ad), users % 3, users % 24.0) for ad in (a, b)]
        np.testing.assert_array_equal(*logits)


def test_a_style_helps_on_its_surface() -> None:
    from recsys.datasets.marketplace_world import STYLE_EFFECT

    effect = dict(zip(STYLES, STYLE_EFFECT.tolist(), strict=True))
    assert max(range(3), key=lambda s: effect["social_proof"][s]) == 0
    assert max(range(3), key=lambda s: effect["visual"][s]) == 1
    assert max(range(3), key=lambda s: effect["discount"][s]) == 2


def test_vocabulary_has_no_phrase_twice() -> None:
    words = vocabulary()
    assert len(words.things) == len(words.uses) == SUBTOPICS * len(words.topics)
    phrases = [p for part in (words.things, words.uses, words.styles) for pair in part for late in pair for p in late]
    assert len(phrases) == len(set(phrases)) > 1000
    assert all(p and p == p.strip() for p in phrases)


def test_foreign_rows_are_refused(world: tuple[Marketplace, pa.Table], tmp_path: Path) -> None:
    market, log = world
    policy = shown_policy(log.slice(0, 4))
    for name, value, words in (("ad_id", "zzz", "not of this simulated"), ("request_id", "r", "not of this simulated"),
                               ("slot", 3, "no such slot")):
        at = policy.column_names.index(name)
        type_ = policy.schema.field(name).type
        bad = policy.set_column(at, name, pa.array([*policy[name].to_pylist()[:3], value], type_))
        with pytest.raises(InputError, match=words) as error:
            market.true_outcomes(log, bad)
        assert error.value.row == 3
    with pytest.raises(InputError, match="no such file"):
        Marketplace.load(tmp_path)
    with pytest.raises(InputError, match="probability"):
        market.true_outcomes(log, policy.set_column(3, "probability", pa.array([2.0] * 4)))
