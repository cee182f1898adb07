"""Write tiny GGUF files of every rare type with ggml's own quantiser: gguf_folders.py LIB BASE OUT.

LIB is a shared library of ggml-quants.c and ggml.c (of llama-cpp-python's source distribution).
Rows that a type's block does not divide get Q8_0, as llama.cpp falls back. The oracle is ggml's
`to_float`, and the gguf package's dequantize is compared with it, where it knows the type.
`gguf-fused-qkv` has attn_qkv (q, k and v one below the other), by hand.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

TYPES = {
    "IQ2_XXS": 16,
    "IQ2_XS": 17,
    "IQ3_XXS": 18,
    "IQ1_S": 19,
    "IQ3_S": 21,
    "IQ2_S": 22,
    "IQ1_M": 29,
    "TQ1_0": 34,
    "TQ2_0": 35,
    "MXFP4": 39,
    "NVFP4": 40,
    "Q1_0": 41,
    "Q2_0": 42,
    "Q2_K": 10,
    "IQ4_XS": 23,
}


class Traits(ctypes.Structure):
    """ggml_type_traits."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("size", ctypes.c_size_t),
        ("quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float", ctypes.c_void_p),
    ]


def load(path: Path) -> ctypes.CDLL:
    """Open ggml."""
    lib = ctypes.CDLL(str(path))
    lib.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return lib


def quantise(lib: ctypes.CDLL, kind: int, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a matrix's packed rows and what ggml reads from them."""
    traits = lib.ggml_get_type_traits(kind).contents
    rows, columns = weight.shape
    packed = np.zeros((rows, columns // traits.block * traits.size), np.uint8)
    importance = np.ascontiguousarray((weight**2).mean(0) + 1e-3, np.float32)
    lib.ggml_quantize_chunk(
        kind, weight.ctypes.data, packed.ctypes.data, 0, rows, columns, importance.ctypes.data
    )
    values = np.zeros((rows, columns), np.float32)
    read = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(traits.to_float)
    for row in range(rows):
        read(packed[row].ctypes.data, values[row].ctypes.data, columns)
    return packed, values


def known(lib: ctypes.CDLL, kind: int) -> gguf.GGMLQuantizationType:
    """Return the gguf package's word for a type; one that is newer than the package is added."""
    kinds = gguf.GGMLQuantizationType
    if kind not in kinds._value2member_map_:
        traits = lib.ggml_get_type_traits(kind).contents
        member = int.__new__(kinds, kind)
        member._name_, member._value_ = traits.name.decode().upper(), kind
        kinds._value2member_map_[kind] = member
        gguf.constants.GGML_QUANT_SIZES[member] = (traits.block, traits.size)
    return kinds(kind)


NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def plain(name: str) -> str:
    """Return llama.cpp's name of one of transformers' tensors."""
    whole = {"model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm"}
    module, _, kind = name.rpartition(".")
    if module in whole:
        return f"{whole[module]}.{kind}"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.{kind}"


def header(writer: gguf.GGUFWriter, config: dict, tokenizer: dict) -> None:
    """Write the keys of a qwen2."""
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    vocabulary = {v: k for k, v in tokenizer["model"]["vocab"].items()}
    vocabulary |= {t["id"]: t["content"] for t in tokenizer["added_tokens"]}
    special = {t["id"] for t in tokenizer["added_tokens"]}
    tokens = [vocabulary.get(i, f"[PAD{i}]") for i in range(config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [3 if i in special else 1 if i in vocabulary else 5 for i in range(len(tokens))]
    )
    writer.add_token_merges(
        [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    )
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(0)


def write(lib: ctypes.CDLL, folder: Path, base: Path, name: str, fused: bool = False) -> None:
    """Write one file and its oracle."""
    config = json.loads((base / "config.json").read_text())
    tensors = {k: v.float().numpy() for k, v in load_file(base / "model.safetensors").items()}
    (folder / "oracle").mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(folder / "model.gguf", "qwen2")
    header(writer, config, json.loads((base / "tokenizer.json").read_text()))
    oracle, gap, unknown = {}, 0.0, False
    blocks: dict[str, tuple[np.ndarray, int]] = {}
    for key, value in tensors.items():
        if value.ndim == 1 or "embed" in key or "lm_head" in key:
            blocks[plain(key)] = (value, 0)
            if value.ndim == 2:
                oracle[key] = value
            continue
        kind = TYPES[name]
        if value.shape[1] % lib.ggml_get_type_traits(kind).contents.block:
            kind = 8
        packed, read = quantise(lib, kind, np.ascontiguousarray(value))
        blocks[plain(key)], oracle[key] = (packed, kind), read
        try:
            other = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType(kind))
            gap = max(gap, float(np.abs(other - read).max()))
        except (NotImplementedError, ValueError):
            unknown = True
    if fused:
        for layer in range(config["num_hidden_layers"]):
            for part in ("weight", "bias"):
                three = [blocks.pop(f"blk.{layer}.attn_{k}.{part}") for k in "qkv"]
                blocks[f"blk.{layer}.attn_qkv.{part}"] = (
                    np.concatenate([t[0] for t in three]),
                    three[0][1],
                )
    for key, (value, kind) in blocks.items():
        if kind == 0:
            writer.add_tensor(key, value)
        else:
            writer.add_tensor(key, value, raw_dtype=known(lib, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(oracle, folder / "oracle" / "weights.safetensors")
    base_weights = {k: v for k, v in tensors.items() if v.ndim == 2}
    error = max(
        float(np.linalg.norm(oracle[k] - v) / np.linalg.norm(v)) for k, v in base_weights.items()
    )
    print(
        f"{folder.name}: worst relative error {error:.3f}; gguf {gguf.__name__} package "
        + ("does not know it" if unknown else f"differs by {gap:.2g}"),
        flush=True,
    )


def main(library: Path, bases: Path, out: Path) -> None:
    """Write one folder a type."""
    lib = load(library)
    for name in TYPES:
        try:
            write(lib, out / f"gguf-{name.lower()}", bases / "qwen2", name)
        except Exception as error:
            print(f"FAILED {name}: {type(error).__name__}: {error}", flush=True)
    write(lib, out / "gguf-fused-qkv", bases / "qwen2", "MXFP4", fused=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
