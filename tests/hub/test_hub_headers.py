"""What a plan fetches of a model that is not here: headers and config, and no weight."""

from __future__ import annotations

import json
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from fake_hub import QUICK, FakeHub, Fault
from safetensors.numpy import save

from dure import hub
from dure.errors import DownloadError, UnsupportedModelError
from dure.formats.checkpoint import open_checkpoint
from dure.formats.gguf import header_end
from dure.hub import headers

REPO = "maker/Model"
ROWS, COLUMNS = 4_000, 256


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps as much smaller than real ones as the files are."""
    monkeypatch.setattr(headers, "_FIRST_BYTES", 8 << 10)
    monkeypatch.setattr(headers, "_STEP_BYTES", 2 << 10)
    monkeypatch.setattr(headers, "_SAFETENSORS_BYTES", 1 << 10)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf_file(tokens: int) -> bytes:
    """A GGUF of one matrix of 4 MB, with a vocabulary of so many tokens and as many merges."""
    words = b"".join(text(f"token-{i}") for i in range(tokens))
    array = struct.pack("<IIQ", 9, 8, tokens) + words
    pairs = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("tokenizer.ggml.tokens") + array,
        text("tokenizer.ggml.token_type") + struct.pack("<IIQ", 9, 5, tokens) + bytes(4 * tokens),
        text("tokenizer.ggml.merges") + array,
    ]
    matrix = text("token_embd.weight") + struct.pack("<IQQIQ", 2, COLUMNS, ROWS, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(pairs)) + b"".join(pairs) + matrix
    return head + bytes(-len(head) % 32) + bytes(4 * ROWS * COLUMNS)


@pytest.fixture(scope="module")
def one_file() -> bytes:
    return gguf_file(2_000)


def folder_files(**config: object) -> dict[str, bytes]:
    """A folder of two files of 2 MB, an index that lies, and what a plan has no use for."""
    data = np.zeros((1024, 512), np.float32)
    files = {
        f"model-0000{i}-of-00002.safetensors": save({f"layer.{i}.weight": data}) for i in (1, 2)
    }
    return {
        **files,
        "model.safetensors.index.json": b"{}",
        "config.json": json.dumps({"model_type": "llama", **config}).encode(),
        "tokenizer.json": b"{}" * 50_000,
        "README.md": b"#",
    }


def fetch(name: str, tmp_path: Path) -> tuple[headers.RemoteHeaders, dict[str, tuple[int, ...]]]:
    """Fetch the headers and open them. Returns what was fetched, and the tensors' shapes."""
    with hub.headers_of(name, patience=QUICK) as found:
        tensors = open_checkpoint(found.path).tensors
        return found, {name: tensor.shape for name, tensor in tensors.items()}


@pytest.mark.parametrize("where", [REPO, f"modelscope:{REPO}"])
def test_of_a_gguf_file_only_the_header_is_fetched(
    server: FakeHub, one_file: bytes, tmp_path: Path, where: str
) -> None:
    files = {"model-Q4_0.gguf": one_file}
    server.huggingface[REPO] = server.modelscope[REPO] = files
    (tmp_path / "whole.gguf").write_bytes(one_file)
    header, complete = header_end(tmp_path / "whole.gguf")
    found, shapes = fetch(where, tmp_path)
    assert complete
    assert shapes == {"token_embd.weight": (ROWS, COLUMNS)}
    sent = server.bytes_sent("model-Q4_0.gguf")
    assert header <= sent <= header + headers._STEP_BYTES
    assert sent == found.fetched_bytes < 0.04 * len(one_file)
    assert found.model_bytes == len(one_file)
    assert not found.path.exists()  # nothing stays behind


def test_the_ending_of_a_gguf_file_may_be_in_capitals(
    server: FakeHub, one_file: bytes, tmp_path: Path
) -> None:
    server.huggingface[REPO] = {"MODEL-Q4_0.GGUF": one_file}
    assert fetch(REPO, tmp_path)[1] == {"token_embd.weight": (ROWS, COLUMNS)}


def test_a_disk_that_takes_no_large_file_is_a_sentence(
    server: FakeHub, one_file: bytes, tmp_path: Path
) -> None:
    server.huggingface[REPO] = {"model-Q4_0.gguf": one_file}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(one_file) - 1, limits[1]))
    try:
        with pytest.raises(DownloadError, match="headers cannot be kept") as caught:
            fetch(REPO, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "TMPDIR" in caught.value.hint


def test_of_a_folder_only_the_headers_and_the_config_are_fetched(
    server: FakeHub, tmp_path: Path
) -> None:
    server.huggingface[REPO] = folder_files()
    found, shapes = fetch(REPO, tmp_path)
    assert shapes == {f"layer.{i}.weight": (1024, 512) for i in (1, 2)}
    assert found.fetched_bytes == sum(map(server.bytes_sent, server.sent))
    assert found.fetched_bytes < 0.02 * found.model_bytes
    assert {"config.json", *(n for n in server.sent if n.endswith(".safetensors"))} == {
        *server.sent
    }


def test_a_long_header_of_a_folder_is_fetched_whole(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headers, "_SAFETENSORS_BYTES", 32)
    server.huggingface[REPO] = folder_files()
    assert len(fetch(REPO, tmp_path)[1]) == 2


def test_a_server_that_sends_files_only_whole_is_named_in_one_sentence(
    server: FakeHub, one_file: bytes, tmp_path: Path
) -> None:
    server.huggingface[REPO] = {"model-Q4_0.gguf": one_file}
    server.faults["model-Q4_0.gguf"] = [Fault(ignore_range=True)]
    with pytest.raises(DownloadError, match=r"only whole \(4\.\d MB\)") as caught:
        fetch(REPO, tmp_path)
    assert "dure pull" in caught.value.hint
    assert len(server.sent["model-Q4_0.gguf"]) <= 1


def test_an_answer_that_breaks_off_is_asked_for_again(
    server: FakeHub, one_file: bytes, tmp_path: Path
) -> None:
    server.huggingface[REPO] = {"model-Q4_0.gguf": one_file}
    server.faults["model-Q4_0.gguf"] = [Fault(cut_after=100), Fault(status=503)]
    assert fetch(REPO, tmp_path)[1]


def test_headers_have_a_limit(
    server: FakeHub, one_file: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headers, "MOST_BYTES", 10_000)
    server.huggingface[REPO] = {"model-Q4_0.gguf": one_file}
    with pytest.raises(DownloadError, match="larger than 10 kB"):
        fetch(REPO, tmp_path)


def test_a_folder_whose_headers_do_not_say_its_shapes_is_refused(
    server: FakeHub, tmp_path: Path
) -> None:
    settings = {"quant_method": "bitsandbytes"}
    server.huggingface[REPO] = folder_files(quantization_config=settings)
    with pytest.raises(UnsupportedModelError, match="bitsandbytes"):
        fetch(REPO, tmp_path)
