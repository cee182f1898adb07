"""How an answer is shown on a terminal: thoughts dim or folded, then the answer."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import pytest
from outcome import Terminal

from dure.chat.dialects import Event
from dure.cli.answer_view import AnswerView
from dure.cli.wrapping import BOLD, DIM, RESET

EVENTS = [
    Event("reasoning", "\nLet me "),
    Event("reasoning", "see.\n"),
    Event("content", "\n\n"),
    Event("content", "It is **four**"),
    Event("content", ".\x1b[2J"),
]


OnTerminal = Callable[..., tuple[str, AnswerView]]


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> OnTerminal:
    """A function of events and options to what a terminal of 40 columns got, and the view."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def show(events: list[Event], **options: bool) -> tuple[str, AnswerView]:
        terminal = Terminal()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            view = AnswerView(**options)
            for event in events:
                view.show([event])
            view.end()
        return terminal.getvalue(), view

    return show


def bare(text: str) -> str:
    return re.sub(r"\x1b\[\d+m", "", text)


def test_thoughts_stand_dim_before_the_answer(on_terminal: OnTerminal) -> None:
    text, view = on_terminal(EVENTS)
    assert bare(text) == "Thinking …\nLet me see.\n… thought for 0 s\n\nIt is four.[2J\n"
    assert text.startswith(f"{DIM}Thinking …{RESET}\n{DIM}Let{RESET}")
    assert f"{BOLD}four{RESET}" in text
    assert view.content == "\n\nIt is **four**.\x1b[2J"  # as the model wrote it


def test_folded_thoughts_are_a_line(on_terminal: OnTerminal) -> None:
    text, _ = on_terminal(EVENTS, fold=True)
    assert bare(text) == "(thought for 0 s)\n\nIt is four.[2J\n"


def test_words_are_wrapped_unless_the_terminal_shall(on_terminal: OnTerminal) -> None:
    words = [Event("content", "word " * 10)]
    lines = [line.strip() for line in on_terminal(words)[0].splitlines()]
    assert lines == [("word " * 8).strip(), ("word " * 2).strip()]
    whole, _ = on_terminal(words, wrap=False)
    assert whole.strip() == ("word " * 10).strip()


@pytest.mark.parametrize("name", ["NO_COLOR", "TERM"])
def test_a_terminal_without_styles_gets_the_marks(
    on_terminal: OnTerminal, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "dumb")
    assert on_terminal(EVENTS)[0] == (
        "Thinking …\nLet me see.\n… thought for 0 s\n\nIt is **four**.[2J\n"
    )


@pytest.mark.parametrize("fold", [False, True])
def test_an_answer_that_breaks_off_ends_its_line_and_its_thoughts(
    on_terminal: OnTerminal, fold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AnswerView, "end", AnswerView.break_off)
    assert on_terminal([])[0] == ""
    assert bare(on_terminal(EVENTS[:-1], fold=fold)[0]).endswith("It is four\n")
    thought, view = on_terminal(EVENTS[:1], fold=fold)
    assert bare(thought).endswith("thought for 0 s" + (")\n\n" if fold else "\n\n"))
    assert view._line is None  # else it would be drawn for ever


def test_a_completion_without_a_template_is_written_as_it_comes(on_terminal: OnTerminal) -> None:
    text, _ = on_terminal([Event("content", "**a** " * 10)], plain=True)
    assert text == "**a** " * 10 + "\n"
