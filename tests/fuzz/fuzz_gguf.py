"""Readers of GGUF files: keys, tensors and arrays damaged one by one."""

from __future__ import annotations

import copy
import random
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import model_bytes
import numpy as np
from fuzz_files import read_model
from model_bytes import ARRAY, STRING, Array, KeyValue, Tensor
from mutations import EXTREMES, TEXTS, damaged_bytes
from reader import Reader

from dure.formats.blocks import BLOCKS


def parse_gguf(data: bytes) -> tuple[list[KeyValue], list[Tensor], bytes]:
    """The parts of a sound GGUF file."""
    at = 24
    num_tensors, num_keys = struct.unpack_from("<QQ", data, 8)

    def take(form: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return value

    def text() -> bytes:
        nonlocal at
        size = take("Q")
        at += size
        return data[at - size : at]

    def value(kind: int) -> Any:
        if kind == STRING:
            return text()
        if kind == ARRAY:
            inner = take("I")
            return Array(inner, [value(inner) for _ in range(take("Q"))])
        return take(model_bytes.SCALAR_FORMATS[kind])

    keys = []
    for _ in range(num_keys):
        name, kind = text(), take("I")
        keys.append(KeyValue(name, kind, value(kind)))
    tensors = []
    for _ in range(num_tensors):
        name, dims = text(), take("I")
        sizes = tuple(take("Q") for _ in range(dims))
        tensors.append(Tensor(name, sizes, take("I"), take("Q")))
    return keys, tensors, data[at + -at % 32 :]


_WHOLE = {0: (0, 255), 1: (-128, 127), 2: (0, 65_535), 3: (-32_768, 32_767), 4: (0, 2**32 - 1)}
_WHOLE |= {5: (-(2**31), 2**31 - 1), 10: (0, 2**64 - 1), 11: (-(2**63), 2**63 - 1), 7: (0, 1)}


def gguf_value(rng: random.Random, kind: int) -> Any:
    """A value of a GGUF type, mostly an extreme one."""
    if kind == STRING:
        return rng.choice(TEXTS).encode("utf-8", "surrogatepass")
    if kind == ARRAY:
        inner = rng.choice((*_WHOLE, 6, 12, STRING))
        return Array(inner, [gguf_value(rng, inner) for _ in range(rng.choice((0, 1, 2, 5)))])
    if kind in (6, 12):
        return rng.choice((0.0, -1.0, 1.0, 1e-30, 1e30, float("nan"), float("inf"), -float("inf")))
    low, high = _WHOLE[kind]
    return rng.choice(
        (0, 1, 2, 7, low, high, min(high, rng.choice(EXTREMES)), rng.randint(low, high))
    )


class Gguf(Reader):
    """GGUF files of tiny models of several families, and of every tensor type."""

    name = "gguf"
    weight = 5

    def __init__(self, folder: Path, *, small: bool = False) -> None:
        super().__init__(folder, small=small)
        import tiny  # noqa: PLC0415
        import tiny_gguf  # noqa: PLC0415
        from tokenizers import pre_tokenizers  # noqa: PLC0415

        trained = tiny.train_byte_level(pre_tokenizers.ByteLevel(), vocab_size=270)
        words = tiny.gguf_metadata(trained, "gpt-2")
        words["tokenizer.chat_template"] = "{% for m in messages %}{{ m.content }}{% endfor %}"
        self.bases = [parse_gguf(bytes(every_type()))]
        for name in ("llama",) if small else ("llama", "qwen2", "qwen3_moe", "qwen3_next"):
            config = tiny_gguf.config_of(name, vocab_size=len(words["tokenizer.ggml.tokens"]))
            odd = name == "qwen3_next"  # 48 columns, which no block divides
            for kind in ("F32",) if odd else ("Q8_0",) if small else ("F32", "Q8_0", "Q4_0"):
                path = folder / f"{name}.gguf"
                types = tiny_gguf.matrices_as(tiny_gguf.Kind[kind])
                tiny_gguf.write_gguf(path, config, tiny_gguf.parameters_of(config), types)
                keys, tensors, data = parse_gguf(path.read_bytes())
                self.bases.append((keys + list(map(_key_of, words.items())), tensors, data))

    def draw(self, rng: random.Random) -> bytes:
        keys, tensors, data = rng.choice(self.bases)
        kind = rng.random()
        if kind < 0.02:
            return bytes(model_bytes.gguf(keys, tensors, data).data)
        if kind < 0.4:
            whole = bytes(model_bytes.gguf(keys, tensors, data).data)
            return damaged_bytes(rng, whole, head=rng.choice((24, 64, len(whole) - len(data))))
        keys, tensors = list(keys), list(tensors)
        options: dict[str, Any] = {}
        for _ in range(rng.choice((1, 1, 2, 3))):
            self._damage(rng, keys, tensors, options)
        if rng.random() < 0.2:
            data = damaged_bytes(rng, data, head=len(data))
        return bytes(model_bytes.gguf(keys, tensors, data, **options).data)

    def _damage(
        self,
        rng: random.Random,
        keys: list[KeyValue],
        tensors: list[Tensor],
        options: dict[str, Any],
    ) -> None:
        kind = rng.randrange(12)
        at, place = rng.randrange(len(keys) or 1), rng.randrange(len(tensors) or 1)
        if kind < 5 and keys:  # a key's value
            key = copy.copy(keys[at])
            if rng.random() < 0.4:
                key.kind = rng.choice((*range(13), 13, 255, 2**31))
            if key.kind <= 12 and rng.random() < 0.8:
                key.value = gguf_value(rng, key.kind)
            elif isinstance(key.value, Array) and key.kind == ARRAY:
                key.value = Array(key.value.kind, list(key.value.values))
                self._damage_array(rng, key.value)
            elif key.kind > 12:
                key.value = model_bytes.Raw(rng.randbytes(8))
            else:
                key.value = gguf_value(rng, key.kind)
            keys[at] = key
        elif kind == 5 and keys:
            del keys[at]
        elif kind == 6 and keys:
            keys.append(copy.copy(rng.choice(keys)))
            if rng.random() < 0.5:
                keys[-1].key = rng.choice(TEXTS).encode("utf-8", "surrogatepass")
        elif kind < 9 and tensors:  # a tensor's info
            tensor = copy.copy(tensors[place])
            what = rng.randrange(6)
            if what == 0:
                tensor.type_id = rng.choice((*(b.ggml_id or 0 for b in BLOCKS.values()), 4, 5, 99))
            elif what == 1:
                tensor.offset = rng.choice((0, 32, 31, tensor.offset + 32, *EXTREMES)) % 2**64
            elif what == 2:
                dims = list(tensor.dims)
                dims[rng.randrange(len(dims))] = rng.choice((0, 1, 32, 256, *EXTREMES)) % 2**64
                tensor.dims = tuple(dims)
            elif what == 3:
                tensor.dims = rng.choice((tensor.dims[::-1], tensor.dims[1:], (*tensor.dims, 1)))
                tensor.dims = rng.choice((tensor.dims, tensor.dims * 3))
            elif what == 4:
                tensor.name = rng.choice(tensors).name
            else:
                tensor.num_dims = rng.choice((0, 5, 2**31, 2**32 - 1))
            tensors[place] = tensor
        elif kind == 9 and tensors:
            del tensors[place]
        elif kind == 10 and tensors:
            tensors.insert(place, copy.copy(rng.choice(tensors)))
        else:
            name = rng.choice(("num_keys", "num_tensors", "version", "alignment"))
            high = 2**32 if name == "version" else 2**64
            options[name] = rng.choice((0, 1, 2, 4, 64, *EXTREMES)) % high
            if name == "alignment":
                options[name] = rng.choice((1, 8, 64, 4096))

    @staticmethod
    def _damage_array(rng: random.Random, array: Array) -> None:
        kind = rng.randrange(5)
        if kind == 0:
            array.values = array.values[: rng.randint(0, len(array.values))]
        elif kind == 1:
            array.length = rng.choice(EXTREMES) % 2**64
        elif kind == 2 and array.values:
            for _ in range(rng.choice((1, 3))):
                array.values[rng.randrange(len(array.values))] = gguf_value(rng, array.kind)
        elif kind == 3:
            array.values = array.values * 2
        else:
            array.kind = rng.choice((*_WHOLE, 6, 12))
            array.values = [gguf_value(rng, array.kind) for _ in array.values]

    def read(self, drawn: bytes) -> bool:
        path = self.folder / "model.gguf"
        path.write_bytes(drawn)
        return read_model(path, run=zlib.crc32(drawn) % 8 == 0)


_NUMPY = {"u": 10, "i": 5, "f": 6}


def _key_of(item: tuple[str, Any]) -> KeyValue:
    name, value = item
    if isinstance(value, str):
        return KeyValue(name, STRING, value)
    if isinstance(value, int):
        return KeyValue(name, 4, value)
    if isinstance(value, np.ndarray):
        return KeyValue(name, ARRAY, Array(_NUMPY[value.dtype.kind], value.tolist()))
    return KeyValue(name, ARRAY, Array(STRING, list(value)))


def every_type() -> bytearray:
    """A GGUF of `rich_gguf`'s keys with a tensor of every type that a GGUF may have."""
    keys, _, _ = parse_gguf(bytes(model_bytes.rich_gguf().data))
    tensors, data = [], bytearray()
    for name, block in BLOCKS.items():
        if block.ggml_id is None:
            continue
        cols = max(block.block_size, 8)
        tensors.append(Tensor(f"blk.0.{name}", (cols, 3), block.ggml_id, len(data)))
        data += bytes(i * 7 % 251 for i in range(3 * cols // block.block_size * block.block_bytes))
        data += bytes(-len(data) % 32)
    return model_bytes.gguf(keys, tensors, bytes(data)).data


GGUF_READERS: Mapping[str, type[Reader]] = {Gguf.name: Gguf}
