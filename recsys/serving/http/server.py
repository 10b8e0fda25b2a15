"""Processes that serve: one, or several that share a port and agree on what they serve."""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import uvicorn
from starlette.responses import Response
from starlette.types import Scope
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from recsys.errors import InputError
from recsys.log import log, setup_logging
from recsys.memory import keep_freed_memory
from recsys.serving.http.app import App, make_app
from recsys.serving.http.connection import Connections
from recsys.serving.http.control import Control
from recsys.serving.http.metrics import SHARED
from recsys.serving.http.origin import is_loopback
from recsys.serving.http.routes import Route, access_line
from recsys.serving.http.service import Service, Settings

_KEEP_ALIVE = 75
_GRACE = 30
_SWITCH = 0.0005
_GIVE_UP = 5
_PROXIES = os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1")  # uvicorn's variable and default
_BLOCK, _FREE = 32 << 20, 256 << 20  # larger blocks are large bodies and tables: those go back to the system
_OTHER_FILES = 128  # that a process has open beside its connections


@dataclass(frozen=True)
class ServeOptions:
    """Where and how to serve.

    Attributes:
        models: name -> model folder, or folder of versions.
        host: address; beyond loopback there must be a token.
        port: TCP port.
        workers: processes; each has the models (whose files they share in memory) and a share of the cores.
        device: auto | cpu | cuda.
        drain: seconds between SIGTERM, from which on the service is not ready, and its refusing connections, for a
            load balancer to notice.
        access_log: write it to standard output.
        ranking: YAML file of :class:`recsys.config.RankingConfig`, for /v1/rank and its like; budgets are shared out
            over the workers.
        settings: token and bounds.
    """

    models: Mapping[str, Path]
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    device: str = "auto"
    drain: float = 0.0
    access_log: bool = True
    ranking: Path | None = None
    settings: Settings = field(default_factory=Settings)


def serve(options: ServeOptions) -> None:
    """Serve until SIGTERM or SIGINT; then no new connection is taken, open requests are answered, and it returns.

    Raises:
        InputError: a model cannot be loaded, the address cannot be had, or is open to others and there is no token.
    """
    if not is_loopback(options.host) and not options.settings.token:
        raise InputError("an address open to others needs a token", file="--token", got=options.host,
                         expected="a token (--token or RECSYS_TOKEN), or --host 127.0.0.1")
    if options.workers > 1:  # SO_REUSEPORT would let this service share the port with another one's workers
        _bound(replace(options, workers=1)).close()
    with _bound(options) as listener:
        if options.workers == 1:
            _work(options, listener, None)
        else:
            _supervise(options)


class _Server(uvicorn.Server):
    """Not ready from the first SIGTERM on, and gone ``drain`` seconds later; a second signal ends it at once."""

    def __init__(self, config: uvicorn.Config, app: App, drain: float) -> None:
        super().__init__(config)
        self._app, self._drain, self._until = app, drain, 0.0

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._app.service.draining = True
        if self._drain and not self._until:
            self._until = time.monotonic() + self._drain
            self._captured_signals.append(sig)
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        if self._until and time.monotonic() >= self._until:
            self.should_exit = True
        return await super().on_tick(counter)


def _work(options: ServeOptions, listener: socket.socket, control: Control | None) -> None:
    """Serve in this process."""
    keep_freed_memory(_BLOCK, _FREE)
    _allow_files(options.settings.connections)
    settings = replace(options.settings, access_log=access_line) if options.access_log else options.settings
    app = make_app(options.models, settings, device=options.device, control=control, more=_ranking(options))
    # What the libraries hold stays for good: looking through it again and again would stop requests for 0.1 s.
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(_SWITCH)  # the event loop must not wait 5 ms for the model's thread
    connections = Connections(settings.connections, settings.head_timeout,
                              lambda why: app.service.metrics.closed.labels(why).inc(), _refusing(app))
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=_GRACE,
                            timeout_keep_alive=_KEEP_ALIVE, server_header=False, ws="none",
                            forwarded_allow_ips=_PROXIES,
                            http=connections)  # type: ignore[arg-type]  # uvicorn only calls it
    log.info("serving %s on http://%s:%d (API: /docs)", ", ".join(options.models), options.host,
             listener.getsockname()[1])
    # uvicorn raises the signal again after it has drained: then the process ends well.
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        _Server(config, app, options.drain).run([listener])
    finally:
        signal.signal(signal.SIGTERM, previous)


def _refusing(app: App) -> Callable[[Scope], Response | None]:
    """The app's ``refuse``, behind what uvicorn has a request go through first, which awaits nothing: where a proxy on
    this machine says for whom it asks, the log says so, too."""
    async def refuse(scope: Any, *_: Any) -> Any:
        return app.refuse(scope)

    proxied: Any = ProxyHeadersMiddleware(refuse, _PROXIES)

    def run(scope: Scope) -> Response | None:
        try:
            proxied(scope, None, None).send(None)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        raise RuntimeError("it awaits something")

    return run


def _allow_files(connections: int) -> None:
    """As many open files as that many connections need, and as many again, which are open until they are refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    least = connections + _OTHER_FILES
    if hard != resource.RLIM_INFINITY and hard < least:
        raise InputError("more connections than this process may open files", file="--connections", got=connections,
                         expected=f"at most {hard - _OTHER_FILES}, or a higher limit (ulimit -n)")
    wanted = connections + least if hard == resource.RLIM_INFINITY else min(hard, connections + least)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _ranking(options: ServeOptions) -> list[Callable[[Service], Sequence[Route]]]:
    if options.ranking is None:
        return []
    from recsys.config import RankingConfig, parse_model, read_yaml
    from recsys.serving.http.rank_routes import rank_routes

    config = parse_model(RankingConfig, read_yaml(options.ranking), options.ranking)
    if config.pacing is not None:
        share = config.pacing.share / options.workers
        config = config.model_copy(update={"pacing": config.pacing.model_copy(update={"share": share})})
    return [rank_routes(config)]


def _bound(options: ServeOptions) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if options.workers > 1:  # the kernel spreads connections over the workers' sockets
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        got = f"{options.host}:{options.port} ({error.strerror})"
        raise InputError("cannot listen", file="--host, --port", got=got,
                         expected="an address of this machine and a free port") from None
    return listener


def _supervise(options: ServeOptions) -> None:
    """Keep so many workers running; SIGTERM goes on to them."""
    context = multiprocessing.get_context("spawn")
    ending: list[int] = []
    workers: list[Any] = []
    told: set[int] = set()

    def tell(again: bool) -> None:
        """SIGTERM to the workers; to a worker that drains, a second one means at once."""
        for worker in workers:
            if worker.is_alive() and (again or worker.pid not in told):
                told.add(worker.pid)
                worker.terminate()

    def end(signum: int, _: Any) -> None:
        ending.append(signum)
        tell(again=True)

    with tempfile.TemporaryDirectory(prefix="recsys-serve-") as name:
        folder = Path(name)
        (folder / "metrics").mkdir()
        threads = str(max(1, len(os.sched_getaffinity(0)) // options.workers))
        environment = {SHARED: str(folder / "metrics"), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
        before = {k: os.environ.get(k) for k in environment}
        handlers = {s: signal.signal(s, end) for s in (signal.SIGTERM, signal.SIGINT)}
        os.environ.update(environment)  # what the workers start with
        try:
            failures = 0
            while not ending:
                while len(workers) < options.workers:
                    workers.append(context.Process(target=_worker, args=(options, folder), name="worker"))
                    workers[-1].start()
                wait([w.sentinel for w in workers], timeout=0.5)
                for worker in [w for w in workers if not w.is_alive()]:
                    workers.remove(worker)
                    _forget(folder / "metrics", worker.pid)
                    failures = 0 if (folder / f"worker-{worker.pid}.json").exists() else failures + 1
                    if not ending:
                        log.error("worker %d has ended with exit code %s", worker.pid, worker.exitcode)
                    if failures >= (1 if worker.exitcode == InputError.exit_code else _GIVE_UP):
                        raise InputError("workers cannot start", got=f"exit code {worker.exitcode}",
                                         expected="what their messages above say")
        finally:
            tell(again=False)
            for worker in workers:
                worker.join(_GRACE + options.drain + 10)
                worker.kill()
            for signum, handler in handlers.items():
                signal.signal(signum, handler)
            for key, value in before.items():
                _restore(key, value)


def _worker(options: ServeOptions, folder: Path) -> None:
    setup_logging()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal's Ctrl-C the supervisor tells them
    try:
        with _bound(options) as listener:
            _work(options, listener, Control(folder))
    except InputError as error:
        log.error("%s", error)
        sys.exit(error.exit_code)


def _forget(folder: Path, pid: int) -> None:
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid, str(folder))


def _restore(key: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(key, None)
    else:
        os.environ[key] = value
