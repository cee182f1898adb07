"""Dialect: how one family of models writes thoughts and calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from dure.chat.dialects.stream_reader import Parser, StreamReader
    from dure.chat.grammar_rules import Rules

HasToken = Callable[[str], bool]
"""Whether the vocabulary has a token that is written so."""

Schemas = Mapping[str, Mapping[str, Any]]
"""The JSON schema of each tool's arguments, by its name."""


@dataclass(frozen=True)
class Delimiters:
    """What stands around thoughts, and what is put in to make a model end them."""

    open: str
    close: str
    closing: str


THINK = Delimiters("<think>", "</think>", "\n</think>\n\n")


@dataclass(frozen=True)
class CallFormat:
    """What is written before a call's name, before its arguments and after them."""

    before: str
    between: str
    after: str

    def text(self, name: str, arguments: str) -> str:
        """A call of `name` with the JSON text of its arguments."""
        return f"{self.before}{name}{self.between}{arguments}{self.after}"


class CallReader(Protocol):
    """How calls are read."""

    @property
    def start_markers(self) -> tuple[str, ...]:
        """The marks that a call, or a list of calls, begins with."""
        ...

    def parse(self, reader: StreamReader, mark: str) -> Parser[bool]:
        """Whether what follows the `mark` was read well as calls, which the reader was told."""
        ...


class CallSyntax(CallReader, Protocol):
    """How calls are written."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Every mark that may be a special token, and must then be shown."""
        ...

    def grammar(self, tools: Schemas, rules: Rules, *, several: bool) -> str:
        """What says a call of one of `tools`, or, if there may be `several`, calls."""
        ...


@dataclass(frozen=True)
class Dialect:
    """One family's way of writing. What it lacks is None."""

    name: str
    think: Delimiters | None = None
    calls: CallSyntax | None = None
    wrapper: tuple[str, str] | None = None  # what stands around the answer after the thoughts
    call_ends_thinking: bool = False  # a call that begins within thoughts is one
    bare_calls: bool = False  # an answer that begins with a brace may be a call
    fallback_parser: CallReader | None = None  # calls without the marks that are their own
    call_format: CallFormat | None = None  # how to write one in words, where the template cannot
    no_think: str = ""  # what a user's last words end in to have no thoughts

    @property
    def marks(self) -> frozenset[str]:
        """Every text that must be shown even where it is a special token."""
        think = (self.think.open, self.think.close) if self.think else ()
        calls = self.calls.marks if self.calls else ()
        return frozenset((*think, *calls, *(self.wrapper or ())))

    def opens_thinking(self, prompt: str) -> bool:
        """Whether `prompt` ends within thoughts."""
        return self.think is not None and prompt.rstrip().endswith(self.think.open)
