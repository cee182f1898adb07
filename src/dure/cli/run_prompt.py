"""What dure run is asked: the prompt of the command line and standard input, and its form."""

# ruff: noqa: PLC0415 - the kernels are loaded when the verb runs, not for its --help

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dure.cli import console

if TYPE_CHECKING:
    from dure.chat.request import Format


def split_arguments(model: str | None, prompt: str | None) -> tuple[str | None, str | None]:
    """Return (model or None for the default, prompt); a lone argument with a space is a prompt."""
    if model is None or prompt is not None or not any(c.isspace() for c in model.strip()):
        return model, prompt
    try:
        is_path = Path(model).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        is_path = False
    return (model, None) if is_path else (None, model)


def with_piped_input(prompt: str | None) -> str | None:
    """Append what was piped in to `prompt`, after a blank line; None if there is neither."""
    from dure.errors import InvalidRequestError

    if sys.stdin is None or sys.stdin.isatty():
        return prompt
    # The parent may have left a pipe that nobody closes: say what we wait for.
    waiting = threading.Timer(3.0, console.note, ["waiting for standard input to end"])
    waiting.daemon = True
    waiting.start()
    try:
        piped = sys.stdin.buffer.read().decode("utf-8").strip("\n")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"Standard input is not UTF-8 text: byte {error.start} is not.",
            hint="convert it with iconv first",
        ) from None
    finally:
        waiting.cancel()
    return "\n\n".join(part for part in (prompt, piped) if part) or None


def check_can_chat(option: str | None) -> None:
    """Check that a chat can start: on a terminal, without an `option` that needs a prompt.

    Raises InvalidRequestError.
    """
    from dure.errors import InvalidRequestError

    if option is not None:
        raise InvalidRequestError(
            f"{option} needs a PROMPT.",
            hint=f'dure run MODEL "…" {option}',
        )
    if sys.stdin is None or not sys.stdin.isatty():
        raise InvalidRequestError(
            "No PROMPT was given, and standard input is empty.",
            hint='dure run MODEL "…", or pipe the prompt in',
        )


@contextmanager
def asking_is_meant(lone: str | None) -> Iterator[None]:
    """Turn an error inside the block into how to ask, where a `lone` word is no model."""
    from dure import hub
    from dure.errors import InvalidRequestError, ModelNotFoundError

    try:
        yield
    except (InvalidRequestError, ModelNotFoundError) as error:
        if lone is None or set(lone) & set(":/\\") or hub.is_known(lone):
            raise
        raise ModelNotFoundError(
            f"{lone!r} is not a model.",
            hint=f'to ask the default model: dure run {hub.load_catalogue().default} "{lone}"'
            + (f"; {error.hint}" if isinstance(error, ModelNotFoundError) else ""),
        ) from None


def parse_think(text: str | None) -> bool | int | None:
    """Parse --think: True for "on", False for "off", a number of tokens, None if not given."""
    if text is None:
        return None
    if text in ("on", "off"):
        return text == "on"
    if text.isdecimal() and len(text) < 10:
        return int(text)
    raise typer.BadParameter(f"{text!r} is not on, off or a number of tokens", param_hint="--think")


def read_schema(given: str) -> Format:
    """Read a JSON schema, from a file or given as JSON, and check that it can be enforced.

    What of it is left to the model is said on stderr. Raises InvalidRequestError.
    """
    from dure.chat.request import Format
    from dure.chat.structured_output import check_format
    from dure.errors import InvalidRequestError

    is_json = given.lstrip()[:1] in ("{", "[", '"')
    what = "--json-schema" if is_json else given
    try:
        data = given.encode() if is_json else Path(given).read_bytes()
    except OSError as error:
        raise InvalidRequestError(
            f"{given} cannot be read: {error.strerror}.",
            hint="give a file, or the schema itself, which begins with {",
        ) from None
    except ValueError:
        raise InvalidRequestError("The path of --json-schema holds a null character.") from None
    try:
        form = Format("json_schema", json.loads(data))
    except (ValueError, RecursionError) as error:
        place = f": {error}" if isinstance(error, json.JSONDecodeError) else ""
        raise InvalidRequestError(
            f"{what} holds no JSON{place}.", hint="quote it for the shell: '{\"type\": …}'"
        ) from None
    for left in check_format(form):
        console.note(f"({left} is not enforced)")
    return form
