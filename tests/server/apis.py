"""The same question in the form of each API that generates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Asked = Callable[..., dict[str, Any]]


def _said(text: str) -> dict[str, Any]:
    return {"model": "fake", "messages": [{"role": "user", "content": text}]}


APIS: dict[str, Asked] = {
    "/v1/chat/completions": lambda text, **more: {**_said(text), **more},
    "/v1/completions": lambda text, **more: {"prompt": text, "max_tokens": 900, **more},
    "/v1/messages": lambda text, **more: {**_said(text), "max_tokens": 900, **more},
    "/v1/responses": lambda text, max_tokens=None, **more: {
        "input": text,
        "max_output_tokens": max_tokens,
        **more,
    },
    "/api/chat": lambda text, **more: {**_said(text), **more},
    "/api/generate": lambda text, **more: {"model": "fake", "prompt": text, **more},
}
"""A path, and what makes its body of a text, `stream` and whatever else."""
