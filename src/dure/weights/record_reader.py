"""How the record of an expert gets from a file into memory, whatever form the file has it in."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure import kernels
from dure.errors import DureError, ModelFileError
from dure.kernels.streaming import describe_error
from dure.weights.expert_records import Converted, PackedOnArrival, RecordSource

if TYPE_CHECKING:
    from dure.formats.source import SourceFile

READERS = 4
"""Threads that read: a disk of a virtual machine is busy with two, an NVMe with four."""

CONVERTERS = 2
"""Threads that convert records which Python has to convert."""

_NOT_MADE = 1  # the code of a record whose error is in `_errors`


@dataclass(frozen=True)
class _Asked:
    """A record on its way."""

    experts: kernels.Experts
    expert: int
    source: RecordSource


class RecordReader:
    """Reads records of experts that have been placed, several at once; each has a number.

    It belongs to one thread, which asks and takes.
    """

    def __init__(self) -> None:
        self._reader = kernels.ExpertReader(READERS)
        self._converters: ThreadPoolExecutor | None = None
        self._files: dict[SourceFile, kernels.DirectFile] = {}
        self._asked: dict[int, _Asked] = {}
        self._errors: dict[int, Exception] = {}  # of records that did not get to the reader
        self._converted_bytes = 0

    @property
    def read_bytes(self) -> int:
        """Bytes read so far."""
        return self._reader.read_bytes + self._converted_bytes

    def ask(
        self,
        number: int,
        experts: kernels.Experts,
        expert: int,
        source: RecordSource,
        priority: int,
    ) -> None:
        """Have a record read to where `expert` of the set is placed.

        A file that cannot be opened is an error of the record, which `take` tells.
        """
        self._asked[number] = _Asked(experts, expert, source)
        try:
            self._submit(number + 1, experts, expert, source, priority)
        except (DureError, OSError) as error:
            self._errors[number] = error
            self._reader.finish(number + 1, _NOT_MADE)

    def hurry(self, number: int, priority: int) -> None:
        """Read a record before those of lower priority."""
        self._reader.raise_to(number + 1, priority)

    def cancel(self, number: int) -> bool:
        """Drop a record of which nothing has been read; return whether it was."""
        dropped = self._reader.cancel(number + 1)
        if dropped:
            del self._asked[number]
        return dropped

    def take(self, seconds: float) -> dict[int, Exception | None]:
        """Take what has come, by number, with its error if it could not be had.

        Waits for the first up to `seconds`.
        """
        came: dict[int, Exception | None] = {}
        for tag, code, offset in self._reader.take(seconds):
            asked = self._asked.pop(tag - 1)
            error = self._errors.pop(tag - 1, None)
            if code != 0 and error is None:
                error = _unreadable(asked.source, code, offset)
            came[tag - 1] = error
        return came

    def _submit(
        self,
        tag: int,
        experts: kernels.Experts,
        expert: int,
        source: RecordSource,
        priority: int,
    ) -> None:
        if isinstance(source, Converted):
            if self._converters is None:
                self._converters = ThreadPoolExecutor(CONVERTERS, "dure-experts")
            self._converters.submit(self._convert, tag, experts, expert, source)
        elif isinstance(source, PackedOnArrival):
            extents = (source.gate, source.up, source.down)
            parts = [(self._file(each.source), each.offset) for each in extents]
            self._reader.submit_parts(tag, experts, expert, parts, priority)
        else:
            extent = source.extent
            file = self._file(extent.source)
            self._reader.submit_record(tag, experts, expert, file, extent.offset, priority)

    def _file(self, source: SourceFile) -> kernels.DirectFile:
        """Open a file for direct reads, once. Raises ModelFileError if it has changed."""
        file = self._files.get(source)
        if file is None:
            with source.reading() as descriptor:
                file = self._files[source] = kernels.DirectFile(descriptor)
        return file

    def _convert(self, tag: int, experts: kernels.Experts, expert: int, source: Converted) -> None:
        """Make a record on a converter's thread."""
        try:
            source.write(experts, expert)
        except Exception as error:
            self._errors[tag - 1] = error
            self._reader.finish(tag, _NOT_MADE)
        else:
            self._converted_bytes += source.size
            self._reader.finish(tag)


def _unreadable(source: RecordSource, code: int, offset: int) -> ModelFileError:
    assert not isinstance(source, Converted)  # whose errors are its own
    extent = source.gate if isinstance(source, PackedOnArrival) else source.extent
    return ModelFileError(
        f"{extent.source.path}: an expert at byte {offset:,} cannot be read: "
        f"{describe_error(code)}.",
        hint="the disk may be failing, or the file was changed: load the model again.",
    )
