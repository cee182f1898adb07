"""Finds and decodes the strings of one GGUF array, many at once."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Starts = npt.NDArray[np.int64]

_U64 = struct.Struct("<Q")


class StringArray:
    """The strings of one array as the file has them, decoded each time they are iterated over.

    A vocabulary of 150,000 tokens and as many merges takes 0.1 s to decode, which loading a model's
    weights need not wait for.
    """

    def __init__(self) -> None:
        self._pieces: list[tuple[bytes, Starts] | str] = []
        self._count = 0

    def add(self, piece: bytes, starts: Starts) -> None:
        """Append the strings of a piece, whose lengths begin at `starts`."""
        self._pieces.append((piece, starts))
        self._count += len(starts)

    def append(self, text: str) -> None:
        """Append one string."""
        self._pieces.append(text)
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            if isinstance(piece, str):
                yield piece
            else:
                yield from decoded(*piece)


def places(window: bytes, at: int, most: int) -> tuple[Starts, int]:
    """Find up to `most` strings that lie wholly in the window from `at` on.

    Returns where their lengths begin, and where the last of them ends.
    """
    return _short(window, at, most) or _any(window, at, most)


def decoded(piece: bytes, starts: Starts) -> list[str]:
    """Decode the strings of a piece that holds nothing else.

    Bytes that are not UTF-8 become lone surrogates.
    """
    if not starts.size:
        return []
    # Each length becomes eight NULs, and the text is decoded and split there, all at once.
    joined = np.array(np.frombuffer(piece, np.uint8))
    lengths: npt.NDArray[np.uint64] = np.ndarray((joined.size - 7,), "<u8", joined.data, 0, (1,))
    lengths[starts] = 0
    if joined.size - np.count_nonzero(joined) == 8 * len(starts):
        return str(joined.data, "utf-8", "surrogateescape").split("\0" * 8)[1:]
    ends = [*starts[1:].tolist(), len(piece)]  # a string has a NUL of its own
    pairs = zip(starts.tolist(), ends, strict=True)
    return [str(piece[a + 8 : b], "utf-8", "surrogateescape") for a, b in pairs]


def _any(window: bytes, at: int, most: int) -> tuple[Starts, int]:
    """Do what `places` does, one string after another."""
    starts: list[int] = []
    add_start, length_at = starts.append, _U64.unpack_from
    stop, last = at, len(window) - 8
    for _ in range(most):
        if stop > last:
            break
        add_start(stop)
        stop += 8 + length_at(window, stop)[0]
    if stop > len(window):
        stop = starts.pop()
    return np.array(starts, dtype=np.int64), stop


def _short(window: bytes, at: int, most: int) -> tuple[Starts, int] | None:
    """Do what `places` does where no string is empty, longer than 255 bytes, or has a NUL.

    Then only the lengths are eight bytes below 256, and numpy finds them all at once. Returns None
    where that is not so.
    """
    if len(window) - at < 8:
        return None
    numbers: npt.NDArray[np.uint64] = np.ndarray((len(window) - at - 7,), "<u8", window, at, (1,))
    starts = np.flatnonzero(numbers < 256)[: most + 1]
    ends = starts + 8 + numbers[starts].astype(np.int64)
    if not starts.size or starts[0] or (starts[1:] != ends[:-1]).any():
        return None
    count = min(most, int(np.count_nonzero(ends <= len(window) - at)))
    return starts[:count] + at, at + int(ends[count - 1]) if count else at
