"""The scoring service over HTTP: :func:`make_app` is the ASGI app, :func:`serve` runs it in one or more processes.

    serve(ServeOptions({"ranker": Path("work/model")}, port=8000, workers=2))

One model thread a process scores what waits together (``queue``); models are versions in folders that are swapped while
requests run (``models``, ``control``); the protocol is the Open Inference Protocol v2 with Triton's binary tensors
(``tensors``, ``inference``). Further routes are mounted through ``make_app(more=...)`` (``routes.Route``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recsys.lazy import on_first_use

if TYPE_CHECKING:
    from recsys.serving.http.app import App, make_app
    from recsys.serving.http.queue import Limits
    from recsys.serving.http.routes import Route
    from recsys.serving.http.server import ServeOptions, serve
    from recsys.serving.http.service import Service, Settings

__all__ = ["App", "Limits", "Route", "ServeOptions", "Service", "Settings", "make_app", "serve"]

_HOME = {"App": "app", "make_app": "app", "Limits": "queue", "Route": "routes", "ServeOptions": "server",
         "serve": "server", "Service": "service", "Settings": "service"}
__getattr__ = on_first_use(__name__, _HOME)
