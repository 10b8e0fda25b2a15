"""The report's pictures: lift intervals, and lift against cost. One style, no global state, the same bytes each time.

Colours are Okabe and Ito's, told apart by colour-blind readers; every distinction is also one of shape or text.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.report.words import healthy, interval_text, level, money, name_of, signed_percent, variants

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, RULE = "#1f2933", "#5f6b7a", "#d5dbe1"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#007a5a"
STYLE: Any = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 10.0, "text.color": INK, "axes.edgecolor": RULE, "axes.labelcolor": MUTED, "xtick.color": MUTED,
    "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "svg.fonttype": "none",
    "svg.hashsalt": "recsys", "figure.facecolor": "white", "axes.facecolor": "white", "legend.frameon": False,
}
WIDE, NARROW = 8.6, 4.3
_WIDE_AXES, _NARROW_AXES = (555.0, 245.0), (245.0, 215.0)  # points of what the cost plot's axes span, about
"""Inches: a figure for a screen or paper, and one whose letters stay readable on a phone."""


def interval_plot(lift: Mapping[str, Any], ax: Axes, narrow: bool = False) -> None:
    """Draw each arm's lift with its interval, the zero line, and the simulator's truth where it is known."""
    arms = variants(lift)
    colour = BLUE if healthy(lift) else MUTED
    ax.axvline(0, color=INK, linewidth=1.2, zorder=1)
    band = lift.get("minimum_effect")
    if band:
        ax.axvspan(-band * 100, band * 100, color="#eef1f4", zorder=0, label="too small to matter")
    for at, (name, arm) in enumerate(arms.items()):
        y, interval = -at, arm["lift"]
        low, high = interval.get("low"), interval.get("high")
        if low is not None and high is not None:
            ax.plot([low * 100, high * 100], [y, y], color=colour, linewidth=3, solid_capstyle="butt", zorder=3)
            for end in (low, high):
                ax.plot([end * 100] * 2, [y - 0.13, y + 0.13], color=colour, linewidth=2, zorder=3)
        ax.plot([interval["estimate"] * 100], [y], "o", color=colour, markersize=9, zorder=4,
                label="estimate and interval" if at == 0 else None)
        if arm.get("true_lift") is not None:
            ax.plot([arm["true_lift"] * 100], [y], "D", markerfacecolor="white", markeredgecolor=ORANGE, zorder=5,
                    markeredgewidth=1.8, markersize=8, label="truth (simulator)" if at == 0 else None)
        text = f"{signed_percent(interval['estimate'])}  ({interval_text(interval)})"
        if narrow:
            ax.annotate(f"{name}   {text}", (0, y + 0.3), xycoords=("axes fraction", "data"), fontsize=9, va="bottom",
                        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5}, zorder=2)
        else:
            ax.annotate(text, (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=9.5)
    ax.set_yticks([] if narrow else [-i for i in range(len(arms))], [] if narrow else list(arms))
    ax.set_ylim(-len(arms) + 0.45, 0.8 if narrow else 0.55)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=RULE, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:+g}\u202f%".replace("-", "\u2212") if v else "0")
    ax.set_xlabel(f"lift of {name_of(lift.get('goal', 'goal metric'))} over {lift.get('baseline')}")
    if band or any(a.get("true_lift") is not None for a in arms.values()):
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=1 if narrow else 3, fontsize=9, borderaxespad=0.2,
                  handletextpad=0.4, columnspacing=1.4)


def cost_plot(statement: Mapping[str, Any], ax: Axes, narrow: bool = False) -> None:
    """Draw lift against cost per mille (log), the efficient frontier, the break-even line and the chosen arm."""
    curve = statement["substitution"]
    points: Sequence[Mapping[str, Any]] = curve["points"]
    paid = [c for p in points for c in (p["cost_per_mille"]["low"], p["cost_per_mille"]["estimate"]) if c > 0]
    free = any(p["cost_per_mille"]["estimate"] <= 0 for p in points)
    floor = min(paid, default=1e-6) / (4 if free else 1)  # where free arms stand: a log axis has no zero
    at = {p["name"]: (max(p["cost_per_mille"]["estimate"], floor), p["lift"]["estimate"] * 100) for p in points}
    ax.set_xscale("log")
    for point in points:
        _cost_point(ax, point, at[point["name"]], floor, point["name"] == curve["chosen"])
    line = [at[n] for n in curve["frontier"]]
    if len(line) > 1:
        ax.plot([x for x, _ in line], [y for _, y in line], color=GREEN, linewidth=1.6, drawstyle="steps-post",
                linestyle=(0, (5, 2)), zorder=2, label="efficient frontier")
    right = max(x for x, _ in at.values()) * (8 if narrow else 4)
    bottom, top = ax.get_ylim()
    _break_even(ax, statement, floor, right, (bottom, top))
    ax.set_xlim(floor / 1.6, right)
    ax.set_ylim(bottom, top + 0.12 * (top - bottom))
    _names(ax, at, curve["chosen"], narrow)
    ax.axhline(0, color=INK, linewidth=1, zorder=1)
    ax.grid(color=RULE, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.minorticks_off()
    _cost_axis(ax, floor, right, free, narrow)
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:+g}\u202f%".replace("-", "\u2212") if v else "0")
    ax.set_xlabel("cost per 1,000 impressions" + ("" if narrow else ", US dollars (log scale)"))
    ax.set_ylabel("lift")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=1 if narrow else 3, fontsize=9, borderaxespad=0.2)


def _cost_point(ax: Axes, point: Mapping[str, Any], at: tuple[float, float], floor: float, chosen: bool) -> None:
    x, y = at
    colour = BLUE if point["efficient"] else MUTED
    lift, cost = point["lift"], point["cost_per_mille"]
    ax.plot([x, x], [lift["low"] * 100, lift["high"] * 100], color=colour, linewidth=1.6, zorder=3)
    ax.plot([max(cost["low"], floor), max(cost["high"], floor)], [y, y], color=colour, linewidth=1.6, zorder=3)
    ax.plot([x], [y], "o" if point["efficient"] else "s", color=colour, markersize=7, zorder=4)
    if chosen:
        ax.plot([x], [y], "o", markerfacecolor="none", markeredgecolor=ORANGE, markeredgewidth=2, markersize=15,
                zorder=5, linestyle="none", label="cheapest not significantly below the best")


def _names(ax: Axes, at: Mapping[str, tuple[float, float]], chosen: str | None, narrow: bool) -> None:
    """Write each point's name beside it, on the first side where it covers no other point or name.

    Sizes are rough: what the layout makes of the figure is known only when it is drawn.
    """
    wide, high = _NARROW_AXES if narrow else _WIDE_AXES
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    place = {n: (math.log(x / left) / math.log(right / left) * wide, (y - bottom) / (top - bottom) * high)
             for n, (x, y) in at.items()}
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in place.values()]
    for name in sorted(at, key=lambda n: (n != chosen, at[n])):
        width, (x, y) = (6.7 if name == chosen else 5.5) * len(name) + 4, place[name]
        boxes: list[Any] = []
        for across, up in ((9, 7), (9, -16), (-9, 7), (-9, -16), (9, 20), (9, -29)):
            start = x + across - (width if across < 0 else 0)
            box = (start, y + up, start + width, y + up + 9)
            covers = sum(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in taken)
            outside = box[0] < 0 or box[2] > wide * 1.05
            boxes.append((covers + outside, len(boxes), across, up, box))
        *_, across, up, box = min(boxes)
        taken.append(box)
        ax.annotate(name, at[name], xytext=(across, up), textcoords="offset points", fontsize=9, zorder=6,
                    ha="right" if across < 0 else "left", fontweight="bold" if name == chosen else "normal")


def _cost_axis(ax: Axes, floor: float, right: float, free: bool, narrow: bool) -> None:
    most, wide = (3, _NARROW_AXES[0]) if narrow else (6, _WIDE_AXES[0])
    lowest = floor * 1.5 if free else floor / 1.6
    powers = list(range(math.ceil(math.log10(lowest)), math.floor(math.log10(right)) + 1))
    powers = powers[::max(1, math.ceil(len(powers) / most))]
    ticks = [10.0**p for p in powers]
    if len(ticks) < 3:  # a decade or two: its twos and fives as well
        low = math.floor(math.log10(lowest))
        ticks = [m * 10.0**p for p in range(low, math.ceil(math.log10(right)) + 1) for m in (1, 2, 5)
                 if lowest <= m * 10.0**p <= right][:most + 1]
    labels = [f"${t:,.{max(0, -math.floor(math.log10(t) + 1e-9))}f}" for t in ticks]
    if free:
        ticks, labels = [floor, *ticks], ["free", *labels]
    left, kept = floor / 1.6, list[tuple[float, str]]()
    for tick, label in zip(ticks, labels, strict=True):  # those that do not run into the one before
        room = math.log(tick / kept[-1][0]) / math.log(right / left) * wide if kept else math.inf
        if room > 3.2 * (len(label) + len(kept[-1][1] if kept else "")) + 8:
            kept.append((tick, label))
    ax.set_xticks([t for t, _ in kept], [label for _, label in kept])


def _break_even(ax: Axes, statement: Mapping[str, Any], left: float, right: float, limits: tuple[float, float]) -> None:
    ecpm = statement["ecpm"]["value"]
    base = min((p["cost_per_mille"]["estimate"] for p in statement["substitution"]["points"]
                if p["lift"] == {"estimate": 0.0, "low": 0.0, "high": 0.0}), default=0.0)
    xs = [left * (right / left) ** (i / 160) for i in range(161)]
    ys = [max(0.0, x - base) / ecpm * 100 for x in xs]
    if max(ys) < 0.005 * (limits[1] - limits[0]):
        return  # the line would lie on the zero line; the table says how little is needed
    ax.plot(xs, ys, color=ORANGE, linewidth=1.2, zorder=2, label=f"pays for itself above, at {money(ecpm)} eCPM")


def figure_of(width: float, height: float) -> Figure:
    """An empty figure of that many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def lift_svg(lift: Mapping[str, Any], narrow: bool = False) -> str:
    """The interval plot as inline SVG, with its content in words as the accessible name."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        rows = len(variants(lift))
        figure = figure_of(NARROW if narrow else WIDE, 1.5 + rows * (0.75 if narrow else 0.52))
        interval_plot(lift, figure.add_subplot(), narrow)
        return svg(figure, "lift-narrow" if narrow else "lift-wide", describe_lift(lift))


def cost_svg(statement: Mapping[str, Any], narrow: bool = False) -> str:
    """The substitution curve as inline SVG."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = figure_of(NARROW if narrow else WIDE, 4.0 if narrow else 4.2)
        cost_plot(statement, figure.add_subplot(), narrow)
        return svg(figure, "cost-narrow" if narrow else "cost-wide", describe_cost(statement))


def describe_lift(lift: Mapping[str, Any]) -> str:
    """The interval plot in words, for those who cannot see it."""
    parts = [f"{n}: {signed_percent(a['lift']['estimate'])}, interval {interval_text(a['lift'])}"
             + (f", truth {signed_percent(a['true_lift'])}" if a.get("true_lift") is not None else "")
             for n, a in variants(lift).items()]
    return f"Lift of {name_of(lift.get('goal', 'goal metric'))} over {lift.get('baseline')}. " + "; ".join(parts)


def describe_cost(statement: Mapping[str, Any]) -> str:
    """The substitution curve in words."""
    curve = statement["substitution"]
    parts = [f"{p['name']}: lift {signed_percent(p['lift']['estimate'])} for {money(p['cost_per_mille']['estimate'])}"
             for p in curve["points"]]
    return (f"Lift against cost per thousand impressions. {'; '.join(parts)}. "
            f"Efficient: {', '.join(curve['frontier'])}. Cheapest not significantly below the best: {curve['chosen']}.")


def svg(figure: Figure, prefix: str, label: str) -> str:
    """The figure as inline SVG as wide as its column; ``prefix`` keeps its ids apart, ``label`` is it in words."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg"):]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    # Several pictures share one page: their ids must not meet.
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    label = escape(label, quote=True)
    return re.sub(r"<svg ([^>]*?)>", lambda m: f'<svg role="img" aria-label="{label}" {_fluid(m[1])}>', text, count=1)


def _fluid(attributes: str) -> str:
    # The view box keeps the proportions; without fixed points the picture follows the column's width.
    return re.sub(r'(?<![\w-])(width|height)="[^"]*"\s*', "", attributes)


def render_png(lift: Mapping[str, Any], out: str | Path, statement: Mapping[str, Any] | None = None) -> None:
    """Write the interval plot, and the substitution curve beside it where there is a statement, as one PNG picture."""
    import matplotlib

    from recsys.stage import write_atomic

    with matplotlib.rc_context({**STYLE, "font.size": 11.0}):
        curve = bool(statement and statement["substitution"]["points"])
        rows = len(variants(lift))
        figure = figure_of(9.0, (1.6 + 0.5 * rows) + (4.4 if curve else 0))
        grid = figure.add_gridspec(2 if curve else 1, 1, height_ratios=[1.6 + 0.5 * rows, 4.4] if curve else [1])
        top = figure.add_subplot(grid[0])
        interval_plot(lift, top)
        title = f"{lift['experiment']}: estimated lift, {level(lift)} intervals"
        figure.suptitle(title if healthy(lift) else title + " (health check failed: do not use)", x=0.01, ha="left",
                        fontweight="bold", fontsize=13)
        if curve:
            assert statement is not None
            cost_plot(statement, figure.add_subplot(grid[1]))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    write_atomic(out, buffer.getvalue())
