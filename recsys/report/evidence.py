"""Pictures of the evidence: the lift as the data grew, and the estimators beside each other. Style as in ``plots``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from recsys.report.plots import BLUE, GREEN, INK, MUTED, NARROW, ORANGE, RULE, STYLE, WIDE, figure_of, svg
from recsys.report.words import healthy, interval_text, name_of, signed_percent, value_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAND = "#dbe7f0"
MARKS = {"dr": ("o", BLUE), "ips": ("s", ORANGE), "snips": ("^", GREEN), "dm": ("D", MUTED)}
"""Estimator -> marker and colour; the direct method's marker is hollow besides."""


def pictures(lift: Mapping[str, Any]) -> dict[str, str]:
    """Name -> inline SVG of what the report carries, wide and narrow."""
    out: dict[str, str] = {}
    if any(((lift.get("growth") or {}).get("arms") or {}).values()):
        out |= {"growth_wide": growth_svg(lift), "growth_narrow": growth_svg(lift, narrow=True)}
    if estimates(lift):
        out |= {"agreement_wide": agreement_svg(lift), "agreement_narrow": agreement_svg(lift, narrow=True)}
    return out


def growth_svg(lift: Mapping[str, Any], narrow: bool = False) -> str:
    """Small multiples, one per arm: estimate, always-valid band, interval of one look, against rows seen."""
    import matplotlib

    paths = {n: p for n, p in lift["growth"]["arms"].items() if p}
    columns = 1 if narrow else min(3, len(paths))
    rows = -(-len(paths) // columns)
    with matplotlib.rc_context(STYLE):
        figure = figure_of(NARROW if narrow else WIDE, 0.9 + rows * 2.1)
        axes = figure.subplots(rows, columns, sharey=True, sharex=True, squeeze=False).ravel()
        for ax, (name, path) in zip(axes, paths.items(), strict=False):
            _growth(ax, name, path, lift)
            ax.set_ylim(*_limits(paths.values()))
        for ax in axes[len(paths):]:
            ax.set_visible(False)
        figure.supxlabel("rows of the log, in order of time", fontsize=9.5, color=MUTED)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=1 if narrow else 3, fontsize=9)
        return svg(figure, "growth-narrow" if narrow else "growth-wide", describe_growth(lift))


def _growth(ax: Axes, name: str, path: list[Mapping[str, Any]], lift: Mapping[str, Any]) -> None:
    x = [p["n"] for p in path]
    colour = BLUE if healthy(lift) else MUTED

    def of(key: str, end: str) -> list[float]:
        return [p[key][end] * 100 for p in path]

    ax.axhline(0, color=INK, linewidth=1.1, zorder=2)
    if band := lift.get("minimum_effect"):
        ax.axhspan(-band * 100, band * 100, color="#eef1f4", zorder=0)
    ax.fill_between(x, of("lift", "low"), of("lift", "high"), color=BAND, zorder=1, label="always-valid bounds")
    for end in ("low", "high"):
        ax.plot(x, of("lift", end), color=colour, linewidth=1.0, zorder=3)
        ax.plot(x, of("one_look", end), color=MUTED, linewidth=1.0, linestyle=(0, (3, 2)), zorder=3,
                label="interval of one look" if end == "low" else None)
    ax.plot(x, of("lift", "estimate"), "-o", color=colour, linewidth=1.8, markersize=3.2, zorder=4, label="estimate")
    weak = [(p["n"], p["lift"]["estimate"] * 100) for p in path if p.get("label") == "exploratory"]
    if weak:
        ax.plot(*zip(*weak, strict=True), "o", color=colour, markersize=4.4, markerfacecolor="white", zorder=5,
                label="exploratory evidence")
    ax.set_title(name, fontsize=10, loc="left", color=INK)
    ax.grid(axis="y", color=RULE, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.locator_params(axis="x", nbins=4)
    ax.xaxis.set_major_formatter(lambda v, _: f"{v / 1000:,.0f} k" if max(x) >= 5000 else f"{v:,.0f}")
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:+g}\u202f%".replace("-", "\u2212") if v else "0")


def _limits(paths: Iterable[list[Mapping[str, Any]]]) -> tuple[float, float]:
    """Percent: the bounds of all but the first quarter of looks, which are the widest, and the zero line."""
    settled = [p["lift"] for path in paths for p in path[len(path) // 4:]]
    low, high = min(p["low"] for p in settled) * 100, max(p["high"] for p in settled) * 100
    pad = 0.06 * (max(high, 0.0) - min(low, 0.0))
    return min(low, 0.0) - pad, max(high, 0.0) + pad


def describe_growth(lift: Mapping[str, Any]) -> str:
    """The growth of the data in words: where each arm's always-valid bounds began and where they end."""
    parts = []
    for name, path in lift["growth"]["arms"].items():
        if not path:
            continue
        first = next((p for p in path if p["lift"]["low"] > 0 or p["lift"]["high"] < 0), None)
        parts.append(f"{name}: at {path[-1]['n']:,} rows {signed_percent(path[-1]['lift']['estimate'])}, always-valid "
                     f"{interval_text(path[-1]['lift'])}, "
                     + (f"clear of zero from {first['n']:,} rows" if first else "never clear of zero"))
    return f"Lift of {name_of(lift.get('goal', 'goal metric'))} as the data grew. " + "; ".join(parts)


def estimates(lift: Mapping[str, Any]) -> dict[str, dict[str, tuple[float, float | None]]]:
    """Arm -> estimator -> (estimate, standard error or None), where the report compares several with their errors."""
    out: dict[str, dict[str, tuple[float, float | None]]] = {}
    for name, arm in lift["arms"].items():
        facts = arm.get("diagnostics") or {}
        errors = facts.get("estimator_se") or {}
        found = {n: (v, errors.get(n)) for n, v in (facts.get("estimators") or {}).items() if v is not None}
        if errors and len(found) > 1:
            out[name] = found
    return out


def agreement_svg(lift: Mapping[str, Any], narrow: bool = False) -> str:
    """Every estimator's value of every arm, with its interval."""
    import matplotlib

    found = estimates(lift)
    goal = lift.get("goal", "goal metric")
    kinds = [k for k in MARKS if any(k in f for f in found.values())]
    with matplotlib.rc_context(STYLE):
        per_arm = 0.2 * len(kinds) + (0.3 if narrow else 0.1)
        figure = figure_of(NARROW if narrow else WIDE, 1.2 + len(found) * per_arm)
        ax = figure.add_subplot()
        for at, (name, values) in enumerate(found.items()):
            for k, kind in enumerate(kinds):
                if kind in values:
                    _estimate(ax, kind, values[kind], -at + 0.3 - 0.6 * k / max(1, len(kinds) - 1), at == 0,
                              lift["confidence"])
            if narrow:
                ax.annotate(name, (0, -at + 0.38), xycoords=("axes fraction", "data"), fontsize=9, va="bottom")
        ax.set_yticks([] if narrow else [-i for i in range(len(found))], [] if narrow else list(found))
        ax.set_ylim(-len(found) + 0.5, 0.62)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x", color=RULE, linewidth=0.7)
        ax.set_axisbelow(True)
        ax.locator_params(axis="x", nbins=4 if narrow else 8)
        ax.xaxis.set_major_formatter(lambda v, _: value_of(goal, v))
        ax.set_xlabel(f"estimated {name_of(goal)}")
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2 if narrow else 4, fontsize=9, borderaxespad=0.2)
        return svg(figure, "agreement-narrow" if narrow else "agreement-wide", describe_agreement(lift))


def describe_agreement(lift: Mapping[str, Any]) -> str:
    """The estimators in words."""
    goal = lift.get("goal", "goal metric")
    parts = [f"{name}: " + ", ".join(f"{kind.upper()} {value_of(goal, value)}" for kind, (value, _) in found.items())
             for name, found in estimates(lift).items()]
    return f"Estimators of {name_of(goal)} beside each other. " + "; ".join(parts)


def _estimate(ax: Axes, kind: str, found: tuple[float, float | None], y: float, named: bool,
              confidence: float) -> None:
    value, se = found
    reach = NormalDist().inv_cdf(0.5 + confidence / 2)
    marker, colour = MARKS[kind]
    if se is not None:
        ax.plot([value - reach * se, value + reach * se], [y, y], color=colour, linewidth=1.8, zorder=3)
    ax.plot([value], [y], marker, color=colour, markersize=6, zorder=4, linestyle="none",
            markerfacecolor="white" if kind == "dm" else colour, label=kind.upper() if named else None)
