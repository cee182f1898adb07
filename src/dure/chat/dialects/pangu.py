"""openPangu: tokens of its own around reasoning and around a JSON array of calls."""

from __future__ import annotations

from dure.chat.dialects.dialect import THINK, CallFormat, Delimiters, Dialect, HasToken
from dure.chat.dialects.jsoncalls import ArrayCalls

NO_THINK = " /no_think"


def _form(begin: str, end: str) -> CallFormat:
    return CallFormat(f'{begin}[{{"name": "', '", "arguments": ', f"}}]{end}")


# The older vocabulary has no names for its delimiters.
OLD = Dialect(
    "openPangu",
    Delimiters("[unused16]", "[unused17]", "[unused17]"),
    ArrayCalls("[unused11]", "[unused12]"),
    no_think=NO_THINK,
    call_format=_form("[unused11]", "[unused12]"),
)
NEW = Dialect(
    "openPangu V2",
    THINK,
    ArrayCalls("<|tool_call_start|>", "<|tool_call_end|>"),
    no_think=NO_THINK,
    call_format=_form("<|tool_call_start|>", "<|tool_call_end|>"),
)


def find(template: str, has_token: HasToken) -> Dialect | None:
    """Return the dialect of openPangu's templates, or None."""
    if "[unused9]" not in template and "[unused10]" not in template:
        return None
    return NEW if has_token("<|tool_call_start|>") else OLD
