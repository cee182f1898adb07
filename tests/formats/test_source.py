"""A file is read in ranges that exist, and only as long as it is the file that was opened."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from model_bytes import rich_gguf

from dure.errors import ModelFileError
from dure.formats.gguf import read_gguf
from dure.formats.source import SourceFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_bytes(bytes(range(100)))
    return tmp_path / "weights"


def test_a_range_comes_back_as_fresh_writable_bytes(path: Path) -> None:
    source = SourceFile(path)
    first = source.read(10, 5)
    np.testing.assert_array_equal(np.arange(10, 15, dtype=np.uint8), first, strict=True)
    first[:] = 0
    assert source.read(10, 1)[0] == 10
    assert source.read(100, 0).size == 0


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 101), (100, 1), (-1, 2), (5, -1), (1 << 62, 1 << 62), (0, 1 << 63)]
)
def test_a_range_outside_the_file_is_refused(path: Path, offset: int, size: int) -> None:
    with pytest.raises(ModelFileError, match="has 100 bytes, but bytes"):
        SourceFile(path).read(offset, size)


def test_a_file_that_changes_while_open_is_refused(path: Path) -> None:
    def grow() -> None:
        with path.open("ab") as file:
            file.write(b"more")

    def rewrite() -> None:
        path.write_bytes(bytes(100))
        os.utime(path, ns=(1, 1))  # a clock too coarse to see the write would hide it

    for change in (grow, lambda: os.truncate(path, 50), rewrite):
        path.write_bytes(bytes(range(100)))
        source = SourceFile(path)
        source.read(0, 10)
        change()
        with pytest.raises(ModelFileError, match="changed while it was in use"):
            source.read(0, 10)


def test_a_file_that_is_replaced_or_deleted_keeps_being_the_one_opened(path: Path) -> None:
    source = SourceFile(path)
    other = path.with_name("other")
    other.write_bytes(bytes(100))
    other.replace(path)
    assert source.read(7, 1)[0] == 7
    path.unlink()
    assert source.read(8, 1)[0] == 8


def test_a_tensor_of_a_file_cut_after_opening_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(rich_gguf().data)
    tensors = read_gguf(path).tensors
    os.truncate(path, 4096)
    with pytest.raises(ModelFileError, match="changed while it was in use"):
        tensors["blk.0.F32"].read()


def test_what_is_not_a_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for odd, says in (
        (tmp_path / "none", "does not exist"),
        (tmp_path / "none" / "below", "does not exist"),
        (tmp_path, "not a regular file"),
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path / "loop", "cannot be opened"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path / "nul\0name", "cannot be opened"),
        (tmp_path / ("x" * 300), "cannot be opened"),
    ):
        with pytest.raises(ModelFileError, match=says):
            SourceFile(odd)


def test_a_closed_file_is_refused_and_descriptors_are_given_back(path: Path) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("there is no /proc to count descriptors in")
    before = len(list(descriptors.iterdir()))
    source = SourceFile(path)
    source.close()
    source.close()
    with pytest.raises(ModelFileError, match="has been closed"):
        source.read(0, 1)
    for _ in range(50):
        SourceFile(path)
    assert before == len(list(descriptors.iterdir()))
