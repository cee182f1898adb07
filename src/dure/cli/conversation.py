"""A conversation: its messages, and how they are saved to a file."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dure.errors import InvalidRequestError

if TYPE_CHECKING:
    from dure.cli.served_model import ServedModel
    from dure.llm import LLM

MAX_FILE_BYTES = 64 << 20
ROLES = ("user", "assistant", "tool")


def completes_text(
    llm: LLM | ServedModel, *, raw: bool, system: str | None, think: bool | int | None
) -> bool:
    """Say whether text is completed without a chat template.

    Raises InvalidRequestError for a system message or a thinking option, which need a template.
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
    """A system message, and the messages in order."""

    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

    def messages_with(self, prepared: str) -> list[dict[str, str]]:
        """Return all messages, the system message first, with `prepared` as the newest."""
        first = [{"role": "system", "content": self.system}] if self.system is not None else []
        return [*first, *self.messages, {"role": "user", "content": prepared}]

    def add(self, prepared: str, answer: str, reasoning: str = "") -> None:
        """Append one turn: a user message, its answer, and the thoughts before that."""
        self.messages.append({"role": "user", "content": prepared})
        thoughts = {"reasoning_content": reasoning} if reasoning else {}
        self.messages.append({"role": "assistant", "content": answer, **thoughts})

    def take_back(self) -> str | None:
        """Remove the last turn and return its user message; None if there is none."""
        while self.messages:
            last = self.messages.pop()
            if last["role"] == "user":
                return last["content"]
        return None

    @property
    def thoughts(self) -> str:
        """The thoughts before the last answer."""
        return self.messages[-1].get("reasoning_content", "") if self.messages else ""

    def clear(self) -> None:
        """Remove all messages but the system message."""
        self.messages.clear()

    def save(self, path: Path, *, model: str) -> None:
        """Write the conversation to the file as JSON, in one step. Raises InvalidRequestError."""
        data = {"model": model, "system": self.system, "messages": self.messages}
        text = json.dumps(data, ensure_ascii=False, indent=1)
        if any("\ud800" <= character <= "\udfff" for character in text):
            text = json.dumps(data, indent=1)  # half a surrogate pair has no UTF-8
        try:
            _replace(path, text + "\n")
        except OSError as error:
            raise InvalidRequestError(f"{path} cannot be written: {error.strerror}.") from None

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Read a conversation from the file. Raises InvalidRequestError if it holds none."""
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
        kept = ("role", "content", "reasoning_content")
        messages = [{key: m[key] for key in kept if key in m} for m in data["messages"]]
        return cls(system=data.get("system"), messages=messages)


def _is_conversation(data: Any) -> bool:
    if not isinstance(data, dict) or not isinstance(data.get("messages"), list):
        return False
    return isinstance(data.get("system"), str | None) and all(
        isinstance(message, dict)
        and message.get("role") in ROLES
        and isinstance(message.get("content"), str)
        and isinstance(message.get("reasoning_content", ""), str)
        for message in data["messages"]
    )


def _replace(path: Path, text: str) -> None:
    """Replace the file by `text` in one step; leave nothing behind if that fails."""
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
