"""A conversation: whether a model can have one, its messages, and how they are kept in a file."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dure.errors import InvalidRequestError

if TYPE_CHECKING:
    from dure.llm import LLM

MAX_FILE_BYTES = 64 << 20
ROLES = ("user", "assistant", "tool")


def completes_text(llm: LLM, *, raw: bool, system: str | None, think: bool | int | None) -> bool:
    """Whether there is no template in use, so that text is completed and not answered.

    Raises an error for a system message or a wish about thinking that would then be lost.
    """
    plain = raw or llm.template_source is None
    if plain and (system is not None or think is not None):
        raise InvalidRequestError(
            "A system message and thinking need a chat template, and none is used here.",
            hint="leave out --raw" if llm.template_source else "leave them out",
        )
    if think is not None:
        llm.check_think(think)
    return plain


@dataclass
class Conversation:
    """The system message, and what was said in turn."""

    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

    def messages_with(self, prepared: str) -> list[dict[str, str]]:
        """All messages, the system message first, and `prepared` as the newest."""
        first = [{"role": "system", "content": self.system}] if self.system is not None else []
        return [*first, *self.messages, {"role": "user", "content": prepared}]

    def add(self, prepared: str, answer: str) -> None:
        """Nothing; one more turn has been said."""
        self.messages.append({"role": "user", "content": prepared})
        self.messages.append({"role": "assistant", "content": answer})

    def clear(self) -> None:
        """Nothing; the messages are forgotten, the system message stays."""
        self.messages.clear()

    def save(self, path: Path, *, model: str) -> None:
        """Nothing; the file holds the conversation as JSON, whole or not at all."""
        data = {"model": model, "system": self.system, "messages": self.messages}
        text = json.dumps(data, ensure_ascii=False, indent=1) + "\n"
        try:
            _replace(path, text)
        except OSError as error:
            raise InvalidRequestError(f"{path} cannot be written: {error.strerror}.") from None

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """The conversation in the file; InvalidRequestError if it holds none."""
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise InvalidRequestError(
                    f"{path} is too long for a conversation: the limit is {MAX_FILE_BYTES:,} bytes."
                )
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidRequestError(f"{path} cannot be read: {error.strerror}.") from None
        except (ValueError, RecursionError):
            data = None
        if not _is_conversation(data):
            raise InvalidRequestError(
                f"{path} holds no conversation.", hint="/load reads what /save has written"
            )
        messages = [{"role": m["role"], "content": m["content"]} for m in data["messages"]]
        return cls(system=data.get("system"), messages=messages)


def _is_conversation(data: Any) -> bool:
    if not isinstance(data, dict) or not isinstance(data.get("messages"), list):
        return False
    return isinstance(data.get("system"), str | None) and all(
        isinstance(message, dict)
        and message.get("role") in ROLES
        and isinstance(message.get("content"), str)
        for message in data["messages"]
    )


def _replace(path: Path, text: str) -> None:
    """Put `text` in place of the file in one step; nothing is left behind if that fails."""
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(scratch).replace(path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
