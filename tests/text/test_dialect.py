"""What a chat template's source shows of how its model writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from dure.text.dialect import dialect_of

TEMPLATES = Path(__file__).parent / "templates"


@pytest.mark.parametrize(
    "name, turns, thinking, tools",
    [
        ("smollm2", "ChatML", "", ""),
        ("qwen2.5", "ChatML", "", "Hermes"),
        ("qwen3", "ChatML", "switchable", "Hermes"),
        ("qwen3.5", "ChatML", "switchable", "XML functions"),
        ("deepseek-r1-distill", "DeepSeek", "switchable", "DeepSeek"),
        ("deepseek-v3.1", "DeepSeek", "switchable", "DeepSeek"),
    ],
)
def test_the_dialect_of_a_real_template(name: str, turns: str, thinking: str, tools: str) -> None:
    dialect = dialect_of((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))
    assert (dialect.turns, dialect.thinking, dialect.tools) == (turns, thinking, tools)


def test_a_template_that_shows_nothing_known_has_an_empty_dialect() -> None:
    dialect = dialect_of("{{ messages[0].content }}")
    assert (dialect.turns, dialect.thinking, dialect.tools) == ("", "", "")


def test_thoughts_without_a_switch_are_always_there() -> None:
    assert dialect_of("<｜User｜>{{ text }}<｜Assistant｜><think>").thinking == "always"
