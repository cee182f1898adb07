"""Importance matrices: both of llama.cpp's formats, read and written, and what is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from dure.errors import InvalidRequestError, ModelFileError
from dure.formats.imatrix import Importance, ImportanceMatrix, read_imatrix, write_imatrix

DENSE, STACK = "blk.0.ffn_down.weight", "blk.0.ffn_up_exps.weight"


def matrix() -> ImportanceMatrix:
    """One of a matrix of 4 columns, and of a stack of 3 of 2 columns, the last without a row."""
    return ImportanceMatrix(
        {
            DENSE: Importance(np.array([[8.0, 0.0, 2.0, 4.0]]), np.array([4.0])),
            STACK: Importance(
                np.array([[2.0, 4.0], [9.0, 3.0], [0.0, 0.0]]), np.array([2.0, 3.0, 0.0])
            ),
        },
        ("text.txt",),
        chunks=7,
        chunk_size=512,
    )


@pytest.mark.parametrize("name", ["out.gguf", "out.dat"])
def test_what_is_written_is_read_again(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert write_imatrix(path, matrix()) == path.stat().st_size
    found = read_imatrix(path)
    assert found.datasets == ("text.txt",)
    assert found.chunks == 7
    for key, each in matrix().entries.items():
        np.testing.assert_allclose(
            found.entries[key].means().ravel(), each.means().ravel(), rtol=1e-6
        )
    np.testing.assert_array_equal(found.entries[DENSE].means().ravel(), [2, 0, 0.5, 1])
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_matrix_without_rows_counts_all_columns_alike() -> None:
    np.testing.assert_array_equal(matrix().entries[STACK].means()[2], [1, 1])


def test_the_gguf_packages_reader_finds_llama_cpps_keys_and_shapes(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "out.gguf", matrix())
    file = gguf.GGUFReader(tmp_path / "out.gguf")
    assert file.fields["general.type"].contents() == "imatrix"
    assert file.fields["imatrix.datasets"].contents() == ["text.txt"]
    assert file.fields["imatrix.chunk_count"].contents() == 7
    shapes = {each.name: each.shape.tolist() for each in file.tensors}
    assert shapes[f"{STACK}.in_sum2"] == [2, 3]
    assert shapes[f"{STACK}.counts"] == [1, 3]
    assert shapes[f"{DENSE}.counts"] == [1, 1]


def test_an_old_file_without_chunks_and_text_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.dat"
    values = np.array([6.0, 9.0], np.float32)
    path.write_bytes(struct.pack("<ii1sii", 1, 1, b"a", 3, 2) + values.tobytes())
    np.testing.assert_array_equal(read_imatrix(path).entries["a"].means(), [[2, 3]])


OLD = struct.pack("<ii1sii", 1, 1, b"a", 1, 2)


@pytest.mark.parametrize(
    "data, said",
    [
        (b"", "ends within"),
        (struct.pack("<i", -1), "-1 entries"),
        (struct.pack("<ii", 1, 1 << 20), "1,048,576 bytes of a matrix's name"),
        (OLD, "ends within the 8 bytes"),
        (OLD + struct.pack("<ff", 1, float("nan")), "NaN or infinite"),
        (OLD + struct.pack("<ff", 1, -1), "below 0"),
    ],
)
def test_a_damaged_file_is_a_sentence(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "bad.dat"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=said):
        read_imatrix(path)


def test_a_models_file_is_no_importance_matrix(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("output.weight", np.ones((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelFileError, match="no importance matrix"):
        read_imatrix(tmp_path / "model.gguf")


def test_a_file_that_is_there_is_only_replaced_when_asked(tmp_path: Path) -> None:
    for name in ("out.dat", "out.gguf"):
        path = tmp_path / name
        path.write_bytes(b"mine")
        with pytest.raises(InvalidRequestError, match="exists"):
            write_imatrix(path, matrix())
        assert path.read_bytes() == b"mine"
        write_imatrix(path, matrix(), force=True)
        assert read_imatrix(path).chunks == 7
