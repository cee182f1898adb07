"""A chat's request to a scripted model over a real template: its prompt, and the answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fake_model import ByteTokenizer

from dure import LLM, SamplingParams
from dure.chat.request import ChatRequest

TEMPLATES = Path(__file__).parent / "templates"
MakeLLM = Callable[..., LLM]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}},
]
ASK = ({"role": "user", "content": "How is the weather?"},)
HERMES_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


def template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def prompt(llm: LLM, request: ChatRequest) -> str:
    return ByteTokenizer().decode(llm.prepare(request).token_ids)


def ask(llm: LLM, request: ChatRequest, **params: Any) -> Any:
    return list(llm.stream(request, SamplingParams(**params)))[-1].completion
