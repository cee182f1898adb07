"""Phi-4 and Granite 3: a token before an array of calls, and Phi's after it."""

from __future__ import annotations

from dure.chat.dialects.dialect import THINK, CallFormat, Dialect, HasToken, think_in
from dure.chat.dialects.jsoncalls import ArrayCalls

OPEN, CLOSE = "<|tool_call|>", "<|/tool_call|>"
RESPONSE = "<response>", "</response>"


PHI = Dialect(
    "Phi-4",
    calls=ArrayCalls(OPEN, CLOSE),
    call_format=CallFormat(f'{OPEN}[{{"name": "', '", "arguments": ', f"}}]{CLOSE}"),
)


def granite(*, thinks: bool, wraps: bool) -> Dialect:
    """Return Granite 3's dialect.

    thinks: whether it has thoughts; wraps: whether the answer stands between delimiters then.
    """
    return Dialect(
        "Granite 3",
        think=THINK if thinks else None,
        calls=ArrayCalls(OPEN, ""),
        wrapper=RESPONSE if wraps else None,
        call_format=CallFormat(f'{OPEN}[{{"name": "', '", "arguments": ', "}]"),
    )


def find(template: str, has_token: HasToken) -> Dialect | None:
    """Return the dialect of Phi-4's or Granite 3's template, or None."""
    if "<|tool|>" in template and "<|/tool|>" in template:
        return PHI
    if "<|start_of_role|>" not in template or OPEN not in template:
        return None
    thinks = think_in(template, has_token)
    return granite(thinks=thinks, wraps=RESPONSE[0] in template)
