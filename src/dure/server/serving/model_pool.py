"""The model pool: which models are served, which are loaded, and when they are unloaded."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING

from dure import kernels
from dure.errors import InvalidRequestError, ModelNotFoundError, NotEnoughMemoryError
from dure.server import errors, limits
from dure.server.serving.worker import StepUpdate
from dure.server.serving.workers import Workers

if TYPE_CHECKING:
    from dure.llm import LLM

log = logging.getLogger("dure.server")


@dataclass(eq=False)
class PooledModel:
    """A model that was requested. It is loaded if it has workers."""

    name: str
    worker: Workers | None = None
    users: int = 0  # requests that use it
    used: float = field(default_factory=time.monotonic)  # when the last of them released it
    keep_alive: float | None = None  # seconds after the last use; None: for ever
    load_seconds: float = 0.0


@dataclass(frozen=True)
class Loading:
    """A model that is being loaded, and how far its download or its reading is."""

    id: str
    stage: str = "loading"  # or of a download: waiting, asking, downloading, checking
    done_bytes: int = 0
    total_bytes: int = 0  # 0: unknown
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds since the loading began."""
        return round(time.monotonic() - self.began, 3)


class ModelPool:
    """Models by name, loaded when first used, at most `max_loaded` at a time.

    `served` maps the names under which models are served to their sources, which `load` takes: a
    path, or the name itself. Without any, every name for which `known` returns True is served. To
    make room, the least recently used model is unloaded; each is also unloaded `keep_alive` seconds
    after its last request, or as `keep_alives` has it by its name. A model in use is never
    unloaded: whoever needs its place waits.
    """

    def __init__(
        self,
        load: Callable[[str], LLM],
        served: Mapping[str, str] | None = None,
        *,
        known: Callable[[str], bool] = lambda _: False,
        aliases: Mapping[str, str] | None = None,
        max_loaded: int = 1,
        keep_alive: float | None = None,
        keep_alives: Mapping[str, float] | None = None,
        on_news: Callable[[str, float, list[StepUpdate]], None] | None = None,
    ) -> None:
        self.served = dict(served or {})
        self.aliases = dict(aliases or {})
        self.entries: dict[str, PooledModel] = {}
        self.max_loaded = max_loaded
        self.keep_alive = keep_alive
        self._keep_alives = dict(keep_alives or {})
        self.loading: Loading | None = None
        self._load = load
        self._known = known
        self._on_news = on_news
        self._changing = asyncio.Lock()  # held while a model is loaded or unloaded
        self._coming: dict[str, asyncio.Task[None]] = {}
        self._freed = asyncio.Condition()
        self._loader: threading.Thread | None = None
        self._closing = False

    def find(self, asked: str | None) -> str:
        """Return the name of the model that a request means.

        Raises ModelNotFoundError if no model has that name or alias.
        """
        if not asked:
            loaded = [entry.name for entry in self.loaded()]
            candidates = list(self.served) or loaded
            if not candidates:
                raise InvalidRequestError("Which model is meant?", hint='give "model": "NAME"')
            return candidates[0]
        if len(asked) > limits.MAX_NAME_CHARACTERS:
            raise InvalidRequestError(f"The model's name has {len(asked):,} characters.")
        if asked in self.served or asked in self.entries:
            return asked
        for pattern, name in self.aliases.items():
            if fnmatchcase(asked, pattern):
                return name or self.find(None)
        if not self.served and self._known(asked):
            return asked
        served = list(self.served) or ["`GET /v1/models` lists them"]
        raise ModelNotFoundError(
            f"No model called {asked[:80]!r} is served here.",
            hint=f"served: {', '.join(served[:20])}",
        )

    def source(self, name: str) -> str:
        """Return what to load the model from: a path, or the name itself."""
        return self.served.get(name, name)

    def loaded(self) -> list[PooledModel]:
        """Return the models in memory, the most recently used first."""
        found = [entry for entry in self.entries.values() if entry.worker is not None]
        return sorted(found, key=lambda entry: (entry.users > 0, entry.used), reverse=True)

    def report(self, stage: str, done_bytes: int, total_bytes: int) -> None:
        """Take the progress of the model that is being loaded. Any thread may call it."""
        loading = self.loading
        if loading is not None:
            self.loading = replace(
                loading, stage=stage, done_bytes=done_bytes, total_bytes=total_bytes
            )

    @property
    def is_loading(self) -> bool:
        """Whether a model is being loaded."""
        return self._loader is not None and self._loader.is_alive()

    async def acquire(self, asked: str | None, *, keep_alive: float | None = None) -> PooledModel:
        """Return the model, loading it first if needed, and keep it in memory until `release`."""
        name = self.find(asked)
        while True:
            if self._closing:
                raise errors.unavailable("The server is shutting down.", "shutting_down")
            if self._coming and name not in self._coming:  # the other may be waiting for our place
                await asyncio.wait(list(self._coming.values()))
            entry = self.entries.get(name)
            if entry is not None and entry.worker is not None:
                break
            # Shielded: other requests may wait for this model when the client disconnects.
            await asyncio.shield(self._coming.get(name) or self._begin_to_bring(name))
        entry.users += 1
        usual = self._keep_alives.get(name, self.keep_alive)
        entry.keep_alive = usual if keep_alive is None else keep_alive
        return entry

    def release(self, entry: PooledModel) -> None:
        """Release the model: one request fewer uses it."""
        entry.users -= 1
        entry.used = time.monotonic()
        if entry.users == 0:
            asyncio.get_running_loop().create_task(self._notify())

    async def forget(self, name: str) -> None:
        """Unload a model whose files or settings change. Raises a 409 while requests use it."""
        async with self._changing:
            for entry in self.loaded():
                if entry.name.casefold().removesuffix(":latest") != name.casefold():
                    continue
                if entry.users:
                    raise errors.HTTPError(
                        409, f"{entry.name} is in use; try again when its answers are complete."
                    )
                await self._unload(entry)

    async def unload_idle(self) -> None:
        """Unload models whose keep-alive has expired, checking every second. Never returns."""
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            for entry in self.loaded():
                kept = entry.keep_alive
                if entry.users or kept is None or kept < 0 or now - entry.used < kept:
                    continue
                async with self._changing:
                    if entry.users == 0 and entry.worker is not None:
                        await self._unload(entry)

    async def close(self) -> None:
        """Unload every model; requests that still run fail."""
        self._closing = True
        for entry in self.loaded():
            await self._unload(entry)

    def _begin_to_bring(self, name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._bring(name))
        self._coming[name] = task

        def arrived(task: asyncio.Task[None]) -> None:
            self._coming.pop(name, None)
            if not task.cancelled():
                task.exception()  # marks it as retrieved; whoever waits for the task gets it, too

        task.add_done_callback(arrived)
        return task

    async def _bring(self, name: str) -> None:
        """Load the model, and unload others to make room for it."""
        async with self._changing:
            while len(self.loaded()) >= self.max_loaded:
                await self._unload(await self._idle())
            while not await self._fits(name):
                await self._unload(await self._idle())

    async def _fits(self, name: str) -> bool:
        """Load the model; return False if there was not enough memory besides the loaded ones."""
        try:
            await self._loaded(name)
        except NotEnoughMemoryError:
            if not self.loaded():
                raise
            return False
        return True

    async def _loaded(self, name: str) -> None:
        began = time.monotonic()
        log.info("loading %s", name)

        def load() -> LLM:
            llm = self._load(self.source(name))
            llm.request_builder.prepare()
            return llm

        self.loading = Loading(name)
        try:
            llm = await self._on_a_thread(load)
        finally:
            self.loading = None
        on_news = None if self._on_news is None else partial(self._on_news, name)
        entry = PooledModel(name, Workers(llm, on_news=on_news), keep_alive=self.keep_alive)
        entry.load_seconds = time.monotonic() - began
        self.entries[name] = entry
        log.info("loaded %s in %.1f s", name, entry.load_seconds)

    async def _idle(self) -> PooledModel:
        """Return the least recently used model that nobody uses, waiting until there is one."""
        while True:
            for entry in reversed(self.loaded()):
                if entry.users == 0:
                    return entry
            async with self._freed:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._freed.wait(), 1.0)

    async def _unload(self, entry: PooledModel) -> None:
        worker, entry.worker = entry.worker, None
        self.entries.pop(entry.name, None)
        if worker is None:
            return
        log.info("unloading %s", entry.name)
        await asyncio.get_running_loop().run_in_executor(None, worker.close)
        del worker
        is_frozen = gc.get_freeze_count() > 0
        gc.unfreeze()
        gc.collect()
        if is_frozen:
            gc.freeze()
        kernels.release_free_memory()

    async def _notify(self) -> None:
        async with self._freed:
            self._freed.notify_all()

    def _on_a_thread(self, work: Callable[[], LLM]) -> asyncio.Future[LLM]:
        """Run `work` on a daemon thread and return its future.

        Unlike an executor's thread, nobody waits for it at exit: it may have 100 GB left to read,
        and cannot be told to stop.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[LLM] = loop.create_future()

        def finish(set_it: Callable[[], None]) -> None:
            if not future.done():  # it is cancelled at the server's end
                set_it()

        def run() -> None:
            try:
                set_it = partial(future.set_result, work())
            except BaseException as error:
                set_it = partial(future.set_exception, error)
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(finish, set_it)

        self._loader = threading.Thread(target=run, name="dure load", daemon=True)
        self._loader.start()
        return future
