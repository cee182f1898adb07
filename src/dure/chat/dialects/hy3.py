"""Hunyuan 3: keys and values between delimiters that carry a suffix that the file names."""

from __future__ import annotations

import re

from dure.chat.dialects.dialect import Delimiters, Dialect, HasToken
from dure.chat.dialects.keyvalue import KeyCalls

_SUFFIX = re.compile(r"set HYTK = '([^'{}<>\s]*)'")


def dialect(suffix: str) -> Dialect:
    """Return the dialect whose delimiters carry `suffix`."""
    close = f"</think{suffix}>"
    think = Delimiters(f"<think{suffix}>", close, close)
    return Dialect("Hunyuan 3", think, KeyCalls(suffix, listed=True), call_ends_thinking=True)


def find(template: str, has_token: HasToken) -> Dialect | None:
    """Return the dialect of Hunyuan 3's template, or None."""
    if "arg_key" not in template or "tool_sep" not in template:
        return None
    found = _SUFFIX.search(template)
    return dialect(found.group(1) if found else "")
