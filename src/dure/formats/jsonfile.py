"""Reads JSON of model folders, only when small enough, and only into plain values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dure.errors import ModelFileError
from dure.formats.source import SourceFile

MAX_JSON_BYTES = 64 << 20
MAX_CONFIG_BYTES = 8 << 20  # the largest known tokenizer_config.json has 1.2 MB (Gemma 3)
MAX_DEPTH = 64
SPARE_MEMORY = 48 << 20

# What CPython allocates for each, measured with tracemalloc and rounded up. An empty list is two
# bytes of JSON and 56 of memory, so the size of the text alone says little.
_MEMORY = ((b"[", 120), (b"{", 250), (b",", 120), (b'"', 40))


def read_object(
    path: Path,
    *,
    limit: int = MAX_CONFIG_BYTES,
    memory: int = 256 << 20,
    refuse_duplicates: bool = False,
) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises ModelFileError if it is larger than `limit` bytes, needs more than `memory` bytes once
    parsed, is nested deeper than 64, or is not an object.
    """
    raw = _read(path, limit)
    return parse_object(raw, str(path), memory=memory, refuse_duplicates=refuse_duplicates)


def read_list(path: Path, *, limit: int = MAX_CONFIG_BYTES, memory: int = 256 << 20) -> list[Any]:
    """Read the JSON list in a file; otherwise as `read_object`."""
    value = _parsed(_read(path, limit), str(path), memory=memory)
    if not isinstance(value, list):
        raise ModelFileError(f"{path} holds a JSON {type(value).__name__} where a list belongs.")
    return value


def _read(path: Path, limit: int) -> bytes:
    source = SourceFile(path)
    if source.size_bytes > limit:
        raise ModelFileError(
            f"{path} has {source.size_bytes:,} bytes, and the limit is {limit:,}.",
            hint="this is not the file of that name that models have.",
        )
    raw = source.read(0, source.size_bytes).tobytes()
    source.close()
    return raw


def parse_object(
    raw: bytes, what: str, *, memory: int, refuse_duplicates: bool = False
) -> dict[str, Any]:
    """Parse the JSON object in `raw`; `what` names it in errors, which are as `read_object`'s."""
    value = _parsed(raw, what, memory=memory, refuse_duplicates=refuse_duplicates)
    if not isinstance(value, dict):
        raise ModelFileError(f"{what} holds a JSON {type(value).__name__} where an object belongs.")
    return value


def _parsed(raw: bytes, what: str, *, memory: int, refuse_duplicates: bool = False) -> object:
    needed = sum(raw.count(mark) * size for mark, size in _MEMORY)
    needed += len(raw) * (2 if raw.isascii() else 6)
    if needed > memory:
        raise ModelFileError(
            f"{what} would need {needed:,} bytes of memory, and the limit for a model of this "
            f"size is {memory:,}.",
            hint="the file is damaged or made by a faulty tool: download it again.",
        )
    try:
        value = json.loads(
            str(raw, "utf-8"), object_pairs_hook=_unique if refuse_duplicates else None
        )
        deep = _depth_exceeds(value, MAX_DEPTH)
    except RecursionError:
        deep = True
    except ValueError as error:  # broken JSON, broken UTF-8, a number of over 4,300 digits
        raise ModelFileError(
            f"{what} is not valid JSON: {error}.", hint="download it again."
        ) from None
    if deep:
        raise ModelFileError(f"{what} is nested deeper than {MAX_DEPTH} levels, the limit.")
    made: object = value
    return made


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return unique


def _depth_exceeds(value: object, limit: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return limit == 0 or any(_depth_exceeds(each, limit - 1) for each in inner)
