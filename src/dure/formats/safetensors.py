"""Reads safetensors: one file, or many with an index. A header is checked before it is used.

A file is an 8-byte length, that many bytes of JSON, then the tensors without gaps:
https://github.com/huggingface/safetensors#format. The checks are those of that library.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, TypeGuard

from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.blocks import BLOCKS, SAFETENSORS_DTYPES
from dure.formats.jsonfile import MAX_JSON_BYTES, SPARE_MEMORY, parse_object, read_object
from dure.formats.sniff import describe
from dure.formats.source import SourceFile
from dure.formats.tensors import TensorInfo, shown

MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 8
MAX_DIMENSION = (1 << 63) - 1
MAX_WEIGHTS = 1 << 48  # of one tensor, zeros of its shape left out: only empty ones come near
INDEX_NAME = "model.safetensors.index.json"

_SHARD_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_DAMAGED = "the file is damaged or made by a faulty tool: download or convert it again."


def read_safetensors(path: str | Path) -> dict[str, TensorInfo]:
    """Read the tensors, by name, of a .safetensors file, an index (.index.json), or a folder.

    Of a folder, one whole model.safetensors goes before an index, which may be left over from a
    model in parts: transformers reads it so, too. Raises ModelFileError for a bad file.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if path.name.endswith(".index.json"):
        return _read_index(path)
    return _read_file(path)


def header_notes(source: SourceFile) -> dict[str, str]:
    """Return the texts of a safetensors file's __metadata__, by name."""
    notes = _read_header(source)[0].get("__metadata__", {})
    return {str(key): note for key, note in notes.items() if isinstance(note, str)}


def _read_folder(folder: Path) -> dict[str, TensorInfo]:
    if (folder / "model.safetensors").exists():
        return _read_file(folder / "model.safetensors")
    if (folder / INDEX_NAME).exists():
        return _read_index(folder / INDEX_NAME)
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if len(indexes) == 1:  # of a tool that calls its files otherwise
        return _read_index(indexes[0])
    paths = sorted(folder.glob("*.safetensors"))
    if len(paths) == 1:
        shard = _SHARD_NAME.fullmatch(paths[0].name)
        if not shard or int(shard["count"]) == 1:
            return _read_file(paths[0])
    if not paths:
        raise ModelFileError(f"{folder} has no .safetensors file.")
    names = ", ".join(path.name for path in paths[:4])
    raise ModelFileError(
        f"{folder} has no {INDEX_NAME} to say how its files ({names}) belong together.",
        hint=f"download {INDEX_NAME} as well, or give the one file that is meant.",
    )


def _read_index(index_path: Path) -> dict[str, TensorInfo]:
    folder = index_path.parent
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors") if path.is_file())
    index = read_object(
        index_path,
        limit=MAX_JSON_BYTES,
        memory=2 * total + SPARE_MEMORY,
        refuse_duplicates=True,
    )
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(
            f"{index_path} has no weight_map that names the tensors' files.", hint=_DAMAGED
        )
    files = {
        name: _shard_path(index_path, name) for name in sorted({*map(str, weight_map.values())})
    }
    missing = [name for name, path in files.items() if not path.exists()]
    if missing:
        raise ModelFileError(
            f"{index_path} names {len(files)} files, of which {len(missing)} are missing, the "
            f"first of them {missing[0]}.",
            hint="download all of them into one folder.",
        )
    shards = {name: _read_file(path) for name, path in files.items()}
    tensors: dict[str, TensorInfo] = {}
    for name, file_name in weight_map.items():
        tensor = shards[str(file_name)].get(name)
        if tensor is None:
            raise ModelFileError(
                f"{index_path} places tensor {shown(name)} in {file_name}, which does not have it.",
                hint="the index and the files are of different models: download both again.",
            )
        tensors[name] = tensor
    return tensors


def _shard_path(index_path: Path, name: str) -> Path:
    """Return the path of a file beside the index.

    Only a plain name is taken, so an index cannot reach outside its folder. A symlink there is
    followed: the hub's cache is made of them, and a repository's JSON cannot create one.
    """
    plain = name.endswith(".safetensors") and not any(mark in name for mark in "/\\:\0")
    if not plain or len(name) > 255 or name.startswith("."):
        raise ModelFileError(
            f"{index_path} names the file {shown(name)}, and only plain names that end in "
            ".safetensors are followed.",
            hint="do not use this model: no honest tool writes such a name.",
        )
    return index_path.with_name(name)


def _read_file(path: Path) -> dict[str, TensorInfo]:
    source = SourceFile(path)
    header, data_start = _read_header(source)
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise ModelFileError(f"{path} has __metadata__ that is not texts by name.", hint=_DAMAGED)
    tensors = {
        name: _read_tensor(source, name, entry, data_start) for name, entry in header.items()
    }
    _check_layout(source, tensors, data_start)
    return tensors


def _read_header(source: SourceFile) -> tuple[dict[str, Any], int]:
    path = source.path
    first = source.read(0, min(9, source.size_bytes)).tobytes()
    size = int.from_bytes(first[:8], "little")
    if first[8:] != b"{":
        raise ModelFileError(
            f"{path} is not a safetensors file: {describe(source)}.",
            hint="give a file that safetensors wrote.",
        )
    if size > MAX_HEADER_BYTES:
        raise ModelFileError(
            f"{path} claims a header of {size:,} bytes, and the limit is {MAX_HEADER_BYTES:,}.",
            hint=_DAMAGED,
        )
    if 8 + size > source.size_bytes:
        raise ModelFileError(
            f"{path} is truncated or damaged: its header needs {8 + size:,} bytes, but the file "
            f"has {source.size_bytes:,}.",
            hint="download it again.",
        )
    header = parse_object(
        source.read(8, size).tobytes(),
        f"the header of {path}",
        memory=2 * source.size_bytes + SPARE_MEMORY,
        refuse_duplicates=True,
    )
    return header, 8 + size


def _read_tensor(source: SourceFile, name: str, entry: Any, data_start: int) -> TensorInfo:
    what = f"{source.path} has tensor {shown(name)}"
    if not isinstance(entry, dict):
        raise ModelFileError(f"{what} without a description.", hint=_DAMAGED)
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in SAFETENSORS_DTYPES:
        raise UnsupportedModelError(
            f"{what} of the unknown type {shown(str(dtype))}.",
            hint="the file may be damaged, or newer than this version of dure.",
        )
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise ModelFileError(
            f"{what} with a shape that is not up to {MAX_DIMENSIONS} whole numbers.", hint=_DAMAGED
        )
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ModelFileError(
            f"{what} with data_offsets that are not two whole numbers.", hint=_DAMAGED
        )
    start, end = offsets
    block, count = BLOCKS[dtype], math.prod(shape)
    size = count // block.block_size * block.block_bytes
    if count % block.block_size or end - start != size:
        raise ModelFileError(
            f"{what} of {dtype} and {count:,} weights, which do not fit its {end - start:,} bytes.",
            hint=_DAMAGED,
        )
    if math.prod(max(dim, 1) for dim in shape) > MAX_WEIGHTS:  # numpy cannot make (0, 1 << 62)
        raise ModelFileError(f"{what} without weights, but with a huge shape.", hint=_DAMAGED)
    return TensorInfo(name, dtype, tuple(shape), source, data_start + start, size)


def _are_sizes(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value <= MAX_DIMENSION for value in values
    )


def _check_layout(source: SourceFile, tensors: dict[str, TensorInfo], data_start: int) -> None:
    """Raise ModelFileError unless the tensors fill the file without gap or overlap.

    A gap could hide another file format in this one, so the safetensors library refuses it, too.
    """
    ordered = sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.size_bytes))
    end = data_start
    place = "at the start"
    for tensor in ordered:
        if tensor.offset != end:
            fault = "overlap" if tensor.offset < end else "gap"
            raise ModelFileError(
                f"{source.path} has a {fault} of {abs(tensor.offset - end):,} bytes {place}, "
                f"before tensor {shown(tensor.name)}.",
                hint=_DAMAGED,
            )
        end += tensor.size_bytes
        place = f"after {shown(tensor.name)}"
    if end > source.size_bytes:
        raise ModelFileError(
            f"{source.path} is truncated or damaged: its tensors need {end:,} bytes, but the file "
            f"has {source.size_bytes:,}.",
            hint="download it again.",
        )
    if end < source.size_bytes:
        raise ModelFileError(
            f"{source.path} has {source.size_bytes:,} bytes, but its tensors end at {end:,}.",
            hint=_DAMAGED,
        )
