"""The hidden world of the simulated marketplace: who likes what, what ads mean, and the click model.

Everything here is hidden from the models under test; it is saved in ``truth/`` so that the true value
of any policy can be computed as a sum. The click model is position based (Richardson, Dominowska and
Ragno 2007): P(click) = P(examined | surface, slot) * P(attracted | user, ad, surface, hour); ads shown
together do not influence one another.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator
from scipy.special import expit, ndtr

from recsys.config import Strict, parse_model, read_yaml
from recsys.datasets.marketplace_text import STYLES, SUBTOPICS, vocabulary
from recsys.errors import InputError

SLOTS = (2, 3, 1)
"""Slots of feed, discovery, messaging."""

EXAMINED = np.array([[1.0, 0.70, 0.0], [1.0, 0.80, 0.62], [1.0, 0.0, 0.0]])
"""P(examined) by surface and slot."""

SURFACE_SHARE = (0.45, 0.30, 0.25)
SURFACE_BASE = np.array([-4.3, -4.2, -4.2])

# Rows: STYLES; columns: feed (social), discovery (visual), messaging (commerce intent). In logits, for a user
# of average affinity. The same line helps on one surface and hurts on another.
STYLE_EFFECT = np.array([[-0.25, -0.25, 0.35], [0.05, -0.15, 0.50], [0.50, 0.10, 0.00],
                         [0.10, 0.50, -0.20], [0.20, 0.30, -0.15], [0.00, -0.05, 0.30]])
AFFINITY = 0.5  # logits from the least to the most inclined user of a surface
INTEREST = 3.0  # logits from no interest in an ad's meaning to the strongest
SATURATION = 30.0
EVENING = 0.15  # logits, amplitude of the daily cycle, peak at 20 h

DWELL_MEAN, DWELL_MATCH, DWELL_SD, ENGAGED_MS = 8.6, 1.3, 0.9, 10_000.0
CONVERT_BASE, CONVERT_INTENT, CONVERT_MATCH, CONVERT_SURFACE = -3.6, 1.6, 1.0, (0.0, 0.0, 0.5)
HIDE_BASE, HIDE_MATCH, HIDE_URGENCY = -5.0, -3.0, 0.5
VALUE_SD = 0.6


class MarketplaceParams(Strict):
    """Size and character of the simulated marketplace; the defaults are those of the demo."""

    users: int = Field(3000, ge=10)
    advertisers: int = Field(150, ge=2)
    ads: int = Field(1400, ge=50, description="over the whole period")
    requests: int = Field(160_000, ge=1)
    candidates: int = Field(10, ge=4, le=50, description="candidate ads a request")
    days: int = Field(28, ge=2, le=3650)
    start: str = Field("2026-03-02", pattern=r"^\d{4}-\d{2}-\d{2}$", description="first day, UTC")
    new_ad_share: float = Field(0.7, ge=0, lt=1, description="share of ads created evenly through the period")
    ad_lifetime_days: float = Field(14.0, gt=0, description="mean life of an ad; campaigns end")
    late_vocabulary: float = Field(0.8, ge=0, le=1, description="chance of late phrases in an ad of the last day")
    segments: int = Field(12, ge=2)
    segment_noise: float = Field(0.15, ge=0, le=1, description="share of users whose declared segment is random")
    category_noise: float = Field(0.25, ge=0, le=1, description="share of ads whose declared category is random")
    targeting: float = Field(0.5, ge=0, lt=1, description="share of candidates drawn by noisy interest targeting")
    activity_exponent: float = Field(0.7, ge=0, description="Zipf exponent of requests over users")
    exploration: float = Field(0.25, gt=0, le=1, description="share of requests ranked uniformly at random")
    temperature: float = Field(0.6, gt=0, description="of the legacy ranking softmax")
    bid_exponent: float = Field(0.5, gt=0, description="squashing of the bid in the ranking score")
    reserve: float = Field(0.05, ge=0, description="USD a click")

    @model_validator(mode="after")
    def _enough_ads(self) -> MarketplaceParams:
        if self.ads * (1 - self.new_ad_share) < self.candidates:
            raise ValueError(f"ads * (1 - new_ad_share) must be at least candidates ({self.candidates})")
        return self


def stream(seed: int, name: str) -> np.random.Generator:
    """An independent random stream per purpose, so that one part's draws do not shift another's."""
    return np.random.default_rng([seed, *name.encode()])


@dataclass(frozen=True)
class World:
    """Hidden state: U users, A ads, S subtopics, T topics.

    Attributes:
        interest: float32[U, S], interest in each subtopic, mean 1/T.
        affinity: float64[U, 3], social, visual, commerce inclination in (0, 1); order of SURFACES.
        user_bias: float64[U], logits.
        activity: float64[U], share of requests.
        segment: int[U], true segment; ``declared_segment`` is what is logged.
        signup_days: float64[U], account age on the first day.
        device: int[U].
        advertiser: int[A]; subtopic, second: int[A] (second -1 where none); second_weight: float64[A].
        styles: bool[A, styles].
        quality: float64[A], logits not told by the text.
        appeal: float64[S], logits of a subtopic for everybody.
        declared_category: int[A].
        bid: float64[A], USD per click.
        order_value: float64[A], USD, mean value of a conversion.
        created, ended: float64[A], days since the start.
        legacy: float64[segments, A], the legacy ranker's log relevance.
    """

    interest: np.ndarray
    affinity: np.ndarray
    user_bias: np.ndarray
    activity: np.ndarray
    segment: np.ndarray
    declared_segment: np.ndarray
    signup_days: np.ndarray
    device: np.ndarray
    advertiser: np.ndarray
    subtopic: np.ndarray
    second: np.ndarray
    second_weight: np.ndarray
    styles: np.ndarray
    quality: np.ndarray
    appeal: np.ndarray
    declared_category: np.ndarray
    bid: np.ndarray
    order_value: np.ndarray
    created: np.ndarray
    ended: np.ndarray
    legacy: np.ndarray

    def match(self, user: np.ndarray, ad: np.ndarray) -> np.ndarray:
        """How well the meaning of an ad fits a user: float64 in [0, 1) up to a rare strongest fit; elementwise."""
        second, weight = self.second[ad], self.second_weight[ad]
        raw = (1 - weight) * self.interest[user, self.subtopic[ad]] + weight * self.interest[user, second]
        fit: np.ndarray = np.log1p(SATURATION * raw) / np.log1p(SATURATION)
        return fit

    def meaning_logit(self, user: np.ndarray, ad: np.ndarray, surface: np.ndarray, hour: np.ndarray) -> np.ndarray:
        """Logit of attraction without the ad's own quality: all that a reader of the text could know; elementwise."""
        inclined = self.affinity[user, surface]
        style = (self.styles[ad] * STYLE_EFFECT.T[surface]).sum(axis=-1) * (0.4 + 1.2 * inclined)
        logit: np.ndarray = (SURFACE_BASE[surface] + self.user_bias[user] + AFFINITY * (inclined - 0.5)
                             + EVENING * np.cos(2 * np.pi * (hour - 20.0) / 24.0)
                             + INTEREST * self.match(user, ad) + self.appeal[self.subtopic[ad]] + style)
        return logit

    def outcomes(self, user: np.ndarray, ad: np.ndarray, surface: np.ndarray, slot: np.ndarray,
                 hour: np.ndarray) -> dict[str, np.ndarray]:
        """Exact probabilities of one impression, elementwise over equally long arrays of indices.

        Returns:
            ``click``, and given a click ``engage``, ``convert``, ``value`` (mean USD of a conversion) and
            ``dwell_mu`` (mean log milliseconds); ``hide``, given no click.
        """
        match = self.match(user, ad)
        examined = EXAMINED[surface, slot]
        click = examined * expit(self.meaning_logit(user, ad, surface, hour) + self.quality[ad])
        dwell_mu = DWELL_MEAN + DWELL_MATCH * match + 0.4 * self.quality[ad]
        convert = expit(CONVERT_BASE + CONVERT_INTENT * self.affinity[user, 2] + CONVERT_MATCH * match
                        + np.take(CONVERT_SURFACE, surface))
        hide = examined * expit(HIDE_BASE + HIDE_MATCH * (match - 0.4) + HIDE_URGENCY * self.styles[ad, 0])
        return {"click": click, "engage": ndtr((dwell_mu - np.log(ENGAGED_MS)) / DWELL_SD), "convert": convert,
                "value": self.order_value[ad], "dwell_mu": dwell_mu, "hide": hide}

    def save(self, path: str | Path) -> None:
        """Write the hidden state to one npz file."""
        np.savez(path, **asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> World:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: missing or damaged file.
        """
        if not Path(path).is_file():
            raise InputError("no such file", file=path, expected="the simulator's truth folder")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(**{f.name: arrays[f.name] for f in fields(cls)})
        except (ValueError, KeyError, OSError, EOFError) as error:
            raise InputError("damaged simulator state", file=path, got=str(error), expected="world.npz") from None


def _users(p: MarketplaceParams, seed: int) -> dict[str, Any]:
    rng, words = stream(seed, "users"), vocabulary()
    topics, categories = len(words.topics), len(words.categories)
    category_of = np.array(words.category_of)
    # A segment leans to some topics, more so in some categories; a user's interests are a sparse Dirichlet draw
    # around the segment's. What a declared category says about a click is therefore real but coarse.
    lean = rng.gamma(1.0, size=(p.segments, categories))[:, category_of] * rng.gamma(0.35, size=(p.segments, topics))
    lean = 0.85 * lean / lean.sum(axis=1, keepdims=True) + 0.15 / topics
    segment = rng.integers(p.segments, size=p.users)
    theta = rng.standard_gamma(4.0 * lean[segment]) + 1e-9
    theta /= theta.sum(axis=1, keepdims=True)
    share = rng.dirichlet(np.full(SUBTOPICS, 1.5), size=(p.users, topics))
    interest = theta[:, :, None] * (0.5 + 0.5 * SUBTOPICS * share)
    activity = np.arange(1, p.users + 1.0) ** -p.activity_exponent
    random_segment = rng.integers(p.segments, size=p.users)
    return {
        "interest": interest.reshape(p.users, -1).astype(np.float32),
        "affinity": rng.beta(2.0, 2.0, size=(p.users, 3)),
        "user_bias": rng.normal(0.0, 0.25, p.users),
        "activity": rng.permutation(activity / activity.sum()),
        "segment": segment,
        "declared_segment": np.where(rng.random(p.users) < p.segment_noise, random_segment, segment),
        "signup_days": rng.exponential(400.0, p.users),
        "device": rng.choice(3, size=p.users, p=(0.68, 0.25, 0.07)),
        "lean": lean,
    }


def _ads(p: MarketplaceParams, seed: int) -> dict[str, Any]:
    rng, words = stream(seed, "ads"), vocabulary()
    category_of, topics = np.array(words.category_of), len(words.topics)
    categories = len(words.categories)
    # Every topic has an advertiser before any has two; ads go to advertisers unevenly.
    home = np.concatenate([rng.permutation(topics) for _ in range(-(-p.advertisers // topics))])[:p.advertisers]
    advertiser = rng.choice(p.advertisers, size=p.ads, p=rng.dirichlet(np.full(p.advertisers, 2.0)))
    sibling = np.array([rng.choice(np.flatnonzero(category_of == category_of[home[a]])) for a in advertiser])
    topic = np.where(rng.random(p.ads) < 0.4, home[advertiser], sibling)
    subtopic = topic * SUBTOPICS + rng.integers(SUBTOPICS, size=p.ads)
    # Some ads speak of a second thing that the same advertiser could sell.
    partner = np.array([rng.choice(np.flatnonzero(category_of == c)) for c in category_of[topic]])
    partner = partner * SUBTOPICS + rng.integers(SUBTOPICS, size=p.ads)
    second = np.where((rng.random(p.ads) < 0.2) & (partner != subtopic), partner, -1)
    new = rng.permutation(p.ads) < round(p.new_ad_share * p.ads)
    age = rng.exponential(p.ad_lifetime_days, p.ads)  # memoryless: an old ad's remaining life has the same law
    created = np.where(new, rng.uniform(0.0, p.days, p.ads), -age)
    level = rng.normal(-0.35, 0.35, categories)[category_of[home]] + rng.normal(0.0, 0.35, p.advertisers)
    bid = np.clip(np.exp(level[advertiser] + rng.normal(0.0, 0.2, p.ads)), 0.1, 5.0).round(2)
    declared = np.where(rng.random(p.ads) < p.category_noise, rng.integers(categories, size=p.ads), category_of[topic])
    return {
        "advertiser": advertiser, "subtopic": subtopic, "second": second,
        "second_weight": np.where(second >= 0, 0.35, 0.0),
        "styles": rng.random((p.ads, len(STYLES))) < 0.2,
        "quality": rng.normal(0.0, 0.25, p.ads),
        "appeal": np.repeat(rng.normal(0.0, 0.4, topics), SUBTOPICS) + rng.normal(0.0, 0.3, topics * SUBTOPICS),
        "declared_category": declared, "bid": bid,
        "order_value": (bid * rng.lognormal(2.6, 0.4, p.ads)).round(2),
        "created": created,
        "ended": np.maximum(created, 0.0) + 1.0 + rng.exponential(p.ad_lifetime_days, p.ads),
    }


def build_world(params: MarketplaceParams, seed: int) -> World:
    """Draw the hidden state; the same parameters and seed give the same state."""
    users, ads = _users(params, seed), _ads(params, seed)
    lean, rng = users.pop("lean"), stream(seed, "legacy")
    # The legacy ranker knows roughly how a segment likes the declared category and the topic, and is wrong about
    # each ad: better than chance, and clearly worse than what the log would let a new ranker learn.
    category_of = np.array(vocabulary().category_of)
    liked = np.stack([lean[:, category_of == c].mean(axis=1) for c in range(category_of.max() + 1)], axis=1)
    guess = 0.5 * liked[:, ads["declared_category"]] + 0.5 * lean[:, ads["subtopic"] // SUBTOPICS]
    known = np.log1p(SATURATION * guess) / np.log1p(SATURATION)
    noise = rng.normal(0.0, 0.3, params.ads) + rng.normal(0.0, 0.2, (params.segments, params.ads))
    # At least enough ads must be alive at any time, so the oldest ones of the start never end.
    ended = ads["ended"]
    ended[np.argsort(ads["created"], kind="stable")[:params.candidates]] = params.days + 1.0
    return World(**users, **ads, legacy=known + noise)


def load_params(folder: Path) -> MarketplaceParams:
    """The parameters saved beside the hidden state."""
    path = folder / "params.json"
    return parse_model(MarketplaceParams, read_yaml(path), path)  # JSON is YAML
