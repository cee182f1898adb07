"""Markdown on a terminal: what is shown does not depend on the pieces in which it comes."""

from __future__ import annotations

import re

import pytest

from dure.cli.markdown import MAX_HELD, MarkdownStream
from dure.cli.wrapping import BOLD, CODE, DIM, ITALIC, UNDERLINE

WIDTH = 44

TEXT = """# Title here

A **bold word** and *it* and `code x` with 2 * 3 and a*b*c, **not closed and *args.

- first item that is rather long and must be wrapped somewhere
- second `x`
  1. nested **b `c` d**, end
> quote that is rather long and must be wrapped somewhere

```python
def f(**kw): return "*x*" # a long line of code which is not wrapped
```
| a | b * c |
中文字符没有空格所以必须在任何地方换行，但是标点不能在行首。中文字符没有空格所以必须
supercalifragilisticexpialidocious-supercalifragilisticexpialidocious
snake_case_name __init__ \\*escaped\\* end"""

SHOWN = """Title here

A bold word and it and code x with 2 * 3 and
a*b*c, **not closed and *args.

• first item that is rather long and must be
  wrapped somewhere
• second x
  1. nested b c d, end
│ quote that is rather long and must be
│ wrapped somewhere

```python
def f(**kw): return "*x*" # a long line of code which is not wrapped
```
| a | b * c |
中文字符没有空格所以必须在任何地方换行，但是
标点不能在行首。中文字符没有空格所以必须
supercalifragilisticexpialidocious-supercalifragilisticexpialidocious
snake_case_name __init__ *escaped* end"""


def shown(written: str) -> list[list[tuple[str, str]]]:
    """The lines of a terminal that got `written`: (character, style) each."""
    lines: list[list[tuple[str, str]]] = [[]]
    column, style = 0, ""
    for found in re.finditer(r"\x1b\[(\d*)([mDK])|(.|\n)", written):
        if found[2] == "m":
            style = "" if found[1] == "0" else style + found[0]
        elif found[2] == "D":
            column -= int(found[1])
        elif found[2] == "K":
            del lines[-1][column:]
        elif found[3] == "\n":
            lines.append([])
            column = 0
        else:
            wide = 2 if "\u3000" <= found[3] <= "\uffef" else 1
            cells = [(found[3], "" if found[3] == " " else style)] + [("", "")] * (wide - 1)
            lines[-1][column : column + wide] = cells
            column += wide
    return [[cell for cell in line if cell[0]] for line in lines]


def streamed(text: str, size: int, *, styled: bool = True) -> str:
    stream = MarkdownStream(WIDTH, styled=styled)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    return "".join(map(stream.push, pieces)) + stream.finish()


def plain(written: str) -> str:
    return "\n".join("".join(c for c, _ in line).rstrip() for line in shown(written))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_words_are_wrapped_and_marks_are_shown_as_styles(size: int) -> None:
    assert plain(streamed(TEXT, size)) == SHOWN


@pytest.mark.parametrize(
    ("text", "styled"),
    [
        ("**b**", [("b", BOLD)]),
        ("*i*", [("i", ITALIC)]),
        ("***x***", [("x", BOLD + ITALIC)]),
        ("`c`", [("c", CODE)]),
        ("``a`b``", [("a", CODE), ("`", CODE), ("b", CODE)]),
        ("**`c`**", [("c", BOLD + CODE)]),
        ("# h", [("h", BOLD + UNDERLINE)]),
        ("## h", [("h", BOLD)]),
        ("a**b", [("a", ""), ("*", ""), ("*", ""), ("b", "")]),
        ("~~~\nx", None),
    ],
)
@pytest.mark.parametrize("size", [1, 100])
def test_a_mark_is_a_style(text: str, styled: list[tuple[str, str]] | None, size: int) -> None:
    lines = shown(streamed(text, size))
    if styled is None:
        assert lines == [[("~", DIM)] * 3, [("x", CODE)]]
    else:
        assert lines == [styled]


def test_a_word_is_shown_as_it_comes_and_moves_where_it_grows_too_long() -> None:
    stream = MarkdownStream(20)
    first = stream.push("twelve words and un")
    assert plain(first) == "twelve words and un"
    assert plain(first + stream.push("believable")) == "twelve words and\nunbelievable"


def test_without_styles_nothing_is_erased_and_every_mark_stays() -> None:
    written = streamed(TEXT, 3, styled=False)
    assert "\x1b" not in written
    written, given = (re.sub(r"[\s>]", "", text) for text in (written, TEXT))
    assert written == given  # but for breaks, and what a broken line of a quote begins with


@pytest.mark.parametrize("mark", ["*", "`"])
def test_text_behind_a_mark_without_end_does_not_wait_for_ever(mark: str) -> None:
    stream = MarkdownStream(0)
    words = "word " * MAX_HELD
    assert plain(stream.push(f"{mark}{words}")).startswith(f"{mark}word word")


def test_many_marks_in_one_line_take_no_time() -> None:
    stream = MarkdownStream(80)
    text = "*a **b " * 20_000
    assert plain(stream.push(text) + stream.finish()).startswith("*a **b *a")
