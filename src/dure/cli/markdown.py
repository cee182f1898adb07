"""Light Markdown on a terminal, as it comes: words wrapped, and marks shown as styles."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dure.cli.wrapping import BOLD, CODE, DIM, ITALIC, UNDERLINE, Wrapper

MAX_HELD = 160
"""Characters that wait for a closing mark; beyond them the opening one is a character."""

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})[^`]*$")
_HEADING = re.compile(r" {0,3}(#{1,6}) +")
_ITEM = re.compile(r"( *)([-*+]|\d{1,9}[.)]) +(?=\S)")
_QUOTE = re.compile(r" {0,3}> ?")
_EMPHASIS = {1: ITALIC, 2: BOLD, 3: BOLD + ITALIC}
_SPECIAL = re.compile(r"[\\`*]")
_ESCAPED = "\\`*_#[]<>|-"
_LONGEST_OPENING = 12  # of a line: what is longer begins a paragraph


class MarkdownStream:
    """Turns Markdown that comes in pieces into text for a terminal.

    Headings, emphasis, code, lists and quotes are shown; tables and all else stay as written.
    Nothing is lost: a mark that is not closed within its line is a character. With `styled` False
    no mark is touched, and words are wrapped all the same.
    """

    def __init__(self, width: int, *, styled: bool = True, base: str = "") -> None:
        """width: columns; 0 wraps nothing. base: the style of everything, such as DIM."""
        self._wrapper = Wrapper(width, base=base, erases=styled)
        self._styled = styled
        self._line = ""  # what has come of this line, and is not written yet
        self._opened = False  # whether the line's opening was written
        self._fence = ""  # the marks that opened the code we are in
        self._style = ""  # of the whole line
        self._is_table = False
        self._last = ""  # the character before what has not been written

    def push(self, text: str) -> str:
        """Take the next piece; return what can be shown."""
        pieces = text.split("\n")
        for index, piece in enumerate(pieces):
            self._line += piece
            is_whole = index < len(pieces) - 1
            self._advance(is_whole=is_whole)
            if is_whole:
                self._end_line()
        return self._wrapper.take()

    def finish(self) -> str:
        """Return the rest, after the last piece."""
        self._advance(is_whole=True)
        self._wrapper.end_word()
        return self._wrapper.take()

    def _advance(self, *, is_whole: bool) -> None:
        """Write as much of the line as is certain; all of it if it `is_whole`."""
        if self._fence:
            self._code(is_whole=is_whole)
            return
        if not self._opened:
            if not is_whole and not _opening_is_certain(self._line):
                return
            if self._open():
                return
        if self._is_table or not self._styled:
            self._wrapper.write(self._line, self._style)
            self._line = ""
            return
        read = 0
        for end, text, style in self._spans(self._line, is_whole=is_whole):
            read = end
            self._wrapper.write(text, self._style + style)
        self._last = self._line[read - 1] if read else self._last
        self._line = self._line[read:]

    def _end_line(self) -> None:
        self._wrapper.end_line()
        self._line, self._opened, self._style, self._last = "", False, "", ""
        self._is_table = False

    def _open(self) -> bool:
        """Write what the line begins with; True if that is all of it."""
        self._opened, line = True, self._line
        fence = _FENCE.match(line)
        if fence:
            self._fence = fence[1]
            self._write_raw(line, DIM)
            return True
        self._wrapper.begin_line()
        heading, item, quote = _HEADING.match(line), _ITEM.match(line), _QUOTE.match(line)
        if item:
            mark = "•" if self._styled and item[2] in "-*+" else item[2]
            self._wrapper.hang(f"{item[1]}{mark} ", " " * (len(item[1]) + len(mark) + 1))
            self._line = line[item.end() :]
        elif quote:
            bar = "│ " if self._styled else "> "
            self._wrapper.hang(bar, bar)
            self._line = line[quote.end() :]
        elif heading and self._styled:
            self._style = BOLD + (UNDERLINE if heading[1] == "#" else "")
            self._line = line[heading.end() :]
        elif line.lstrip().startswith("|"):
            self._is_table = True
            self._wrapper.keep_line()
        else:
            indent = line[: len(line) - len(line.lstrip(" "))]
            self._wrapper.hang(indent, indent)
            self._line = line[len(indent) :]
        return False

    def _code(self, *, is_whole: bool) -> None:
        """Write a line of code, which is not wrapped; a closing fence ends it."""
        line = self._line
        bare = line.strip()
        if not is_whole and not self._opened and (not bare or bare[0] == self._fence[0]):
            return  # it may be the closing fence
        closes = not self._opened and bare and set(bare) == {self._fence[0]}
        if closes and len(bare) >= len(self._fence):
            self._write_raw(line, DIM)
            self._fence = ""
        else:
            self._write_raw(line, CODE)
        self._opened = True

    def _write_raw(self, text: str, style: str) -> None:
        self._wrapper.keep_line()
        self._wrapper.write(text, style if self._styled else "")
        self._line = ""

    def _spans(self, text: str, *, is_whole: bool) -> Iterator[tuple[int, str, str]]:
        """Yield (how far `text` was read, what to show, its style), up to what must wait."""
        at, before = 0, self._last
        while at < len(text):
            mark = _SPECIAL.search(text, at)
            if mark is None or mark.start() > at:
                end = len(text) if mark is None else mark.start()
                before = text[end - 1]
                yield end, text[at:end], ""
                at = end
                continue
            found = _span(text, at, before, is_whole=is_whole)
            if found is None and not is_whole and len(text) - at < MAX_HELD:
                return
            end, shown, style = found or (at + 1, text[at], "")
            if style and style != CODE:  # code within emphasis
                for part, own in _with_code(shown):
                    yield end, part, style + own
            else:
                yield end, shown, style
            before = text[end - 1]
            at = end


def _with_code(text: str) -> list[tuple[str, str]]:
    """Split the inside of an emphasis at its code."""
    parts = re.split(r"(`[^`]+`)", text)
    return [(p[1:-1], CODE) if p[:1] == "`" and len(p) > 2 else (p, "") for p in parts if p]


def _opening_is_certain(line: str) -> bool:
    """Whether what a line begins with can be told before its end has come."""
    bare = line.lstrip(" ")
    if not bare or (bare[0] in "`~" and bare.startswith(bare[0] * min(3, len(bare)))):
        return False  # a fence has its language behind it
    if bare[0].isalpha() or len(bare) > _LONGEST_OPENING:
        return True
    return len(bare.split(maxsplit=1)) > 1


def _span(text: str, at: int, before: str, *, is_whole: bool) -> tuple[int, str, str] | None:
    """Read the mark at `at`: (its end, what to show, the style); None if it has no end yet."""
    first = text[at]
    if first == "\\":
        if at + 1 >= len(text):
            return None
        escaped = text[at + 1] in _ESCAPED
        return (at + 2, text[at + 1], "") if escaped else (at + 1, first, "")
    run = len(text) - at - len(text[at:].lstrip(first))
    start = at + run
    if start == len(text):
        return None  # the run may go on
    if first == "`":
        closing = _closing(rf"(?<!`)`{{{run}}}(?!`)", text, start)
        if closing is None or (closing.end() == len(text) and not is_whole):
            return None
        return closing.end(), text[start : closing.start()].strip() or " ", CODE
    if run > 3 or text[start].isspace() or before.isalnum():
        return start, text[at:start], ""
    closing = _closing(rf"(?<![\s*])\*{{{run}}}(?![\w*])", text, start + 1)
    if closing is None or (closing.end() == len(text) and not is_whole):
        return None  # a letter behind it would make it no closing mark
    return closing.end(), text[start : closing.start()], _EMPHASIS[run]


def _closing(pattern: str, text: str, start: int) -> re.Match[str] | None:
    """Find a closing mark no farther than MAX_HELD behind `start`, however the text came."""
    most = start + MAX_HELD
    found = re.compile(pattern).search(text, start, most + 1)
    return found if found is not None and found.end() <= most else None
