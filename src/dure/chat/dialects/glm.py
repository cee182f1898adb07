"""GLM-4.5 and 4.6: a call is a name, and keys and values between delimiters."""

from __future__ import annotations

from dure.chat.dialects.dialect import THINK, Dialect, HasToken
from dure.chat.dialects.keyvalue import KeyCalls

GLM = Dialect("GLM", THINK, KeyCalls(), call_ends_thinking=True)


def find(template: str, has_token: HasToken) -> Dialect | None:
    """Return the dialect of GLM's template, or None."""
    return GLM if "[gMASK]" in template and "<arg_key>" in template else None
