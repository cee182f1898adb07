"""JsonText: follows one JSON value that comes a character at a time."""

from __future__ import annotations

import json
import re

MAX_DEPTH = 200
_SPACE = " \t\n\r"
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_LITERALS = ("true", "false", "null")


class JsonText:
    """Reads one JSON value. `offer` each character; `done` and `failed` say how it stands.

    Two faults that models make are mended as they pass: control characters that stand unescaped in
    a string, and backslashes before a letter that needs none.
    """

    def __init__(self) -> None:
        self.done = False
        self.failed = False
        self._stack: list[str] = []  # the brackets that are open
        self._state = "value"
        self._word = ""  # the number, literal or hexadecimal digits being read
        self._is_key = False

    def offer(self, character: str) -> str | None:
        """Read `character`; return what it adds to the JSON, or None if it is not part of it."""
        text: str | None = getattr(self, f"_in_{self._state}")(character)
        return text

    def end(self) -> None:
        """End the text, which may complete a number."""
        if not self.done and not (self._state == "word" and not self._stack and self._end_word()):
            self.failed = True

    def _in_value(self, c: str) -> str | None:
        if c in _SPACE:
            return c
        if c in "{[":
            self._stack.append(c)
            self._state = "first"
            return c if len(self._stack) <= MAX_DEPTH else self._fail()
        if c == '"':
            return self._open_string(is_key=False)
        if c.isascii() and (c.isalnum() or c == "-"):
            self._state, self._word = "word", c
            return c
        return self._fail()

    def _in_first(self, c: str) -> str | None:
        """After an opening bracket: its end may come at once."""
        if (c == "}" and self._stack[-1] == "{") or (c == "]" and self._stack[-1] == "["):
            return self._close(c)
        return self._in_key(c) if self._stack[-1] == "{" else self._in_value(c)

    def _in_key(self, c: str) -> str | None:
        if c in _SPACE:
            return c
        return self._open_string(is_key=True) if c == '"' else self._fail()

    def _in_colon(self, c: str) -> str | None:
        if c == ":":
            self._state = "value"
            return c
        return c if c in _SPACE else self._fail()

    def _in_after(self, c: str) -> str | None:
        """After a value inside brackets."""
        if c in _SPACE:
            return c
        if c == ",":
            self._state = "key" if self._stack[-1] == "{" else "value"
            return c
        if (c == "}" and self._stack[-1] == "{") or (c == "]" and self._stack[-1] == "["):
            return self._close(c)
        return self._fail()

    def _in_string(self, c: str) -> str | None:
        if c == "\\":
            self._state = "escape"
            return ""  # written with what follows
        if c == '"':
            if self._is_key:
                self._state = "colon"
            else:
                self._end_value()
            return c
        return c if c >= " " else json.dumps(c)[1:-1]

    def _in_escape(self, c: str) -> str | None:
        if c == "u":
            self._state, self._word = "hex", ""
            return ""
        self._state = "string"
        if c in '"\\/bfnrt':
            return "\\" + c
        return "\\\\" + (c if c >= " " else json.dumps(c)[1:-1])

    def _in_hex(self, c: str) -> str | None:
        if c not in "0123456789abcdefABCDEF":
            return self._fail()
        self._word += c
        if len(self._word) < 4:
            return ""
        self._state = "string"
        return "\\u" + self._word

    def _in_word(self, c: str) -> str | None:
        if c.isascii() and (c.isalnum() or c in "+-.") and len(self._word) < 400:
            self._word += c
            return c
        if not self._end_word():
            return self._fail()
        return None if self.done else self._in_after(c)

    def _open_string(self, *, is_key: bool) -> str:
        self._state, self._is_key = "string", is_key
        return '"'

    def _close(self, c: str) -> str:
        self._stack.pop()
        self._end_value()
        return c

    def _end_word(self) -> bool:
        """End the value if the word is a number or a literal; return whether it is."""
        if self._word not in _LITERALS and not _NUMBER.fullmatch(self._word):
            return False
        self._end_value()
        return True

    def _end_value(self) -> None:
        self.done = not self._stack
        self._state = "after" if self._stack else "value"

    def _fail(self) -> str | None:
        self.failed = True
        return None
