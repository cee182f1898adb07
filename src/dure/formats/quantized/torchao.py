"""torchao's tensors as transformers saves them in safetensors: int8, intx and float8 weights.

A weight X is X's module plus `_weight_qdata`, `_weight_scale` and perhaps `_weight_zero_point`; the
file's header has a JSON for each, which names its class. torchao wrote pickles before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dure.errors import UnsupportedModelError
from dure.formats.jsonfile import parse_object
from dure.formats.quantized.base import check_part
from dure.formats.quantized.byte_codes import ByteMatrix
from dure.formats.quantized.fp8 import Fp8Matrix
from dure.formats.safetensors import header_notes
from dure.formats.tensors import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dure.formats.quantized.base import QuantizedMatrix
    from dure.formats.quantized.folder import QuantizedFolder
    from dure.formats.tensors import TensorInfo

_CODES = "_weight_qdata"
_BITS = {"int4": 4, "int8": 8}
_READ = ("Float8Tensor", "Int8Tensor", "IntxUnpackedToInt8Tensor")


def read_torchao(folder: QuantizedFolder) -> None:
    """Put together the parts of each weight, by the class that the file's header names."""
    notes: dict[object, Mapping[str, str]] = {}
    for base, codes in folder.ending(_CODES):
        del folder.tensors[codes.name]
        name = f"{base}weight"
        if codes.source not in notes:
            notes[codes.source] = header_notes(codes.source)
        text = notes[codes.source].get(name, "{}")
        note = parse_object(text.encode(), f"{folder.where}: header of {name}", memory=1 << 20)
        folder.add(_matrix(folder, name, base, note, codes))


def _matrix(
    folder: QuantizedFolder, name: str, base: str, note: dict[str, Any], codes: TensorInfo
) -> QuantizedMatrix:
    """Put one matrix together; UnsupportedModelError names a class that is not read."""
    kind, data = note.get("_type"), note.get("_data")
    target = data.get("target_dtype") if isinstance(data, dict) else None
    word = target.get("_data") if isinstance(target, dict) else "int8"
    if kind not in _READ or word not in _BITS:
        raise UnsupportedModelError(
            f"{folder.where} has {shown(name)} as torchao's {kind!r:.40} of {word!r:.20}, which "
            "dure does not read.",
            hint=f"it reads {', '.join(_READ)}, of int8 or int4.",
        )
    scales = folder.take(f"{base}_weight_scale", codes.name)
    zeros = folder.optional(f"{base}_weight_zero_point")
    if kind == "Float8Tensor":
        check_part(codes, codes.shape, "F8_E4M3")
        return Fp8Matrix(name, codes, scales, None)
    return ByteMatrix(name, f"TORCHAO-{word.upper()}", codes, scales, zeros, bits=_BITS[word])
