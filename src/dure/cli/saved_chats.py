"""Saved chats: in a folder of dure's by name, or wherever a path says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from dure.cli import console
from dure.cli.conversation import MAX_FILE_BYTES, Conversation
from dure.errors import DureError, InvalidRequestError
from dure.hub import is_known, state_folder

_NAME = re.compile(r"[^\W_][\w .-]{0,80}")
SUFFIX = ".json"


@dataclass(frozen=True)
class SavedChat:
    """A chat in the folder: its name, when it was saved, and what it begins with."""

    name: str
    saved_at: datetime
    messages: int
    begins: str


def folder() -> Path:
    """Return the folder of saved chats; it may not exist. Raises DownloadError without a home."""
    return state_folder("chats")


def new_name() -> str:
    """Return a name for a chat that was given none: the time."""
    return datetime.now().strftime("chat-%Y-%m-%d-%H%M%S")


def path_to_save(given: str) -> Path:
    """Return the file that `/save given` writes: a path as it is, a name in the folder.

    Raises InvalidRequestError for a name that is none, or if the folder cannot be made.
    """
    if _is_path(given):
        return console.path_given(given)
    if not _NAME.fullmatch(given):
        raise InvalidRequestError(
            f"{given!r:.100} is no name for a chat.", hint="letters and digits, or a path"
        )
    kept = folder()
    try:
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequestError(f"{kept} cannot be made: {error.strerror}.") from None
    return kept / (given + SUFFIX)


def path_to_load(given: str) -> Path:
    """Return the file that `/load given` reads: of that path, or a saved chat of that name.

    A name is first that of a saved chat, as `/save` has it, then of a file here.
    """
    path = console.path_given(given)
    if _is_path(given):
        return path
    named = folder() / (given + SUFFIX)
    if named.is_file():
        return named
    if path.is_file():
        return path
    names = ", ".join(chat.name for chat in saved()[:10])
    hint = f"saved: {names}" if names else "/save NAME saves one"
    if is_known(given):
        hint = f"/model {given} goes on with that model"
    raise InvalidRequestError(f"No chat is saved as {given!r:.100}.", hint=hint)


def saved() -> list[SavedChat]:
    """List the saved chats, the newest first."""
    found = []
    try:
        paths = list(folder().glob("*" + SUFFIX))
    except (OSError, DureError):
        return []
    for path in paths:
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                continue
            talk = Conversation.load(path)
            saved_at = datetime.fromtimestamp(path.stat().st_mtime)
        except (OSError, DureError):
            continue
        first = next((m["content"] for m in talk.messages if m["role"] == "user"), "")
        begins = " ".join(first[:200].split())[:50]
        found.append(SavedChat(path.stem, saved_at, len(talk.messages), begins))
    return sorted(found, key=lambda chat: chat.saved_at, reverse=True)


def _is_path(given: str) -> bool:
    return any(mark in given for mark in ("/", "\\")) or given.endswith(SUFFIX) or given[:1] == "~"
