"""dure plan: a page of one model, a table of several, the catalogue in order, and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from outcome import Dure

from dure import machine
from dure.cli import before_download


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is here, and 8 GB are free."""
    monkeypatch.setenv("DURE_HOME", str(tmp_path / "dure"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setattr(machine, "memory_available", lambda: 8_000_000_000)


def test_one_model_is_a_page(dure_command: Dure) -> None:
    done = dure_command("plan", "qwen3:8b", "--context", "4096", "--users", "2")
    lines = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert done.code == 0
    assert lines["runs"].startswith("yes: 6.5 GB of 8.0 GB")
    assert lines["context"].startswith("4,096 tokens for 2 users; ")
    assert lines["cache"] == "1.2 GB: 147 kB a token"
    assert "Fireworks asks 0.2 USD in, 0.2 out" in lines["vendors"]
    assert "2026-09-25, https://" in lines["vendors"]


def test_a_page_as_json_has_every_number(dure_command: Dure) -> None:
    plan = json.loads(dure_command("plan", "qwen3:30b-a3b", "--memory", "6GB", "--json").out)
    memory = plan["memory"]
    assert (plan["fits"], plan["streams"], memory["budget"]) == (True, True, 6_000_000_000)
    assert memory["experts_kept"] < sum(memory["experts"].values())
    assert memory["reserved_bytes"] <= 6_000_000_000
    assert plan["origin"]["fetched_bytes"] == 0


def test_several_models_are_a_table_and_what_cannot_be_planned_is_named(
    dure_command: Dure,
) -> None:
    done = dure_command("plan", "qwen3:0.6b", "no-such-model", "qwen3:8b")
    head, *rows = done.out.splitlines()
    assert head.split()[:2] == ["MODEL", "PARAMETERS"]
    assert [row.split()[0] for row in rows] == ["qwen3:0.6b", "qwen3:8b", "no-such-model:"]
    assert done.code == 0


def test_a_single_model_that_there_is_not_is_an_error(dure_command: Dure) -> None:
    done = dure_command("plan", "no-such-model")
    assert done.code == 1
    assert "No model is called" in done.err


def test_the_catalogue_is_listed_in_the_order_in_which_it_runs_well(dure_command: Dure) -> None:
    rows = [line.split() for line in dure_command("plan").out.splitlines()[1:]]
    runs = ["disk" if "disk" in row else "yes" for row in rows]
    assert runs == sorted(runs, reverse=True)  # what runs whole comes first
    assert {"disk", "yes"} == {*runs}
    assert rows[0][0] == "qwen3:8b"


@pytest.mark.parametrize(("currency", "said"), [("cny", "CNY"), ("USD", "USD")])
def test_prices_are_shown_in_a_currency_with_the_rate_and_its_date(
    dure_command: Dure, currency: str, said: str
) -> None:
    out = dure_command("plan", "qwen3:8b", "--currency", currency).out
    assert f"{said} in" in out
    assert ("7.051 yuan a dollar, of 2024-09-24" in out) == (said == "CNY")


def test_a_currency_without_prices_is_refused(dure_command: Dure) -> None:
    assert "USD and CNY" in dure_command("plan", "qwen3:8b", "--currency", "EUR").err


def test_a_model_without_a_price_says_so(dure_command: Dure) -> None:
    assert "no price known" in dure_command("plan", "smollm2:135m").out


def test_run_says_what_a_model_needs_before_it_is_downloaded(dure_command: Dure) -> None:
    done = dure_command("run", "qwen3:0.6b", "hello")
    assert done.code == 0
    assert done.err.startswith("qwen3:0.6b: 639 MB to download, ")
    assert "It fits." in done.err


@pytest.mark.parametrize(
    ("answer", "stdin", "options", "downloads"),
    [
        (False, None, (), False),
        (True, None, (), True),
        (None, None, ("--yes",), True),  # not asked
        (None, b"", (), True),  # nor where nobody can answer
    ],
)
def test_run_asks_on_a_terminal_before_it_downloads_what_will_run_badly(
    dure_command: Dure,
    monkeypatch: pytest.MonkeyPatch,
    answer: bool | None,
    stdin: bytes | None,
    options: tuple[str, ...],
    downloads: bool,
) -> None:
    def confirm(*_: object, **__: object) -> bool:
        assert answer is not None, "nobody was to be asked"
        return answer

    monkeypatch.setattr(before_download.typer, "confirm", confirm)
    done = dure_command("run", "qwen3:30b-a3b", "hello", *options, stdin=stdin)
    assert "read from disk" in done.err
    assert bool(done.llms) == downloads
    assert done.code == (0 if downloads else 1)
