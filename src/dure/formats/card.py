"""Reads the head of a model's README: licence, and what it was made from."""

from __future__ import annotations

import re
from pathlib import Path

from dure.errors import ModelFileError
from dure.formats.source import SourceFile

_MAX_BYTES = 1 << 16  # of the README: what stands between its two lines of dashes is far shorter

_KEY = re.compile(r"(\w+):\s*(.*)")
_ITEM = re.compile(r"\s*-\s+(.+)")


def read_card(folder: Path) -> dict[str, list[str]]:
    """Read the texts by key at the head of README.md; empty without one.

    A single text is a list, too. The head is YAML, of which this reads plain keys with plain texts
    or lists of them, which is what licences and base models are; all else is left out.
    """
    try:
        source = SourceFile(folder / "README.md")
    except ModelFileError:
        return {}
    head = source.read(0, min(source.size_bytes, _MAX_BYTES)).tobytes().decode("utf-8", "replace")
    lines = head.splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    found: dict[str, list[str]] = {}
    key = ""
    for line in lines[1:]:
        if line.strip() == "---":
            return found
        if pair := _KEY.fullmatch(line):
            key = pair[1]
            found[key] = _texts(pair[2])
        elif key and (item := _ITEM.fullmatch(line)):
            found[key] += _texts(item[1])
    return {}  # the head never ends: it is no head


def _texts(written: str) -> list[str]:
    inside = written.strip().removeprefix("[").removesuffix("]")
    texts = (part.strip().strip("'\"") for part in inside.split(","))
    return [text for text in texts if text and text not in ("|", ">")]
