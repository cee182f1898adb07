"""The ledger: a row a request in SQLite, written when it begins and when it ends, on a thread.

A row is in the file before its request is computed, and its end before the last of the answer is
sent. So whoever kills the process loses no answer that a client has whole, and the rows that are
left open say which ones were running.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO

from dure.errors import InvalidRequestError

log = logging.getLogger("dure.server")

VERSION = 1
APPLICATION = 0x64757265  # "dure": SQLite's application_id
MAX_BATCH = 512  # rows of one transaction
MAX_UNWRITTEN = 100_000  # rows that are kept while the disk does not take them
BUSY_SECONDS = 5.0

COLUMNS = """
    id TEXT PRIMARY KEY, opened REAL NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL,
    closed REAL, end TEXT, prompt INTEGER NOT NULL DEFAULT 0, cached INTEGER NOT NULL DEFAULT 0,
    reasoning INTEGER NOT NULL DEFAULT 0, output INTEGER NOT NULL DEFAULT 0,
    seconds REAL NOT NULL DEFAULT 0, machine_s REAL NOT NULL DEFAULT 0,
    cpu_s REAL NOT NULL DEFAULT 0, joules REAL, energy TEXT NOT NULL DEFAULT '',
    money REAL NOT NULL DEFAULT 0, currency TEXT NOT NULL DEFAULT ''
"""
LOST = "lost"
"""The end of a request that ran when its process was killed."""


@dataclass(frozen=True)
class Opened:
    """A request that begins."""

    id: str  # the hexadecimal digits of the response's id
    opened: float  # seconds of the epoch
    key: str  # the key's name
    model: str


@dataclass(frozen=True)
class Closed:
    """How a request ended."""

    closed: float  # seconds of the epoch
    end: str  # "stop", "length", "abort" or "error"
    prompt: int  # tokens that were read, from the cache or not
    cached: int  # of them, from the cache
    reasoning: int  # of `output`
    output: int  # tokens that were written
    seconds: float  # from its beginning to its end, by the clock
    machine_s: float  # its share of the seconds of steps
    cpu_s: float
    joules: float | None
    energy: str  # how the joules were found
    money: float
    currency: str


@dataclass(frozen=True)
class _Write:
    sql: str
    values: tuple[object, ...]
    done: Callable[[], None]


class Ledger:
    """A file of requests. Methods may be called from any thread and never wait for the disk.

    `done` is called on the writing thread when the row is in the file, or could not be written,
    which is logged.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file; rows that a killed process left open become `lost`.

        Raises InvalidRequestError if it is no ledger, or another server writes it.
        """
        self.path = path
        self.lost: list[Opened] = []  # answers that ran when the last server was killed
        self.errors = 0  # writes that failed
        self._writes: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._kept: list[_Write] = []  # that the disk did not take
        self._lock = _locked(path)
        try:
            self._file = _open(path)
            self._mark_lost()
        except BaseException:
            self._lock.close()
            raise
        self._thread = threading.Thread(target=self._run, name="dure ledger", daemon=True)
        self._thread.start()

    def begin(self, row: Opened, done: Callable[[], None]) -> None:
        """Write that a request begins."""
        sql = "INSERT INTO requests (id, opened, key, model) VALUES (?, ?, ?, ?)"
        self._writes.put(_Write(sql, astuple(row), done))

    def end(self, row_id: str, row: Closed, done: Callable[[], None]) -> None:
        """Write how it ended."""
        sql = (
            "UPDATE requests SET closed=?, end=?, prompt=?, cached=?, reasoning=?, output=?, "
            "seconds=?, machine_s=?, cpu_s=?, joules=?, energy=?, money=?, currency=? WHERE id=?"
        )
        self._writes.put(_Write(sql, (*astuple(row), row_id), done))

    def forget(self, row_id: str) -> None:
        """Remove the row of a request that was refused after all."""
        self._writes.put(_Write("DELETE FROM requests WHERE id=?", (row_id,), lambda: None))

    def used(self, key: str, since: float) -> tuple[int, float]:
        """Return the tokens and the money of a key's requests that began at or after `since`.

        For the time before the first row is written.
        """
        sql = "SELECT SUM(prompt + output), SUM(money) FROM requests WHERE key=? AND opened>=?"
        tokens, money = self._file.execute(sql, (key, since)).fetchone()
        return int(tokens or 0), float(money or 0.0)

    def close(self) -> None:
        """Write what is left, and close the file."""
        self._writes.put(None)
        self._thread.join()
        self._file.close()
        self._lock.close()

    def _mark_lost(self) -> None:
        with self._file:
            rows = self._file.execute(
                "SELECT id, opened, key, model FROM requests WHERE end IS NULL ORDER BY opened"
            )
            self.lost = [Opened(*row) for row in rows]
            self._file.execute("UPDATE requests SET end=? WHERE end IS NULL", (LOST,))

    def _run(self) -> None:
        ended = False
        while not ended:
            batch = [self._writes.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < MAX_BATCH:
                    batch.append(self._writes.get_nowait())
            ended = None in batch
            self._write([each for each in batch if each is not None])

    def _write(self, batch: list[_Write]) -> None:
        """Write the rows in one transaction. What fails is tried again with the next batch."""
        try:
            with self._file:
                for each in (*self._kept, *batch):
                    self._file.execute(each.sql, each.values)
            self._kept.clear()
        except sqlite3.Error as error:
            self.errors += 1
            self._kept = [*self._kept, *batch][-MAX_UNWRITTEN:]
            log.error("the ledger %s takes no rows, %d wait: %s", self.path, len(self._kept), error)
        for each in batch:
            each.done()


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a ledger to read it, while a server may write it.

    Raises InvalidRequestError if there is none, or the file is something else.
    """
    if not path.is_file():
        raise InvalidRequestError(
            f"There is no ledger {path}.", hint="`dure serve --ledger FILE` writes one"
        )
    try:
        file = sqlite3.connect(path, timeout=BUSY_SECONDS)
        try:
            file.execute("PRAGMA query_only=ON")
            _check(file, path)
            yield file
        finally:
            file.close()
    except sqlite3.Error as error:
        raise _unusable(path, error) from None


def _open(path: Path) -> sqlite3.Connection:
    try:
        is_new = not path.exists() or path.stat().st_size == 0
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # names, and what they used
        file = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False)
    except OSError as error:
        raise InvalidRequestError(f"{path} cannot be written: {error.strerror}.") from None
    try:
        if not is_new:
            _check(file, path)
        # WAL: readers do not wait. NORMAL: a row is with the system when it is written, so that a
        # killed process loses none; a power cut may lose the newest, and damages nothing.
        file.execute("PRAGMA journal_mode=WAL")
        file.execute("PRAGMA synchronous=NORMAL")
        with file:
            file.execute(f"CREATE TABLE IF NOT EXISTS requests ({COLUMNS})")
            file.execute("CREATE INDEX IF NOT EXISTS by_key ON requests (key, opened)")
            file.execute(f"PRAGMA application_id={APPLICATION}")
            file.execute(f"PRAGMA user_version={VERSION}")
    except sqlite3.Error as error:
        file.close()
        raise _unusable(path, error) from None
    except BaseException:
        file.close()
        raise
    return file


def _check(file: sqlite3.Connection, path: Path) -> None:
    (application,) = file.execute("PRAGMA application_id").fetchone()
    (version,) = file.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION:
        raise InvalidRequestError(f"{path} is a database, but no ledger of dure's.")
    if version != VERSION:
        raise InvalidRequestError(
            f"{path} is a ledger of version {version}, and this dure knows version {VERSION}.",
            hint="take another file, or the dure that wrote it",
        )


def _unusable(path: Path, error: sqlite3.Error) -> InvalidRequestError:
    return InvalidRequestError(
        f"{path} cannot be used as a ledger: {error}.", hint="give another file"
    )


def _locked(path: Path) -> IO[bytes]:
    """Take the lock of the ledger, FILE.lock: two servers would call each other's answers lost."""
    try:
        file = path.with_name(path.name + ".lock").open("ab")
    except OSError as error:
        raise InvalidRequestError(f"{path} cannot be written: {error.strerror}.") from None
    try:
        import fcntl  # noqa: PLC0415 - Windows has none

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError:
        file.close()
        raise InvalidRequestError(
            f"Another server writes the ledger {path}.", hint="give each a ledger of its own"
        ) from None
    return file
