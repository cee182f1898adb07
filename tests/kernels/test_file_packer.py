"""What is packed straight from a file is what is packed from memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from kernel_inputs import bits, columns, random_raw

from dure import kernels
from dure.kernels import reference
from dure.kernels.dequantize import LAYOUTS


def written(path: Path, *parts: np.ndarray) -> tuple[int, list[int]]:
    """A descriptor of a file with a few bytes between `parts`, and where each begins."""
    data, offsets = b"", []
    for part in parts:
        data += b"between"
        offsets.append(len(data))
        data += part.tobytes()
    path.write_bytes(data)
    return os.open(path, os.O_RDONLY), offsets


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", LAYOUTS)
def test_matrices_read_from_a_file_keep_every_bit(tmp_path: Path, dtype: str, threads: int) -> None:
    rng = np.random.default_rng(1)
    cols = columns(dtype)[-1]
    raws = [random_raw(rng, dtype, rows, cols) for rows in (33, 16, 1)]
    descriptor, offsets = written(tmp_path / "weights", *raws)
    matrices = [kernels.Matrix(dtype, len(raw), cols) for raw in raws]
    packer = kernels.FilePacker()
    for matrix, offset in reversed(list(zip(matrices, offsets, strict=True))):
        packer.add(matrix, offset)
    packer.run(descriptor, threads=threads, report=print)
    os.close(descriptor)
    for matrix, raw in zip(matrices, raws, strict=True):
        actual = matrix.row_values(np.arange(len(raw), dtype=np.int32))
        np.testing.assert_array_equal(bits(actual), bits(reference.dequantize(dtype, raw)))


def test_parts_of_experts_read_from_a_file_go_where_fill_puts_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    kinds = {"gate": ("Q4_K", 64, 256), "up": ("Q6_K", 64, 256), "down": ("Q5_0", 256, 64)}
    raws = {part: [random_raw(rng, *kind) for _ in range(3)] for part, kind in kinds.items()}
    filled, read = (kernels.Experts(3, 256, 64, "Q4_K", "Q6_K", "Q5_0") for _ in range(2))
    packer = kernels.FilePacker()
    descriptor, offsets = written(
        tmp_path / "weights", *(r for part in raws.values() for r in part)
    )
    for part, blocks in raws.items():
        for expert, raw in enumerate(blocks):
            filled.fill(part, expert, raw)
            packer.add_part(read, part, expert, offsets.pop(0))
    packer.run(descriptor, threads=2, report=print)
    os.close(descriptor)
    x = rng.normal(0, 1, (5, 256)).astype(np.float32)
    ids = np.array([[0, 1], [1, 2], [2, 0], [0, 2], [1, 0]], np.int32)
    weights = np.full((5, 2), 0.5, np.float32)
    expected, actual = (kernels.experts_mlp(x, ids, weights, each) for each in (filled, read))
    assert np.abs(expected).max() > 0
    np.testing.assert_array_equal(bits(actual), bits(expected))


def test_progress_is_reported_and_may_end_the_packing(tmp_path: Path) -> None:
    values = np.arange(3 << 20, dtype=np.float32).reshape(-1, 1024)
    descriptor, (offset,) = written(tmp_path / "weights", values)
    packer = kernels.FilePacker()
    packer.add(kernels.Matrix("F32", *values.shape), offset)
    # One thread, the one that reports: a second may have packed all before that one starts.
    seen: list[int] = []
    packer.run(descriptor, threads=1, report=seen.append, seconds=0)
    assert seen == sorted(seen)
    assert 0 < seen[0] < seen[-1] == values.nbytes

    def fail(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packer.run(descriptor, threads=2, report=fail, seconds=0)
    os.close(descriptor)


def test_a_file_that_is_too_short_and_one_that_is_closed_are_errors(tmp_path: Path) -> None:
    raw = random_raw(np.random.default_rng(3), "Q8_0", 64, 1024)
    descriptor, (offset,) = written(tmp_path / "weights", raw[:-1])
    packer = kernels.FilePacker()
    packer.add(kernels.Matrix("Q8_0", 64, 1024), offset)
    with pytest.raises(EOFError):
        packer.run(descriptor, threads=2, report=print)
    os.close(descriptor)
    packer = kernels.FilePacker()
    packer.add(kernels.Matrix("Q8_0", 64, 1024), offset)
    with pytest.raises(OSError, match="Bad file descriptor"):
        packer.run(descriptor, threads=2, report=print)
