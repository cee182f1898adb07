"""What a machine can do: the facts that a plan's speeds are computed from, and the file of them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dure.errors import InvalidRequestError, ModelFileError
from dure.formats.blocks import BLOCKS, FLOATS
from dure.formats.jsonfile import read_object

FORMAT = 1
"""The number of this form of file. One of another is measured anew, or refused."""

ROWS = (1, 2, 4, 6, 8, 16, 32, 64, 512)
"""Rows of a product whose speeds are measured; between two of them a straight line is drawn."""

FEW_AND_MANY = (32, 512)
"""Rows at which layers are measured."""

EXPERT_ROWS = (1, 8, 32)
"""Rows of an expert for which mixtures are measured."""

MAX_FILE_BYTES = 1 << 20

MAX_NUMBER = 1e18
"""More than any figure of a machine."""

STAND_INS: Mapping[str, str] = {
    "I4G64": "I4G128",
    "I8G32": "I8G128",
    "U8G32": "U8G128",
    "F8G32": "BF16",
    "F8G128": "BF16",
    "E8G32": "I8G128",
    "E8G128": "I8G128",
    "H16G64": "B16G64",
    "A4G32": "A4G64",
    "A8G32": "A8G64",
    "A2G64": "A8G64",
    "A6G32": "A8G64",
    "A6G64": "A8G64",
    "A4G16": "A8G16",
    "NV4G128": "NV4G32",
}
"""Types that are not measured -> a type whose codes and loops are the same, or nearly."""


COLUMNS = (128, 256)
"""Numbers of a key and a value together, whose attention is measured."""


@dataclass(frozen=True)
class AttentionSpeed:
    """Nanoseconds of attention for one key of one key-value head.

    They depend on the query heads that share it, not in proportion, and on the numbers of key and
    value, in proportion but for a constant: that of the softmax.
    """

    groups: tuple[int, ...]  # query heads a key-value head, rising
    narrow: tuple[float, ...]  # one for each of these, for the fewer of `columns`,
    wide: tuple[float, ...]  # and for the more
    columns: tuple[int, int] = COLUMNS
    row_keys: float = 0.0  # what a row takes besides its keys, as so many keys more

    def ns(self, group: float, columns: int) -> float:
        """Return the nanoseconds of a key that `group` query heads share, value and all."""
        last = self.groups[-1]
        narrow, wide = (
            float(np.interp(min(group, last), self.groups, each)) * max(1.0, group / last)
            for each in (self.narrow, self.wide)
        )
        low, high = self.columns
        return narrow + (wide - narrow) * (columns - low) / (high - low)


@dataclass(frozen=True)
class Machine:
    """One machine with one instruction set and number of threads, as dure's kernels see it."""

    processor: str
    isa: str
    threads: int
    kernels: str  # which kernels were measured
    memory_bytes: int  # that a process could fill when it was measured
    read_bytes_s_1: float  # bytes of memory a second that one thread reads,
    read_bytes_s: float  # and that all of them read
    gops: Mapping[str, tuple[float, ...]]  # type -> giga-operations a second, one for each ROWS
    attention: Mapping[str, AttentionSpeed]  # cache type and rows, as "f16 one", "q8 many"
    layer_s: float  # what a decoder layer takes besides its products and attention,
    element_s: float  # a number that goes into a product or comes out of it,
    step_s: float  # and a step besides its layers
    element_few_s: float | None = None  # element_s of few rows; None: the same
    expert_factors: tuple[
        float, ...
    ] = ()  # a mixture over products alone, one for each EXPERT_ROWS
    delta_ns: float = 0.0  # a number of a recurrent state, for one token
    disk_bytes_s: float | None = None  # direct reads of 2 MB, four at once
    idle_watts: float | None = None
    busy_watts: float | None = None
    watts_from: str = "unknown"  # "watts" (named by the operator), "tdp", or "unknown"
    measured: str = ""  # when, in UTC
    seconds: float = 0.0  # that measuring took
    assumed: tuple[str, ...] = field(default=())  # what was not measured, in sentences

    def seconds_of(self, dtype: str, weights: float, rows: float) -> float:
        """Return the seconds of a product of `rows` rows with so many weights of `dtype`.

        The larger of what reading them takes, and of what computing takes at the rate that was
        measured for so many rows.
        """
        if rows <= 0:
            return 0.0
        name, scale = self._measured(dtype)
        each = [
            2e-9 * count / rate * scale for count, rate in zip(ROWS, self.gops[name], strict=True)
        ]
        if rows <= ROWS[-1]:
            computing = float(np.interp(rows, ROWS, each))
        else:
            computing = each[-1] * rows / ROWS[-1]
        return weights * max(computing, bytes_a_weight(dtype) / self.read_bytes_s)

    def _measured(self, dtype: str) -> tuple[str, float]:
        """Return a type that was measured, and what a weight of `dtype` takes of its time."""
        for name in (dtype, STAND_INS.get(dtype, dtype)):
            if name in self.gops:
                return name, 1.0
        return self.nearest(dtype), 1.0

    def attention_of(self, kind: str) -> AttentionSpeed:
        """Return the speed of attention of a kind. Raises InvalidRequestError if it is not known.

        kind: cache type and rows, as "f16 one"; "latent f16 one".
        """
        if kind not in self.attention:
            raise InvalidRequestError(
                f"The file of the machine does not say how fast attention of {kind!r} is.",
                hint="`dure plan --save-machine FILE` writes a whole one, on the machine itself",
            )
        return self.attention[kind]

    def expert_factor(self, rows: float) -> float:
        """Return what an expert of so many rows takes, over the products of its matrices alone.

        Its matrices are small, its rows are gathered, and its products are weighted and added up.
        """
        if not self.expert_factors:
            return 1.0
        return float(np.interp(math.log(max(rows, 1)), np.log(EXPERT_ROWS), self.expert_factors))

    def elements_s(self, elements: float, rows: int) -> float:
        """Return the seconds that so many elements of each of `rows` rows take."""
        few = self.element_s if self.element_few_s is None else self.element_few_s
        each = float(np.interp(rows, FEW_AND_MANY, (few, self.element_s)))
        return each * elements * rows

    def nearest(self, dtype: str) -> str:
        """Return the measured type whose weights are most alike: floats or codes, and bytes."""
        wanted, is_float = bytes_a_weight(dtype), dtype in FLOATS
        return min(
            self.gops,
            key=lambda name: ((name in FLOATS) != is_float, abs(bytes_a_weight(name) - wanted)),
        )


def bytes_a_weight(dtype: str) -> float:
    """Return the bytes of one weight of `dtype` in a file; packed it takes hardly more."""
    return BLOCKS[dtype].block_bytes / BLOCKS[dtype].block_size


def write_machine(machine: Machine, path: Path) -> None:
    """Write the machine to a file of JSON, by one rename. Raises OSError."""
    text = json.dumps({"dure_machine": FORMAT, **dataclasses.asdict(machine)}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_machine(path: Path) -> Machine:
    """Read the file of a machine.

    Raises InvalidRequestError, with one sentence, for a file that is missing, damaged, of another
    version or of another kind.
    """
    try:
        found = read_object(path, limit=MAX_FILE_BYTES, memory=64 << 20)
    except (OSError, ModelFileError) as error:
        raise _refused(path, f"cannot be read: {error.args[0] if error.args else error}") from None
    number = found.pop("dure_machine", None)
    if number is None:
        raise _refused(path, "is no file of a machine")
    if number != FORMAT:
        raise _refused(path, f"is of form {number!r:.20}, and this dure reads form {FORMAT}")
    try:
        return _from_values(found)
    except (TypeError, ValueError, KeyError) as error:
        raise _refused(path, f"is damaged: {error}") from None


def _refused(path: Path, why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{path} {why}.".replace("..", "."),
        hint="`dure plan --save-machine FILE` writes one, on the machine that is meant",
    )


def _from_values(found: Mapping[str, Any]) -> Machine:
    """Make a machine of JSON's values. Raises ValueError or TypeError, saying which is wrong."""
    known = {each.name: each for each in dataclasses.fields(Machine)}
    wanting = [
        name
        for name, each in known.items()
        if name not in found
        and each.default is dataclasses.MISSING
        and each.default_factory is dataclasses.MISSING
    ]
    unknown = sorted(found.keys() - known.keys())
    if wanting or unknown:
        raise ValueError(
            f"{', '.join(wanting)} missing" if wanting else f"{unknown[0]!r:.40} is not known"
        )
    values = {name: _value(name, str(known[name].type), value) for name, value in found.items()}
    return Machine(**values)


def _value(name: str, kind: str, value: Any) -> Any:
    """Return one field's value, checked. Raises ValueError."""
    if name == "gops":
        return _gops(value)
    if name == "attention":
        return {each: _attention(each, speeds) for each, speeds in _items(name, value)}
    if name == "expert_factors":
        if isinstance(value, list) and len(value) in (0, len(EXPERT_ROWS)):
            return tuple(_number("a factor of experts", each) for each in value)
        raise ValueError(f"expert_factors is no list of {len(EXPERT_ROWS)} numbers")
    if name == "assumed":
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            return tuple(value)
        raise ValueError("assumed is no list of sentences")
    if kind == "str":
        if isinstance(value, str) and len(value) <= 200:
            return value
        raise ValueError(f"{name} is no text of up to 200 characters")
    if value is None and "None" in kind:
        return None
    may_be_zero = name.endswith(("_s", "_ns", "seconds", "watts")) and name != "read_bytes_s"
    number = _number(name, value, zero=may_be_zero)
    return int(number) if kind == "int" else number


def _gops(value: Any) -> dict[str, tuple[float, ...]]:
    rates = {}
    for dtype, each in _items("gops", value):
        if dtype not in BLOCKS or not isinstance(each, list) or len(each) != len(ROWS):
            raise ValueError(f"the speeds of {dtype!r:.20} are not {len(ROWS)} of a known type")
        rates[dtype] = tuple(_number(f"a speed of {dtype}", rate) for rate in each)
    return rates


def _attention(name: str, value: Any) -> AttentionSpeed:
    given = dict(_items(f"attention of {name:.20}", value))
    parts = [each.name for each in dataclasses.fields(AttentionSpeed) if each.name != "row_keys"]
    row_keys = _number("row_keys", given.pop("row_keys", 0.0), zero=True)
    if sorted(given) != sorted(parts) or not all(isinstance(each, list) for each in given.values()):
        raise ValueError(f"the attention of {name!r:.20} is not {', '.join(parts)}")
    lists = {part: tuple(_number(part, each) for each in given[part]) for part in parts}
    groups, columns = (tuple(map(int, lists[part])) for part in ("groups", "columns"))
    sizes = {len(groups), len(lists["narrow"]), len(lists["wide"])}
    rising = all(low < high for low, high in pairwise(groups))
    if len(sizes) != 1 or not rising or len(columns) != 2 or columns[0] >= columns[1]:
        raise ValueError(f"the attention of {name!r:.20} has lists that do not fit together")
    low, high = columns
    return AttentionSpeed(groups, lists["narrow"], lists["wide"], (low, high), row_keys)


def _items(name: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{name} is no object with anything in it")
    return list(value.items())


def _number(name: str, value: Any, *, zero: bool = False) -> float:
    """Return a number above zero, or zero where it may be. Raises ValueError."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if (
        not is_number
        or not math.isfinite(value)
        or not (0 if zero else 1e-30) <= value <= MAX_NUMBER
    ):
        raise ValueError(f"{name} is {value!r:.30}, which is no such number")
    return float(value)
