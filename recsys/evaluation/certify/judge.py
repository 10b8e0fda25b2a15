"""What the certification asks for, and whether the cells give it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from recsys.evaluation.certify.measure import NOMINAL
from recsys.evaluation.certify.uniformity import ALPHA, LEAST_KS

SAFE = {"values": ("betting", "empirical_bernstein", "always betting", "default"),
        "lifts": ("always betting", "default")}
LEVEL_KEPT = ("analysis, per user", "analysis, CUPED", "t")  # tests whose p-values must be uniform
SAFE_SIDE = ("published", "always valid, 5 looks")  # whose p-values may be too large, and never too small
DESIGN = {"ab": "two randomised arms of users", "choice": "choices among randomised candidates"}
EVERY = ("offpolicy", "randomized", "ab")
NARROWER, FULL_ESS = 0.25, 10_000.0
SE = 2.0  # Monte Carlo standard errors below nominal that a coverage may lie
FEWEST = 20  # published logs of a cell from which its coverage is judged

Cell = Mapping[str, Any]


def needed(logs: int) -> float:
    """Coverage below which a cell fails."""
    return float(NOMINAL - SE * np.sqrt(NOMINAL * (1 - NOMINAL) / logs))


def covers(cell: Cell, method: str) -> bool | None:
    """Is the method's coverage at least nominal - 2 standard errors? None where it answered on too few logs to say."""
    found = cell["methods"].get(method)
    if found is None or found["logs"] < FEWEST:
        return None
    return bool(found["coverage"] >= needed(found["logs"]))


def narrower(cell: Cell) -> float | None:
    """How much narrower the default policy's median interval is than always betting; None without both."""
    own, always = (cell["methods"].get(n, {}).get("width") for n in ("default", "always betting"))
    return None if own is None or not always else 1 - own / always


def where(cell: Cell) -> dict[str, Any]:
    """The keys that name a cell."""
    return {k: cell[k] for k in ("section", "kind", "design", "overlap", "ctr", "n", "share", "viewers", "regime",
                                 "setting") if k in cell}


def requirements(cells: Iterable[Cell], traps: Iterable[Cell]) -> list[dict[str, Any]]:
    """One line per requirement: {"requirement", "designs": whose reports quote it, "checked": how many, "failures":
    [...], "met"}; met if none failed."""
    cells = list(cells)
    values = [c for c in cells if c["section"] == "values"]
    out = [_coverage(f"{method}: coverage", ("offpolicy",), [c for c in cells if method in SAFE.get(c["section"], ())],
                     method) for method in SAFE["values"]]
    out.append(_line("betting is at most as wide as empirical Bernstein in every cell", ("offpolicy",), values, [
        {**where(c), "betting": c["methods"]["betting"]["width"],
         "empirical_bernstein": c["methods"]["empirical_bernstein"]["width"]} for c in values
        if c["methods"]["betting"]["width"] > c["methods"]["empirical_bernstein"]["width"]]))
    full = [c for c in values if c["facts"]["ess"] >= FULL_ESS]
    out.append(_line("default policy at least 25 % narrower than always betting where the effective sample size is "
                     "10,000 or more, at valid coverage", ("offpolicy",), full, [
                         {**where(c), "narrower": narrower(c), "covers": covers(c, "default")} for c in full
                         if not (narrower(c) or 0.0) >= NARROWER or covers(c, "default") is False]))
    for design, words in DESIGN.items():
        own = [c for c in cells if c["section"] == "randomized" and c["design"] == design]
        quoted = ("ab",) if design == "ab" else ("randomized",)
        out += [_coverage(f"{words}, published {'lift' if method == 'default' else 'difference'}: coverage", quoted,
                          own, method) for method in (("default", "absolute") if design == "ab" else ("default",))]
    tests = [(c, name, t) for c in cells if c["section"] == "uniformity" for name, t in c["tests"].items()]
    for kind, words, quoted in (("ab", "two randomised arms of users", ("ab",)),
                                ("lift", "two policies on one log", ("offpolicy",))):
        out += [_p_values(f"p-values without an effect, {words}: at most {ALPHA:g} + 3 standard errors below "
                          f"{ALPHA:g}, and uniform (Kolmogorov-Smirnov p >= {LEAST_KS:g})", quoted,
                          [t for t in tests if t[0]["kind"] == kind and t[1] in LEVEL_KEPT], keeps_level),
                _p_values(f"published and always-valid p-values without an effect, {words}: at most {ALPHA:g} + 3 "
                          f"standard errors below {ALPHA:g}", quoted,
                          [t for t in tests if t[0]["kind"] == kind and t[1] in SAFE_SIDE], few_enough)]
    sprung = [t for t in traps if t["caught"] is not None]
    out.append(_line("every trap ends in a refusal or a flag that names the reason and what would mend it, and its "
                     "honest twin passes", EVERY, sprung,
                     [dict(t) for t in sprung if not (t["caught"] and t["twin_passes"])]))
    counted = [c for c in cells if c["section"] == "propensities"]
    out.append(_line("no honest log in a thousand is taken for one with counted propensities", ("offpolicy",), counted,
                     [dict(c["false_alarms"]) for c in counted if max(c["false_alarms"].values()) > 1e-3]))
    return out


def _coverage(text: str, quoted: tuple[str, ...], cells: Iterable[Cell], method: str) -> dict[str, Any]:
    own = [c for c in cells if covers(c, method) is not None]
    return _line(f"{text} at least nominal - 2 Monte Carlo standard errors in every cell", quoted, own, [
        {**where(c), "logs": c["methods"][method]["logs"], "coverage": c["methods"][method]["coverage"],
         "needed": needed(c["methods"][method]["logs"])} for c in own if not covers(c, method)])


def _p_values(text: str, quoted: tuple[str, ...], tests: list[tuple[Cell, str, Cell]],
              kept: Callable[[Cell], bool]) -> dict[str, Any]:
    return _line(text, quoted, tests, [{**where(c), "test": name, **t} for c, name, t in tests if not kept(t)])


def few_enough(test: Cell) -> bool:
    """Not too many p-values below the level."""
    return bool(test["rejected"] <= ALPHA + 3 * test["se"])


def keeps_level(test: Cell) -> bool:
    """Not too many p-values below the level, and all of them uniform."""
    return few_enough(test) and bool(test["ks_p"] >= LEAST_KS)


def _line(text: str, designs: tuple[str, ...], checked: list[Any], failures: list[dict[str, Any]]) -> dict[str, Any]:
    return {"requirement": text, "designs": list(designs), "checked": len(checked), "failures": failures,
            "met": not failures}
