"""The ledger: what is in the file when, after a kill, beside another server, and in reports."""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import replace
from datetime import date, datetime, timezone
from pathlib import Path

import pytest

from dure.errors import InvalidRequestError
from dure.metering.ledger import Closed, Ledger, Opened
from dure.metering.report import report

DAY = datetime(2026, 3, 1, 23, 0, tzinfo=timezone.utc).timestamp()
DONE = Closed(DAY + 5, "stop", 10, 4, 2, 20, 5.0, 1.0, 2.0, 30.0, "rapl", 0.5, "EUR")


def wrote(act, *arguments: object) -> None:
    """Nothing; once it is in the file."""
    done = threading.Event()
    act(*arguments, done.set)
    assert done.wait(60)


def rows(path: Path) -> list[tuple]:
    file = sqlite3.connect(path)
    try:
        return file.execute("SELECT id, key, end, output FROM requests ORDER BY id").fetchall()
    finally:
        file.close()


def test_a_row_is_in_the_file_when_it_says_so(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(path)
    wrote(ledger.begin, Opened("a", DAY, "ada", "m"))
    assert rows(path) == [("a", "ada", None, 0)]
    wrote(ledger.end, "a", DONE)
    assert rows(path) == [("a", "ada", "stop", 20)]
    ledger.close()
    assert path.stat().st_mode & 0o077 == 0


def test_rows_left_open_are_lost_at_the_next_start_which_says_which(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(path)
    for name in "abc":
        wrote(ledger.begin, Opened(name, DAY, "ada", "m"))
    wrote(ledger.end, "b", DONE)
    ledger.forget("c")
    ledger.close()  # which leaves what runs open, as a kill does
    again = Ledger(path)
    assert [each.id for each in again.lost] == ["a"]
    again.close()
    assert rows(path) == [("a", "ada", "lost", 0), ("b", "ada", "stop", 20)]
    third = Ledger(path)
    assert third.lost == []
    assert third.used("ada", DAY) == (30, 0.5)
    assert third.used("ada", DAY + 1) == (0, 0.0)
    third.close()


def test_two_servers_do_not_share_a_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    with pytest.raises(InvalidRequestError, match="Another server"):
        Ledger(tmp_path / "ledger.db")
    ledger.close()
    Ledger(tmp_path / "ledger.db").close()


def test_a_file_that_is_no_ledger_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    text, other = tmp_path / "text", tmp_path / "other.db"
    text.write_text("no database, but a text that is longer than the head of one would be" * 9)
    file = sqlite3.connect(other)
    file.execute("CREATE TABLE x (y)")
    file.close()
    for path in (text, other, tmp_path / "no" / "folder.db"):
        before = path.read_bytes() if path.exists() else b""
        for use in (Ledger, lambda path: report(path, ["key"])):
            with pytest.raises(InvalidRequestError):
                use(path)
        assert before == (path.read_bytes() if path.exists() else b"")


def test_a_disk_that_takes_no_rows_holds_nobody_up_and_gets_them_later(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    ledger._file.execute("PRAGMA busy_timeout=1")
    other.execute("BEGIN IMMEDIATE")
    wrote(ledger.begin, Opened("a", DAY, "ada", "m"))
    assert ledger.errors == 1
    other.execute("COMMIT")
    other.close()
    wrote(ledger.end, "a", DONE)
    ledger.close()
    assert rows(tmp_path / "ledger.db") == [("a", "ada", "stop", 20)]


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "ledger.db"
    ledger = Ledger(path)
    for number, (key, model, hours, end) in enumerate(
        [
            ("ada", "m", 0, replace(DONE)),
            ("ada", "m", 2, replace(DONE, end="abort", joules=None, energy="unknown")),
            ("ada", "n", 2, replace(DONE, energy="estimated (tdp)")),
            ("bob", "m", 2, replace(DONE, end="length", currency="USD")),
            ("bob", "m", 2, None),
        ]
    ):
        wrote(ledger.begin, Opened(str(number), DAY + 3600 * hours, key, model))
        if end is not None:
            wrote(ledger.end, str(number), end)
    ledger.close()
    return path


def test_a_report_sums_by_what_is_asked(ledger: Path) -> None:
    lines = report(ledger, ["key"])
    assert [(line.group, line.requests, line.output, line.money) for line in lines] == [
        (("ada",), 3, 60, 1.5),
        (("bob",), 1, 20, 0.5),
    ]
    [ada, bob] = lines
    assert (ada.unfinished, ada.unknown, ada.joules) == (1, 1, 60.0)
    assert (bob.currency, bob.unfinished) == ("USD", 0)
    days = report(ledger, ["day", "model"])
    assert [line.group for line in days] == [
        ("2026-03-01", "m"),
        ("2026-03-02", "m"),
        ("2026-03-02", "m"),  # of the other currency
        ("2026-03-02", "n"),
    ]
    assert sum(line.requests for line in report(ledger, [])) == 4


def test_a_report_is_of_the_days_asked_for(ledger: Path) -> None:
    first = date(2026, 3, 1)
    assert [line.requests for line in report(ledger, [], until=first)] == [1]
    assert sum(line.requests for line in report(ledger, [], since=date(2026, 3, 2))) == 3
    assert report(ledger, [], since=date(2026, 3, 3)) == []
    with pytest.raises(InvalidRequestError, match="by key, model, day"):
        report(ledger, ["week"])
