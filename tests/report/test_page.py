from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from recsys.errors import InputError
from recsys.report import render_html, render_png, render_terminal
from recsys.report.page import html
from tests.report import samples

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Collects what the tests ask about, and fails on a tag that is closed out of order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.stack:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split()).replace("\u202f", " ").replace("\u2212", "-")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag]


@pytest.fixture(scope="module")
def market() -> Page:
    lift = samples.marketplace()
    return Page(html(lift, samples.money(lift)))


def test_the_page_asks_nothing_of_the_network(market: Page) -> None:
    assert not [t for t, _ in market.tags if t in ("script", "link", "iframe", "object", "img", "base")]
    for tag, attributes in market.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "style") and value:
                outside = re.search(r"https?:|//|@import|url\((?!#)", value)
                assert not outside, f"{tag} {name}={value}"
    policy = next(a["content"] for a in market.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_ids_are_unique_and_every_reference_meets_one(market: Page) -> None:
    ids = [a["id"] for _, a in market.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    for _, attributes in market.tags:
        for value in filter(None, attributes.values()):
            for wanted in re.findall(r"url\(#([^)]+)\)", value):
                assert wanted in ids
        for name in ("href", "xlink:href", "aria-labelledby"):
            wanted = (attributes.get(name) or "").removeprefix("#")
            assert not wanted or wanted in ("lift.json", "lift.csv") or wanted in ids


def test_the_page_can_be_read_without_seeing_it(market: Page) -> None:
    assert market.all("html")[0]["lang"] == "en"
    assert [t for t, _ in market.tags if re.fullmatch("h[1-6]", t)][:2] == ["h1", "h2"]
    assert all(a.get("scope") in ("row", "col") for a in market.all("th"))
    pictures = market.all("svg")
    assert len(pictures) == 4
    for picture in pictures:
        assert picture["role"] == "img"
        assert "smollm2" in (picture["aria-label"] or "")
    captions = [t for t, _ in market.tags].count("caption")
    assert captions == len(market.all("table"))


def test_the_page_says_what_the_report_says(market: Page) -> None:
    for words in ("+9.4 %", "+6.2 % to +12.7 %", "+9.9 %", "3 of 3 intervals cover it", "1.75 %", "12,034 users",
                  "All 3 health checks passed", "14,211", "minilm against hashed", "+5.1 %",
                  "DR, weights clipped at 10", "9f2c" * 16, "41ab" * 16, "torch 2.13.0",
                  "not corrected for the number of arms",
                  "cheapest arm whose lift is not significantly below", "$1.92", "zero by construction",
                  "Pre-training of open/smollm2: sunk", "commit e385a0d"):
        assert words in market.text, words


def test_the_verdict_its_rule_and_its_hash_are_on_the_page() -> None:
    lift = samples.decided()
    page = Page(html(lift, samples.money_on_clouds(lift)))
    for words in ("Verdict, by the rule fixed before the results", "▲ Ship", "▼ Roll back", "◆ Not enough data",
                  "Ship: minilm; Roll back: smollm2; Not enough data: hashed.",
                  "The estimated lift is above the minimum effect of 2 % after adjustment", "✗ harmed", "80 ms",
                  "engaged clicks may not fall by more than 2.0 %", "scoring time per request must stay below 50 ms",
                  "registered 2026-11-23 21:00 UTC", lift["decision"]["sha256"], "adjusted by Holm over 3 arms",
                  "a second look is refused", "(looks so far: 1)", "not evidence of no effect",
                  "The grey band holds lifts smaller than the minimum effect of 2.0 %"):
        assert words in page.text, words
    text = html(lift, None)
    assert text.index("health checks passed") < text.index("Verdict, by the rule") < text.index("<svg")
    # A guardrail stands apart: it is not listed again among the other metrics.
    assert "Engaged clicks" not in text[text.index('id="h-guard"'):text.index('id="h-money"')]
    assert "too small to matter" in text
    assert not [w for w in ("proves", "proven", "proof") if w in page.text.lower()]
    lift["decision"]["registered"] = None
    assert "nothing attests that it was fixed before" in Page(html(lift, None)).text


def test_the_money_of_every_cloud_is_on_the_page() -> None:
    lift = samples.decided()
    page = Page(html(lift, samples.money_on_clouds(lift)))
    for words in ("The same work on each cloud", "Google Cloud", "Azure", "A100-80GB (Standard_NC24ads_A100_v4)",
                  "text-embedding-3-small", "as of 2026-11-23", "Assumed: seconds: measured once",
                  "Left out: azure-nc40ads-h100-v5-eastus: the spot price equals the list price to the cent.",
                  "pays today", "Break-even price", "Undated price: the source of azure-"):
        assert words in page.text, words
    assert all(a.get("scope") in ("row", "col") for a in page.all("th"))
    assert [t for t, _ in page.tags].count("caption") == len(page.all("table"))


def test_health_stands_above_the_numbers_and_a_failure_greys_them_out(market: Page) -> None:
    text = html(samples.broken(), None)
    page = Page(text)
    assert page.all("body")[0].get("class") == "unsafe"
    assert market.all("body")[0].get("class") is None
    assert text.index("1 of 4 health checks failed") < text.index("<svg")
    assert "FAILED: sample ratio: 821,588 to 815,482" in page.text
    assert re.search(r"\.unsafe \.lifts *\{[^}]*grayscale", text)


def test_a_bare_report_renders_with_what_it_has() -> None:
    page = Page(html(samples.minimal(), None))
    assert "No cost statement is in this report" in page.text
    assert "No health checks are in this report" in page.text
    assert "inconclusive" in page.text
    assert "None" not in page.text
    assert "Undefined" not in page.text


OF_REPORT = ("pairwise", "health", "goal", "method", "unit", "confidence", "created", "versions", "config_sha256",
             "data_sha256", "seed", "multiplicity")
OF_ARM = ("value", "value_interval", "true_lift", "covers_truth", "n", "clusters", "secondary", "cost_per_mille_usd",
          "cost_per_mille_interval", "diagnostics", "absolute_lift", "interval_method", "label")


@pytest.mark.parametrize("keys", [OF_REPORT[::2], OF_REPORT[1::2]])
def test_every_optional_key_may_be_missing(keys: tuple[str, ...]) -> None:
    lift = {k: v for k, v in samples.marketplace().items() if k not in keys}
    assert "smollm2" in Page(html(lift, None)).text


@pytest.mark.parametrize("keys", [OF_ARM[::2], OF_ARM[1::2]])
def test_every_optional_key_of_an_arm_may_be_missing_or_null(keys: tuple[str, ...]) -> None:
    lift = samples.marketplace()
    for key in keys:
        lift["arms"]["minilm"].pop(key)
        lift["arms"]["hashed"][key] = None
    page = Page(html(lift, None))
    assert "None" not in page.text
    assert samples.money(lift)["arms"]["minilm"]["model_revenue"] == 0.0
    assert render_terminal(lift)


def test_refused_secondary_lift_is_a_value_without_a_lift() -> None:
    lift = samples.marketplace()
    lift["arms"]["minilm"]["secondary"]["engagement"] = {"value": .004, "lift": None, "refused": "too few"}
    assert "0.400 %" in Page(html(lift, None)).text


def test_names_from_files_are_escaped() -> None:
    lift = samples.marketplace()
    evil = '<script>alert(1)</script>"&'
    lift["arms"] = {("ids_only" if n == "ids_only" else n + evil): a for n, a in lift["arms"].items()}
    lift["experiment"], lift["health"][0]["detail"] = evil, evil
    page = Page(html(lift, samples.money(lift)))
    assert not page.all("script")
    assert "alert(1)" in page.text


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    lift = samples.marketplace()
    before = copy.deepcopy(lift)
    for name in ("a", "b"):
        render_html(lift, samples.money(lift), tmp_path / f"{name}.html")
        render_png(lift, tmp_path / f"{name}.png", samples.money(lift))
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert lift == before


@pytest.mark.parametrize("key", ["experiment", "arms", "baseline"])
def test_a_file_that_is_no_lift_report_is_one_line_and_nothing_is_written(tmp_path: Path, key: str) -> None:
    lift = samples.marketplace()
    del lift[key]
    for act in (lambda: render_html(lift, None, tmp_path / "x.html"), lambda: render_terminal(lift)):
        with pytest.raises(InputError, match=key):
            act()
    assert list(tmp_path.iterdir()) == []


def test_a_baseline_that_is_no_arm_is_named() -> None:
    with pytest.raises(InputError, match="not an arm"):
        render_terminal(samples.marketplace() | {"baseline": "nobody"})


def test_free_arms_have_a_place_on_the_log_axis() -> None:
    lift = samples.marketplace()
    for name in ("ids_only", "hashed"):
        lift["arms"][name] |= {"cost_per_mille_usd": 0.0, "cost_per_mille_interval": {"low": 0.0, "high": 0.0}}
    from recsys.ledger import statement

    assert ">free<" in re.sub(r"\s+", "", html(lift, statement(lift, [], 1000)))


def test_terminal_text_holds_the_finding_the_intervals_and_the_failures() -> None:
    lift = samples.marketplace()
    text = render_terminal(lift, samples.money(lift)).replace("\u202f", " ").replace("\u2212", "-")
    for words in ("smollm2 is estimated", "+6.2 % to +12.7 %", "true lift", "baseline", "184,320"):
        assert words in text
    assert max(map(len, text.splitlines())) <= 110
    broken = render_terminal(samples.broken())
    assert "FAILED  sample ratio" in broken
    assert "better" not in broken


def test_the_evidence_is_on_the_page_and_in_words() -> None:
    lift = samples.evidenced()
    page = Page(html(lift, samples.money_on_clouds(lift)))
    for words in ("What this log could have found", "inconclusive is not", "needed", "Not checked: sample ratio",
                  "The lift as the data grew", "tightest at 5,000 users", "Peeking policy: fixed: one look",
                  "Segments named before the results", "No arm's lift is seen to differ between segments of surface, "
                  "user segment (least adjusted p 0.6)", "▲ +9.0 % better", "◆ +11.0 % inconclusive", "8 segments",
                  "drawn to the whole +10.0 % +2.0 % to +20.0 %", "drawn to the whole +9.0 % adjusted p",
                  "not enough evidence", "of 2 segments with enough evidence",
                  "Hollow: looks whose evidence is exploratory (betting intervals)",
                  "effective clicks 1.2: too few", "spread 3.6 points", "With and without the outcome model", "12.3 %",
                  "✓ keeps its level", "✗ does not keep it", "Do the estimators agree",
                  "disagree by more than three standard errors for hashed", "In this log: No arm's lift is seen to "
                  "differ between the first and the second half", "empirical Bayes, Morris 1983"):
        assert words in page.text, words
    assert all(a.get("scope") in ("row", "col") for a in page.all("th"))
    assert [t for t, _ in page.tags].count("caption") == len(page.all("table"))
    pictures = {a["aria-label"] for a in page.all("svg")}
    assert len(pictures) == 4  # each wide and narrow
    assert len(page.all("svg")) == 8
    assert any("smollm2: at 180,000 rows +9.0" in plain(p) and "clear of zero from 90,000 rows" in p for p in pictures)
    assert any("minilm: DR 1.73" in p for p in pictures)


def plain(text: str | None) -> str:
    return (text or "").replace("\u202f", " ")


def test_headings_never_skip_a_level() -> None:
    for lift in (samples.evidenced(), samples.marketplace(), samples.minimal()):
        levels = [int(t[1]) for t, _ in Page(html(lift, None)).tags if re.fullmatch("h[1-6]", t)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(b - a <= 1 for a, b in pairwise(levels))


def test_a_log_without_times_or_segments_says_so() -> None:
    lift = samples.evidenced() | {"segments": {}, "growth": {"refused": "the log has no column ts"}}
    text = Page(html(lift, None)).text
    assert "Not shown: the log has no column ts." in text
    assert "The experiment file named none" in text
    lift["growth"] = {"column": "ts", "looks": 0, "tuning": 1.0, "confidence": .95, "halves": {},
                      "arms": {"minilm": []}}
    assert "Not shown: too little evidence at every look." in Page(html(lift, None)).text


def test_terminal_notes_are_short_and_say_what_matters() -> None:
    lift = samples.evidenced()
    lift["arms"]["hashed"]["lift"] = samples.interval(.01, -.02, .04)
    text = render_terminal(lift).replace("\u202f", " ")
    assert "hashed: inconclusive is not no effect; a log like this finds lifts of 4.5 % in four of five" in text
    assert "No arm's lift is seen to differ between segments" in " ".join(text.split())
    assert "A/A: the standard error of hashed does not keep its level" in text
    assert "estimators disagree for hashed" in text
    assert max(map(len, text.splitlines())) <= 110
