"""Readers of model files: GGUF, safetensors, MindSpore, and folders of every kind."""

from __future__ import annotations

import copy
import json
import random
import shutil
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import model_bytes
import numpy as np
from model_bytes import ARRAY, STRING, Array, KeyValue, Tensor
from mutations import EXTREMES, TEXTS, damaged_bytes, damaged_json, damaged_text, json_bytes
from reader import Fault, Reader

from dure.errors import DureError
from dure.formats.blocks import BLOCKS
from dure.formats.checkpoint import Checkpoint, open_checkpoint
from dure.formats.quantized_checkpoint import parameters
from dure.hub.facts import read_facts
from dure.kernels.dequantize import dequantize
from dure.loading.describe import describe

Files = dict[str, bytes]


def drain(checkpoint: Checkpoint) -> None:
    """Read every weight, and what it stands for; a weight may be refused."""
    for matrix in parameters(checkpoint).values():
        try:
            raw = matrix.read()
            if raw.shape != (matrix.num_rows, matrix.row_bytes):
                raise Fault(f"{matrix.name} of shape {matrix.shape} is read as {raw.shape}")
            with np.errstate(all="ignore"):
                dequantize(matrix.dtype, raw[:4])
        except DureError:
            continue


def read_model(path: Path, *, run: bool) -> bool:
    """Open, describe and drain a model; run: load it and generate two tokens."""
    accepted = True
    for step in (read_facts, _described, _drained, *([_run] if run else [])):
        try:
            step(path)
        except DureError:
            accepted = False
    return accepted


def _described(path: Path) -> None:
    describe(open_checkpoint(path))


def _drained(path: Path) -> None:
    drain(open_checkpoint(path))


def _run(path: Path) -> None:
    from dure import LLM, SamplingParams  # noqa: PLC0415

    llm = LLM(path, threads=1, context=64, max_sequences=2)
    llm.generate("ab", SamplingParams(max_tokens=2, seed=1))
    llm.engine.check_idle()


class FolderReader(Reader):
    """A reader of inputs that are files of one folder."""

    run_share = 8  # one of so many is loaded and run

    def read(self, drawn: Files) -> bool:
        path = self.folder / "model"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        for name, data in drawn.items():
            (path / name).write_bytes(data)
        whole = zlib.crc32(b"".join(drawn.values()))
        return read_model(path, run=whole % self.run_share == 0)


# --- GGUF -----------------------------------------------------------------------------------------


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


# --- safetensors ----------------------------------------------------------------------------------


def split_safetensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a sound file."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def damaged_safetensors(rng: random.Random, whole: bytes) -> bytes:
    """A file with its header, its data, or any bytes damaged."""
    kind = rng.random()
    if kind < 0.3:
        return damaged_bytes(rng, whole)
    header, data = split_safetensors(whole)
    if kind < 0.5:  # NaN, infinities and zeros in the weights
        return whole[: len(whole) - len(data)] + damaged_bytes(rng, data, head=len(data))
    raw = json_bytes(rng, damaged_json(rng, header))
    size = rng.choice(EXTREMES) % 2**64 if rng.random() < 0.05 else None
    return model_bytes.safetensors(raw, data, size)


class Safetensors(Reader):
    """Single safetensors files, without a folder around them."""

    name = "safetensors"
    weight = 40

    def draw(self, rng: random.Random) -> bytes:
        return damaged_safetensors(rng, model_bytes.rich_safetensors())

    def read(self, drawn: bytes) -> bool:
        from dure.formats.safetensors import read_safetensors  # noqa: PLC0415

        path = self.folder / "a.safetensors"
        path.write_bytes(drawn)
        for tensor in read_safetensors(path).values():
            try:
                tensor.read()
            except DureError:
                continue
        return True


class Sharded(FolderReader):
    """Folders of two safetensors files and their index."""

    name = "safetensors-index"
    weight = 8
    run_share = 1 << 31

    def __init__(self, folder: Path, *, small: bool = False) -> None:
        super().__init__(folder, small=small)
        names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        entry = model_bytes.tensor_entry("F32", [2, 4], [0, 32])
        self.parts = {
            file: model_bytes.safetensors({name: entry}, bytes(32)) for name, file in names.items()
        }
        self.index = {"metadata": {"total_size": 64}, "weight_map": names}

    def draw(self, rng: random.Random) -> Files:
        files = {"config.json": b'{"model_type": "llama"}', **self.parts}
        files["model.safetensors.index.json"] = json_bytes(rng, damaged_json(rng, self.index))
        if rng.random() < 0.2:
            name = rng.choice(list(self.parts))
            files[name] = damaged_safetensors(rng, files[name])
        if rng.random() < 0.1:
            del files[rng.choice(list(self.parts))]
        return files


# --- folders --------------------------------------------------------------------------------------


class Configs(FolderReader):
    """config.json and the files beside it, of every family."""

    name = "configs"
    weight = 2

    def __init__(self, folder: Path, *, small: bool = False) -> None:
        super().__init__(folder, small=small)
        self.bases = plain_folders(folder, small=small)
        self.all = [json.loads(each["config.json"]) for each in self.bases]

    def draw(self, rng: random.Random) -> Files:
        files = dict(rng.choice(self.bases))
        for _ in range(rng.choice((1, 1, 2))):
            name = rng.choice(("config.json",) * 4 + SIDE_FILES)
            if name.endswith(".jinja"):
                text = files[name].decode("utf-8", "surrogatepass")
                text = damaged_text(rng, text, [*TEXTS, "{% for x in y %}", "{{ m"])
                files[name] = text.encode("utf-8", "surrogatepass")
            else:
                value = damaged_json(rng, _parsed(files[name]), self.all)
                files[name] = json_bytes(rng, value)
        if rng.random() < 0.1:
            files["model.safetensors"] = damaged_safetensors(rng, files["model.safetensors"])
        if rng.random() < 0.03:
            del files[rng.choice(list(files))]
        return files


SIDE_FILES = ("generation_config.json", "tokenizer_config.json", "chat_template.jinja")


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return {"eos_token_id": 1, "temperature": 0.5}


def side_files(folder: Path) -> tuple[Files, int]:
    """A tokenizer and what else lies beside weights; and how many tokens there are."""
    import tiny  # noqa: PLC0415
    from tokenizers import pre_tokenizers  # noqa: PLC0415

    trained = tiny.train_byte_level(pre_tokenizers.ByteLevel(), vocab_size=270)
    generation = {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "repetition_penalty": 1.05,
        "eos_token_id": [1, 2],
        "bos_token_id": 1,
    }
    tokens: dict[str, Any] = {
        "bos_token": None,
        "eos_token": {"content": "<|im_end|>", "special": True},
        "add_bos_token": False,
        "added_tokens_decoder": {"1": {"content": "<|im_end|>", "special": True}},
        "model_max_length": 256,
        "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }
    files = {
        "tokenizer.json": trained.to_str().encode(),
        "generation_config.json": json.dumps(generation).encode(),
        "tokenizer_config.json": json.dumps(tokens).encode(),
        "chat_template.jinja": b"{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}",
    }
    return files, trained.get_vocab_size(with_added_tokens=True)


def plain_folders(folder: Path, *, small: bool) -> list[Files]:
    """Folders of tiny float models; unless small, of every family."""
    import tiny_gguf  # noqa: PLC0415
    import tiny_models  # noqa: PLC0415

    side, size = side_files(folder)
    made = []
    for name in ("llama", "qwen3_moe") if small else tiny_models.MODELS:
        path = folder / "base"
        if small:
            config = tiny_gguf.config_of(name, vocab_size=size)
            tiny_gguf.write_folder(path, config, tiny_gguf.parameters_of(config))
        else:
            path.mkdir(exist_ok=True)
            tiny_models.saved(name, tiny_models.oracle(name, vocab_size=size), path)
        kept = ("config.json", "model.safetensors")
        made.append({**{each: (path / each).read_bytes() for each in kept}, **side})
        shutil.rmtree(path)
    return made


class Quantized(FolderReader):
    """Folders of every quantised layout that is read, their configs, notes and tensors damaged."""

    name = "quantized"
    weight = 6
    run_share = 1 << 31  # they hold one matrix

    def __init__(self, folder: Path, *, small: bool = False) -> None:
        super().__init__(folder, small=small)
        import quantized_folders  # noqa: PLC0415

        self.bases = quantized_folders.build(folder, small=small)
        self.all = [json.loads(each["config.json"]) for each in self.bases.values()]

    def draw(self, rng: random.Random) -> Files:
        files = dict(self.bases[rng.choice(list(self.bases))])
        texts = [name for name in files if name.endswith(".json")]
        others = [name for name in files if name not in texts]
        for _ in range(rng.choice((1, 1, 2))):
            if rng.random() < 0.55:
                name = rng.choice(texts)
                files[name] = json_bytes(rng, damaged_json(rng, _parsed(files[name]), self.all))
                continue
            name = rng.choice(others)
            if name.endswith(".safetensors") and len(files[name]) > 8:
                files[name] = _damaged_tensors(rng, files[name])
            else:
                files[name] = damaged_bytes(rng, files[name])
        return files


def _damaged_tensors(rng: random.Random, whole: bytes) -> bytes:
    """A safetensors file whose tensors have other types, shapes or names, still well formed."""
    try:
        header, data = split_safetensors(whole)
        names = [name for name in header if name != "__metadata__"]
        header = copy.deepcopy(header)
    except (ValueError, AttributeError, RecursionError):
        return damaged_bytes(rng, whole)
    if not names or rng.random() < 0.4:
        return damaged_safetensors(rng, whole)
    name = rng.choice(names)
    entry = header[name]
    kind = rng.randrange(8)
    try:
        if kind == 0:
            size = {1: ("I8", "U8", "F8_E4M3", "F8_E8M0", "BOOL"), 2: ("F16", "BF16", "I16", "U16")}
            size |= {4: ("F32", "I32", "U32"), 8: ("F64", "I64", "U64")}
            group = next(g for g in size.values() if entry["dtype"] in g)
            entry["dtype"] = rng.choice(group)
        elif kind == 1:
            entry["shape"] = rng.choice((entry["shape"][::-1], [1, *entry["shape"]], []))
        elif kind == 2 and entry["shape"]:
            count = int(np.prod(entry["shape"]))
            entry["shape"] = rng.choice(([count], [count, 1], [1, count], [count // 2, 2]))
        elif kind == 3:
            begin = entry["data_offsets"][0]
            entry.update(shape=[0, *entry["shape"][1:]], data_offsets=[begin, begin])
        elif kind == 4:
            del header[name]
        elif kind == 5:
            other = rng.choice(names)
            header[name], header[other] = header[other], header[name]
        elif kind == 6:
            header[name.replace("0", "1")] = header.pop(name)
        else:  # numbers that no scale, shape or index should have
            begin, end = entry["data_offsets"]
            pattern = rng.choice(
                (b"\xff", b"\x00", b"\x7f", b"\x80", b"\x00\x00\x80\x7f", b"\x7f\xff")
            )
            filled = (pattern * (end - begin))[: end - begin]
            data = data[:begin] + filled + data[end:]
    except (KeyError, TypeError, StopIteration, ValueError, IndexError, OverflowError):
        return damaged_safetensors(rng, whole)
    return model_bytes.safetensors(header, data)


class MindSpore(FolderReader):
    """MindSpore's .ckpt files."""

    name = "mindspore"
    weight = 8
    run_share = 1 << 31

    def __init__(self, folder: Path, *, small: bool = False) -> None:
        super().__init__(folder, small=small)
        from test_mindspore import WEIGHT, value  # noqa: PLC0415

        raw = WEIGHT.tobytes()
        half = WEIGHT.astype(np.float16).tobytes()
        cuts = [raw[:40], raw[40:100], raw[100:]]
        self.bases = [
            value("a.weight", (6, 7), "Float32", raw) + value("b.weight", (6, 7), "Float16", half),
            b"".join(value("a.weight", (6, 7), "Float32", each) for each in cuts) + b"crc_num0123",
        ]

    def draw(self, rng: random.Random) -> Files:
        files = {"config.json": b'{"model_type": "llama"}'}
        for number in range(rng.choice((1, 1, 2))):
            files[f"part{number}.ckpt"] = damaged_bytes(rng, rng.choice(self.bases), head=60)
        return files


def folder_of(path: Path) -> Files:
    """The files of a folder."""
    return {each.name: each.read_bytes() for each in sorted(path.iterdir()) if each.is_file()}


FILE_READERS: Mapping[str, type[Reader]] = {
    each.name: each for each in (Gguf, Safetensors, Sharded, Configs, Quantized, MindSpore)
}
