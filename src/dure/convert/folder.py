"""Converts a mixture of experts to a folder whose experts are read as the kernels take them.

The folder has everything but the routed experts as it was, byte for byte, in model.gguf or
model.safetensors, and the experts packed, a record each, in experts.dure (formats/expert_file.py).
It runs as what it was made from does, bit for bit.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dure import kernels, machine
from dure.convert.copies import (
    PIECE_BYTES,
    TensorCopy,
    check_copies,
    copied_size,
    copies_of,
    drop_cached,
    small_files,
    unlike,
    write_copies,
)
from dure.convert.mixtures import Mixture, mixtures_of, tensors_of
from dure.errors import InvalidRequestError, UnsupportedModelError
from dure.formats.checkpoint import WEIGHT_NAMES, open_checkpoint
from dure.formats.expert_file import (
    FILE_NAME,
    ExpertFile,
    FileFacts,
    file_facts,
    header_bytes,
    placed,
)
from dure.formats.gguf_writer import check_space
from dure.formats.quantized_checkpoint import reader_of

if TYPE_CHECKING:
    from dure.formats.checkpoint import Checkpoint
    from dure.weights.quantize import Scheme

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PackedFolder:
    """What `pack_folder` wrote: the folder, its size, and its experts by type."""

    path: Path
    size_bytes: int
    expert_bytes: int
    layers: int
    types: Mapping[str, int]  # type of a matrix in memory -> how many expert matrices


@dataclass(frozen=True)
class _Plan:
    """What is to be written, and how large each file becomes."""

    checkpoint: Checkpoint
    mixtures: Sequence[Mixture]
    copies: Sequence[TensorCopy]
    small: Mapping[str, Path]
    experts: ExpertFile
    copied_bytes: int

    @property
    def size_bytes(self) -> int:
        """The bytes of all files."""
        small = sum(path.stat().st_size for path in self.small.values())
        return self.copied_bytes + len(header_bytes(self.experts)) + self.experts.size_bytes + small


def pack_folder(
    source: Path,
    out: Path,
    *,
    quantize: Scheme | None = None,
    threads: int | None = None,
    force: bool = False,
    tell_size: Callable[[int], None] | None = None,
    progress: Progress | None = None,
    checking: Progress | None = None,
) -> PackedFolder:
    """Write the mixture of experts at `source` as the folder `out`, and read it again.

    quantize: the scheme for matrices of floats: the experts get it now, all others when the folder
    is loaded. threads: for packing; None for all cores. force: replace `out`, if it is such a
    folder. tell_size: called once with the bytes of the folder, before any is written. progress and
    checking: called with (bytes done, bytes in all) while writing, and while reading again.

    Returns what was written. Raises UnsupportedModelError for a model without experts,
    InvalidRequestError if `out` exists or its disk is too full, ModelFileError for weights that
    cannot be read or are not what was written. Then nothing of it stays.
    """
    check_folder(out, force=force)
    checkpoint = open_checkpoint(source)
    plan = _planned(checkpoint, quantize)
    size = plan.size_bytes
    if tell_size is not None:
        tell_size(size)
    check_space(out, size)
    partial_folder = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        partial_folder.mkdir()
        workers = machine.usable_threads() if threads is None else threads
        file = _write(partial_folder, plan, workers, progress or _ignore)
        _check(partial_folder, plan, file, checking or _ignore)
        _place(partial_folder, out, force=force)
    except OSError as error:
        raise InvalidRequestError(
            f"{out} cannot be written: {error.strerror}.", hint="write to another disk."
        ) from error
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
    types = Counter(t for m in plan.mixtures for t in m.types for _ in range(m.experts.count))
    return PackedFolder(
        out, size, plan.experts.size_bytes, len(plan.mixtures), dict(sorted(types.items()))
    )


def check_folder(out: Path, *, force: bool) -> None:
    """Raise InvalidRequestError unless the folder `out` can be written."""
    if not out.parent.is_dir():
        raise InvalidRequestError(f"{out.parent} is not a folder.", hint="make it first.")
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise InvalidRequestError(f"{out} exists.", hint="--force replaces it.")
    if not (out / FILE_NAME).is_file() or out.is_symlink():
        raise InvalidRequestError(
            f"{out} exists and is not a folder that dure convert wrote, so it is not replaced."
        )


def _planned(checkpoint: Checkpoint, quantize: Scheme | None) -> _Plan:
    """Decide what is written, from headers alone."""
    if checkpoint.experts is not None:
        raise UnsupportedModelError(f"{checkpoint.path} is converted already.")
    mixtures = mixtures_of(checkpoint, quantize)
    if not mixtures:
        raise UnsupportedModelError(
            f"{checkpoint.path} has no experts, and a .dure folder is for those of mixtures.",
            hint="run it as it is.",
        )
    gone = tensors_of(mixtures, checkpoint)
    copies = copies_of(checkpoint, gone)
    copied = copied_size(checkpoint, copies)
    sources = {tensor.source.path: None for tensor in checkpoint.tensors.values()}
    name = next(name for name in WEIGHT_NAMES if name.endswith(checkpoint.kind))
    experts = ExpertFile(
        kernels.LAYOUT,
        {},
        FileFacts(name, copied, "0" * 64),
        tuple(map(file_facts, sources)),
        quantize,
        reader_of(checkpoint),
    )
    experts = placed([mixture.layer() for mixture in mixtures], experts)
    return _Plan(checkpoint, mixtures, copies, small_files(checkpoint), experts, copied)


def _write(folder: Path, plan: _Plan, threads: int, progress: Progress) -> ExpertFile:
    """Write all files; return what experts.dure says."""
    total = plan.copied_bytes + plan.experts.size_bytes
    for name, path in plan.small.items():
        shutil.copyfile(path, folder / name)
    weights = folder / plan.experts.weights.name
    write_copies(weights, plan.checkpoint, plan.copies, lambda done, _: progress(done, total))
    whole = replace(plan.experts, weights=file_facts(weights))
    with (folder / FILE_NAME).open("xb") as file:
        file.write(bytes(len(header_bytes(whole))))
        done, layers = plan.copied_bytes, {}
        for mixture, layer in zip(plan.mixtures, whole.layers.values(), strict=True):
            hasher = hashlib.blake2b(digest_size=32)
            for record in mixture.records(threads):
                file.write(record.data)
                hasher.update(record.data)
                done += record.size
                progress(done, total)
            layers[layer.name] = replace(layer, digest=hasher.hexdigest())
        whole = replace(whole, layers=layers)
        file.seek(0)
        file.write(header_bytes(whole))
        file.flush()
        os.fsync(file.fileno())
    return whole


def _check(folder: Path, plan: _Plan, wrote: ExpertFile, checking: Progress) -> None:
    """Read all that was written again, from the disk where that can be had.

    Raises ModelFileError for anything that differs.
    """
    total = sum(copy.plan.size_bytes for copy in plan.copies) + wrote.size_bytes
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        checking(done, total)

    check_copies(folder / wrote.weights.name, plan.copies, advance)
    path = folder / FILE_NAME
    drop_cached(path)
    checkpoint = open_checkpoint(folder)
    found = checkpoint.experts
    if found is None or found.source is None or header_bytes(found) != header_bytes(wrote):
        raise unlike(path, "the header")
    for layer in found.layers.values():
        hasher = hashlib.blake2b(digest_size=32)
        end = layer.offset + layer.size_bytes
        for start in range(layer.offset, end, PIECE_BYTES):
            piece = found.source.read(start, min(PIECE_BYTES, end - start))
            hasher.update(piece.data)
            advance(piece.size)
        if hasher.hexdigest() != layer.digest:
            raise unlike(path, f"the experts of {layer.name}")
    found.source.close()


def _place(folder: Path, out: Path, *, force: bool) -> None:
    """Give the finished folder its name; one that is replaced goes when the new one is there."""
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    if force and out.exists():
        out.rename(old)
    try:
        folder.rename(out)
    except BaseException:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _ignore(_done: int, _total: int) -> None:
    """Report nothing."""
