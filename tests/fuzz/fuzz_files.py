"""Readers of model files: safetensors, MindSpore, and folders of every kind."""

from __future__ import annotations

import copy
import json
import random
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import model_bytes
import numpy as np
from mutations import EXTREMES, TEXTS, damaged_bytes, damaged_json, damaged_text, json_bytes
from reader import Fault, Reader

from dure.errors import DureError
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
    each.name: each for each in (Safetensors, Sharded, Configs, Quantized, MindSpore)
}
