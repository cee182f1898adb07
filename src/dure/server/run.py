"""A server from start to end: its socket, the first model, serving, and a graceful shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.middleware.cors import CORSMiddleware

from dure import hub
from dure.errors import DureError, InvalidRequestError
from dure.metering.keys_file import NO_PRICES, KeyPolicy, PriceList
from dure.metering.ledger import Ledger
from dure.server import limits
from dure.server.app import make_app
from dure.server.http.auth import Hosts, Keys, Origins, is_public
from dure.server.http.connection import Connections
from dure.server.http.middleware import RequestMiddleware
from dure.server.http.tls import Tls
from dure.server.page.files import Page
from dure.server.serving.accounting import ANYONE, Accounting
from dure.server.serving.metrics import Metrics
from dure.server.serving.model_pool import ModelPool
from dure.server.serving.service import Service
from dure.server.wire.body import BodyReader

if TYPE_CHECKING:
    from dure.llm import LLM
    from dure.metering.meter import Meter

log = logging.getLogger("dure.server")

_METRIC = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True)
class Settings:
    """The options that a server is started with."""

    models: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = ()
    insecure: bool = False
    allowed_hosts: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()  # (pattern, name)
    parallel: int = 32
    queue: int = limits.MAX_QUEUE
    max_loaded: int = 1
    keep_alive: float | None = None
    metrics_prefix: str = "dure"
    prices: PriceList = NO_PRICES  # of keys without a policy
    policies: tuple[tuple[str, KeyPolicy], ...] = ()  # (key, policy) of keys that have one
    ledger: Path | None = None
    drain_seconds: float = limits.DRAIN_SECONDS
    page: bool = True  # whether a browser is shown the pages
    tls: Tls | None = None
    keep_alives: tuple[tuple[str, float], ...] = ()  # (model, seconds), of models with their own

    def __post_init__(self) -> None:
        if is_public(self.host) and not (self.keys or self.policies) and not self.insecure:
            raise InvalidRequestError(
                f"{self.host} can be reached from other machines, and no API key is set.",
                hint="give one with --api-key, or --insecure if everybody may ask",
            )
        if not 1 <= self.parallel <= limits.MAX_PARALLEL:
            raise InvalidRequestError(f"--parallel is from 1 to {limits.MAX_PARALLEL}.")
        if self.keep_alive is not None and math.isnan(self.keep_alive):
            raise InvalidRequestError("--keep-alive is a number of seconds; -1 is for ever.")
        if not _METRIC.fullmatch(self.metrics_prefix):
            raise InvalidRequestError(
                f"Prometheus takes no metrics that begin with {self.metrics_prefix!r}.",
                hint="letters, digits and _, the first of them no digit",
            )
        served = [shown(name) for name in self.models]
        for number, name in enumerate(served):
            former = self.models[served.index(name)]
            if former != self.models[number]:
                raise InvalidRequestError(
                    f"{former} and {self.models[number]} would both be served as {name!r}.",
                    hint="give one another name by `dure cp`, and serve it by that",
                )
        for pattern, name in self.aliases:
            if pattern in served and name not in ("", pattern):
                raise InvalidRequestError(
                    f"The alias {f'{pattern}={name}'!r} is the name of another model here.",
                    hint="no request would reach it: take another alias",
                )
            if not pattern or (name and served and name not in served):
                raise InvalidRequestError(
                    f"The alias {f'{pattern}={name}'!r} names no model that is served.",
                    hint=f"served: {', '.join(served)}" if served else "NAME=MODEL",
                )

    @property
    def closed(self) -> str:
        """Why clients may not create, copy and delete models; empty if they may."""
        if self.models:
            return "it serves those that it was started with"
        if len(self.keys) > 1:
            return "it has several keys that are alike"
        if is_public(self.host) and not self.keys and not self.policies:
            return "anybody may ask it"
        if self.cors and not self.keys and not self.policies:
            return "web pages may ask it without a key"
        return ""


class Server:
    """A server. It listens as soon as it is made: whoever connects before `serve` waits."""

    def __init__(
        self,
        settings: Settings,
        load: Callable[[str], LLM],
        *,
        on_ready: Callable[[LLM | None], Any] | None = None,
        on_hangup: Callable[[], Any] | None = None,
        meter: Meter | None = None,
    ) -> None:
        """Bind the socket, and open the ledger.

        load: makes an LLM from a model's name. on_ready: called once requests are served, with the
        model that was preloaded, or None. on_hangup: called at SIGHUP, which ends a server without
        it. meter: what the models that `load` makes share. Raises
        InvalidRequestError if the address cannot be bound, or the ledger not be written.
        """
        self.settings = settings
        self.meter = meter
        self.socket = listen(settings.host, settings.port)
        try:
            self.ledger = None if settings.ledger is None else Ledger(settings.ledger)
        except BaseException:
            self.socket.close()
            raise
        self.address: tuple[str, int] = self.socket.getsockname()[:2]
        self.failure: Exception | None = None  # why the first model did not load
        self._load = load
        self._on_ready = on_ready
        self._on_hangup = on_hangup or self.stop
        self._signals = 0
        self._registry: ModelPool | None = None
        self._http: _HTTP | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self) -> None:
        """Serve until a signal stops the server and all running requests have finished."""
        asyncio.run(self.serve())
        if self.failure is not None:
            raise self.failure

    @property
    def is_loading(self) -> bool:
        """Whether a model is being loaded, on a thread that cannot be stopped before it is done."""
        return self._registry is not None and self._registry.is_loading

    def watched(self, progress: Mapping[str, Callable[..., None]]) -> dict[str, Any]:
        """Return progress callbacks of an LLM that is loaded here: /v1/status has it, too.

        progress: callbacks that are called as well, `load_progress` and `download_progress`.
        """

        def load_progress(done: int, total: int) -> None:
            self._report("loading", done, total)
            progress["load_progress"](done, total)

        def download_progress(at: hub.Progress) -> None:
            self._report(at.stage, at.done_bytes, at.total_bytes)
            progress["download_progress"](at)

        return {"load_progress": load_progress, "download_progress": download_progress}

    def _report(self, stage: str, done: int, total: int) -> None:
        if self._registry is not None:
            self._registry.report(stage, done, total)

    async def serve(self) -> None:
        """Serve on the running event loop, until `stop` is called."""
        settings = self.settings
        metrics = Metrics(prefix=settings.metrics_prefix, meter=self.meter)
        keys = Keys((*settings.keys, *(key for key, _ in settings.policies)))
        registry = self._registry = ModelPool(
            self._load,
            {shown(name): name for name in settings.models},
            known=is_local,
            aliases=dict(settings.aliases),
            max_loaded=settings.max_loaded,
            keep_alive=settings.keep_alive,
            keep_alives={shown(name): seconds for name, seconds in settings.keep_alives},
            on_news=metrics.on_news,
        )
        service = Service(
            registry,
            metrics=metrics,
            accounting=self._accounting(keys, metrics),
            parallel=settings.parallel,
            queue=settings.queue,
            closed=settings.closed,
        )
        self.service = service
        self.connections = Connections()
        self._http = _HTTP(self._uvicorn_config(self._app(service, keys, metrics)))
        loop = asyncio.get_running_loop()
        with self._watching_signals(loop):
            self._start(self._first_model(service))
            self._start(registry.unload_idle())
            self._start(self._watch_idling())
            try:
                await self._http.serve(sockets=[self.socket])
            finally:
                for task in self._tasks:
                    task.cancel()
                await service.close()
                if self.ledger is not None:
                    await loop.run_in_executor(None, self.ledger.close)

    def _app(self, service: Service, keys: Keys, metrics: Metrics) -> Any:
        """Build what a request goes through: CORS, the middleware, and the routes."""
        settings = self.settings
        page = Page() if settings.page else None
        api = make_app(service, page=page)
        self.bodies: BodyReader = api.state.bodies
        app: Any = RequestMiddleware(
            api,
            keys=keys,
            hosts=Hosts((*settings.allowed_hosts, settings.host)),
            origins=Origins(settings.cors),
            connections=self.connections,
            page=page,
            on_failure=metrics.on_failure,
        )
        if settings.cors:
            app = CORSMiddleware(
                app,
                allow_origins=list(settings.cors),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "x-dure-ignored"],
            )
        return app

    def _uvicorn_config(self, app: Any) -> uvicorn.Config:
        tls = self.settings.tls
        return uvicorn.Config(
            app,
            http=self.connections.protocol,  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=True,
            timeout_keep_alive=int(limits.IDLE_SECONDS),
            h11_max_incomplete_event_size=limits.MAX_HEADER_BYTES,
            timeout_graceful_shutdown=5,
            loop="asyncio",
            backlog=limits.ACCEPTED_TOGETHER,
            ssl_certfile=None if tls is None else tls.certificate,
            ssl_keyfile=None if tls is None else tls.key,
        )

    def stop(self) -> None:
        """Shut down as on a signal: running requests may finish; a second call aborts them."""
        self._signals += 1
        http = self._http
        if http is None:
            return
        if self._signals > 1:
            log.warning("ending at once")
            http.should_exit = http.force_exit = True
            self.service.fail_all()
        else:
            self._start(self._drain(http))

    def _accounting(self, keys: Keys, metrics: Metrics) -> Accounting:
        settings = self.settings
        policies = {keys.tenant_of(key): policy for key, policy in settings.policies}
        for number, key in enumerate(settings.keys, 1):
            unnamed = KeyPolicy(f"key-{number}", settings.prices, is_admin=True)
            policies.setdefault(keys.tenant_of(key), unnamed)
        default = KeyPolicy(ANYONE, settings.prices)
        return Accounting(metrics, policies=policies, default=default, ledger=self.ledger)

    async def _watch_idling(self) -> None:
        """Read the meter now and then: a counter may begin anew more than once in an idle hour."""
        while self.meter is not None:
            await asyncio.sleep(limits.METER_SECONDS)
            self.meter.totals()

    async def _drain(self, http: _HTTP) -> None:
        running = self.service.num_active
        if running:
            log.warning("shutting down: %d answers may finish", running)
        await self.service.drain(self.settings.drain_seconds)
        http.should_exit = True

    async def _first_model(self, service: Service) -> None:
        """Load the model before the first request, if exactly one is named."""
        llm: LLM | None = None
        if len(self.settings.models) == 1:
            service.loading = True
            try:
                entry = await service.registry.acquire(None)
                llm = entry.worker.llm if entry.worker is not None else None
                service.registry.release(entry)
            except Exception as error:
                self.failure = error
                assert self._http is not None  # we are its task
                self._http.should_exit = True
                return
            finally:
                service.loading = False
        if self._on_ready is not None:
            self._on_ready(llm)

    @contextlib.contextmanager
    def _watching_signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Call `stop` on SIGTERM and Ctrl-C, and what is meant to be on SIGHUP, in the main thread.

        A Ctrl-C or SIGHUP that was ignored when the server started (nohup, a script's background
        job) stays ignored: it is meant for another program.
        """
        handlers: dict[signal.Signals, Callable[[], Any]]
        handlers = {signal.SIGTERM: self.stop, signal.SIGINT: self.stop}
        if sys.platform != "win32":
            handlers[signal.SIGHUP] = self._on_hangup
        former: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                before = signal.getsignal(number)
                if number == signal.SIGTERM or before != signal.SIG_IGN:
                    former[number] = before
                    _call_at(number, handler, loop)
        try:
            yield
        finally:
            for number, before in former.items():
                with contextlib.suppress(NotImplementedError):
                    loop.remove_signal_handler(number)
                signal.signal(number, before or signal.SIG_DFL)

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _HTTP(uvicorn.Server):
    """uvicorn, with signals left to us: its own handling would end the process by the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen.

        asyncio accepts few connections at a time, so that we can refuse some before the process
        runs out of file descriptors; the system queues the others meanwhile.
        """
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(limits.MAX_CONNECTIONS)


def _call_at(
    number: signal.Signals, handler: Callable[[], Any], loop: asyncio.AbstractEventLoop
) -> None:
    """Call `handler` on the loop at a signal; must be called on the main thread."""
    try:
        loop.add_signal_handler(number, handler)
    except NotImplementedError:  # Windows' loop, which a signal wakes all the same
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(handler))


def listen(host: str, port: int) -> socket.socket:
    """Open a socket that listens on host and port.

    Raises InvalidRequestError if the address is in use or may not be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on a socket whose protocol is named as TCP; without it, each
    # small write waits up to 40 ms for the receipt of the last one.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if sys.platform != "win32":  # where it lets two servers have one port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it: else what a client does not read fills 4 MB of kernel memory.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.SEND_BUFFER_BYTES)
        listening.bind((host, port))
        listening.listen(limits.MAX_CONNECTIONS)
    except (OSError, OverflowError) as error:
        listening.close()
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise InvalidRequestError(
                f"Another program listens on {host} port {port}.",
                hint="--port takes another port; 0 any that is free",
            ) from error
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidRequestError(f"{host} port {port} cannot be listened on: {reason}.") from error
    listening.setblocking(False)
    return listening


def shown(name: str) -> str:
    """Return the name under which a model is served: of a path, its last part without `.gguf`."""
    path = hub.parse_name(name).path
    if path is None:
        return name
    path = path.expanduser().absolute()
    return path.stem if path.suffix.casefold() == ".gguf" else path.name


def is_local(name: str) -> bool:
    """Check whether a model of that name is on this machine. A path is never one.

    So a client cannot name files.
    """
    try:
        if hub.parse_name(name).kind == "path":
            return False
        hub.resolve(name, allow_download=False)
    except (DureError, OSError):
        return False
    return True
