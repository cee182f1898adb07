"""dure plan: a page of one model, a table of several, the catalogue in order, and JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from outcome import Dure

from dure import hub, machine
from dure.cli import before_download, plan_picture
from dure.errors import DownloadError
from dure.planning import figures, measure
from dure.planning.machine import ROWS, AttentionSpeed, Machine, write_machine
from dure.planning.plan import Wish, plan_model

SMALL = Machine(
    processor="a small one",
    isa="avx2",
    threads=2,
    kernels="none",
    memory_bytes=2_000_000_000,
    read_bytes_s_1=1e10,
    read_bytes_s=1.6e10,
    gops={name: (40.0,) * len(ROWS) for name in ("Q4_K", "Q6_K", "Q8_0", "Q5_0", "Q4_1", "F32")},
    attention={
        f"f16 {rows}": AttentionSpeed((1, 8), (20.0, 60.0), (40.0, 120.0))
        for rows in ("one", "many")
    },
    layer_s=1e-5,
    element_s=1e-10,
    step_s=1e-4,
    disk_bytes_s=1e9,
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is here, 8 GB are free, and the machine has been measured."""
    monkeypatch.setattr(measure, "this_machine", lambda **_: SMALL)
    monkeypatch.setattr(measure, "kept_machine", lambda: None)
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


def test_a_page_says_how_fast_the_model_is(dure_command: Dure) -> None:
    out = dure_command("plan", "qwen3:0.6b").out
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    assert [text for label, text in lines if label == "prompts"]
    assert ["1", "8", "32"] == [label for label, text in lines if text.startswith("stream")]


def test_a_page_says_what_a_million_tokens_take_and_cost(dure_command: Dure) -> None:
    unknown = dure_command("plan", "qwen3:0.6b").out
    assert "energy     unknown: name the machine's watts" in unknown
    asked = ("--watts", "10,60", "--price", "hour=0.36,currency=EUR", "--json")
    cost = json.loads(dure_command("plan", "qwen3:0.6b", *asked).out)["cost"]
    for part in (cost["input"], *cost["output"].values()):
        assert part["joules"] == pytest.approx(60 * part["seconds"])
        assert part["money"] == pytest.approx(part["seconds"] * 0.36 / 3600)
    assert "estimated" in cost["energy"]
    page = dure_command("plan", "qwen3:0.6b", *asked[:-1]).out
    assert "money      EUR " in page
    energy = next(line for line in page.splitlines() if line.startswith("energy"))
    assert " J " not in energy
    assert energy.count(" kWh ") == 1 + len(cost["output"])
    assert f"{cost['input']['joules'] / 3.6e6:#.3g} kWh in, " in energy


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0"),
        (0.0099975, "0.0100"),
        (0.085, "0.0850"),
        (9.996, "10.0"),
        (123.4, "123"),
        (1_234.5, "1,230"),
        (99_960, "100,000"),
        (0.0000123456, "0.0000123"),
    ],
)
def test_a_figure_has_three_digits_and_no_exponent(value: float, said: str) -> None:
    assert figures.significant(value) == said


def test_a_model_that_ollama_has_not_is_no_plan_and_no_question_to_a_hub(
    dure_command: Dure,
) -> None:
    done = dure_command("plan", "ollama:no-such-model")
    assert done.code == 1
    assert "Ollama has no no-such-model on this machine." in done.err
    assert "hint: `ollama pull no-such-model` downloads it" in done.err


def test_a_plan_for_another_machine_has_its_speed_and_its_memory(
    dure_command: Dure, tmp_path: Path
) -> None:
    path = tmp_path / "other.json"
    write_machine(SMALL, path)
    done = dure_command("plan", "qwen3:8b", "--machine", str(path), "--json")
    plan = json.loads(done.out)
    assert plan["memory"]["available_bytes"] == SMALL.memory_bytes
    assert not plan["fits"]
    assert plan["speed"] is None


def test_a_file_of_a_machine_that_lacks_what_a_model_needs_says_so(
    dure_command: Dure, tmp_path: Path
) -> None:
    path = tmp_path / "other.json"
    write_machine(replace(SMALL, attention={"f16 one": SMALL.attention["f16 one"]}), path)
    done = dure_command("plan", "qwen3:0.6b", "--machine", str(path))
    assert done.code == 1
    assert "how fast attention of 'f16 many' is" in done.err


def test_this_machine_is_written_for_others_to_plan_with(
    dure_command: Dure, tmp_path: Path
) -> None:
    path = tmp_path / "this.json"
    done = dure_command("plan", "--save-machine", str(path))
    assert (done.code, done.out) == (0, "")
    assert "a small one, 2 threads" in done.err
    again = dure_command("plan", "smollm2:135m", "--machine", str(path), "--json")
    assert json.loads(again.out)["speed"]["decode"]["1"]["0"] > 0


@pytest.mark.parametrize("path", ["out.svg", "-"])
def test_a_picture_needs_a_library_that_is_an_extra(
    dure_command: Dure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str
) -> None:
    for name in ("matplotlib", "matplotlib.figure", "plotext"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.chdir(tmp_path)
    done = dure_command("plan", "smollm2:135m", "--plot", path)
    assert done.code == 1
    assert "is not installed" in done.err
    assert "dure[plot]" in done.err


def test_a_picture_of_another_form_is_refused(dure_command: Dure) -> None:
    assert "out.jpeg" in dure_command("plan", "smollm2:135m", "--plot", "out.jpeg").err


def test_a_picture_shows_speed_by_depth_and_by_users() -> None:
    plan = plan_model("smollm2:135m", Wish(available=8 << 30), machine=SMALL)
    by_depth, by_users = plan_picture.series(plan)
    assert list(by_depth) == [0, 4096]  # its context is 8,192
    assert by_depth[0] > by_depth[4096]
    assert list(by_users) == [1, 8, 32]


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


def test_the_catalogue_is_listed_in_the_order_in_which_it_runs_well(
    dure_command: Dure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fits and is quick comes first, then what is slower, then what is read from disk."""
    whole = hub.load_catalogue()
    names = ("smollm2:135m", "qwen3:30b-a3b", "qwen3:8b", "qwen3:0.6b")
    entries = tuple(entry for name in names if (entry := whole.find(name)))
    monkeypatch.setattr(hub, "load_catalogue", lambda: replace(whole, entries=entries))
    rows = [line.split() for line in dure_command("plan").out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["qwen3:0.6b", "smollm2:135m", "qwen3:8b", "qwen3:30b-a3b"]
    assert ["disk" in row for row in rows] == [False, False, False, True]


@pytest.mark.parametrize(("currency", "said"), [("cny", "CNY"), ("USD", "USD")])
def test_prices_are_shown_in_a_currency_with_the_rate_and_its_date(
    dure_command: Dure, currency: str, said: str
) -> None:
    out = dure_command("plan", "qwen3:8b", "--currency", currency).out
    assert f"{said} in" in out
    assert ("7.051 yuan a dollar, of 2024-09-24" in out) == (said == "CNY")


def test_a_currency_without_prices_is_refused(dure_command: Dure) -> None:
    assert "USD and CNY" in dure_command("plan", "qwen3:8b", "--currency", "EUR").err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rate", "7.1"), "add --currency USD or --currency CNY"),
        (("--rate", "0", "--currency", "CNY"), "0 yuan a dollar is no rate"),
        (("--rate", "nan", "--currency", "USD"), "nan yuan a dollar is no rate"),
    ],
)
def test_a_rate_that_converts_nothing_is_refused(
    dure_command: Dure, options: tuple[str, ...], said: str
) -> None:
    done = dure_command("plan", "smollm2:135m", *options)
    assert done.code == 1 and said in done.err


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


def test_before_a_download_a_hub_that_does_not_answer_is_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[hub.Timeouts] = []

    def plan(*_: Any, patience: hub.Timeouts, **__: Any) -> None:
        asked.append(patience)
        raise DownloadError("The hub does not answer.")

    monkeypatch.setattr("dure.planning.plan.plan_model", plan)
    before_download.tell_plan("org/of-nobody", context=None, budget=None, quantize=None)
    [patience] = asked
    assert patience.answer_s <= 5
    assert patience.attempts == 1
