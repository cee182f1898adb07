"""GGUF's types of 1 to 3 bits and its NVFP4 have the values that the gguf package gives them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from dure.errors import ModelFileError
from dure.formats.blocks import BLOCKS
from dure.formats.checkpoint import open_checkpoint
from dure.formats.gguf_writer import TensorPlan, write_gguf
from dure.formats.quantized.gguf_grids import GRID_TYPES
from dure.formats.quantized_checkpoint import parameters
from dure.kernels.dequantize import dequantize

# Where a block has its float16; IQ1_M cuts it into four, NVFP4 has none.
SCALE_AT = {"TQ1_0": 52, "TQ2_0": 64, "IQ1_M": None, "NVFP4": None}
TYPES = (*GRID_TYPES, "NVFP4")
NAME = "blk.0.ffn_up.weight"


def random_rows(dtype: str, rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """Random blocks, uint8 (rows, bytes): every code may occur, every scale is finite."""
    rng = np.random.default_rng(seed)
    size = BLOCKS[dtype].block_bytes
    raw = rng.integers(0, 256, (rows, cols // BLOCKS[dtype].block_size * size), dtype=np.uint8)
    blocks = raw.reshape(-1, size)
    at = SCALE_AT.get(dtype, 0)
    if at is not None:
        scales = rng.normal(0, 0.1, (len(blocks), 1)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8)
    if dtype == "IQ1_M":
        blocks[:, 55] &= 0xBF  # the float16's exponent is not all ones
    return raw


def expected(dtype: str, raw: np.ndarray) -> np.ndarray:
    if dtype == "Q1_0":  # which the package only knows the size of: a float16, then signs
        blocks = raw.reshape(-1, 18)
        scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        signs = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little")
        return np.where(signs, scale, -scale).reshape(len(raw), -1)
    if dtype == "Q2_0":  # which it does not know: a float16, then two bits each for -1, 0, 1 and 2
        blocks = raw.reshape(-1, 18)
        scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        codes = blocks[:, 2:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3
        return (scale * (codes.reshape(-1, 64).astype(np.float32) - 1)).reshape(len(raw), -1)
    kind = getattr(gguf.GGMLQuantizationType, dtype)
    return gguf.quants.dequantize(raw, kind).reshape(len(raw), -1)


def written(path: Path, dtype: str, raw: np.ndarray) -> Path:
    if not hasattr(gguf.GGMLQuantizationType, dtype):  # newer than the package
        block = BLOCKS[dtype]
        shape = len(raw), raw.shape[1] // block.block_bytes * block.block_size
        write_gguf(
            path,
            {"general.architecture": "llama"},
            [TensorPlan(NAME, dtype, shape, lambda: [raw])],
        )
        return path
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor(NAME, raw, raw_dtype=getattr(gguf.GGMLQuantizationType, dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("dtype", TYPES)
def test_values_are_those_of_the_gguf_package(tmp_path: Path, dtype: str) -> None:
    raw = random_rows(dtype, 9, 512)
    matrix = parameters(open_checkpoint(written(tmp_path / "a.gguf", dtype, raw)))[NAME]
    assert (matrix.stored, matrix.shape) == (dtype, (9, 512))
    assert BLOCKS[matrix.dtype].supported
    found = dequantize(matrix.dtype, matrix.read())
    np.testing.assert_array_equal(found, expected(dtype, raw))
    np.testing.assert_array_equal(dequantize(matrix.dtype, matrix.read_rows(4, 7)), found[4:7])


def test_every_type_that_the_package_can_read_is_read() -> None:
    known = {kind.name for kind in gguf.quants._type_traits} | {"Q1_0"}
    assert known <= set(TYPES) | {n for n, b in BLOCKS.items() if b.supported}


@pytest.mark.parametrize("dtype", ["IQ2_XXS", "TQ2_0"])
def test_a_scale_that_is_no_number_is_refused(tmp_path: Path, dtype: str) -> None:
    raw = random_rows(dtype, 2, 256)
    at = SCALE_AT.get(dtype, 0) or 0
    raw[1, at : at + 2] = np.frombuffer(np.float16("nan").tobytes(), np.uint8)
    matrix = parameters(open_checkpoint(written(tmp_path / "a.gguf", dtype, raw)))[NAME]
    with pytest.raises(ModelFileError, match="NaN"):
        matrix.read()
