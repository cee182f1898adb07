"""The pages in a real browser: Chromium, by Playwright.

`pytest tests/browser` runs these tests; `pytest` alone does not. They need what
`pip install '.[browser]'` brings, and Debian's chromium or another ($DURE_CHROMIUM is its path).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import DESK, FLAGS, Watched, chromium_path
from scripted import Scripted

SERVER_TESTS = Path(__file__).parent.parent / "server"


def _fixtures_of_the_server() -> Any:
    """Load the conftest of tests/server, whose fixtures pytest gives to that folder alone."""
    sys.path.insert(0, str(SERVER_TESTS))
    spec = importlib.util.spec_from_file_location("server_fixtures", SERVER_TESTS / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["server_fixtures"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


serve = _fixtures_of_the_server().serve


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser of its own, without a profile."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - an extra

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def running() -> Iterator[Scripted]:
    """The pages of this checkout, before an API that says what a test tells it to."""
    with Scripted() as running:
        yield running


@pytest.fixture
def server(running: Scripted) -> Scripted:
    """The same, as if it had just begun."""
    running.reset()
    return running


@pytest.fixture
def tabs(chromium: Any, server: Scripted) -> Iterator[Watched]:
    """Tabs of a new profile on the scripted server; the end checks that nothing went wrong."""
    context = chromium.new_context(viewport=DESK, locale="en-GB", accept_downloads=True)
    watched = Watched(context, server.url)
    yield watched
    context.close()
    watched.check()


@pytest.fixture
def page(tabs: Watched, server: Scripted) -> Any:
    """The chat, open and with its models."""
    page = tabs.open()
    page.wait_for_selector("#model option", state="attached")
    return page
