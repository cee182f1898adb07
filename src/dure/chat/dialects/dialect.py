"""Dialect: how one family of models writes reasoning and tool calls."""

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
    """The delimiters of reasoning, and the text that is forced to end it (`reasoning_end`)."""

    open: str
    close: str
    reasoning_end: str


THINK = Delimiters("<think>", "</think>", "\n</think>\n\n")


def think_in(template: str, has_token: HasToken) -> bool:
    """Return whether a template or a vocabulary shows THINK; some templates only open it."""
    return THINK.open in template or THINK.close in template or has_token(THINK.close)


@dataclass(frozen=True)
class CallFormat:
    """The text before a call's name, before its arguments and after them."""

    before: str
    between: str
    after: str

    def text(self, name: str, arguments: str) -> str:
        """Return a call of `name` with the JSON text of its arguments."""
        return f"{self.before}{name}{self.between}{arguments}{self.after}"


class CallReader(Protocol):
    """Reads calls."""

    @property
    def start_markers(self) -> tuple[str, ...]:
        """The delimiters that a call, or a list of calls, starts with."""
        ...

    def parse(self, reader: StreamReader, mark: str) -> Parser[bool]:
        """Read the calls after `mark`, emitting them; return whether they were whole."""
        ...


class CallSyntax(CallReader, Protocol):
    """Reads calls, and writes their grammar."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Every delimiter that may be a special token, and must then be decoded."""
        ...

    def grammar(self, tools: Schemas, rules: Rules, *, several: bool) -> str:
        """Return the grammar of a call of one of `tools`, or, with `several`, of calls."""
        ...


@dataclass(frozen=True)
class MessageForm:
    """How an answer is written that is a list of messages: start, role, head, body, end.

    A head names the channel, and in a call, behind `recipient`, whom it is for. The prompt ends
    with the first message's start and role.
    """

    start: str
    role: str
    channel: str  # before the channel's name
    body: str  # before a message's text
    ends: tuple[str, ...]
    thoughts: str  # the channel of reasoning
    answer: str  # the whole head of a message that is the answer
    recipient: str
    heads: tuple[str, ...] = ()  # all there are, where each is a single delimiter

    @property
    def begins(self) -> tuple[str, ...]:
        """What a head begins with."""
        return self.heads or (self.channel,)

    @property
    def marks(self) -> tuple[str, ...]:
        """Every delimiter."""
        return self.start, *(self.heads or (self.channel, self.body)), *self.ends


@dataclass(frozen=True)
class Dialect:
    """How one family writes. What it lacks is None."""

    name: str
    think: Delimiters | None = None
    calls: CallSyntax | None = None
    wrapper: tuple[str, str] | None = None  # delimiters of the answer after the reasoning
    call_ends_thinking: bool = False  # a call may begin within reasoning
    bare_calls: bool = False  # an answer that begins with a brace may be a call
    names_begin_calls: bool = False  # a line that is a tool's name, and a brace in the next
    fallback_parser: CallReader | None = None  # reads calls without their own delimiters
    call_format: CallFormat | None = None  # how to write a call where the template cannot
    messages: MessageForm | None = None  # an answer is a list of messages
    no_think: str = ""  # ends the last user message to turn reasoning off

    @property
    def marks(self) -> frozenset[str]:
        """Every text that must be decoded even where it is a special token."""
        think = (self.think.open, self.think.close) if self.think else ()
        calls = self.calls.marks if self.calls else ()
        messages = self.messages.marks if self.messages else ()
        return frozenset((*think, *calls, *(self.wrapper or ()), *messages))

    def opens_thinking(self, prompt: str) -> bool:
        """Return whether `prompt` ends within reasoning."""
        return self.think is not None and prompt.rstrip().endswith(self.think.open)
