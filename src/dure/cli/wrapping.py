"""Words wrapped to a terminal's width, with styles, as they come."""

from __future__ import annotations

BOLD, DIM, ITALIC, UNDERLINE, CODE = (f"\x1b[{n}m" for n in (1, 2, 3, 4, 36))
RESET = "\x1b[0m"

MIN_WIDTH = 20  # on a narrower terminal nothing is wrapped
TAB = 8
_NEVER_FIRST = (
    "、。，．：；！？）」』】〉》”’…ー"  # what must not begin a line of Chinese or Japanese
)


class Wrapper:
    """Breaks lines between words, and between wide characters, which have no spaces.

    A word is shown as far as it has come; if it then grows beyond the line, it is erased there.
    """

    def __init__(self, width: int, *, base: str = "", erases: bool = True) -> None:
        """width: columns, one fewer than the terminal has. erases: else words are shown whole."""
        self._width = width if width >= MIN_WIDTH else 0
        self._base = base
        self._erases = erases
        self._out: list[str] = []
        self._column = 0
        self._hanging = ""  # what a continued line begins with
        self._space = ""  # white space before the word, dropped where a line breaks
        self._word: list[tuple[str, str]] = []
        self._word_width = 0
        self._shown = (0, 0)  # characters and columns of the word that are on the screen
        self._from = 0  # the column of its first one
        self._keeps = False  # whether this line is written as it is

    def take(self) -> str:
        """Return what was written since the last time."""
        if self._erases:
            self._show_word()
        text = "".join(self._out)
        self._out.clear()
        return text

    def begin_line(self) -> None:
        """Begin a line that is wrapped."""
        self._keeps, self._hanging = False, ""

    def keep_line(self) -> None:
        """Write this line as it is, however long."""
        self._keeps, self._hanging = True, ""

    def hang(self, first: str, then: str) -> None:
        """Begin the line with `first`, and each line that continues it with `then`."""
        self._emit(first, "")
        self._hanging = then

    def write(self, text: str, style: str) -> None:
        """Add text of one style: a word goes on in the next piece."""
        if self._keeps or not self._width:
            self.end_word()
            self._emit(text, style)
            return
        for character in text:
            if character.isspace():
                self.end_word()
                self._space += character
                continue
            wide = _width(character)
            if wide == 2 and character not in _NEVER_FIRST:
                self.end_word()
            if self._word and self._word[-1][1] == style:
                self._word[-1] = (self._word[-1][0] + character, style)
            else:
                self._word.append((character, style))
            self._word_width += wide

    def end_word(self) -> None:
        """Write the word that has come, on a line of its own if it does not fit."""
        self._show_word()
        self._word, self._word_width, self._shown = [], 0, (0, 0)

    def _show_word(self) -> None:
        """Write what has come of the word, on the next line if it does not fit here."""
        if not self._word:
            return
        characters, columns = self._shown
        if not characters:
            beside = self._column + _columns(self._space, self._column)
            if self._width and beside + self._word_width > self._width and self._may_break():
                self._break()
            self._emit(self._space, "")
            self._space, self._from = "", self._column
        elif self._from + self._word_width > self._width and self._from > len(self._hanging):
            self._out.append(f"\x1b[{columns}D\x1b[K")
            self._break()
            characters, self._from = 0, self._column
        for text, style in self._word:
            self._emit(text[characters:], style)
            characters = max(0, characters - len(text))
        self._shown = (sum(len(text) for text, _ in self._word), self._word_width)

    def _may_break(self) -> bool:
        return self._column > len(self._hanging)

    def _break(self) -> None:
        self._out.append("\n")
        self._column, self._space = 0, ""
        self._emit(self._hanging, "")

    def end_line(self) -> None:
        """End the line as the text does."""
        self.end_word()
        self._out.append("\n")
        self._column, self._space, self._hanging, self._keeps = 0, "", "", False

    def _emit(self, text: str, style: str) -> None:
        if not text:
            return
        style = self._base + style
        self._out.append(f"{style}{text}{RESET}" if style and not text.isspace() else text)
        self._column += _columns(text, self._column)


def _columns(text: str, start: int) -> int:
    """Return the columns that `text` takes from column `start` on."""
    column = start
    for character in text:
        column += TAB - column % TAB if character == "\t" else _width(character)
    return column - start


def _width(character: str) -> int:
    """Return the columns of a character: 2 of Chinese and of most emoji, 0 of an accent."""
    if character.isascii():
        return 1
    from prompt_toolkit.utils import get_cwidth  # noqa: PLC0415 - most text has no need of it

    return max(0, get_cwidth(character))
