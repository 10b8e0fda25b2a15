from __future__ import annotations

import copy
from itertools import combinations

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from recsys.report.plots import NARROW, STYLE, WIDE, cost_plot, figure_of
from tests.report import samples


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("apart", [1.0, 1.03, 1.12, 1.5])
def test_names_of_arms_that_cost_and_bring_the_same_do_not_cover_each_other(apart: float, narrow: bool) -> None:
    statement = copy.deepcopy(samples.money(samples.marketplace()))
    points = statement["substitution"]["points"]
    first, *others = [p for p in points if p["lift"]["estimate"]]
    assert others
    for i, point in enumerate(others, 1):
        point["lift"] = dict(first["lift"])
        point["cost_per_mille"] = {k: v * apart**i for k, v in first["cost_per_mille"].items()}
    with matplotlib.rc_context(STYLE):
        figure = figure_of(NARROW if narrow else WIDE, 4.0 if narrow else 4.2)
        ax = figure.add_subplot()
        cost_plot(statement, ax, narrow)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        ticks = [t.get_window_extent(canvas.get_renderer()) for t in ax.get_xticklabels() if t.get_text()]
        boxes = {text.get_text(): text.get_window_extent(canvas.get_renderer()) for text in ax.texts}
    assert set(boxes) == {p["name"] for p in points}
    assert len(ticks) > 1
    assert not any(one.overlaps(two) for one, two in combinations(ticks, 2))
    for (a, one), (b, two) in combinations(boxes.items(), 2):
        assert not one.padded(-1).overlaps(two.padded(-1)), (a, b)
