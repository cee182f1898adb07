"""How much work a JSON text is, found before it is parsed: depth, values, keys and escapes.

A parser in C or Rust holds Python's lock for as long as it runs, so that its work must be bounded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dure.server import limits
from dure.server.errors import invalid

_BLOCK = 1 << 18
_COUNTED = 1 << 16  # bytes: up to here bounds by counting are good enough


@dataclass(frozen=True)
class JSONSize:
    """Bounds of what a JSON text holds; any numbers for a text that is not JSON."""

    depth: int
    values: int
    keys: int
    escapes: int

    def check(self) -> None:
        """Raise a 400 that names the limit which is exceeded."""
        if self.depth > limits.MAX_JSON_DEPTH:
            raise invalid(f"The JSON is nested more than {limits.MAX_JSON_DEPTH} deep.")
        for found, most, what in (
            (self.values, limits.MAX_JSON_VALUES, "values"),
            (self.keys, limits.MAX_JSON_KEYS, "keys"),
            (self.escapes, limits.MAX_JSON_ESCAPES, "escaped characters"),
        ):
            if found > most:
                raise invalid(f"The JSON has {found:,} {what}; at most {most:,} are allowed.")


def json_size(body: bytes) -> JSONSize:
    """Return how much a JSON text holds, without recursion.

    The text is scanned in blocks, none of which begins within an escape. numpy lets other threads
    run meanwhile.
    """
    opened = body.count(b"[") + body.count(b"{") if len(body) <= _COUNTED else len(body)
    if opened <= limits.MAX_JSON_DEPTH:
        return JSONSize(0, opened + body.count(b",") + 1, body.count(b":"), body.count(b"\\"))
    depth = level = values = keys = escapes = inside = 0
    start = 0
    while start < len(body):
        block = _block(body, start)
        start += len(block)
        escaped = np.count_nonzero(np.frombuffer(block, np.uint8) == ord("\\"))
        escapes += int(escaped)
        if escaped:
            block = block.replace(b"\\\\", b"").replace(b'\\"', b"")
        codes = np.frombuffer(block, np.uint8)
        if codes.size == 0:
            continue
        # Every quote left is a text's beginning or end.
        quoted = (np.cumsum(codes == ord('"'), dtype=np.uint8) + np.uint8(inside)) & 1
        inside = int(quoted[-1])
        outside = quoted == 0
        opens = ((codes == ord("[")) | (codes == ord("{"))) & outside
        closes = ((codes == ord("]")) | (codes == ord("}"))) & outside
        values += int(np.count_nonzero(opens))
        values += int(np.count_nonzero((codes == ord(",")) & outside))
        keys += int(np.count_nonzero((codes == ord(":")) & outside))
        levels = np.cumsum(opens.astype(np.int8) - closes.astype(np.int8), dtype=np.int32) + level
        depth, level = max(depth, int(levels.max())), int(levels[-1])
    return JSONSize(depth, values + 1, keys, escapes)


def _block(body: bytes, start: int) -> bytes:
    """Return the next block, which ends after an even number of backslashes."""
    block = body[start : start + _BLOCK]
    slashes = len(block) - len(block.rstrip(b"\\"))
    if slashes % 2 and start + len(block) < len(body):
        block = block[:-1] if len(block) > 1 else body[start : start + 2]
    return block
