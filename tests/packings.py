"""Weights as the tools of quantised checkpoints pack them, written from the tools' definitions.

Each function quantises a matrix (rows, cols) and gives back the tensors of its layout, by what
follows the module's name, and the values that the definition gives them, float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dure.kernels.dequantize import dequantize

Tensors = dict[str, torch.Tensor]
Packed = tuple[Tensors, np.ndarray]

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def grouped(
    weight: np.ndarray,
    group: int,
    *,
    bits: int = 4,
    symmetric: bool = False,
    scale_type: Any = np.float16,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes (rows, cols) of 0 to 2^bits - 1, scales and zero points (rows, groups), each the
    nearest fit. A group of positive weights alone has the zero point 0, of negative ones the
    highest."""
    rows, cols = weight.shape
    top = (1 << bits) - 1
    codes = np.zeros((rows, cols), np.int64)
    count = -(-cols // group)
    scales, zeros = np.zeros((rows, count), scale_type), np.zeros((rows, count), np.int64)
    for g in range(count):
        part = weight[:, g * group : (g + 1) * group]
        low, high = np.minimum(part.min(axis=1), 0), np.maximum(part.max(axis=1), 0)
        if symmetric:
            scale = (np.maximum(-low, high) / (top / 2)).astype(scale_type)
            zero = np.full(rows, 1 << (bits - 1))
        else:
            scale = ((high - low) / top).astype(scale_type)
            zero = np.clip(np.rint(-low / scale.astype(np.float32)), 0, top).astype(np.int64)
        scales[:, g], zeros[:, g] = scale, zero
        steps = np.rint(part / scale.astype(np.float32)[:, None])
        codes[:, g * group : (g + 1) * group] = np.clip(steps + zero[:, None], 0, top)
    return codes, scales, zeros


def stream(lines: np.ndarray, bits: int, *, dense: bool = True) -> np.ndarray:
    """Codes (n, count) as words of 32 bits, int32 (n, words), the lowest bits first.

    dense: a code may go on in the next word; else each word has 32 // bits codes.
    """
    if dense:
        places = lines[:, :, None] >> np.arange(bits) & 1
        raw = np.packbits(places.reshape(len(lines), -1).astype(np.uint8), 1, "little")
        words = np.zeros((len(lines), -(-raw.shape[1] // 4) * 4), np.uint8)
        words[:, : raw.shape[1]] = raw
        return words.view("<i4")
    each = 32 // bits
    words = np.zeros((len(lines), -(-lines.shape[1] // each)), np.uint32)
    for place, code in enumerate(lines.T):
        words[:, place // each] |= code.astype(np.uint32) << np.uint32(bits * (place % each))
    return words.view(np.int32)


def planes(lines: np.ndarray, bits: int) -> np.ndarray:
    """The same in GPTQModel's planar form: of 32 codes the words of the low bits come first."""
    words = []
    for first in range(0, lines.shape[1], 32):
        low = 0
        for width in {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}[bits]:
            plane = lines[:, first : first + 32] >> low & ((1 << width) - 1)
            words.append(stream(plane, width))
            low += width
    return np.concatenate(words, axis=1)


def values_of(
    codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, group_of: np.ndarray
) -> np.ndarray:
    """scale * (code - zero), by the group of each column."""
    steps = (codes - zeros[:, group_of]).astype(np.float32)
    return np.ascontiguousarray(scales[:, group_of].astype(np.float32) * steps)


# What GPTQModel takes from each word of zero points for version 1.
GPTQ_LOWERED = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}


def gptq(
    weight: np.ndarray,
    *,
    group: int = 32,
    bits: int = 4,
    version: int = 1,
    order: np.ndarray | None = None,
    with_indices: bool = True,
    symmetric: bool = False,
    planar: bool = False,
) -> Packed:
    """AutoGPTQ's and GPTQModel's. order: the column quantised in whose place (desc_act)."""
    cols = weight.shape[1]
    group = cols if group == -1 else group
    order = np.arange(cols) if order is None else order
    sorted_codes, scales, zeros = grouped(weight[:, order], group, bits=bits, symmetric=symmetric)
    codes, group_of = np.empty_like(sorted_codes), np.empty(cols, np.int64)
    codes[:, order], group_of[order] = sorted_codes, np.arange(cols) // group
    pack = planes if planar else stream
    stored = zeros.T
    if version == 1 and bits == 3:  # code by code, modulo 8
        stored = (stored - 1) % 8
    qzeros = pack(stored, bits).view(np.uint32)
    if version == 1 and bits in GPTQ_LOWERED:  # the whole word at once: a code of 0 borrows
        qzeros = qzeros - np.uint32(GPTQ_LOWERED[bits])
    tensors = {
        "qweight": torch.from_numpy(np.ascontiguousarray(pack(codes, bits).T)),
        "qzeros": torch.from_numpy(qzeros.view(np.int32).copy()),
        "scales": torch.from_numpy(np.ascontiguousarray(scales.T)),
    }
    if with_indices:
        tensors["g_idx"] = torch.from_numpy(group_of.astype(np.int32))
    return tensors, values_of(codes, scales, zeros, group_of)


def awq(weight: np.ndarray, *, group: int = 32) -> Packed:
    """AutoAWQ's GEMM: eight output columns a word, in the order 0 2 4 6 1 3 5 7."""
    rows, cols = weight.shape
    group = cols if group == -1 else group
    codes, scales, zeros = grouped(weight, group)

    def packed(lines: np.ndarray) -> torch.Tensor:
        words = np.zeros((lines.shape[0], rows // 8), np.uint32)
        for place, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
            words |= lines[:, column : rows // 8 * 8 : 8].astype(np.uint32) << np.uint32(4 * place)
        return torch.from_numpy(words.view(np.int32))

    tensors = {
        "qweight": packed(codes.T),
        "qzeros": packed(zeros.T),
        "scales": torch.from_numpy(np.ascontiguousarray(scales.T)),
    }
    return tensors, values_of(codes, scales, zeros, np.arange(cols) // group)


def pack_quantized(
    weight: np.ndarray,
    *,
    group: int = 32,
    bits: int = 4,
    symmetric: bool = True,
    order: np.ndarray | None = None,
    dense: bool = True,
) -> Packed:
    """compressed-tensors': signed codes raised by half, zero points packed along the rows.

    dense: a bit stream, as versions from 0.15 on write it; else 32 // bits codes a word.
    """
    rows, cols = weight.shape
    group = cols if group == -1 else group
    order = np.arange(cols) if order is None else order
    sorted_codes, scales, zeros = grouped(
        weight[:, order], group, bits=bits, symmetric=symmetric, scale_type=np.float32
    )
    scales = torch.from_numpy(scales).bfloat16().float().numpy()
    codes, group_of = np.empty_like(sorted_codes), np.empty(cols, np.int64)
    codes[:, order], group_of[order] = sorted_codes, np.arange(cols) // group
    tensors = {
        "weight_packed": torch.from_numpy(stream(codes, bits, dense=dense).copy()),
        "weight_scale": torch.from_numpy(scales).bfloat16(),
        "weight_shape": torch.tensor([rows, cols]),
    }
    if not symmetric:
        packed = np.ascontiguousarray(stream(zeros.T, bits, dense=dense).T)
        tensors["weight_zero_point"] = torch.from_numpy(packed)
    if not np.array_equal(order, np.arange(cols)):
        tensors["weight_g_idx"] = torch.from_numpy(group_of.astype(np.int32))
    return tensors, values_of(codes, scales, zeros, group_of)


def int_quantized(
    weight: np.ndarray, *, group: int = -1, bits: int = 8, symmetric: bool = True
) -> Packed:
    """compressed-tensors' int-quantized: signed codes, a byte each, whatever their bits are."""
    cols = weight.shape[1]
    group = cols if group == -1 else group
    codes, scales, zeros = grouped(
        weight, group, bits=bits, symmetric=symmetric, scale_type=np.float32
    )
    scales = torch.from_numpy(scales).bfloat16().float().numpy()
    half = 1 << (bits - 1)
    tensors = {
        "weight": torch.from_numpy((codes - half).astype(np.int8)),
        "weight_scale": torch.from_numpy(scales).bfloat16(),
    }
    if not symmetric:
        tensors["weight_zero_point"] = torch.from_numpy((zeros - half).astype(np.int8))
    return tensors, values_of(codes, scales, zeros, np.arange(cols) // group)


def nvfp4(weight: np.ndarray) -> Packed:
    """compressed-tensors': 16 values of e2m1 under an e4m3, and a global scale that divides."""
    rows, cols = weight.shape
    blocks = weight.reshape(rows, cols // 16, 16)
    whole = np.float32(448 * 6 / np.abs(weight).max())
    scales = torch.from_numpy(np.abs(blocks).max(axis=-1) / 6 * whole).to(torch.float8_e4m3fn)
    each = (scales.float().numpy() / whole)[..., None]
    scaled = blocks / np.maximum(each, np.float32(1e-30))
    codes = np.abs(np.abs(scaled)[..., None] - E2M1).argmin(axis=-1)
    values = np.where(scaled < 0, -E2M1[codes], E2M1[codes]) * each
    codes = codes + 8 * (scaled < 0)
    tensors = {
        "weight_packed": torch.from_numpy(
            (codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8).reshape(rows, cols // 2)
        ),
        "weight_scale": scales,
        "weight_global_scale": torch.tensor([whole]),
        "input_global_scale": torch.tensor([2.5]),
    }
    return tensors, values.reshape(rows, cols).astype(np.float32)


def mxfp8(weight: np.ndarray) -> Packed:
    """compressed-tensors': e4m3 codes, 32 of them under a power of two, by its exponent + 127."""
    rows, cols = weight.shape
    blocks = torch.from_numpy(weight.reshape(rows, cols // 32, 32))
    exponents = torch.ceil(torch.log2(blocks.abs().amax(-1) / 448))
    codes = (blocks / 2.0 ** exponents[..., None]).to(torch.float8_e4m3fn)
    values = (codes.float() * 2.0 ** exponents[..., None]).reshape(rows, cols).numpy()
    tensors = {
        "weight": codes.reshape(rows, cols),
        "weight_scale": (exponents + 127).to(torch.uint8),
    }
    return tensors, values


def fp8(
    weight: np.ndarray,
    *,
    block: tuple[int, int] = (128, 128),
    powers: bool = False,
    suffix: str = "weight_scale_inv",
    scale_type: torch.dtype = torch.float32,
) -> Packed:
    """e4m3 codes under a scale a block; powers: scales of powers of two. A size of -1 is all."""
    rows, cols = weight.shape
    tall, wide = (rows if block[0] == -1 else block[0]), (cols if block[1] == -1 else block[1])
    codes = torch.empty(rows, cols, dtype=torch.float8_e4m3fn)
    scales = torch.empty(-(-rows // tall), -(-cols // wide), dtype=scale_type)
    values = np.empty((rows, cols), np.float32)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            at = slice(i * tall, (i + 1) * tall), slice(j * wide, (j + 1) * wide)
            largest = float(np.abs(weight[at]).max())
            scale = 2.0 ** np.ceil(np.log2(largest / 448)) if powers else largest / 448
            scales[i, j] = scale
            scale = scales[i, j].float()
            codes[at] = (torch.from_numpy(weight[at]) / scale).to(torch.float8_e4m3fn)
            values[at] = (codes[at].float() * scale).numpy()
    return {"weight": codes, suffix: scales}, values


def mxfp4(weight: np.ndarray, *, names: tuple[str, str], split: bool) -> Packed:
    """32 values of e2m1 under a power of two; split: (…, 16) bytes a scale, else one row of all."""
    rows, cols = weight.shape
    blocks = weight.reshape(rows, cols // 32, 32)
    exponents = np.ceil(np.log2(np.abs(blocks).max(axis=-1) / 6)).astype(np.int64)
    scaled = blocks / 2.0 ** exponents[..., None]
    codes = np.abs(np.abs(scaled)[..., None] - E2M1).argmin(axis=-1)
    values = np.where(scaled < 0, -E2M1[codes], E2M1[codes]) * 2.0 ** exponents[..., None]
    codes = codes + 8 * (scaled < 0)
    bytes_ = (codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8)
    tensors = {
        names[0]: torch.from_numpy(bytes_ if split else bytes_.reshape(rows, cols // 2)),
        names[1]: torch.from_numpy((exponents + 127).astype(np.uint8)),
    }
    return tensors, values.reshape(rows, cols).astype(np.float32)


def write_packed(
    folder: Path,
    config: Mapping[str, Any],
    parameters: Mapping[str, np.ndarray],
    settings: Mapping[str, Any] | None,
    pack: Callable[[str, np.ndarray], Packed | None],
) -> dict[str, np.ndarray]:
    """A folder whose parameters `pack` has packed, where it does not give None, and the values that
    all of them have now. settings: its quantization_config."""
    from safetensors.torch import save_file  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    stored: Tensors = {}
    values: dict[str, np.ndarray] = {}
    for name, array in parameters.items():
        packed = pack(name, array)
        if packed is None:
            stored[name], values[name] = torch.from_numpy(array.copy()), array
            continue
        base = name.removesuffix("weight")
        stored |= {base + part: tensor.contiguous() for part, tensor in packed[0].items()}
        values[name] = packed[1]
    told = dict(config) if settings is None else {**config, "quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(told))
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return values


def gpt_oss_experts(
    parameters: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """gpt-oss's parameters with random experts in MXFP4 as the makers', and what these mean."""
    rng = np.random.default_rng(1)
    stored, meant = dict(parameters), dict(parameters)
    for name in [name for name in parameters if name.endswith(("gate_up_proj", "down_proj"))]:
        count, inputs, outputs = stored.pop(name).shape
        codes = rng.integers(0, 256, (count, outputs, inputs // 32, 16), np.uint8)
        scales = rng.integers(121, 124, (count, outputs, inputs // 32), np.uint8)
        stored |= {f"{name}_blocks": codes, f"{name}_scales": scales}
        halves = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*scales.shape, 32)
        # GGUF's block, whose reading is held to the gguf package elsewhere.
        blocks = np.concatenate(
            [scales[..., None], halves[..., :16] | halves[..., 16:] << 4], axis=-1
        )
        values = dequantize("MXFP4", blocks.reshape(count * outputs, -1))
        rows = values.reshape(count, outputs, inputs)
        meant[name] = np.ascontiguousarray(rows.swapaxes(1, 2))
    return stored, meant
