"""Chat in several tabs for a while, and see that nothing grows, fails, or is asked elsewhere.

    python tests/browser/soak.py --minutes 30 --tabs 8
    python tests/browser/soak.py --url http://127.0.0.1:8000     a real server, with its model

Each tab asks, stops, regenerates, edits, reloads and begins anew, by a draw that --seed fixes. It
prints a line a minute, and ends with 1 if there was an error, a request to elsewhere, a tab without
an answer for two minutes, or a tab that holds twice the memory that it held after the first fifth.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import TimeoutError as NotInTimeError

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "src")]

from browsing import DESK, FLAGS, Watched, chromium_path  # noqa: E402 - found by the line above
from hostile import ANSWERS  # noqa: E402
from scripted import Scripted  # noqa: E402

TURNS = 12  # of a conversation at most; then a new one
SLOW_S = 120.0
GROWTH = 2.0
WORDS = "Some words of an *answer* with `code` in it, and a [link](https://example.invalid/). "


class Tab:
    """One tab, and what it is doing."""

    def __init__(self, watched: Watched, number: int, draw: random.Random) -> None:
        self.page = watched.open()
        self.number = number
        self.draw = draw
        self.turns = 0
        self.answers = 0
        self.since = time.monotonic()
        self.client = watched.context.new_cdp_session(self.page)
        self.client.send("Performance.enable")

    def act(self) -> None:
        """Do the next thing, if the last answer is over."""
        page = self.page
        if page.locator("#stop").is_visible():
            if self.draw.random() < 0.05:
                # The answer may end before the pointer is there, and the button goes with it.
                with contextlib.suppress(NotInTimeError):
                    page.locator("#stop").click(timeout=2000)
            return
        self.since = time.monotonic()
        self.answers += 1
        if self.turns >= TURNS:
            self.turns = 0
            page.press("#input", "Control+Shift+O")
            page.wait_for_selector("article", state="detached")
        what = self.draw.random()
        if what < 0.15 and self.turns:
            page.locator('.actions button:text-matches("Regenerate|Try again")').last.click()
        elif what < 0.25 and self.turns:
            page.locator('.actions button:text-is("Edit")').last.click()
            page.fill(".editing", f"Edited {self.answers}")
            page.press(".editing", "Control+Enter")
        elif what < 0.28:
            page.reload()
        else:
            self.turns += 1
            page.fill("#input", f"Tab {self.number}, question {self.answers}: tell me more.")
            page.press("#input", "Enter")

    def heap(self) -> float:
        """Megabytes of the tab's scripts, after a collection."""
        self.client.send("HeapProfiler.collectGarbage")
        metrics = {
            each["name"]: each["value"]
            for each in self.client.send("Performance.getMetrics")["metrics"]
        }
        return float(metrics["JSHeapUsedSize"]) / 1e6


def answers(running: Scripted, draw: random.Random) -> None:
    """Keep answers ready, of all kinds: short, long, hostile."""
    while len(running.answers) < 16:
        kind = draw.random()
        if kind < 0.15:
            text = draw.choice(ANSWERS)[:50_000]
        else:
            text = "\n\n".join([WORDS * draw.randint(1, 6)] * draw.randint(1, 12))
        running.script(("progress", 50, 0, 100), ("reasoning", WORDS), ("content", text))
    del running.bodies[:-1], running.headers[:-1], running.controls[:-1]


def soak(context: Any, options: argparse.Namespace, running: Scripted | None) -> list[str]:
    """Chat for the time that was asked for; return what was wrong."""
    draw = random.Random(options.seed)
    watched = Watched(context, options.url or running.url)  # type: ignore[union-attr]
    tabs = [Tab(watched, number, random.Random(draw.random())) for number in range(options.tabs)]
    began = time.monotonic()
    end = began + 60 * options.minutes
    settled: list[float] = []
    said = began
    while time.monotonic() < end:
        for tab in tabs:
            if running is not None:
                answers(running, draw)
            tab.act()
        slow = [tab.number for tab in tabs if time.monotonic() - tab.since > SLOW_S]
        if slow:
            return [f"no answer for {SLOW_S:.0f} s in the tabs {slow}"]
        if not settled and time.monotonic() - began > 12 * options.minutes:
            settled = [tab.heap() for tab in tabs]
        if time.monotonic() - said >= 60:
            said = time.monotonic()
            total = sum(tab.answers for tab in tabs)
            heaps = ", ".join(f"{tab.heap():.0f}" for tab in tabs)
            print(f"{(said - began) / 60:.0f} min: {total} answers; MB: {heaps}", flush=True)
        time.sleep(0.05)
    last = [tab.heap() for tab in tabs]
    wrong = [
        f"tab {number} holds {now:.0f} MB, after {before:.0f}"
        for number, (before, now) in enumerate(zip(settled, last, strict=True))
        if now > GROWTH * before + 10
    ]
    with contextlib.suppress(AssertionError):
        watched.check()
        return wrong
    return [*wrong, *watched.foreign[:5], *watched.errors[:5], *watched.dialogs[:5]]


def main() -> int:
    """Run it; returns 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--tabs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--url", help="a server that runs; without it, a scripted one")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - an extra

    with contextlib.ExitStack() as stack:
        running = None if options.url else stack.enter_context(Scripted())
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=list(FLAGS))
        wrong = soak(browser.new_context(viewport=DESK), options, running)
        browser.close()
    for each in wrong:
        print(f"wrong: {each}")
    print("nothing was wrong" if not wrong else f"{len(wrong)} things were wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
