"""The ASGI app: the service's routes, and those that are mounted beside them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.routing import Route as Mounted
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from recsys.serving.http import openapi
from recsys.serving.http.control import UNLOADED, Control
from recsys.serving.http.inference import inference_routes
from recsys.serving.http.metrics import Metrics
from recsys.serving.http.models import Models
from recsys.serving.http.routes import Access, Route, named
from recsys.serving.http.service import Service, Settings
from recsys.serving.protocol import ScorerLike, load_scorer


class App(Access):
    """The ASGI app.

    Attributes:
        service: what its routes work with.
        router: Starlette's, with the app's lifespan.
    """

    def __init__(self, service: Service, routes: Sequence[Route]) -> None:
        @asynccontextmanager
        async def lifespan(_: object) -> AsyncIterator[None]:
            service.start()
            yield
            await service.stop()

        self.service = service
        self.router = Router([Mounted(r.path, named(r), methods=[r.method]) for r in routes], redirect_slashes=False,
                             default=_not_found, lifespan=lifespan)
        super().__init__(self.router, service.settings.token, routes, service.check_room, service.bodies,
                         service.metrics, service.settings.access_log)


def make_app(model: str | Path | Mapping[str, Path], settings: Settings | None = None, *, device: str = "auto",
             more: Sequence[Callable[[Service], Sequence[Route]]] = (), control: Control | None = None,
             load: Callable[[Path, str], ScorerLike] = load_scorer) -> App:
    """The ASGI app; its models are loaded and warm when this returns, and it is ready when it has started.

    Args:
        model: model folder, or folder of versions (1, 2, ...), served as ``ranker``; or several by name.
        settings: bounds.
        device: auto | cpu | cuda.
        more: each makes further routes; token, bounds, errors, metrics and log apply to them as to all.
        control: where several worker processes agree on what is served.
        load: reads a model folder, given a device.

    Raises:
        InputError: not a model folder, or a damaged one.
    """
    settings, metrics = settings or Settings(), Metrics()
    folders = model if isinstance(model, Mapping) else {"ranker": Path(model)}
    models = Models(folders, device, lambda name, outcome: metrics.loads.labels(name, outcome).inc(), load)
    wanted = {} if control is None else control.wanted()
    for name in models.names:
        if wanted.get(name) != UNLOADED:
            models.load(name, wanted.get(name))
    service = Service(models, settings, metrics, control)
    routes = [*inference_routes(service), *(route for make in more for route in make(service))]
    routes += openapi.routes(openapi.document(routes, settings.token is not None))
    return App(service, routes)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        raise HTTPException(404, "Not Found")
