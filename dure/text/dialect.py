"""How a model writes turns, thoughts and tool calls, as far as its chat template shows it."""

from __future__ import annotations

from dataclasses import dataclass

# What a template of each kind contains; the first that is found counts.
_TURNS = (
    ("<｜hy_User｜>", "Hunyuan"),
    ("<|hy_User|>", "Hunyuan"),
    ("<｜User｜>", "DeepSeek"),
    ("<|start_header_id|>", "Llama 3"),
    ("<|im_start|>", "ChatML"),
    ("]~b]", "MiniMax"),
    ("[unused9]", "openPangu"),
    ("<|begin_of_sentence|>", "ERNIE"),
    ("[INST]", "Llama 2"),
)
_TOOLS = (
    ("<｜tool▁call▁begin｜>", "DeepSeek"),
    ("minimax:tool_call", "MiniMax"),
    ("<function=", "XML functions"),
    ("<tool_call>", "Hermes"),
    ("[TOOL_CALLS]", "Mistral"),
    ("ipython", "Llama 3"),
)


@dataclass(frozen=True)
class Dialect:
    """What a template shows; each text is empty where it shows nothing that we know."""

    turns: str  # "ChatML"
    thinking: str  # "", "always" or "switchable"
    tools: str  # "Hermes"


def dialect_of(template: str) -> Dialect:
    """The dialect of a chat template's source, by the marks it contains. Nothing is run."""
    thinks = "<think>" in template or "</think>" in template
    switch = any(name in template for name in ("enable_thinking", "thinking_mode", "is_thinking"))
    switch = switch or "if thinking" in template or "not thinking" in template
    return Dialect(
        turns=_first(_TURNS, template),
        thinking=("switchable" if switch else "always") if thinks else "",
        tools=_first(_TOOLS, template),
    )


def _first(marks: tuple[tuple[str, str], ...], template: str) -> str:
    return next((name for mark, name in marks if mark in template), "")
