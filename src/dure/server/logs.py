"""The server's log in a file: a JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import nullcontext
from datetime import datetime, timezone
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from dure.errors import InvalidRequestError

FIELDS = "fields"
"""The attribute of a log record that holds what its line says, by name: `extra={FIELDS: {…}}`."""


class JsonLines(logging.Formatter):
    """Formats a record as JSON: time (UTC), level, logger, message, the record's fields, error."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.fromtimestamp(record.created, timezone.utc)
        line: dict[str, Any] = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.casefold(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class LogFile(WatchedFileHandler):
    """A file of the log. If it cannot be opened again after it was moved, or not be written, that
    is said once: requests go on, and so does the log as soon as it can.
    """

    _failing = False

    def reopen(self) -> None:
        """Let go of the file, which may have been moved, and open one of its name."""
        with self.lock or nullcontext():
            try:
                if self.stream is not None:
                    self.stream.close()
                self.stream = self._open()
                self._statstream()
            except OSError as error:  # `emit` tries again
                self.stream = None
                print(f"{self.baseFilename} cannot be opened: {error.strerror}", file=sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; never raises."""
        try:
            self.reopenIfNeeded()
            if self.stream is None:
                self.stream = self._open()
                self._statstream()
            self.stream.write(self.format(record) + self.terminator)
            self.stream.flush()
            self._failing = False
        except (OSError, ValueError) as error:
            if not self._failing:
                said = getattr(error, "strerror", None) or error
                print(f"{self.baseFilename} cannot be written: {said}", file=sys.stderr)
            self._failing = True


def set_up(*, verbose: bool, file: Path | None = None) -> None:
    """Log warnings to stderr, with `verbose` a line per request, too; to the file all of that.

    Raises InvalidRequestError for a file that cannot be written.
    """
    logging.basicConfig(handlers=handlers(verbose=verbose, file=file), level=logging.WARNING)
    told = verbose or file is not None
    logging.getLogger("dure.server").setLevel(logging.INFO if told else logging.WARNING)


def reopen_files() -> None:
    """Open the log's files again, as logrotate asks for with SIGHUP."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogFile):
            handler.reopen()


def handlers(*, verbose: bool, file: Path | None) -> list[logging.Handler]:
    """Return what writes to stderr and, if there is one, to the file.

    The file is opened again after it was moved, as logrotate does.
    """
    shown = logging.StreamHandler()
    shown.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    shown.setLevel(logging.INFO if verbose else logging.WARNING)
    if file is None:
        return [shown]
    try:
        kept = LogFile(file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InvalidRequestError(f"{file} cannot be written: {error.strerror}.") from None
    kept.setFormatter(JsonLines())
    return [shown, kept]
