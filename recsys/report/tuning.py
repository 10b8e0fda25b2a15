"""The picture of a search over settings: what each trial reached, and the best so far."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recsys.report.plots import BLUE, GREEN, INK, MUTED, ORANGE, RULE, STYLE, figure_of
from recsys.stage import write_atomic


def render_tuning(found: Mapping[str, Any], out: str | Path) -> None:
    """Write a PNG: trials in order; a pruned one stands at the last value it had when it was stopped.

    Args:
        found: :func:`recsys.training.tune.summary` with at least one complete trial.
    """
    import matplotlib
    from matplotlib.ticker import MaxNLocator

    better = min if found["direction"] == "minimize" else max
    with matplotlib.rc_context({**STYLE, "font.size": 11.0}):
        figure = figure_of(8.0, 3.8)
        ax = figure.add_subplot()
        points: dict[str, list[tuple[int, float]]] = {"complete": [], "pruned": []}
        for trial in found["trials"]:
            value = trial["value"] if trial["state"] == "complete" else next(reversed(trial["steps"].values()), None)
            if trial["state"] in points and value is not None:
                points[trial["state"]].append((trial["number"], value))
        best, so_far = None, []
        for number, value in points["complete"]:
            best = value if best is None else better(best, value)
            so_far.append((number, best))
        so_far.append((len(found["trials"]) - 1, so_far[-1][1]))
        ax.plot(*zip(*so_far, strict=True), color=GREEN, drawstyle="steps-post", linewidth=1.6, label="best so far")
        for state, marker, colour in (("pruned", "x", MUTED), ("complete", "o", BLUE)):
            if points[state]:
                ax.plot(*zip(*points[state], strict=True), marker, color=colour, label=state)
        if found["experiment"] is not None:
            ax.axhline(found["experiment"], color=INK, linewidth=1, linestyle=(0, (5, 2)), label="as it stands")
        ax.plot([found["best"]["number"]], [found["best"]["value"]], "o", markerfacecolor="none", markersize=14,
                markeredgecolor=ORANGE, markeredgewidth=2)
        # A diverged draw must not flatten the others: the axis shows twice the range of the better half.
        values = sorted((v for _, v in [*points["complete"], *points["pruned"]]), reverse=better is max)
        near, middle = values[0], values[len(values) // 2]
        span = abs(middle - near) or abs(near) * 0.01 or 1.0
        low, high = sorted((near - 0.2 * span * (1 if better is min else -1),
                            near + 2.5 * span * (1 if better is min else -1)))
        ax.set_ylim(low, high)
        ax.grid(color=RULE, linewidth=0.7)
        ax.set_axisbelow(True)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("trial")
        ax.set_ylabel(f"validation {found['metric'].replace('_', ' ')}")
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, fontsize=9, borderaxespad=0.2)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    write_atomic(out, buffer.getvalue())
