"""What `/set` sets in a chat, with dure's words and Ollama's."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dure.chat.request import Format
from dure.engine.params import SamplingParams
from dure.errors import InvalidRequestError

NUMBERS: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
    "max_tokens": int,
    "stop": shlex.split,
}
_OLLAMAS = {"num_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}
_AT_THE_START = {
    "num_ctx": "--context",
    "num_thread": "--threads",
    "context": "--context",
    "threads": "--threads",
}
WORDS = (
    *("parameter", "system", "think", "nothink", "thoughts", "verbose", "quiet"),
    *("wordwrap", "nowordwrap", "format", "noformat", "history", "nohistory"),
)


@dataclass
class ChatSettings:
    """What holds for the next answers of a chat."""

    params: SamplingParams
    think: bool | int | None = None
    verbose: bool = False
    fold: bool = False  # thoughts are a line
    wrap: bool = True
    form: Format | None = None
    remembers: bool = True  # whether lines go into the history of the next chats

    def set_parameter(self, name: str, value: str) -> str:
        """Set a sampling parameter, and say so. Raises InvalidRequestError."""
        name = _OLLAMAS.get(name, name)
        if name in _AT_THE_START:
            raise InvalidRequestError(
                f"{name} is set when a model is loaded.", hint=f"dure run {_AT_THE_START[name]} N"
            )
        if name not in NUMBERS:
            raise InvalidRequestError(
                f"There is no parameter {name!r:.60}.", hint=f"one of {', '.join(NUMBERS)}"
            )
        parsed: Any
        try:
            own = value == "default" or (name in ("max_tokens", "seed") and value == "-1")
            parsed = getattr(SamplingParams(), name) if own else NUMBERS[name](value)
        except ValueError:
            raise InvalidRequestError(f"{value!r:.60} is not a value for {name}.") from None
        self.params = replace(self.params, **{name: parsed})
        return f"{name} is {'the default again' if own else getattr(self.params, name)}."


def parse_think(value: str) -> bool | int | None:
    """Return what a word says of thinking: on, off, auto or a number of tokens."""
    if value in ("on", "off", ""):
        return value != "off"
    if value == "auto":
        return None
    if value.isdecimal() and len(value) < 10:
        return int(value)
    raise InvalidRequestError(f"{value!r:.60} is not on, off, auto or a number of tokens.")


def said_think(think: bool | int | None) -> str:
    """Say how the model thinks from now on."""
    if think is None:
        return "Thinking is as the model likes."
    if isinstance(think, bool):
        return f"Thinking is {'on' if think else 'off'}."
    return f"Thinking is on, for at most {think:,} tokens."
