"""Writes the beginning of an answer behind the prompt, for a final assistant message to continue.

What such a message says of reasoning decides where the answer goes on: within the reasoning, if it
is the last thing the message has or is not closed, else in the content.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dure.chat.dialects import Delimiters, Dialect
from dure.chat.messages import content_text


def begin_answer(prompt: str, message: Mapping[str, Any], dialect: Dialect) -> tuple[str, bool]:
    """Return the prompt with the message's reasoning and content, and whether it ends in reasoning.

    prompt: as the template writes it, up to where the answer begins; it may end with an opened
    or with an empty block of reasoning, which is then not written twice.
    """
    think, content = dialect.think, str(message.get("content") or "")
    if think is None:
        return prompt + content, False
    reasoning, closed, content = _split(message.get("reasoning_content"), content, think)
    before, block = _last_block(prompt, think)
    opened = think.open in block and think.close not in block
    if reasoning is None or (closed and not reasoning.strip()):
        if reasoning is not None and not block:
            block = f"{think.open}\n"
            opened = True
        end = think.reasoning_end if opened and (content or closed) else ""
        if dialect.messages is not None and content and not block:
            end = dialect.messages.answer
        return before + block + end + content, opened and not end
    if not opened:
        plain = dialect.messages is not None or (block and f"{think.open}\n" not in block)
        line = "" if plain else "\n"
        block = think.open + line
    if not closed:
        return before + block + reasoning, True
    return before + block + reasoning.rstrip("\n") + think.reasoning_end + content, False


def begun_content(message: Mapping[str, Any], dialect: Dialect) -> str:
    """Return what the message says of the content, without its reasoning."""
    text = content_text(message.get("content"), "")
    if dialect.think is None:
        return text
    return _split(message.get("reasoning_content"), text, dialect.think)[2]


def _split(reasoning: Any, content: str, think: Delimiters) -> tuple[str | None, bool, str]:
    """Return a message's reasoning, None without any, whether it is closed, and its content.

    The reasoning has a field of its own, or stands between its delimiters in the content.
    """
    given = reasoning if isinstance(reasoning, str) else None
    bare = content.lstrip()
    if given is None and bare.startswith(think.open):
        inside, closed, after = bare.removeprefix(think.open).partition(think.close)
        return inside.removeprefix("\n"), bool(closed), after.lstrip("\n")
    if given is None and think.close in content:
        inside, _, after = content.partition(think.close)
        return inside.removeprefix("\n"), True, after.lstrip("\n")
    return given, bool(content), content


def _last_block(prompt: str, think: Delimiters) -> tuple[str, str]:
    """Split off the opened or the empty block of reasoning that a prompt ends with."""
    start, end = re.escape(think.open), re.escape(think.close)
    found = re.search(rf"({start}\s*({end}\s*)?|{end}\s*)\Z", prompt)
    return (prompt, "") if found is None else (prompt[: found.start()], found.group())
