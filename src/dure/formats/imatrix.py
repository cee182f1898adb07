"""Reads and writes importance matrices, as llama.cpp has them: a GGUF file, or the older .dat.

Of each matrix of a model they say how large the squares of its inputs are, column by column, on
average over the tokens of some texts: what an error of a weight in that column costs. Of a stack of
experts they say it for each expert, of the tokens that it had.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dure.errors import InvalidRequestError, ModelFileError
from dure.formats.gguf import read_gguf
from dure.formats.gguf_writer import TensorPlan, write_gguf
from dure.formats.source import SourceFile
from dure.formats.string_array import StringArray
from dure.formats.tensors import TensorInfo, shown

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

SUMS, COUNTS = ".in_sum2", ".counts"
"""What the two tensors of a matrix are called, behind its own name."""

MAX_NAME_BYTES = 65_535
MAX_ENTRIES = 65_536

_KIND = "imatrix"


@dataclass(frozen=True)
class Importance:
    """Sums of squares of a matrix's inputs, (matrices, cols), and how many rows each has had.

    `matrices` is 1, or the experts of a stack.
    """

    sums: Doubles
    counts: Doubles  # (matrices,)

    def means(self) -> Floats:
        """Return the mean squares (matrices, cols); 1 throughout for an expert without rows."""
        counts = self.counts[:, None]
        means = np.divide(self.sums, counts, out=np.ones_like(self.sums), where=counts > 0)
        return means.astype(np.float32)


@dataclass(frozen=True)
class ImportanceMatrix:
    """The importance of a model's matrices, by their names in a GGUF file."""

    entries: Mapping[str, Importance]
    datasets: tuple[str, ...] = ()  # the texts that it was computed from
    chunks: int = 0
    chunk_size: int = 0  # tokens; 0 if the file does not say


def read_imatrix(path: str | Path) -> ImportanceMatrix:
    """Read an importance matrix of either format. Raises ModelFileError for a damaged file."""
    path = Path(path)
    source = SourceFile(path)
    try:
        is_gguf = source.size_bytes >= 4 and source.read(0, 4).tobytes() == b"GGUF"
        return _read_gguf(path) if is_gguf else _read_dat(source)
    finally:
        source.close()


def write_imatrix(path: Path, matrix: ImportanceMatrix, *, force: bool = False) -> int:
    """Write the matrix: a GGUF file if `path` ends in .gguf, else the older format (.dat).

    Returns the bytes of the file. Raises InvalidRequestError if `path` exists and not `force`.
    """
    if path.suffix == ".gguf":
        return _write_gguf(path, matrix, force=force)
    check_imatrix_target(path, force=force)
    data = b"".join(_dat_parts(matrix))
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    return len(data)


def check_imatrix_target(path: Path, *, force: bool) -> None:
    """Raise InvalidRequestError unless a file can be written at `path`."""
    if not path.parent.is_dir():
        raise InvalidRequestError(f"{path.parent} is not a folder.", hint="make it first.")
    if path.exists() and (not force or not path.is_file()):
        raise InvalidRequestError(f"{path} exists.", hint="--force replaces it.")


def _read_gguf(path: Path) -> ImportanceMatrix:
    file = read_gguf(path)
    if file.metadata.get("general.type") != _KIND:
        raise ModelFileError(
            f"{path} is a GGUF file, but no importance matrix (general.type is not {_KIND!r}).",
            hint="`dure imatrix` makes one, as llama.cpp's llama-imatrix does.",
        )
    entries: dict[str, Importance] = {}
    for name, tensor in file.tensors.items():
        if not name.endswith(SUMS):
            continue
        of = name.removesuffix(SUMS)
        counts = file.tensors.get(of + COUNTS)
        if counts is None:
            raise ModelFileError(f"{path} has {shown(name)} without its counts.")
        sums, seen = _values(path, tensor), _values(path, counts).reshape(-1)
        sums = sums.reshape(-1, tensor.shape[-1])
        if len(sums) != len(seen):
            raise ModelFileError(
                f"{path} has {len(seen):,} counts for the {len(sums):,} matrices of {shown(of)}."
            )
        entries[of] = _entry(path, of, sums, seen)
    names = file.metadata.get("imatrix.datasets", [])
    datasets = tuple(names) if isinstance(names, (list, StringArray)) else ()
    return ImportanceMatrix(
        _some(path, entries),
        tuple(each for each in datasets if isinstance(each, str)),
        _number(file.metadata.get("imatrix.chunk_count")),
        _number(file.metadata.get("imatrix.chunk_size")),
    )


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _values(path: Path, tensor: TensorInfo) -> Doubles:
    if tensor.dtype != "F32" or not tensor.shape:
        raise ModelFileError(f"{path} has {shown(tensor.name)} as {tensor.dtype}, not F32.")
    return tensor.read().view(np.float32).astype(np.float64)


def _entry(path: Path, name: str, sums: Doubles, counts: Doubles) -> Importance:
    """Check an entry's numbers: none negative, all finite."""
    if not (np.isfinite(sums).all() and np.isfinite(counts).all()):
        raise ModelFileError(f"{path} has numbers for {shown(name)} that are NaN or infinite.")
    if (sums < 0).any() or (counts < 0).any():
        raise ModelFileError(f"{path} has sums of squares for {shown(name)} below 0.")
    return Importance(sums, counts)


def _some(path: Path, entries: dict[str, Importance]) -> dict[str, Importance]:
    if not entries:
        raise ModelFileError(f"{path} has no matrix in it.")
    return entries


def _write_gguf(path: Path, matrix: ImportanceMatrix, *, force: bool) -> int:
    metadata: dict[str, Any] = {
        "general.type": _KIND,
        "imatrix.datasets": list(matrix.datasets),
        "imatrix.chunk_count": matrix.chunks,
        "imatrix.chunk_size": matrix.chunk_size,
    }
    plans: list[TensorPlan] = []
    for name, each in matrix.entries.items():
        for suffix, values in ((SUMS, each.sums), (COUNTS, each.counts[:, None])):
            floats = np.ascontiguousarray(values, np.float32)
            # llama.cpp has a matrix that is no stack in two dimensions, too.
            plans.append(TensorPlan(name + suffix, "F32", floats.shape, _bytes_of(floats)))
    return write_gguf(path, metadata, plans, force=force)


def _bytes_of(values: Floats) -> Any:
    return lambda: [values.view(np.uint8).reshape(-1)]


# The older format: a number of entries; of each its name, a number of calls, a number of values,
# and the values, float32, as means times calls. Then the chunks and the name of the text.


def _dat_parts(matrix: ImportanceMatrix) -> Iterator[bytes]:
    calls = max(1, matrix.chunks)
    yield struct.pack("<i", len(matrix.entries))
    for name, each in matrix.entries.items():
        values = (each.means() * np.float32(calls)).astype("<f4")
        raw = name.encode()
        yield struct.pack("<i", len(raw)) + raw
        yield struct.pack("<ii", calls, values.size) + values.tobytes()
    text = (matrix.datasets[0] if matrix.datasets else "").encode()
    yield struct.pack("<ii", calls, len(text)) + text


def _read_dat(source: SourceFile) -> ImportanceMatrix:
    reader = _Reader(source)
    count = reader.number("entries", 1, MAX_ENTRIES)
    entries: dict[str, Importance] = {}
    for _ in range(count):
        name = reader.text("a matrix's name")
        calls = reader.number("calls", 0, 2**31 - 1)
        size = reader.number("values", 1, 2**31 - 1)
        values = reader.floats(size).astype(np.float64)
        if name in entries:
            raise ModelFileError(f"{source.path} has {shown(name)} twice.")
        # Which experts the values are of, only the model's shapes say.
        entries[name] = _entry(
            source.path, name, values[None], np.full(1, max(1, calls), np.float64)
        )
    chunks = 0
    datasets: tuple[str, ...] = ()
    if reader.left:
        chunks = reader.number("chunks", 0, 2**31 - 1)
        datasets = (reader.text("the text's name"),)
    return ImportanceMatrix(entries, datasets, chunks)


class _Reader:
    """Reads the older format's numbers and texts one behind the other."""

    def __init__(self, source: SourceFile) -> None:
        self._source, self._at = source, 0

    @property
    def left(self) -> int:
        """The bytes that have not been read."""
        return self._source.size_bytes - self._at

    def _take(self, size: int) -> bytes:
        if size > self.left:
            raise self._wrong(f"ends within the {size:,} bytes from {self._at:,} on")
        self._at += size
        return self._source.read(self._at - size, size).tobytes()

    def number(self, what: str, least: int, most: int) -> int:
        """Read a number of `what` and check it."""
        value: int = struct.unpack("<i", self._take(4))[0]
        if not least <= value <= most:
            raise self._wrong(f"says that it has {value:,} {what}")
        return value

    def text(self, what: str) -> str:
        """Read a text behind its length."""
        try:
            return self._take(self.number(f"bytes of {what}", 0, MAX_NAME_BYTES)).decode()
        except UnicodeDecodeError:
            raise self._wrong(f"has {what} that is not UTF-8") from None

    def floats(self, count: int) -> Floats:
        """Read so many float32."""
        return np.frombuffer(self._take(4 * count), "<f4").astype(np.float32)

    def _wrong(self, what: str) -> ModelFileError:
        return ModelFileError(
            f"{self._source.path} is not an importance matrix, or a damaged one: it {what}.",
            hint="give a .gguf or .dat file of llama.cpp's llama-imatrix or of `dure imatrix`.",
        )
