"""Harmony: gpt-oss's answers are messages, each with a channel, and maybe a recipient.

Thoughts are on the channel `analysis`, the answer is on `final`, and what is said before a call on
`commentary`, as is the call, whose recipient is its function.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dure.chat.dialects.dialect import Delimiters, Dialect, HasToken, MessageForm, Schemas
from dure.chat.dialects.jsoncalls import arguments_rule, read_arguments
from dure.chat.dialects.stream_reader import MAX_NAME, Parser, StreamReader
from dure.chat.grammar_rules import Rules, one_of

_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([^\s<]+)")
_CALL = "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>"

FORM = MessageForm(
    start="<|start|>",
    role="assistant",
    channel="<|channel|>",
    body="<|message|>",
    ends=("<|end|>", "<|return|>", "<|call|>"),
    thoughts="analysis",
    answer="<|channel|>final<|message|>",
    recipient="to=",
)


@dataclass(frozen=True)
class HarmonyCalls:
    """A message to `functions.NAME`: the JSON of its arguments."""

    start_markers: tuple[str, ...] = ("to=functions.",)
    marks: tuple[str, ...] = ("<|constrain|>",)

    def parse(self, reader: StreamReader, mark: str) -> Parser[bool]:
        """Read the call whose message's head is `mark`; return whether it came."""
        found = _RECIPIENT.search(mark)
        name = found[1] if found else ""
        yield from reader.space()
        return (yield from read_arguments(reader, name if len(name) <= MAX_NAME else ""))

    def grammar(self, tools: Schemas, rules: Rules, *, several: bool) -> str:
        """Return the grammar of one call: the model ends its turn with it."""
        return one_of(
            [
                f"{rules.literal(_CALL.format(name))} {arguments_rule(name, schema, rules)}"
                for name, schema in tools.items()
            ]
        )


HARMONY = Dialect(
    "Harmony",
    Delimiters(
        "<|channel|>analysis<|message|>",
        "<|end|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    HarmonyCalls(),
    messages=FORM,
)


def find(template: str, has_token: HasToken) -> Dialect | None:
    """Return the dialect of gpt-oss's templates, or None."""
    return HARMONY if "<|channel|>analysis<|message|>" in template else None
