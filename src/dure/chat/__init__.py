"""Chats: what is asked for, the prompt it becomes, and what the answer amounts to."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

_FORMERLY_HERE = ("ChatRequest", "Format", "Thinking", "ToolChoice")


def __getattr__(name: str) -> Any:
    """Return a request type under its name of before 0.2, with a DeprecationWarning."""
    if name not in _FORMERLY_HERE:
        raise AttributeError(f"module 'dure.chat' has no attribute {name!r}")
    message = f"Import {name} from dure; dure.chat.{name} goes in 0.3."
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return getattr(import_module("dure.chat.request"), name)
