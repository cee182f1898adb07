"""Damage: to bytes, to JSON values, to texts, and what any JSON value may be replaced by."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any

EXTREMES = (
    *(0, 1, 2, 3, 7, 8, 9, 31, 32, 33, 127, 128, 255, 256, 65_535, 65_536),
    *((1 << bits) + by for bits in (24, 31, 32, 53, 62, 63, 64) for by in (-33, -32, -1, 0, 1)),
)
NUMBERS = (
    *(0, 1, -1, 2, 3, 16, 31, 64, 1000, 65_536, 2**31 - 1, 2**31, -(2**31) - 1, 2**32, 2**53 + 1),
    *(2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**30, -(10**30), 10**400),
    *(0.0, -0.0, 0.5, 1.5, -0.5, 1e-320, 1e-30, 1e16, 1e300, 1e308, -1e308),
    *(float("nan"), float("inf"), float("-inf")),
)
TEXTS = (
    *("", " ", "x", "0", "1", "-1", "1.5", "NaN", "null", "true", "[]", "{}", "auto", "none"),
    *(
        "\0",
        "\ud800",
        "\udcff",
        "\u200b",
        "é",
        "안녕",
        "🦙" * 3,
        "a" * 300,
        "a\nb",
        "../x",
        "/",
        "\\",
    ),
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_end|>", "data: ", "%s", "{0}"),
    *(
        "$ref",
        "#/",
        "#/$defs/a",
        "(",
        "[a-",
        "a{9}",
        "\\p{L}+",
        "(?i)a",
        "^a|b$",
        "string",
        "object",
    ),
)


def anything(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value, NaN and infinities too, mostly a small one."""
    kind = rng.random()
    if depth == 0 and kind < 0.03:
        return deep(rng.choice((20, 63, 64, 65, 150)), rng)
    if depth > 3 or kind < 0.25:
        return rng.choice((None, None, True, False))
    if kind < 0.5:
        return rng.choice(NUMBERS)
    if kind < 0.75:
        return rng.choice(TEXTS)
    if kind < 0.88:
        return [anything(rng, depth + 1) for _ in range(rng.choice((0, 0, 1, 2, 3)))]
    return {rng.choice(TEXTS): anything(rng, depth + 1) for _ in range(rng.choice((0, 0, 1, 2)))}


def deep(levels: int, rng: random.Random) -> Any:
    """Lists or objects within each other."""
    value: Any = rng.choice((None, 1, "x"))
    for _ in range(levels):
        value = [value] if rng.random() < 0.5 else {rng.choice(("a", "type", "items")): value}
    return value


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, (dict, list)):
            for key in list(each) if isinstance(each, dict) else range(len(each)):
                yield each, key
                waiting.append(each[key])


def damaged_json(rng: random.Random, value: Any, others: Sequence[Any] = ()) -> Any:
    """A copy of the value with one to four places changed. others: values to take parts of."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
        found = list(places(value))
        if not found:
            return anything(rng)
        holder, key = rng.choice(found)
        _change(rng, value, found, holder, key, others)
    return value


def _change(
    rng: random.Random,
    whole: Any,
    found: Sequence[tuple[Any, Any]],
    holder: Any,
    key: Any,
    others: Sequence[Any],
) -> None:
    kind = rng.randrange(10)
    if kind < 3:
        holder[key] = anything(rng)
    elif kind == 3:
        del holder[key]
    elif kind == 4:  # a part of this value, or of another
        source = list(places(rng.choice(others))) if others and rng.random() < 0.5 else found
        other, at = rng.choice(source or found)
        part = copy.deepcopy(other[at]) if other is not whole else anything(rng)
        if isinstance(holder, dict) and rng.random() < 0.5:
            holder[at if isinstance(at, str) else str(at)] = part
        else:
            holder[key] = part
    elif kind == 5:
        holder[key] = [holder[key]] if rng.random() < 0.5 else {str(key): holder[key]}
    elif kind == 6 and isinstance(holder, list):
        holder[key : key + 1] = [holder[key]] * rng.choice((0, 2, 3, 40))
    elif kind == 6:
        holder[rng.choice((*TEXTS, key + "_", key.upper(), key[1:]))] = holder.pop(key)
    elif kind == 7 and isinstance(holder[key], (int, float)):
        holder[key] = rng.choice((-holder[key], holder[key] + 1, str(holder[key]), holder[key] * 2))
    elif kind == 8 and isinstance(holder[key], str):
        holder[key] = damaged_text(rng, holder[key], TEXTS)
    elif kind == 9 and isinstance(holder, dict):
        holder[rng.choice(TEXTS)] = anything(rng)
    else:
        holder[key] = rng.choice(NUMBERS)


def json_bytes(rng: random.Random, value: Any) -> bytes:
    """JSON of the value; sometimes no longer JSON, or with a key twice."""
    text = json.dumps(value, allow_nan=True, ensure_ascii=rng.random() < 0.5)
    raw = text.encode("utf-8", "surrogatepass")
    kind = rng.random()
    if kind < 0.06:
        return damaged_bytes(rng, raw)
    if kind < 0.1:
        found = list(re.finditer(rb'"(\w+)": ', raw))
        if found:
            at = rng.choice(found)
            again = at[0] + json.dumps(anything(rng)).encode() + b", "
            return raw[: at.start()] + again + raw[at.start() :]
    if kind < 0.105:
        return raw.replace(b"null", b"[" * 100_000, 1)
    if kind < 0.13:
        numbers = list(re.finditer(rb"\d+", raw))
        if numbers:
            at = rng.choice(numbers)
            number = rng.choice((b"9" * 5000, b"1e999", b"-0", b"01", b"1.", b"0x10", b"1_0"))
            return raw[: at.start()] + number + raw[at.end() :]
    return raw


def damaged_text(rng: random.Random, text: str, pieces: Sequence[str]) -> str:
    """The text with parts left out, doubled, or taken from `pieces`."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        start = rng.randint(0, len(text))
        stop = rng.randint(start, min(len(text), start + rng.choice((1, 3, 10, 60))))
        part = rng.choice(pieces)
        if len(part) > 40 and rng.random() < 0.7:
            begin = rng.randrange(len(part))
            part = part[begin : begin + rng.randint(1, 40)]
        kind = rng.randrange(6)
        if kind == 0:
            text = text[:start] + text[stop:]
        elif kind == 1:
            text = text[:stop] + text[start:]
        elif kind == 2:
            text = text[:start] + part + text[stop:]
        elif kind == 3:
            text = text[:start] + part + text[start:]
        elif kind == 4:
            text = text[:start]
        else:
            character = chr(rng.choice((0, 9, 10, 34, 92, 123, 125, 0x2028, 0xD800, 0x1F600)))
            text = text[:start] + character * rng.choice((1, 1, 2, 50)) + text[stop:]
    return text


def damaged_bytes(rng: random.Random, data: bytes, *, head: int | None = None) -> bytes:
    """The bytes with one to three things wrong, mostly in the first `head` bytes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        size = len(data)
        if size < 2:
            return rng.randbytes(rng.randrange(40))
        reach = size if rng.random() < 0.3 else min(size, head or rng.choice((64, 512, 2048)))
        at = rng.randrange(reach)
        kind = rng.randrange(8)
        if kind == 0:
            flipped = bytearray(data)
            for _ in range(rng.choice((1, 1, 2, 8, 64))):
                flipped[rng.randrange(reach)] ^= 1 << rng.randrange(8)
            data = bytes(flipped)
        elif kind == 1:
            data = data[: rng.randrange(size)] if rng.random() < 0.3 else data[:-1]
        elif kind == 2:
            data = data[:at] + data[at + rng.choice((1, 2, 4, 8, 32, 100)) :]
        elif kind == 3:
            data = data[: at + rng.choice((1, 4, 8, 24, 64, 500))] + data[at:]
        elif kind == 4:
            width = rng.choice((4, 8))
            number = rng.choice(EXTREMES) % (1 << 8 * width)
            data = data[:at] + number.to_bytes(width, "little") + data[at + width :]
        elif kind == 5:
            data = data[:at] + rng.randbytes(rng.choice((1, 8, 40))) + data[at + 8 :]
        elif kind == 6:
            data = data[:at] + bytes(rng.choice((1, 8, 40))) + data[at + 8 :]
        else:
            number = rng.choice((float("nan"), float("inf"), -1e38, 1e-42))
            data = data[:at] + struct.pack("<f", number) + data[at + 4 :]
    return data


def in_pieces(rng: random.Random, text: str) -> list[str]:
    """The text cut at random."""
    if rng.random() < 0.15:
        return list(text)
    cuts = sorted(rng.randint(0, len(text)) for _ in range(rng.randrange(8)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
