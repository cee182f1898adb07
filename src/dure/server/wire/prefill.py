"""Prefill: a last message of the assistant that the response continues, in every API alike."""

from __future__ import annotations

from typing import Any, Protocol


class SentMessage(Protocol):
    """A message of a body, as any API's schema has it."""

    @property
    def role(self) -> str:
        """Who speaks."""

    @property
    def tool_calls(self) -> Any:
        """The calls in it; None or empty without any."""


def is_prefill(last: SentMessage) -> bool:
    """Check whether the last message begins the response: the assistant's, and no call in it."""
    return last.role == "assistant" and not last.tool_calls
