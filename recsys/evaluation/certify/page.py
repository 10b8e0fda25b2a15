"""The certification as a page for people: Markdown, and a picture of every method's coverage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recsys.evaluation.certify.judge import SE, covers, narrower, needed
from recsys.evaluation.certify.measure import DRAWS

METHODS = ("t", "bootstrap", "t+bootstrap", "el", "empirical_bernstein", "betting", "always betting", "default")
WORDS = {"t": "Student t", "bootstrap": "bootstrap", "t+bootstrap": "t + bootstrap hull", "el": "empirical likelihood",
         "empirical_bernstein": "empirical Bernstein", "betting": "betting, known bound",
         "always betting": "betting, bound from the log", "default": "published policy"}
KINDS, OVERLAPS = ("iid", "clustered", "drifting"), ("good", "soft", "poor")
Result = Mapping[str, Any]


def page(result: Result, image: str = "coverage.png") -> str:
    """The page; ``image`` is the address of :func:`picture`'s file, as seen from the page."""
    values = [c for c in result["cells"] if c["section"] == "values"]
    lifts = [c for c in result["cells"] if c["section"] == "lifts"]
    null = [c for c in result["cells"] if c["section"] == "uniformity"]
    randomized = [c for c in result["cells"] if c["section"] == "randomized"]
    parts = [
        "# Certification", _asked(result),
        "## What was required", _requirements(result), NARROW,
        "## Coverage of a policy's value", LEGEND, f"![Coverage of every method in every cell]({image})",
        *(_values(values, kind) for kind in KINDS if any(c["kind"] == kind for c in values)),
        "## Coverage of the relative lift of two policies", LIFTS, _lifts(lifts),
        *(("## Coverage where users or candidates were randomised", RANDOMIZED, _randomized(randomized))
          if randomized else ()),
        "## P-values where there is no effect", NULLS, _nulls(null),
        "## Traps", TRAPS, _traps(result["traps"]),
    ]
    for cell in [c for c in result["cells"] if c["section"] == "propensities"]:
        parts += ["## Counted propensities", PROPENSITIES, _propensities(cell)]
    return "\n\n".join([*parts, "## What this is not", NOT]) + "\n"


NARROW = """\
Why the default is not a quarter narrower everywhere: with good overlap and many clicks a betting interval is a fifth
wider than Student's t, and nothing that covers 95 % is narrower than that."""
LEGEND = f"""\
Nominal 95 % intervals of the importance-weighted click rate of a target policy over 40 ads. Each cell of the
tables is the share of independent logs whose interval held the exact truth, and in brackets the median width
over the truth (an infinite width: too few clicks to say). **Bold**: below nominal - {SE:g} Monte Carlo standard
errors. `ESS` and `clicks` are medians of the effective sample size and of effective clicks (units' clicks count
once). `betting, known bound` and empirical Bernstein are told the largest weight that there can be; `betting,
bound from the log` is what `recsys ope --interval betting` publishes; the published policy is `recsys ope` with
all its refusals, and its coverage is of what it published. The bootstrap makes {DRAWS} draws."""
LIFTS = """\
Users with 1 to thousands of rows and a click propensity of their own, doubly robust estimation with an outcome
model that is 40 % off, both policies on the same rows. Width: median, of the lift."""
RANDOMIZED = """\
Two arms of users with 1 to 40 rows and a click propensity of their own, as `recsys ab` analyses them (lift 10 %;
`difference` is the absolute one, its width over the base rate); and arms that choose among four randomised
candidates of headline-like tests, stories of one to three tests being the units, against the uniform choice, as the
lift report does. `clicks`: median, of the arm with fewer, or of a uniform choice. Coverage is of what was published."""
NULLS = """\
Share of p-values below 0.05 (its standard error under the level in brackets) and Kolmogorov-Smirnov p-value of
their uniformity. Per-impression tests (where clicks are frequent) and one look in five are shown because they
fail; always-valid p-values are below 0.05 at any look in at most 5 %, by construction mostly fewer. A hull's
p-value is the larger of two, so those of the published policy are on the safe side, not uniform."""
TRAPS = """\
Each trap is what a careless analyst would do; its honest twin (the same, done properly) must get an answer."""
PROPENSITIES = """\
Logs of softmax policies of 5 to 40 ads, 500 to 20,000 rows, 1 to 8 segments, from nearly uniform to nearly
deterministic. First line: honest logs that the check would refuse (false alarms). Others: the same logs with
propensities that were counted from them, and the share of these that is refused. Jitter of 5 % and rounding to
two decimals are as large as sampling error in the smaller logs: there no check of the log alone can tell."""
NOT = """\
- Worlds of two families, simulated. Weights with infinite variance, or users that influence each other, are not
  in them.
- A cell that covers 95 % falls below the line by chance once in forty, so of 81 cells of a method that just
  keeps its level two would. The safe methods are wider than that.
- Under drift the truth is the mean over the log's own time: no interval here speaks of the time after it.
- Coverage of the published policy is given that it published; where it refuses nearly always (see `refused`),
  few logs are left to judge by."""


def _asked(result: Result) -> str:
    facts = result.get("facts", {})
    made = f"{result['processor_seconds'] / 60:.0f} minutes of processor time"
    if facts:
        machine = facts["machine"]
        made = (f"`{facts['command']}`, {facts['date']}, {made} ({machine['cores']} shared cores of "
                f"{machine['processor']}; Python {machine['python']}, " + ", ".join(
                    f"{n} {machine['packages'][n]}" for n in ("numpy", "scipy", "tea-tasting")) + ")")
    return (f"Do nominal 95 % intervals hold the truth in 95 of 100 logs, are p-values uniform where there is no "
            f"effect, and does what must not end in a number end in a refusal? {result['replications']:,} logs a cell, "
            f"seed {result['seed']} (the interval policy's thresholds were chosen on seed 1). {made}.\n\n"
            f"Certificate `{result['certificate']['id']}`: the hash of all cells below and of the code of "
            + ", ".join(f"`{n}`" for n in result["certificate"]["methods"])
            + ". Reports quote it with what is not met of their design, and say `methods_match: false` where the code "
              "that decides intervals of that design has changed since.")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(r) + " |" for r in (head, ["---"] * len(head), *rows))


def _requirements(result: Result) -> str:
    rows = [[line["requirement"], str(line["checked"]),
             "not checked" if not line["checked"] else "met" if line["met"] else "**not met**",
             "; ".join(_failure(f) for f in line["failures"]) or "none"] for line in result["requirements"]]
    return _table(["requirement", "checked", "", "failures"], rows)


def _failure(failure: Result) -> str:
    return ", ".join(f"{k.replace('_', ' ')} {_number(v)}" for k, v in failure.items()
                     if k != "section" and v is not None)


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _entry(cell: Result, method: str) -> str:
    found = cell["methods"].get(method)
    if found is None:
        return "-"
    width = "inf" if found["width"] is None else f"{found['width']:.3g}"
    text = f"{found['coverage']:.3f} ({width})"
    return f"**{text}**" if found["coverage"] < needed(found["logs"]) else text


def _refused(cell: Result) -> str:
    total = sum(cell["chosen"].values())
    return f"{sum(n for name, n in cell['chosen'].items() if name.startswith('refused')) / total:.0%}"


def _values(cells: Sequence[Result], kind: str) -> str:
    own = [c for c in cells if c["kind"] == kind]
    methods = [m for m in (*METHODS, "t per impression") if any(m in c["methods"] for c in own)]
    rows = []
    for c in own:
        saved = narrower(c)
        rows.append([f"{c['n']:,}", c["overlap"], f"{100 * c['ctr']:g} %", f"{c['facts']['ess']:,.0f}",
                     f"{c['facts']['effective_clicks']:.0f}", *(_entry(c, m) for m in methods), _refused(c),
                     "-" if saved is None else f"{saved:.0%}"])
    words = {"iid": "Independent rows", "clustered": "Clustered: users of ten rows, clicks in bursts",
             "drifting": "Drifting"}
    head = ["n", "overlap", "CTR", "ESS", "clicks", *(WORDS.get(m, m) for m in methods), "refused",
            "narrower than betting"]
    return f"### {words[kind]}\n\n" + _table(head, rows)


def _lifts(cells: Sequence[Result]) -> str:
    methods = [m for m in METHODS if any(m in c["methods"] for c in cells)]
    rows = [[f"{c['users']:,}", f"{c['rows_per_user']:g}" + (f", Pareto {c['pareto']:g}" if c["pareto"] else ""),
             f"{c['facts']['ess']:,.0f}", f"{c['facts']['effective_clicks']:,.0f}", *(_entry(c, m) for m in methods),
             _refused(c)] for c in cells]
    return _table(["users", "rows a user", "ESS", "clicks", *(WORDS[m] for m in methods), "refused"], rows)


def _randomized(cells: Sequence[Result]) -> str:
    words = {"ab": "users in two arms", "choice": "choices among candidates"}
    rows = []
    for c in cells:
        split = f", split {100 * c['share']:g} %" if c["design"] == "ab" else f", {c['viewers']:,} viewers a candidate"
        used = ", ".join(f"{name} {n}" for name, n in c["chosen"].items() if not name.startswith("refused"))
        rows.append([words[c["design"]] + split, f"{c['n']:,}", f"{100 * c['ctr']:g} %", f"{c['facts']['clicks']:,.0f}",
                     _entry(c, "default"), _entry(c, "absolute"), used or "-", _refused(c)])
    return _table(["design", "users or tests", "CTR", "clicks", "lift", "difference", "intervals", "refused"], rows)


def _nulls(cells: Sequence[Result]) -> str:
    rows = []
    for c in cells:
        where = f"A/B, CTR {100 * c['setting']:g} %" if c["kind"] == "ab" else f"lift, setting {int(c['setting']) + 1}"
        for name, t in c["tests"].items():
            share = f"{t['rejected']:.3f} ({t['se']:.3f})"
            rows.append([where, name, f"{t['tests']:,}",
                         f"**{share}**" if t["rejected"] > 0.05 + 3 * t["se"] else share, f"{t['ks_p']:.2g}"])
    return _table(["data", "test", "experiments", "below 0.05", "uniformity"], rows)


def _traps(traps: Sequence[Result]) -> str:
    said = {True: "yes", False: "**no**", None: "-"}
    rows = [[t["trap"], t["ends"], said[t["caught"]], said[t["twin_passes"]], t["reason"].replace("|", "\\|")]
            for t in traps]
    return _table(["trap", "ends in", "caught", "twin passes", "words"], rows)


def _propensities(found: Result) -> str:
    keys = list(found["false_alarms"])
    rows = [[f"honest: false alarms among {found['honest_logs']:,}",
             *(f"{found['false_alarms'][k]:.2%}" for k in keys)],
            *([name, *(f"{shares[k]:.0%}" for k in keys)] for name, shares in found["found"].items())]
    return _table(["propensities", *keys], rows)


def picture(result: Result, path: Path) -> None:
    """A 9 x 9 map of coverage per method: sizes and click rates across, dependence and overlap down. PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    values = [c for c in result["cells"] if c["section"] == "values"]
    across = sorted({(c["n"], c["ctr"]) for c in values})
    down = [(k, o) for k in KINDS for o in OVERLAPS if any(c["kind"] == k and c["overlap"] == o for c in values)]
    figure, axes = plt.subplots(2, 4, figsize=(15, 8.2), layout="constrained", sharex=True, sharey=True)
    for ax, method in zip(axes.flat, METHODS, strict=True):
        shown = np.full((len(down), len(across)), np.nan)
        for c in values:
            at = down.index((c["kind"], c["overlap"])), across.index((c["n"], c["ctr"]))
            if method in c["methods"]:
                shown[at] = c["methods"][method]["coverage"]
                if covers(c, method) is False:
                    ax.text(at[1], at[0], f"{100 * shown[at]:.0f}", ha="center", va="center", fontsize=8,
                            color="white" if shown[at] < 0.75 else "black")
        drawn = ax.imshow(shown, vmin=0.5, vmax=1.0, cmap="cividis", aspect="auto")
        ax.set_facecolor("#d5dbe1")
        ax.set_title(WORDS[method], fontsize=11)
        ax.set_xticks(range(len(across)), [f"{n // 1000}k, {100 * ctr:g} %" for n, ctr in across], rotation=90,
                      fontsize=8)
        ax.set_yticks(range(len(down)), [f"{k}, {o}" for k, o in down], fontsize=8)
    figure.colorbar(drawn, ax=axes, shrink=0.6, label="share of logs whose nominal 95 % interval holds the truth")
    figure.suptitle("A number in a square: coverage in per cent, below nominal - 2 Monte Carlo standard errors. Grey: "
                    "nothing published.", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": ""})
    plt.close(figure)
