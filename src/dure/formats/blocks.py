"""The table of tensor types: how many weights a block holds and how many bytes it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class BlockType:
    """One tensor type. `ggml_id` is None for types that GGUF does not have."""

    name: str
    ggml_id: int | None
    block_size: int  # weights in a block
    block_bytes: int
    supported: bool  # False: listed and size-checked, but reading its weights is refused


# Names, ids and sizes of GGUF types are those of ggml.h, as in gguf.GGML_QUANT_SIZES.
_GGML_SUPPORTED = (
    ("F32", 0, 1, 4),
    ("F16", 1, 1, 2),
    ("Q4_0", 2, 32, 18),
    ("Q4_1", 3, 32, 20),
    ("Q5_0", 6, 32, 22),
    ("Q5_1", 7, 32, 24),
    ("Q8_0", 8, 32, 34),
    ("Q2_K", 10, 256, 84),
    ("Q3_K", 11, 256, 110),
    ("Q4_K", 12, 256, 144),
    ("Q5_K", 13, 256, 176),
    ("Q6_K", 14, 256, 210),
    ("IQ4_NL", 20, 32, 18),
    ("IQ4_XS", 23, 256, 136),
    ("BF16", 30, 1, 2),
    ("MXFP4", 39, 32, 17),
)
# dure's own types, in no file: what quantised Hugging Face folders come down to. A block has its
# codes first, those of 4 bits two a byte and the low half first, then its scales:
_OWN = (
    # 4-bit codes, a float32 scale, a zero point of one byte: weight = scale * (code - zero).
    ("I4G32", 32, 21),
    ("I4G64", 64, 37),
    ("I4G128", 128, 69),
    # FP8 (e4m3) codes, a float32 scale: weight = value * scale. What e4m3 calls a NaN would be 480.
    ("F8G32", 32, 36),
    ("F8G128", 128, 132),
    # Signed 8-bit codes, a float32 scale: weight = scale * code.
    ("I8G32", 32, 36),
    ("I8G128", 128, 132),
    # 8-bit codes, a float32 scale, a zero point of one byte: weight = scale * (code - zero).
    ("U8G32", 32, 37),
    ("U8G128", 128, 133),
    # 4- or 8-bit codes, a float32 scale, a float32 minimum: weight = scale * code + minimum.
    ("A4G32", 32, 24),
    ("A4G64", 64, 40),
    ("A8G32", 32, 40),
    ("A8G64", 64, 72),
    # The same of codes of a byte each, of which 2, 6, 4 or 8 bits are used; G16 has two scales,
    # then two minima, each for 16 columns of the block's 32.
    ("A2G64", 64, 72),
    ("A6G32", 32, 40),
    ("A6G64", 64, 72),
    ("A4G16", 32, 48),
    ("A8G16", 32, 48),
    # NVFP4: 4-bit codes of e2m1, a float32 global scale, and a scale of e4m3 for each 16 columns:
    # weight = value * (scale * global), or value * (scale / -global) where the global is negative.
    ("NV4G32", 32, 22),
    ("NV4G128", 128, 76),
    # Blocks of F8G32, F8G128, BF16 and F16, which memory keeps as integers under float32 scales: of
    # 8 bits and 32 columns, or 16 bits and 64 columns.
    ("E8G32", 32, 36),
    ("E8G128", 128, 132),
    ("B16G64", 64, 128),
    ("H16G64", 64, 128),
)
_GGML_LISTED = (
    ("Q8_1", 9, 32, 40),
    ("Q8_K", 15, 256, 292),
    ("IQ2_XXS", 16, 256, 66),
    ("IQ2_XS", 17, 256, 74),
    ("IQ3_XXS", 18, 256, 98),
    ("IQ1_S", 19, 256, 50),
    ("IQ3_S", 21, 256, 110),
    ("IQ2_S", 22, 256, 82),
    ("I8", 24, 1, 1),
    ("I16", 25, 1, 2),
    ("I32", 26, 1, 4),
    ("I64", 27, 1, 8),
    ("F64", 28, 1, 8),
    ("IQ1_M", 29, 256, 56),
    ("TQ1_0", 34, 256, 54),
    ("TQ2_0", 35, 256, 66),
    ("NVFP4", 40, 64, 36),
    ("Q1_0", 41, 128, 18),
    ("Q2_0", 42, 64, 18),
)
# Sub-byte types are given as the smallest whole number of bytes: F4 is 2 weights in 1, F6 4 in 3.
_SAFETENSORS_LISTED = (
    ("BOOL", 1, 1),
    ("U8", 1, 1),
    ("U16", 1, 2),
    ("U32", 1, 4),
    ("U64", 1, 8),
    ("C64", 1, 8),
    ("F8_E4M3", 1, 1),
    ("F8_E5M2", 1, 1),
    ("F8_E8M0", 1, 1),
    ("F8_E4M3FNUZ", 1, 1),
    ("F8_E5M2FNUZ", 1, 1),
    ("F4", 2, 1),
    ("F6_E2M3", 4, 3),
    ("F6_E3M2", 4, 3),
)

BLOCKS: Mapping[str, BlockType] = MappingProxyType(
    {row[0]: BlockType(*row, supported=True) for row in _GGML_SUPPORTED}
    | {name: BlockType(name, None, size, count, supported=True) for name, size, count in _OWN}
    | {row[0]: BlockType(*row, supported=False) for row in _GGML_LISTED}
    | {
        name: BlockType(name, None, size, num_bytes, supported=False)
        for name, size, num_bytes in _SAFETENSORS_LISTED
    }
)
FLOATS = ("F32", "F16", "BF16")
AS_INTEGERS: Mapping[str, str] = MappingProxyType(
    {"F8G32": "E8G32", "F8G128": "E8G128", "BF16": "B16G64", "F16": "H16G64"}
)
"""Types of floats -> the type that has the same source blocks, and is integers in memory."""
OF_INTEGERS: Mapping[str, str] = MappingProxyType({kept: it for it, kept in AS_INTEGERS.items()})
"""The other way."""
BY_ID: Mapping[int, BlockType] = MappingProxyType(
    {block.ggml_id: block for block in BLOCKS.values() if block.ggml_id is not None}
)
SUPPORTED: tuple[str, ...] = tuple(name for name, block in BLOCKS.items() if block.supported)
SAFETENSORS_DTYPES: frozenset[str] = frozenset(
    {"F64", "F32", "F16", "BF16", "I8", "I16", "I32", "I64"}
    | {name for name, _, _ in _SAFETENSORS_LISTED}
)


def has_blocks_of(dtype: str, stored: str) -> bool:
    """Check whether memory packs the type `dtype` from source blocks of the type `stored`."""
    return stored == dtype or AS_INTEGERS.get(stored) == dtype
