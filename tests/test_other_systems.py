"""What Windows and macOS lack is missed by no module: the tests run on Linux, and hide it."""

from __future__ import annotations

import ast
import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dure.formats.source import SourceFile
from dure.server.run import _call_at

PACKAGE = Path(__file__).parent.parent / "src" / "dure"
POSIX_MODULES = {"fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "syslog", "posix"}
POSIX_FUNCTIONS = {
    *("pread", "preadv", "pwritev", "pwrite", "sched_getaffinity", "sched_setaffinity", "fork"),
    *("posix_fadvise", "posix_fallocate", "sysconf", "statvfs", "uname", "getuid", "geteuid"),
    *(
        "mkfifo",
        "killpg",
        "setsid",
        "getloadavg",
        "set_blocking",
        "nice",
        "getpgid",
        "copy_file_range",
    ),
}
GUARDED_BY_FILES = {"machine.py", "metering/rapl.py", "planning/measure.py"}
"""They call these after they have read a file of /proc or /sys, which no other system has."""
NOT_ON_WINDOWS = {"chat/template.py"}
"""They need more than a guard there: docs/guides/install.md says so."""


def imports_at_once(body: list[ast.stmt]) -> Iterator[str]:
    """The modules that are imported with a module, whatever the system is."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.With | ast.ClassDef):
            yield from imports_at_once(node.body)


def guards(source: str) -> bool:
    return "hasattr(os," in source or "sys.platform" in source or "except AttributeError" in source


def used_unguarded(text: str, tree: ast.Module) -> Iterator[str]:
    """The functions that call what only POSIX's os has, and do not ask first."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        used = {
            node.attr
            for node in ast.walk(function)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
        }
        if used & POSIX_FUNCTIONS and not guards(ast.get_source_segment(text, function) or ""):
            yield function.name


def test_what_only_posix_has_is_asked_for_with_care() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(PACKAGE).as_posix()
        tree = ast.parse(text)
        assert POSIX_MODULES.isdisjoint(imports_at_once(tree.body)), name
        if name not in GUARDED_BY_FILES | NOT_ON_WINDOWS and "os." in text:
            assert list(used_unguarded(text, tree)) == [], name


def test_a_file_is_read_without_preadv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 40
    path = tmp_path / "file"
    path.write_bytes(data)
    monkeypatch.delattr(os, "preadv")
    monkeypatch.setattr("dure.formats.source._MOST_AT_ONCE", 100)
    source, wrong = SourceFile(path), []

    def read(start: int) -> None:
        for _ in range(50):
            if source.read(start, 999).tobytes() != data[start : start + 999]:
                wrong.append(start)

    threads = [threading.Thread(target=read, args=(start,)) for start in (0, 3, 5000)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert wrong == []


def test_a_loop_without_signal_handlers_hears_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise NotImplementedError

    async def wait() -> None:
        loop, came = asyncio.get_running_loop(), asyncio.Event()
        monkeypatch.setattr(loop, "add_signal_handler", none)
        before = signal.getsignal(signal.SIGTERM)
        _call_at(signal.SIGTERM, came.set, loop)
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(came.wait(), 60)
        finally:
            signal.signal(signal.SIGTERM, before)

    asyncio.run(wait())
