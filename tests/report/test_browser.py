"""The page in a real browser: on a phone, on a desk, on paper."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from recsys.report import render_html
from tests.report import samples
from tests.report.test_page import Page

pytestmark = pytest.mark.slow
PHONE, DESK = 390, 1280
MEASURE = """<!doctype html><body style="margin:0">
<iframe id="page" src="lift.html" style="border:0;width:%dpx;height:900px"></iframe><pre id="found"></pre>
<script>
const rgb = s => { const m = s.match(/[\\d.]+/g).map(Number); return m.length > 3 && m[3] === 0 ? null : m; };
const light = c => { const f = c.slice(0, 3).map(v => { v /= 255; return v <= .03928 ? v / 12.92 :
  ((v + .055) / 1.055) ** 2.4; }); return .2126 * f[0] + .7152 * f[1] + .0722 * f[2]; };
document.getElementById("page").onload = () => {
  const view = document.getElementById("page").contentWindow, page = view.document, out = {};
  page.querySelectorAll("details").forEach(d => { d.open = true; });
  out.scroll = page.documentElement.scrollWidth;
  out.beyond = []; out.pale = []; out.tiny = [];
  for (const e of page.querySelectorAll("body *")) {
    const style = view.getComputedStyle(e), box = e.getBoundingClientRect();
    if (!box.width || style.clipPath !== "none" || e.closest("thead, .unseen, svg")) continue;
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (box.right > view.innerWidth + 1) out.beyond.push(e.tagName + " " + e.textContent.trim().slice(0, 40));
    if (!own) continue;
    if (parseFloat(style.fontSize) < 12) out.tiny.push(e.textContent.slice(0, 40));
    let at = e, ground = null;
    while (at && !(ground = rgb(view.getComputedStyle(at).backgroundColor))) at = at.parentElement;
    const [a, b] = [light(rgb(style.color)), light(ground || [255, 255, 255])].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) out.pale.push(e.tagName + " " + e.textContent.trim().slice(0, 40));
  }
  out.narrow = view.getComputedStyle(page.querySelector("figure .narrow")).display;
  out.wide = view.getComputedStyle(page.querySelector("figure .wide")).display;
  out.letters = Math.min(...[...page.querySelectorAll("svg text")].filter(t => t.getBoundingClientRect().width)
    .map(t => t.getBoundingClientRect().height));
  document.getElementById("found").textContent = JSON.stringify(out);
};
</script>"""


def chromium(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine: the page is not opened in a browser")
    return subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
         f"--user-data-dir={folder / 'profile'}", *arguments], capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("page")
    lift = samples.evidenced()
    render_html(lift, samples.money_on_clouds(lift), made / "lift.html")
    return made


def test_a_browser_shows_the_page(folder: Path) -> None:
    done = chromium(folder, "--dump-dom", (folder / "lift.html").as_uri())
    page = Page(re.sub(r"(?s)^.*?<html", "<html", done.stdout))
    assert "smollm2 is estimated to lift click-through rate by +9.4 %" in page.text
    assert len(page.all("svg")) == 8
    for words in ("▲ Ship", "The same work on each cloud", samples.decided()["decision"]["sha256"],
                  "The lift as the data grew", "Segments named before the results", "What this log could have found",
                  "With and without the outcome model", "Do the estimators agree?", "A/A",
                  "What could make this wrong"):
        assert words in page.text, words
    assert "Refused to" not in done.stderr


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_nothing_scrolls_sideways_and_everything_can_be_read(folder: Path, width: int) -> None:
    """Measured in a frame of that width, all folded parts open: overflow, contrast (WCAG AA), size of letters."""
    (folder / f"frame{width}.html").write_text(MEASURE % width)
    done = chromium(folder, "--allow-file-access-from-files", "--virtual-time-budget=8000", "--window-size=1400,1000",
                    "--dump-dom", (folder / f"frame{width}.html").as_uri())
    text = re.search(r'(?s)<pre id="found">(.*?)</pre>', done.stdout)
    assert text, done.stderr
    found: dict[str, Any] = json.loads(unescape(text[1]))
    assert found["beyond"] == []
    assert found["scroll"] <= width
    assert found["pale"] == []
    assert found["tiny"] == []
    assert (found["narrow"] != "none") == (width == PHONE)
    assert (found["wide"] != "none") == (width == DESK)
    assert found["letters"] >= 9  # pixels: the pictures' smallest


def test_the_page_fits_on_paper(folder: Path) -> None:
    chromium(folder, "--no-pdf-header-footer", f"--print-to-pdf={folder / 'lift.pdf'}", (folder / "lift.html").as_uri())
    pages = len(re.findall(rb"/Type\s*/Page\b", (folder / "lift.pdf").read_bytes()))
    assert 4 <= pages <= 16
