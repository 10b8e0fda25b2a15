"""The creatives of the simulated marketplace: from what an ad means to what it says.

A creative is a title (a thing, sometimes with a brand or in a frame) and a body (a use, sometimes with
a style line). What drives the click is decided elsewhere from the subtopic and the styles; here it only
becomes words. Text and meaning are drawn from different random streams.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import numpy as np

from recsys.datasets.marketplace_topics import TOPICS

SUBTOPICS = 3

STYLES = ("urgency", "discount", "social_proof", "visual", "novelty", "trust")
"""Ways of saying it. Lines of one style share a meaning and few words; after the bar, late vocabulary."""

_STYLE_LINES = {
    "urgency": "Ends Sunday; Last few left; Only until midnight; Final hours; Selling fast; Offer closes tomorrow"
               " | Clock is ticking; Gone by the weekend; Do not wait",
    "discount": "Save 20% today; Half price this week; Buy one, get one free; Now from $9; Members pay less;"
                " Free delivery over $30 | A third cheaper; Coupon inside; Bundle and keep the change",
    "social_proof": "Loved by 40,000 people; Rated 4.9 by buyers; Your neighbours chose it; Recommended by friends;"
                    " Everyone is talking about it; Join our growing community"
                    " | The one your group chat shares; Thousands cannot be wrong; A crowd favourite",
    "visual": "In deep emerald and gold; See it glow at dusk; Photographed by hand; A feast for the eyes;"
              " Bold colour, clean lines; Picture it in your life"
              " | Shimmering in morning light; Looks like a painting; Hues you cannot look away from",
    "novelty": "New this season; Just landed; First of its kind; Meet the next generation; Freshly redesigned;"
               " Never seen before | Hot off the drawing board; Debuting now; Hello, version two",
    "trust": "Free returns; Thirty-day guarantee; Family-run since 1974; Independently tested; No contract, cancel"
             " any time; Certified and insured | Money back, no questions; Vetted by experts; Honest small print",
}

_FRAMES = ("{thing}", "{thing}", "{thing}", "{thing} from {brand}", "{brand}: {thing}", "{brand} {thing}",
           "Looking for {thing}?", "{thing}, made better", "The {brand} edit: {thing}", "Your next {thing}")

_SYLLABLES = (
    ("Vel", "Nor", "Kas", "Bri", "Tam", "Ols", "Fen", "Har", "Lum", "Quin", "Sor", "Wil", "Ard", "Cal", "Mer", "Pel"),
    ("mo", "va", "li", "den", "ra", "wick", "sa", "be", "ton", "lo", "ni", "gar", "the", "ka"),
    ("ra", "le", "stone", "well", "by", "na", "worth", "is", "line", "rove", "mark", "dale", "o", "field"),
)


@dataclass(frozen=True)
class Vocabulary:
    """All phrases: for subtopic ``s`` (0..90) early and late things and uses; topic of s is ``s // SUBTOPICS``.

    Attributes:
        topics: topic names, length T.
        categories: category names in order of appearance.
        category_of: category index of every topic, length T.
        things: per subtopic, (early phrases, late phrases) for titles.
        uses: per subtopic, (early phrases, late phrases) for bodies.
        styles: per style, (early lines, late lines).
    """

    topics: tuple[str, ...]
    categories: tuple[str, ...]
    category_of: tuple[int, ...]
    things: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    uses: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    styles: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]


def _phrases(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    early, late = (tuple(p.strip() for p in part.split(";")) for part in text.split("|"))
    return early, late


@cache
def vocabulary() -> Vocabulary:
    """Parse the phrase lists; done once."""
    topics, category_names, things, uses = [], [], [], []
    for block in TOPICS.strip().split("\n\n"):
        head, body = block.split("\n", 1)
        topic, category = head.split(" / ")
        topics.append(topic)
        category_names.append(category)
        for part in re.split(r"(?:^|\n)- ", body)[1:]:
            thing, use = " ".join(part.split()).split("=>")
            things.append(_phrases(thing))
            uses.append(_phrases(use))
    categories = tuple(dict.fromkeys(category_names))
    return Vocabulary(tuple(topics), categories, tuple(categories.index(c) for c in category_names), tuple(things),
                      tuple(uses), tuple(_phrases(_STYLE_LINES[s]) for s in STYLES))


def brand_names(count: int, rng: np.random.Generator) -> list[str]:
    """``count`` distinct made-up names of two or three syllables."""
    names: dict[str, None] = {}
    while len(names) < count:
        parts = [part[rng.integers(len(part))] for part in _SYLLABLES]
        name = parts[0] + parts[1] + (parts[2] if rng.random() < 0.6 else "")
        # Syllables give some thousand names; past that a number keeps a new one distinct.
        names[name if name not in names else f"{name} {len(names)}"] = None
    return list(names)


def _pick(phrases: tuple[tuple[str, ...], tuple[str, ...]], late: bool, rng: np.random.Generator) -> str:
    pool = phrases[1] if late else phrases[0]
    return pool[rng.integers(len(pool))]


def write_creatives(
    subtopic: np.ndarray, second: np.ndarray, styles: np.ndarray, brand: list[str], late: np.ndarray,
    rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    """Title and body of every ad.

    Args:
        subtopic: int[n], what the title sells.
        second: int[n], subtopic of the body where the ad is about two things, -1 where it is not.
        styles: bool[n, len(STYLES)], styles of the ad; each adds one line to the body.
        brand: n brand names.
        late: float[n], probability that a phrase of this ad is drawn from the late vocabulary.
        rng: the text stream.

    Returns:
        (titles, bodies), n strings each.
    """
    words = vocabulary()
    titles, bodies = [], []
    for i in range(len(subtopic)):
        thing = _pick(words.things[subtopic[i]], rng.random() < late[i], rng)
        about = subtopic[i] if second[i] < 0 else second[i]
        lines = [_pick(words.uses[about], rng.random() < late[i], rng)]
        lines += [_pick(words.styles[s], rng.random() < late[i], rng) for s in np.flatnonzero(styles[i])]
        if rng.random() < 0.25:
            lines = lines[1:] + lines[:1]
        title = _FRAMES[rng.integers(len(_FRAMES))].format(thing=thing, brand=brand[i])
        titles.append(title[0].upper() + title[1:])
        bodies.append(". ".join(lines) + ".")
    return titles, bodies
