"""The report: JSON first, then HTML, a picture and terminal text made from it alone.

``render_html(lift, statement, out)``, ``write_csv(lift, out)``, ``render_png(lift, out, statement)``,
``render_terminal(lift, statement)``; ``lift`` is ``lift.json``, ``statement`` the answer of
:func:`recsys.ledger.statement` or None.
"""

from recsys.report.export import write_csv
from recsys.report.page import render_html
from recsys.report.plots import render_png
from recsys.report.terminal import render_terminal

__all__ = ["render_html", "render_png", "render_terminal", "write_csv"]
