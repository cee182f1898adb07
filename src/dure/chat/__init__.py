"""Chats: what is asked for, the prompt it becomes, and what the answer amounts to."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

_MOVED = {"ChatRequest", "Format", "Thinking", "ToolChoice", "tool_schemas"}
"""What `dure.chat` was a file of, before version 0.2; it stands in dure.chat.request now."""


def __getattr__(name: str) -> Any:
    """Return a name of before version 0.2, with a DeprecationWarning."""
    if name not in _MOVED:
        raise AttributeError(f"module 'dure.chat' has no attribute {name!r}")
    warnings.warn(
        f"dure.chat.{name} is now dure.chat.request.{name}", DeprecationWarning, stacklevel=2
    )
    return getattr(import_module("dure.chat.request"), name)
