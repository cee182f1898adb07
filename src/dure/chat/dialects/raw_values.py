"""Writes the grammar of values that stand without quotes, so that each is read back as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dure.chat.dialects.json_schema import branches_of, properties_of, required_of, resolved
from dure.chat.dialects.values import as_json
from dure.chat.grammar_rules import Rules, one_of
from dure.chat.schema.formats import FORMATS
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
    required = required_of(schema, schema)
    said = []
    for name, each in properties_of(schema, schema).items():
        member = one_of(
            [
                f"{rules.literal(around(name, kind)[0])} {value}"
                for kind, value in _values(
                    _named(name, tool),
                    name,
                    each,
                    schema,
                    rules,
                    around,
                    marks=marks,
                    typed=typed,
                    write=write,
                )
            ]
        )
        said.append(member if name in required else f"{member}?")
    return rules.add(" ".join(said) or '""')


def _named(name: str, tool: str) -> str:
    """Return how errors call a parameter."""
    return f"The parameter {name[:60]!r} of the tool {tool[:60]!r}"


def _values(
    what: str,
    name: str,
    schema: Any,
    root: Mapping[str, Any],
    rules: Rules,
    around: Around,
    *,
    marks: Sequence[str],
    typed: bool,
    write: Write,
) -> list[tuple[str, str]]:
    """Return the kinds of a property's values, each with the rule of the value and its end."""
    made: list[tuple[str, str]] = []
    branches = branches_of(schema, root)
    if all(branch["type"] != "string" for branch in branches):
        rule = rules.json(resolved(schema, root), what, root)
        return [("json", f"{rule} {rules.literal(around(name, 'json')[1])}")]
    texts = [branch for branch in branches if branch["type"] == "string"]
    free = any(branch.keys() == {"type"} for branch in texts)
    for branch in branches:
        after = around(name, "string" if branch["type"] == "string" else "json")[1]
        if branch["type"] != "string":
            if typed or not free:
                rule = rules.json(branch, what, root)
                made.append(("json", f"{rule} {rules.literal(after)}"))
        elif "enum" in branch:
            read_back = [
                value
                for value in branch["enum"]
                if not any(mark in value for mark in marks)
                and (typed or as_json(value, schema, root) == json.dumps(value, ensure_ascii=False))
            ]
            made += [("string", rules.literal(write(value) + after)) for value in read_back]
        else:
            made.append(("string", _text(what, branch, after, marks, rules)))
    if not made:
        raise InvalidRequestError(
            f"{what} allows no value that can be written without quotes.",
            hint=f"leave out {marks[0]!r} in its enum or const",
        )
    return made


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
