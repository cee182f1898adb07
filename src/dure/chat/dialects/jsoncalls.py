"""Calls that are JSON objects: {"name": …, "arguments": {…}}, whatever stands around them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dure.chat.dialects.automaton import MAX_NAME, Automaton, Parser
from dure.chat.dialects.dialect import Schemas
from dure.chat.dialects.jsontext import JsonText
from dure.chat.grammar_rules import Rules, one_of, quoted, some_of

ARGUMENTS = ("arguments", "parameters")
FENCE = "```"
_COMPOSED = {"$ref", "allOf", "anyOf", "oneOf", "patternProperties"}


def read_call(automaton: Automaton, *, known: bool = False) -> Parser[bool]:
    """Whether a call's object came. Its arguments are told as they come if its name came first.

    known: only the name of a tool there is makes it a call.
    """
    if not (yield from _opens(automaton)):
        return False
    call = _Call(automaton, known=known)
    while True:
        yield from automaton.space()
        key = yield from read_value(automaton)
        yield from automaton.space()
        if not isinstance(key, str) or not (yield from automaton.expect(":")):
            return False
        yield from automaton.space()
        if not (yield from call.read(key)):
            return False
        yield from automaton.space()
        if not (yield from automaton.expect(",")):
            break
    if not call.complete():
        return False
    yield from _closes(automaton)
    automaton.told()
    return True


def read_known_call(
    automaton: Automaton, *, opened: bool = False
) -> Parser[tuple[str, str] | None]:
    """The name and the arguments of a call of a tool there is; None if no object of only those
    came. Nothing of it is told. opened: its first brace was read."""
    found: dict[str, str] = {}
    if not (yield from _opens(automaton, opened=opened)):
        return None
    while True:
        yield from automaton.space()
        key = yield from read_value(automaton)
        yield from automaton.space()
        if not (yield from automaton.expect(":")):
            return None
        yield from automaton.space()
        if key == "name" and key not in found:
            name = yield from read_value(automaton)
            if not isinstance(name, str) or name not in automaton.tools:
                return None
            found[key] = name
        elif key in ARGUMENTS and len(found) < 2 and (yield from automaton.peek()) == "{":
            parts: list[str] = []
            if not (yield from automaton.json(parts.append)):
                return None
            found[ARGUMENTS[0]] = "".join(parts)
        else:
            return None
        yield from automaton.space()
        if not (yield from automaton.expect(",")):
            break
    if len(found) < 2:
        return None
    yield from _closes(automaton)
    return found["name"], found[ARGUMENTS[0]]


def _opens(automaton: Automaton, *, opened: bool = False) -> Parser[bool]:
    """Whether an object begins: with two braces where a template shows its form so."""
    if not opened:
        yield from automaton.space()
        if not (yield from automaton.expect("{")):
            return False
    yield from automaton.expect("{")
    return True


def _closes(automaton: Automaton) -> Parser[None]:
    """Nothing; the last brace is read over: if it is missing, or comes twice, that does no harm."""
    while (yield from automaton.expect("}")):
        pass


def read_calls(automaton: Automaton) -> Parser[bool]:
    """Whether an array of calls' objects came, or one alone, or several in lines."""
    yield from automaton.space()
    is_array = yield from automaton.expect("[")
    while True:
        if not (yield from read_call(automaton)):
            return False
        automaton.end_call()
        yield from automaton.space()
        yield from automaton.expect(",")
        yield from automaton.space()
        if (yield from automaton.peek()) != "{":
            break
    if is_array:
        yield from automaton.expect("]")
    return True


def read_arguments(automaton: Automaton, name: str) -> Parser[bool]:
    """Whether the JSON object of the arguments of `name` came; told as it does."""
    if not name or (yield from automaton.peek()) != "{":
        return False
    call = _Call(automaton, name=name)
    return (yield from call.read(ARGUMENTS[0])) and call.complete()


def read_fenced(automaton: Automaton, name: str) -> Parser[bool]:
    """Whether the arguments of `name` came, in a block of code or bare; told as they do."""
    yield from automaton.space()
    if (yield from automaton.expect(FENCE)):
        yield from automaton.expect("json")
        yield from automaton.space()
    if not (yield from read_arguments(automaton, name)):
        return False
    yield from automaton.space()
    yield from automaton.expect(FENCE)
    yield from automaton.space()
    return True


def read_value(automaton: Automaton) -> Parser[Any]:
    """The JSON value that comes next; None if it is none, or null."""
    parts: list[str] = []
    if not (yield from automaton.json(parts.append)):
        return None
    return json.loads("".join(parts))


class _Call:
    """One object's members as they come."""

    def __init__(self, automaton: Automaton, *, name: str = "", known: bool = False) -> None:
        self._automaton = automaton
        self._name = name
        self._known: Sequence[str] | None = list(automaton.tools) if known else None
        self._begun = False
        self._held: str | None = None  # arguments that came before the name
        self._pending = ""

    def read(self, key: str) -> Parser[bool]:
        """Whether the member `key` has a value of its kind."""
        if key == "name" and not self._begun:
            value = yield from read_value(self._automaton)
            self._name = value if isinstance(value, str) and _is_name(value) else ""
            return bool(self._name) and (self._known is None or self._name in self._known)
        if key not in ARGUMENTS or self._begun or self._held is not None:
            yield from read_value(self._automaton)
            return key not in ARGUMENTS
        first = yield from self._automaton.peek()
        if self._name and first == "{":
            return (yield from self._automaton.json(self._stream)) and self._begun
        parts: list[str] = []
        if not (yield from self._automaton.json(parts.append)):
            return False
        self._held = _object("".join(parts))
        return self._held is not None

    def complete(self) -> bool:
        """Whether the object was a call, which then has been told whole."""
        if not self._name:
            return False
        if not self._begun:
            self._automaton.begin_call(self._name)
            self._automaton.arguments(self._held or "{}")
        return True

    def _stream(self, text: str) -> None:
        """Nothing; the call is begun once its arguments look like an object's."""
        if self._begun:
            self._automaton.arguments(text)
            return
        self._pending += text
        if '"' in self._pending or "}" in self._pending:
            self._begun = True
            self._automaton.begin_call(self._name)
            self._automaton.arguments(self._pending)


def _object(text: str) -> str | None:
    """The object that JSON `text` is, or holds as a string; {} for null; None for anything else."""
    if text == "null":
        return "{}"
    if text.startswith('"'):
        inner = json.loads(text).strip()
        value = JsonText()
        mended = []
        for character in inner:
            added = None if value.done else value.offer(character)
            if added is None:
                return None
            mended.append(added)
        text = "".join(mended) if value.done else ""
    return text if text.startswith("{") else None


def _is_name(text: str) -> bool:
    return 0 < len(text) <= MAX_NAME and text.isprintable()


def call_rule(tools: Schemas, rules: Rules, *, key: str = "arguments") -> str:
    """What says one call's object, its arguments under `key`."""
    calls = [
        f"{rules.literal(_head(name, key))} {arguments_rule(name, schema, rules)} {quoted('}')}"
        for name, schema in tools.items()
    ]
    return rules.add(one_of(calls))


def arguments_rule(name: str, schema: Mapping[str, Any], rules: Rules) -> str:
    """The name of the rule for the arguments of the tool `name`."""
    # A schema that names properties means those: small models invent others where they may.
    closed = {} if _COMPOSED & schema.keys() else {"additionalProperties": False}
    typed = {"type": "object", **closed, **schema}
    return rules.json(typed, f"The parameters of the tool {name!r}")


def _head(name: str, key: str) -> str:
    return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{key}": '


@dataclass(frozen=True)
class ArrayCalls:
    """[{"name": …, "arguments": {…}}, …] between two marks; lines of objects will do."""

    open: str
    close: str

    @property
    def begins(self) -> tuple[str, ...]:
        """The mark before the array."""
        return (self.open,)

    @property
    def marks(self) -> tuple[str, ...]:
        """Both marks."""
        return (self.open, self.close)

    def parse(self, automaton: Automaton, mark: str) -> Parser[bool]:
        """Whether calls came; the closing mark may be missing at the end of the text."""
        if not (yield from read_calls(automaton)):
            return False
        yield from automaton.space()
        return (yield from automaton.expect(self.close)) or (yield from automaton.peek()) == ""

    def grammar(self, tools: Schemas, rules: Rules, *, several: bool) -> str:
        """What says an array of calls between the marks."""
        calls = some_of(call_rule(tools, rules), '", "', several=several)
        return f"{rules.literal(self.open + '[')} {calls} {rules.literal(']' + self.close)}"
