"""Chromium as these tests and the soak start it, and what is watched in it."""

from __future__ import annotations

import os
import shutil
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
WAIT_MS = 60_000.0  # a busy machine
DESK = {"width": 1100, "height": 760}


def chromium_path() -> str:
    """Return the path of a Chromium. Fails if there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("DURE_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    assert path is not None, "there is no chromium: `apt-get install chromium`, or $DURE_CHROMIUM"
    return path


class Watched:
    """A browser's context, and what went wrong in it: requests to elsewhere, errors, windows."""

    def __init__(self, context: Any, own: str) -> None:
        self.context = context
        self.own = own
        self.foreign: list[str] = []
        self.errors: list[str] = []
        self.dialogs: list[str] = []
        context.on("request", self._asked)
        context.on("page", self._opened)
        context.set_default_timeout(WAIT_MS)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.own, "blob:", "data:")):
            self.foreign.append(request.url)

    def _opened(self, page: Any) -> None:
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", self._spoke)
        page.on("console", self._said)

    def _said(self, message: Any) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.errors.append(message.text)

    def _spoke(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def open(self, path: str = "/") -> Any:
        """A new tab that shows this path."""
        page = self.context.new_page()
        page.goto(self.own + path)
        return page

    def check(self) -> None:
        """Fail if a page asked elsewhere, made an error, or opened a window."""
        assert not self.foreign, f"asked elsewhere: {self.foreign}"
        assert not self.errors, f"errors: {self.errors}"
        assert not self.dialogs, f"windows: {self.dialogs}"
