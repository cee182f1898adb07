"""Writes a safetensors file, tensor by tensor; the layout is `formats/safetensors.py`'s."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.blocks import SAFETENSORS_DTYPES
from dure.formats.gguf_writer import Progress, TensorPlan


def write_safetensors(
    path: Path,
    tensors: Sequence[TensorPlan],
    *,
    notes: Mapping[str, str],
    progress: Progress | None = None,
) -> int:
    """Write a new file at `path`; return its size. A file that is half-written is the caller's.

    notes: the texts of __metadata__. progress: called with the bytes of weights done, and all.
    """
    head = _header(tensors, notes)
    done, total = 0, sum(tensor.size_bytes for tensor in tensors)
    with path.open("xb") as file:
        file.write(head)
        for tensor in tensors:
            before = done
            for piece in tensor.pieces():
                file.write(np.ascontiguousarray(piece).data)
                done += piece.size
                if progress is not None:
                    progress(done, total)
            if done - before != tensor.size_bytes:
                raise ModelFileError(
                    f"{tensor.name} came out as {done - before:,} bytes, not {tensor.size_bytes:,}."
                )
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def header_size(tensors: Sequence[TensorPlan], notes: Mapping[str, str]) -> int:
    """Return the bytes before the weights."""
    return len(_header(tensors, notes))


def _header(tensors: Sequence[TensorPlan], notes: Mapping[str, str]) -> bytes:
    found: dict[str, Any] = {"__metadata__": dict(notes)} if notes else {}
    place = 0
    for tensor in tensors:
        if tensor.dtype not in SAFETENSORS_DTYPES:
            raise UnsupportedModelError(
                f"{tensor.name} is of the type {tensor.dtype}, which safetensors does not have."
            )
        stop = place + tensor.size_bytes
        found[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [place, stop],
        }
        place = stop
    text = json.dumps(found).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
