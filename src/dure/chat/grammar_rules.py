"""Builds grammars in llguidance's variant of Lark: for output formats, and for tool calls.

Each grammar has a rule `answer`; `complete` adds what the model may write before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dure.chat.schema.depth import MAX_RULES, deepest
from dure.chat.schema.rewrite import MAX_SCHEMA_BYTES, rewritten
from dure.errors import InvalidRequestError

MAX_CHOICES = 1000
MAX_CALLS = 8  # in one answer that must have some
# With any space allowed a small model may write spaces for ever.
_TIGHT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
LINE_ENDS = " /\\n{0,3}/ "
_NAME = re.compile(r"[A-Za-z_]\w*")
_RULE = re.compile(r"([A-Za-z_]\w*)\s*(?:\[[^\]]*\]|\{[^}]*\}|::\s*\w+|\.\s*-?\d+)?\s*:")
_INLINE = re.compile(r"%json\s*(?=\{)")
_START = re.compile(r"^start\b", re.MULTILINE)


class Rules:
    """A grammar being built. marks: the special tokens' texts, with their ids."""

    def __init__(self, marks: Mapping[str, int]) -> None:
        self._ids = dict(marks)
        self._split = re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))))
        self._lines: list[str] = []

    def add(self, body: str) -> str:
        """Add a rule with the expression `body`; return its name."""
        name = f"rule_{len(self._lines)}"
        self._lines.append(f"{name}: {body}")
        return name

    def literal(self, text: str) -> str:
        """Return an expression that matches `text`, with special tokens by their ids."""
        said, at = [], 0
        for found in self._split.finditer(text) if self._ids else ():
            said += [quoted(text[at : found.start()]), f"<[{self._ids[found.group()]}]>"]
            at = found.end()
        said.append(quoted(text[at:]))
        return " ".join(part for part in said if part != '""') or '""'

    def json(self, schema: Any, what: str, root: Any = None) -> str:
        """Add a rule for JSON of a schema, whose references lead into `root`; return its name."""
        return self.add(json_rule(schema, what, root))

    def until(self, end: str, *, longest: int | None = None) -> str:
        """Return an expression for any text up to and including `end`.

        longest: how many characters may come before `end`; any number if it is None.
        """
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
        """Return an expression for a text that all regular `expressions` match, followed by `end`.

        The text contains none of `marks`, since they could not be told from its end.
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
        """Return the whole grammar, whose rule `answer` is the expression given."""
        return "\n".join([f"answer: {answer}", *self._lines])


def _escaped(text: str) -> str:
    """Return a regular expression, as written between slashes, that matches exactly `text`."""
    return re.escape(text).replace("/", r"\/").replace("\\\n", r"\n")


def quoted(text: str) -> str:
    """Quote `text` as a string literal of a grammar."""
    return json.dumps(text)


def one_of(bodies: Sequence[str]) -> str:
    """Return an expression that matches any one of `bodies`."""
    return f"({' | '.join(bodies)})"


def some_of(body: str, separator: str, *, several: bool) -> str:
    """Return an expression for `body` once or, if `several`, repeated with `separator` between."""
    between = f"{separator} " if separator else ""
    return f"{body} ({between}{body}){{0,{MAX_CALLS - 1}}}" if several else body


def json_rule(schema: Any, what: str = "The JSON schema", root: Any = None) -> str:
    """Return what a rule says whose text is JSON of `schema`.

    root: what the schema's references lead into, if not itself. Raises InvalidRequestError if it
    is no schema, or too large.
    """
    made = rewritten(schema, what, root).schema
    return f"%json {json.dumps({**made, 'x-guidance': _TIGHT})}"


def format_grammar(kind: str, value: Any, *, name: str = "answer") -> str:
    """Return the grammar of a Format's kind and value; its first rule is called `name`.

    Raises InvalidRequestError if the value is not of its kind, or too large.
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
    _check_depth(value)
    return _START.sub(name, value)


def _check_depth(grammar: str) -> None:
    """Check how deep the rules, brackets and schemas of a Lark text may be within each other.

    Names that stand in texts count as rules, too: that can only be too much.
    """
    starts = list(_RULE.finditer(grammar))
    bounds = [*(found.start() for found in starts), len(grammar)]
    weights: dict[str, int] = {}
    uses: dict[str, set[str]] = {}
    for found, end in zip(starts, bounds[1:], strict=True):
        name, body = found[1], grammar[found.end() : end]
        brackets = body.count("(") + body.count("[")
        weights[name] = weights.get(name, 0) + 1 + brackets
        uses.setdefault(name, set()).update(_NAME.findall(body))
    depth = deepest(weights, uses)
    if depth > MAX_RULES:
        raise InvalidRequestError(
            f"The grammar has {depth:,} rules and brackets that may be within each other; "
            f"the limit is {MAX_RULES:,}.",
            hint="make it simpler",
        )
    decoder = json.JSONDecoder()
    for found in _INLINE.finditer(grammar):
        try:
            schema, _ = decoder.raw_decode(grammar, found.end())
        except (ValueError, RecursionError):
            continue  # it is refused where the grammar is read
        rewritten(schema, "A schema of the grammar")


def complete(grammar: str, *, before: str | None = None) -> str:
    """Return the grammar with a start rule: `before`, if given, line ends, and the answer."""
    return f"start: {'' if before is None else before + LINE_ENDS}answer\n{grammar}"


def _slashed(expression: str) -> str:
    """Escape a regular expression so that it can stand between slashes."""
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
