"""DSML: DeepSeek V3.2 and V4 invoke functions between delimiters with a token of their own."""

from __future__ import annotations

from dure.chat.dialects.dialect import THINK, Dialect, HasToken
from dure.chat.dialects.invoke import InvokeCalls

DSML = "｜DSML｜"
V32 = Dialect("DeepSeek V3.2", THINK, InvokeCalls(f"{DSML}function_calls", DSML, typed=True))
V4 = Dialect("DeepSeek V4", THINK, InvokeCalls(f"{DSML}tool_calls", DSML, typed=True))


def find(template: str, has_token: HasToken) -> Dialect | None:
    """Return the dialect of a template that invokes functions so, or None."""
    if DSML not in template:
        return None
    return V32 if "function_calls>" in template else V4
