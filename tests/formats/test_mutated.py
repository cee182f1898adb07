"""Sound files with random damage load and can be read, or are refused; nothing else happens."""

from __future__ import annotations

import json
import random
import re
import signal
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from model_bytes import rich_gguf, rich_safetensors
from safetensors.numpy import save_file

from dure.errors import DureError
from dure.formats.checkpoint import open_checkpoint
from dure.formats.gguf import read_gguf
from dure.formats.safetensors import INDEX_NAME, read_safetensors
from dure.formats.tensors import TensorInfo

SPARE_MEMORY = 64 << 20
HANG_S = 300  # for a few hundred files that take a millisecond or two each
EXTREMES = (
    *(0, 1, 2, 3, 7, 8, 9, 31, 32, 33, 127, 128, 255, 256, 65_535, 65_536),
    *((1 << bits) + by for bits in (24, 31, 32, 53, 62, 63, 64) for by in (-33, -32, -1, 0, 1)),
)

Mutation = Callable[[random.Random, bytes], bytes]


def flip_bits(rng: random.Random, data: bytes) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        damaged[rng.randrange(_header(rng, data))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def drop_range(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(_header(rng, data))
    return data[:start] + data[start + rng.choice((1, 2, 4, 8, 32, 100)) :]


def repeat_range(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(_header(rng, data))
    stop = start + rng.choice((1, 4, 8, 24, 64, 500))
    return data[:stop] + data[start:]


def overwrite_number(rng: random.Random, data: bytes) -> bytes:
    size = rng.choice((4, 8))
    start = rng.randrange(max(1, min(len(data) - 8, _header(rng, data))))
    number = rng.choice(EXTREMES) % (1 << 8 * size)
    return data[:start] + number.to_bytes(size, "little") + data[start + size :]


def noise(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(_header(rng, data))
    return data[:start] + rng.randbytes(rng.choice((1, 8, 40))) + data[start + 8 :]


def rewrite_digits(rng: random.Random, data: bytes) -> bytes:
    """Other numbers where the text has numbers: the lengths of a safetensors header."""
    places = list(re.finditer(rb"\d+", data[:4096]))
    if not places:
        return flip_bits(rng, data)
    place = rng.choice(places)
    number = rng.choice((b"-1", b"1e9", b"null", b"9" * 30, b"%d" % rng.choice(EXTREMES)))
    changed = data[8 : place.start()] + number + data[place.end() :]
    size = int.from_bytes(data[:8], "little") + len(number) - len(place[0])
    return struct.pack("<Q", max(size, 0)) + changed


def _header(rng: random.Random, data: bytes) -> int:
    """How far damage reaches: mostly the first part, where the lengths are."""
    return len(data) if rng.random() < 0.1 else min(len(data), rng.choice((64, 512, 2048)))


ANYWHERE: tuple[Mutation, ...] = (
    flip_bits,
    cut,
    drop_range,
    repeat_range,
    overwrite_number,
    noise,
)


def _package_gguf(folder: Path) -> bytes:
    """A file as the gguf package writes it, with a small vocabulary."""
    path = folder / "package.gguf"
    writer = GGUFWriter(path, "qwen2")
    writer.add_context_length(128)
    writer.add_token_list([f"tok{i}" for i in range(60)])
    writer.add_token_scores([float(i) for i in range(60)])
    writer.add_token_types([1] * 60)
    writer.add_token_merges([f"a{i} b{i}" for i in range(60)])
    writer.add_tensor("token_embd.weight", np.ones((60, 8), dtype=np.float32))
    writer.add_tensor("norm.weight", np.ones(8, dtype=np.float16))
    blocks = np.zeros((4, 144), dtype=np.uint8)
    writer.add_tensor("down.weight", blocks, raw_dtype=GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def _package_safetensors(folder: Path) -> bytes:
    path = folder / "package.safetensors"
    shapes = {"a": (3, 4), "b": (5,), "c": (2, 3, 4), "d": ()}
    save_file({name: np.ones(shape, dtype=np.float32) for name, shape in shapes.items()}, path)
    return path.read_bytes()


def _drain(tensors: dict[str, TensorInfo]) -> None:
    """Reads every weight: what has loaded must be readable, or say why it is not."""
    for tensor in tensors.values():
        try:
            raw = tensor.read()
        except DureError:
            continue
        assert (tensor.num_rows, tensor.row_bytes) == raw.shape
        assert tensor.size_bytes == raw.size


class Hang(BaseException):
    """Not an Exception, so nothing that catches those can swallow it."""


@pytest.fixture
def no_hang() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANG_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _try(load: Callable[[], dict[str, TensorInfo]], size: int) -> str:
    """How loading ended, "loaded" or "refused", after checking what it took."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        _drain(load())
        end = "loaded"
    except DureError as error:
        assert error.message.endswith(".")
        end = "refused"
    assert tracemalloc.get_traced_memory()[1] - before <= 2 * size + SPARE_MEMORY
    return end


def _run(
    path: Path,
    whole: bytes,
    load: Callable[[Path], dict[str, TensorInfo]],
    mutations: tuple[Mutation, ...],
    *,
    count: int,
    seed: int,
) -> dict[str, int]:
    """How often damaged copies of `whole` were loaded and refused."""
    rng = random.Random(seed)
    ends = {"loaded": 0, "refused": 0}
    tracemalloc.start()
    try:
        for _ in range(count):
            damaged = whole
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                damaged = rng.choice(mutations)(rng, damaged) or whole[:1]
            path.write_bytes(damaged)
            ends[_try(lambda: load(path), len(damaged))] += 1
    finally:
        tracemalloc.stop()
    return ends


def _load_gguf(path: Path) -> dict[str, TensorInfo]:
    return read_gguf(path).tensors


@pytest.mark.parametrize("seed", range(2))
def test_1000_damaged_gguf_files_load_or_are_refused(
    seed: int, tmp_path: Path, no_hang: None
) -> None:
    whole = bytes(rich_gguf().data) if seed % 2 else _package_gguf(tmp_path)
    ends = _run(tmp_path / "damaged.gguf", whole, _load_gguf, ANYWHERE, count=500, seed=seed)
    assert ends["loaded"] > 10 and ends["refused"] > 100


@pytest.mark.parametrize("seed", range(2))
def test_1000_damaged_safetensors_files_load_or_are_refused(
    seed: int, tmp_path: Path, no_hang: None
) -> None:
    whole = rich_safetensors() if seed % 2 else _package_safetensors(tmp_path)
    mutations = (*ANYWHERE, rewrite_digits, rewrite_digits)
    ends = _run(
        tmp_path / "damaged.safetensors", whole, read_safetensors, mutations, count=500, seed=seed
    )
    assert ends["loaded"] > 10 and ends["refused"] > 100


def test_every_length_of_a_gguf_file_may_be_any_extreme(tmp_path: Path, no_hang: None) -> None:
    whole = rich_gguf()
    path = tmp_path / "damaged.gguf"
    rng = random.Random(7)
    tracemalloc.start()
    try:
        for place, size in whole.numbers:
            for extreme in rng.sample(EXTREMES, 4):
                damaged = bytearray(whole.data)
                number = extreme % (1 << 8 * size)
                damaged[place : place + size] = number.to_bytes(size, "little")
                path.write_bytes(damaged)
                _try(lambda: _load_gguf(path), len(damaged))
    finally:
        tracemalloc.stop()


def test_a_gguf_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = _package_gguf(tmp_path)
    path = tmp_path / "cut.gguf"
    sizes = {*range(100), *random.Random(8).sample(range(len(whole)), 400), len(whole) - 1}
    for size in sorted(sizes):
        path.write_bytes(whole[:size])
        with pytest.raises(DureError):
            read_gguf(path)


def test_500_damaged_folders_load_or_are_refused(tmp_path: Path, no_hang: None) -> None:
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for name, file in names.items():
        save_file({name: np.ones((2, 4), dtype=np.float32)}, tmp_path / file)
    texts = {
        INDEX_NAME: json.dumps({"metadata": {"total_size": 64}, "weight_map": names}),
        "config.json": json.dumps({"model_type": "llama", "hidden_size": 4, "eos": [1, 2]}),
        "generation_config.json": json.dumps({"temperature": 0.7, "eos_token_id": [1]}),
        "tokenizer_config.json": json.dumps({"chat_template": [{"name": "default"}]}),
        "chat_template.jinja": "{% for message in messages %}{{ message }}{% endfor %}",
    }
    ends = {"loaded": 0, "refused": 0}
    for seed, (name, text) in enumerate(texts.items()):
        for each, sound in texts.items():
            (tmp_path / each).write_text(sound)
        damaged = _run(
            tmp_path / name,
            text.encode(),
            lambda _: open_checkpoint(tmp_path).tensors,
            (flip_bits, cut, drop_range, repeat_range, noise),
            count=100,
            seed=seed,
        )
        ends = {end: ends[end] + damaged[end] for end in ends}
    assert ends["loaded"] > 100 and ends["refused"] > 100


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 150))
def test_100000_damaged_files_load_or_are_refused(seed: int, tmp_path: Path) -> None:
    gguf = bytes(rich_gguf().data) if seed % 2 else _package_gguf(tmp_path)
    other = rich_safetensors() if seed % 2 else _package_safetensors(tmp_path)
    mutations = (*ANYWHERE, rewrite_digits)
    _run(tmp_path / "damaged.gguf", gguf, _load_gguf, ANYWHERE, count=1_000, seed=seed)
    _run(
        tmp_path / "damaged.safetensors", other, read_safetensors, mutations, count=1_000, seed=seed
    )
