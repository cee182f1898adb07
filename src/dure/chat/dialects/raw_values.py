"""Writes the grammar of values that stand without quotes, so that each is read back as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dure.chat.dialects.json_schema import branches_of, properties_of, required_of, resolved
from dure.chat.dialects.values import as_json, property_schema
from dure.chat.grammar_rules import Rules, one_of
from dure.chat.schema.formats import FORMATS
from dure.chat.schema.rewrite import rewritten
from dure.errors import InvalidRequestError

Around = Callable[[str, str], tuple[str, str]]
Write = Callable[[str], str]


def members_rule(
    tool: str,
    schema: Mapping[str, Any],
    rules: Rules,
    around: Around,
    *,
    marks: Sequence[str],
    typed: bool = False,
    write: Write = str,
) -> str:
    """Return the name of the rule of a tool's members, in their order, optional ones or not.

    tool: its name, for errors. around: what is written before and after a value, by its name and by
    whether it is "string" or "json". marks: what may end a value, which none may hold. typed: each
    value says which it is. write: how a text is written.
    """
    plain = rewritten(schema, f"The parameters of the tool {tool[:60]!r}").schema
    required = required_of(plain, plain)
    values = _Values(schema, plain, rules, around, marks, typed, write)
    said = []
    for name, each in properties_of(plain, plain).items():
        what = f"The parameter {name[:60]!r} of the tool {tool[:60]!r}"
        found = values.of(name, each, what)
        member = one_of([f"{rules.literal(around(name, kind)[0])} {rule}" for kind, rule in found])
        said.append(member if name in required else f"{member}?")
    return rules.add(" ".join(said) or '""')


@dataclass(frozen=True)
class _Values:
    """Writes the values of one tool's parameters; the arguments are those of `members_rule`."""

    given: Mapping[str, Any]  # the tool's schema
    plain: Mapping[str, Any]  # the same, rewritten
    rules: Rules
    around: Around
    marks: Sequence[str]
    typed: bool
    write: Write

    def of(self, name: str, schema: Any, what: str) -> list[tuple[str, str]]:
        """Return the kinds of a property's values, each with the rule of the value and its end.

        schema: the property's, rewritten. what: how errors call it.
        """
        branches = branches_of(schema, self.plain)
        texts = [branch for branch in branches if branch["type"] == "string"]
        others = [branch for branch in branches if branch["type"] != "string"]
        if not texts:
            return [self._json(name, resolved(schema, self.plain), what)]
        made: list[tuple[str, str]] = []
        free = any(branch.keys() == {"type"} for branch in texts)
        if others and (self.typed or not free):
            made.append(self._json(name, {"anyOf": others}, what))
        after = self.around(name, "string")[1]
        for branch in texts:
            if "enum" in branch:
                kept = [value for value in branch["enum"] if self._is_read_back(name, value)]
                rules = [self.rules.literal(self.write(value) + after) for value in kept]
            else:
                rules = [_text(what, branch, after, self.marks, self.rules)]
            made += [("string", rule) for rule in rules]
        if not made:
            raise InvalidRequestError(
                f"{what} allows no value that can be written without quotes.",
                hint=f"leave out {self.marks[0]!r} in its enum or const",
            )
        return made

    def _json(self, name: str, schema: Any, what: str) -> tuple[str, str]:
        rule = self.rules.json(schema, what, self.plain)
        return "json", f"{rule} {self.rules.literal(self.around(name, 'json')[1])}"

    def _is_read_back(self, name: str, value: str) -> bool:
        """Return whether a text, written without quotes, is read as that text."""
        if any(mark in value for mark in self.marks):
            return False
        schema = property_schema(self.given, name)
        read = as_json(value, schema, self.given)
        return self.typed or read == json.dumps(value, ensure_ascii=False)


def _text(
    what: str, branch: Mapping[str, Any], after: str, marks: Sequence[str], rules: Rules
) -> str:
    """Return the rule of a text that keeps to a schema of strings, and what ends it."""
    expressions = [_unanchored(each, what) for each in _patterns(branch)]
    if branch.get("format") in FORMATS:
        expressions.append(FORMATS[branch["format"]])
    least, most = branch.get("minLength", 0), branch.get("maxLength")
    if least or most is not None:
        expressions.append(f"(?s:.){{{least},{'' if most is None else most}}}")
    if not expressions:
        expressions.append("(?s:.*)")
    return rules.raw(expressions, after, marks)


def _patterns(branch: Mapping[str, Any]) -> list[str]:
    given = branch.get("pattern", ())
    listed = [given] if isinstance(given, str) else given
    return [each for each in listed if isinstance(each, str)]


def _unanchored(pattern: str, what: str) -> str:
    """Return the expression of the whole texts in which a JSON schema's pattern is found."""
    made = []
    for part in _alternatives(pattern):
        start = "" if part.startswith("^") else "(?s:.*)"
        anchored = part.endswith("$") and not _is_escaped(part)
        body = part.removeprefix("^")
        body = body[:-1] if anchored else body
        made.append(f"{start}({body}){'' if anchored else '(?s:.*)'}")
    expression = "|".join(made)
    if re.search(r"(?<!\\)(?:\\\\)*\(\?[=!<]", expression):
        raise InvalidRequestError(
            f'{what} cannot be enforced: its "pattern" looks around, which is not supported.',
            hint="write the pattern without (?=…), (?!…) and (?<…)",
        )
    # \d, \w and \s are of ASCII in JSON schema's expressions.
    named = {"d": "0-9", "w": "A-Za-z0-9_"}
    inside = re.sub(r"\\\\|\\([dw])", lambda m: _class(m, named), expression)
    return f"({inside})"


def _class(found: re.Match[str], named: Mapping[str, str]) -> str:
    return f"[{named[found.group(1)]}]" if found.group(1) else found.group()


def _is_escaped(text: str) -> bool:
    """Return whether the last character stands behind a backslash that escapes it."""
    before = text[:-1]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def _alternatives(pattern: str) -> Sequence[str]:
    """Split a pattern at the bars that stand in no group and no class."""
    parts, start, depth, index, in_class = [], 0, 0, 0, False
    while index < len(pattern):
        character = pattern[index]
        if character == "\\":
            index += 1
        elif in_class:
            in_class = character != "]"
        elif character == "[":
            in_class = True
        elif character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
        elif character == "|" and depth == 0:
            parts.append(pattern[start:index])
            start = index + 1
        index += 1
    return [*parts, pattern[start:]]
