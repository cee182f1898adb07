"""ERNIE's folders as PaddleFormers writes them: fused projections, and matrices as (in, out).

qkv_proj has the queries, the key and the value of one key-value head after those of another, and
up_gate_proj the gate before the up; both are (in, out). o_proj, down_proj and the router are
(out, in) as elsewhere, or (in, out) where Paddle's own format was kept. Definitions:
paddleformers/transformers/ernie4_5/modeling.py (`_gen_inv_aoa_config`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.errors import ModelFileError
from dure.formats.quantized.base import (
    FLOAT_TYPES,
    QuantizedMatrix,
    check_not_empty,
    check_part,
    read_array,
)
from dure.formats.tensors import shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.quantized.folder import QuantizedFolder
    from dure.formats.tensors import TensorInfo

    Bytes = NDArray[np.uint8]
    Ints = NDArray[np.int64]

_QKV, _FFN = ".qkv_proj.", ".up_gate_proj."
_PLAIN = (".o_proj.weight", ".down_proj.weight", ".mlp.gate.weight")


def is_paddle(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> bool:
    """Check whether PaddleFormers wrote a folder of ERNIE: by its fused projections."""
    kind = config.get("model_type")
    return (
        isinstance(kind, str)
        and kind.startswith("ernie4_5")
        and any(_QKV in name or _FFN in name for name in tensors)
    )


def read_paddle(folder: QuantizedFolder) -> None:
    """Cut fused projections into their parts. `folder.settings` is the model's config."""
    hidden = folder.integer("hidden_size", 0)
    native = any(
        tensor.shape[:1] != (hidden,)
        for name, tensor in folder.tensors.items()
        if name.endswith(".down_proj.weight")
    )
    for name, tensor in list(folder.tensors.items()):
        if _QKV in name:
            parts, fused = _heads(folder, tensor), _QKV
        elif _FFN in name:
            parts, fused = _halves(tensor), _FFN
        elif native and name.endswith(_PLAIN):
            del folder.tensors[name]
            folder.add(Turned(name, tensor, np.arange(tensor.shape[-1] if tensor.shape else 0)))
            continue
        else:
            continue
        del folder.tensors[name]
        for part, columns in parts.items():
            folder.add(Turned(name.replace(fused, f".{part}."), tensor, columns))


def _heads(folder: QuantizedFolder, tensor: TensorInfo) -> dict[str, Ints]:
    """Return the columns of queries, keys and values in a fused projection.

    Raises ModelFileError if the tensor has another number of them than config.json says.
    """
    heads = folder.integer("num_attention_heads", 0)
    kv_heads = folder.integer("num_key_value_heads", heads)
    if heads < 1 or kv_heads < 1 or heads % kv_heads:
        raise ModelFileError(f"{folder.where} has {heads} heads and {kv_heads} of keys.")
    size = folder.integer("head_dim", folder.integer("hidden_size", 0) // heads)
    each = heads // kv_heads
    if size < 1 or tensor.shape[-1:] != (kv_heads * (each + 2) * size,):
        raise ModelFileError(
            f"{shown(tensor.name)} has shape {tensor.shape}, but {folder.where} has {heads:,} "
            f"heads and {kv_heads:,} of keys, of {size:,} columns each."
        )
    groups = np.arange(kv_heads * (each + 2) * size).reshape(kv_heads, each + 2, size)
    return {
        "q_proj": groups[:, :each].reshape(-1),
        "k_proj": groups[:, each].reshape(-1),
        "v_proj": groups[:, each + 1].reshape(-1),
    }


def _halves(tensor: TensorInfo) -> dict[str, Ints]:
    """Return the columns of gate and up in a fused projection."""
    width = (tensor.shape[-1] if tensor.shape else 0) // 2
    return {"gate_proj": np.arange(width), "up_proj": np.arange(width, 2 * width)}


class Turned(QuantizedMatrix):
    """Rows that are columns of a tensor (in, out), or entries of a bias (out,)."""

    whole = True

    def __init__(self, name: str, tensor: TensorInfo, columns: Ints) -> None:
        """columns: of the tensor, in the order of the matrix's rows."""
        fits = len(columns) > 0 and len(tensor.shape) in (1, 2)
        if not fits or columns.max(initial=-1) >= tensor.shape[-1]:
            raise ModelFileError(
                f"{shown(tensor.name)} has shape {tensor.shape}, which has no {len(columns)} rows "
                f"of {name}."
            )
        check_not_empty(tensor)
        check_part(tensor, tensor.shape, *FLOAT_TYPES)
        super().__init__(name, (len(columns), *tensor.shape[:-1]), tensor.dtype, tensor)
        self.size_bytes = tensor.size_bytes * len(columns) // tensor.shape[-1]
        self.stored = tensor.dtype
        self._tensor, self._columns = tensor, columns

    def read_rows(self, start: int, stop: int) -> Bytes:
        """Read rows as they are to be; see `QuantizedMatrix.read_rows`."""
        numbers = read_array(self._tensor, "<u4" if self.dtype == "F32" else "<u2")
        if len(self.shape) == 1:
            return numbers[self._columns].view(np.uint8).reshape(1, -1)[start:stop]
        chosen = np.ascontiguousarray(numbers[:, self._columns[start:stop]].T)
        return chosen.view(np.uint8).reshape(stop - start, -1)
