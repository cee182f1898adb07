"""Public names of before 0.2 work for one minor version, with a warning."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest

import dure.chat
from dure.llm import LLM


@pytest.mark.parametrize(
    ("former", "now"),
    [
        ("question", "prepare"),
        ("questions", "request_builder"),
        ("begin", "driver.begin"),
        ("answer", "driver.answer"),
        ("step", "driver.step"),
        ("abandon", "driver.abandon"),
        ("lock", "driver.lock"),
    ],
)
def test_a_former_name_of_an_llm_is_its_new_one(former: str, now: str) -> None:
    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getattr__(self, name: str) -> Named:
            return Named(f"{self.name}.{name}")

    llm: Any = LLM.__new__(LLM)
    llm.driver, llm.request_builder, llm.prepare = (
        Named(each) for each in ("driver", "request_builder", "prepare")
    )
    with pytest.warns(DeprecationWarning, match=f"LLM.{former} is LLM.{now} now"):
        assert getattr(llm, former).name == now


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'driver'"):
        _ = LLM.__new__(LLM).driver


@pytest.mark.parametrize(
    ("module", "names"),
    [("dure.measure", ["speed", "perplexity"]), ("dure.answer", ["Chunk", "Completion"])],
)
def test_a_former_module_has_its_names(module: str, names: list[str]) -> None:
    sys.modules.pop(module, None)
    with pytest.warns(DeprecationWarning):
        imported = importlib.import_module(module)
    assert all(hasattr(imported, name) for name in names)


@pytest.mark.parametrize("name", ["ChatRequest", "Format", "Thinking", "ToolChoice"])
def test_request_types_are_found_where_they_were(name: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"Import {name} from dure"):
        assert getattr(dure.chat, name) is getattr(dure, name)
