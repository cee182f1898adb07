"""Grammars in llguidance's variant of Lark: of what an answer must be, and pieces for calls.

Each text has a rule `answer`; `complete` puts before it what else the model may write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dure.errors import InvalidRequestError

MAX_SCHEMA_BYTES = 256 << 10
MAX_DEPTH = 64
MAX_CHOICES = 1000
MAX_CALLS = 8  # in one answer that must have some
# With any space allowed a small model may write spaces for ever.
_TIGHT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
LINE_ENDS = " /\\n{0,3}/ "
_START = re.compile(r"^start\b", re.MULTILINE)


class Rules:
    """A grammar as it is written. marks: the texts that are single tokens, with their ids."""

    def __init__(self, marks: Mapping[str, int]) -> None:
        self._ids = dict(marks)
        self._split = re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))))
        self._lines: list[str] = []

    def add(self, body: str) -> str:
        """Add a rule that says `body`; return its name."""
        name = f"rule_{len(self._lines)}"
        self._lines.append(f"{name}: {body}")
        return name

    def literal(self, text: str) -> str:
        """What says `text`, the marks in it by their ids."""
        said, at = [], 0
        for found in self._split.finditer(text) if self._ids else ():
            said += [quoted(text[at : found.start()]), f"<[{self._ids[found.group()]}]>"]
            at = found.end()
        said.append(quoted(text[at:]))
        return " ".join(part for part in said if part != '""') or '""'

    def json(self, schema: Any, what: str) -> str:
        """Add a rule for JSON of a schema; return its name."""
        return self.add(json_rule(schema, what))

    def until(self, end: str, *, longest: int | None = None) -> str:
        """What says any text up to `end`, of so many characters at the longest, and `end`."""
        found = self._split.search(end) if self._ids else None
        before = re.escape(end[: found.start()] if found else end)
        before = before.replace("/", r"\/").replace("\\\n", r"\n")
        count = "*" if longest is None else f"{{0,{longest}}}"
        expression = f"/(?s:.{count}){before}/"
        if found:  # a token ends the text before it
            return f"{self.add(expression)} {self.literal(end[found.start() :])}"
        name = f"rule_{len(self._lines)}"
        self._lines.append(f"{name}[lazy]: {expression}")
        return name

    def raw(self, expressions: Sequence[str], end: str, marks: Sequence[str]) -> str:
        """Return what says a text that all `expressions` match, and `end`.

        The text holds none of `marks`, since they could not be told from its end.
        """
        found = self._split.search(end) if self._ids else None
        tail = _escaped(end[: found.start()] if found else end)
        head = end[: found.start()] if found else end
        # The expression's own end holds a mark: then the text must not hold another.
        held = [
            f"{_escaped(mark)}(?s:.*){_escaped(mark)}" if mark in head else _escaped(mark)
            for mark in marks
        ]
        parts = [f"/({_slashed(each)}){tail}/" for each in expressions]
        body = " & ".join([*parts, f"~/(?s:.*)({'|'.join(held)})(?s:.*)/"])
        name = f"TEXT_{len(self._lines)}"
        self._lines.append(f"{name}: {body}")
        if found:  # a token ends the text before it
            return f"{self.add(name)} {self.literal(end[found.start() :])}"
        self._lines.append(f"rule_{len(self._lines)}[lazy]: {name}")
        return f"rule_{len(self._lines) - 1}"

    def text(self, answer: str) -> str:
        """Return the whole grammar, of which `answer` is the beginning."""
        return "\n".join([f"answer: {answer}", *self._lines])


def _escaped(text: str) -> str:
    """Return an expression, as it stands between slashes, of exactly `text`."""
    return re.escape(text).replace("/", r"\/").replace("\\\n", r"\n")


def quoted(text: str) -> str:
    """`text` as a literal of a grammar."""
    return json.dumps(text)


def one_of(bodies: Sequence[str]) -> str:
    """What says any of `bodies`."""
    return f"({' | '.join(bodies)})"


def some_of(body: str, separator: str, *, several: bool) -> str:
    """What says `body` once, or, if there may be `several`, often, with `separator` between."""
    between = f"{separator} " if separator else ""
    return f"{body} ({between}{body}){{0,{MAX_CALLS - 1}}}" if several else body


def json_rule(schema: Any, what: str = "The JSON schema") -> str:
    """What a rule says whose text is JSON of `schema`. InvalidRequestError if it is too large."""
    if not isinstance(schema, Mapping):
        raise InvalidRequestError(f"{what} must be a JSON object.")
    if _too_deep(schema, MAX_DEPTH):
        raise InvalidRequestError(f"{what} is nested deeper than {MAX_DEPTH} levels.")
    try:
        text = json.dumps({**schema, "x-guidance": _TIGHT}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"{what} holds something that is not JSON.") from error
    if len(text) > MAX_SCHEMA_BYTES:
        raise InvalidRequestError(
            f"{what} has {len(text):,} bytes; the limit is {MAX_SCHEMA_BYTES:,}."
        )
    return f"%json {text}"


def format_grammar(kind: str, value: Any, *, name: str = "answer") -> str:
    """Return the grammar, with the rule `name`, of an answer of a Format's kind and value.

    InvalidRequestError if the value is not of its kind, or too large.
    """
    if kind == "json_object":
        return f"{name}: {json_rule({'type': 'object'})}"
    if kind == "json_schema":
        return f"{name}: {json_rule(value)}"
    if kind == "choice":
        return f"{name}: {' | '.join(quoted(text) for text in _choices(value))}"
    what = {"regex": "The regular expression", "grammar": "The grammar"}[kind]
    if not isinstance(value, str) or not value:
        raise InvalidRequestError(f"{what} must be a text.")
    if len(value) > MAX_SCHEMA_BYTES:
        raise InvalidRequestError(
            f"{what} has {len(value):,} characters; the limit is {MAX_SCHEMA_BYTES:,}."
        )
    if kind == "regex":
        return f"{name}: /{_slashed(value)}/"
    if not _START.search(value):
        raise InvalidRequestError("The grammar has no rule `start`.", hint='start: "yes" | "no"')
    return _START.sub(name, value)


def complete(grammar: str, *, before: str | None = None) -> str:
    """Return the grammar with line ends, and with what may stand before the answer, if anything."""
    return f"start: {'' if before is None else before + LINE_ENDS}answer\n{grammar}"


def _slashed(expression: str) -> str:
    """A regular expression as it may stand between slashes."""
    made, escaped = [], False
    for character in expression:
        made.append("\\/" if character == "/" and not escaped else character)
        escaped = character == "\\" and not escaped
    return "".join(made).replace("\n", "\\n").replace("\r", "\\r")


def _choices(value: Any) -> list[str]:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not value or not all(isinstance(text, str) and text for text in value):
        raise InvalidRequestError("A choice must be a list of texts, none of them empty.")
    if len(value) > MAX_CHOICES:
        raise InvalidRequestError(
            f"A choice has {len(value)} texts; at most {MAX_CHOICES} are allowed."
        )
    return list(value)


def _too_deep(value: Any, depth: int) -> bool:
    """Whether `value` is nested deeper than `depth`; by a list, so that no depth is too much."""
    level = [value]
    for _ in range(depth + 1):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, Mapping):
                inner += each.values()
            elif isinstance(each, Sequence) and not isinstance(each, str | bytes):
                inner += each
        if not inner:
            return False
        level = inner
    return True
