"""Which names somebody meant who typed one that is none: by family first, then by size."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable

_STEM_CUTOFF = 0.7  # qwn and qwen, smolm and smollm; glm and gemma have 0.5
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([tbm])", re.IGNORECASE)
_UNITS = {"t": 1e12, "b": 1e9, "m": 1e6}


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> list[str]:
    """Return up to `count` of the `known` names of the family meant, the likeliest first.

    A family's letters must be alike: what is alike in digits alone is another model.
    """
    scored = []
    for candidate in known:
        score = _score(name.casefold(), candidate.casefold())
        if score > 0:
            scored.append((-score, candidate))
    return [candidate for _, candidate in sorted(scored)[:count]]


def _score(asked: str, candidate: str) -> float:
    """Return how near two names are; 0 for other families."""
    asked_family, _, asked_size = asked.rpartition("/")[2].partition(":")
    family, _, size = candidate.partition(":")
    asked_words, words = _words(asked_family), _words(family)
    if not asked_words or not words:
        return 0.0
    stem = _ratio(asked_words[0], words[0])
    if stem < _STEM_CUTOFF and not (
        words[0].startswith(asked_words[0]) and len(asked_words[0]) > 2
    ):
        return 0.0
    wanted = _bytes_of(asked_size) or _bytes_of(asked_family)
    there = _bytes_of(size)
    near = 0.0
    if wanted and there:
        near = 1 / (1 + abs(math.log2(wanted / there)))
    elif asked_size and size:
        near = 0.5 * _ratio(asked_size, size)
    return stem + 2 * _ratio(asked_family, family) + (asked_family == family) + near


def _words(family: str) -> list[str]:
    """Return the runs of letters in a family's name: its stem, then what tells its members."""
    return re.findall(r"[a-z]+", family)


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _bytes_of(text: str) -> float:
    """Return the number of parameters that a size says: "0.6b", "30b-a3b", "135m"; 0 if none."""
    match = _SIZE.search(text)
    if match is not None:
        return float(match[1]) * _UNITS[match[2].lower()]
    return float(text) * 1e9 if re.fullmatch(r"\d{1,4}(?:\.\d{1,4})?", text) else 0.0
