"""MiniMax: M1 writes lines of JSON objects, M2 invokes functions as XML, M3 with elements."""

from __future__ import annotations

from dure.chat.dialects.dialect import THINK, Delimiters, Dialect, HasToken
from dure.chat.dialects.elements import ElementCalls
from dure.chat.dialects.invoke import InvokeCalls
from dure.chat.dialects.jsoncalls import ArrayCalls

PREFIX = "]<]minimax[>["
M1 = Dialect("MiniMax M1", THINK, ArrayCalls("<tool_calls>", "</tool_calls>"))
M2 = Dialect("MiniMax M2", THINK, InvokeCalls("minimax:tool_call"))
M3 = Dialect(
    "MiniMax M3", Delimiters("<mm:think>", "</mm:think>", "</mm:think>"), ElementCalls(PREFIX)
)


def find(template: str, has_token: HasToken) -> Dialect | None:
    """Return the dialect of MiniMax's templates, or None."""
    if PREFIX in template:
        return M3
    if "<minimax:tool_call>" in template:
        return M2
    return M1 if "<beginning_of_sentence>" in template and "<tool_calls>" in template else None
