"""Writes one model of noise as different quantisers store it, to compare their formats' speed.

    python bench/make_quantised.py FOLDER [--layers 8] [--only nvfp4,Q4_K]

The shapes are those of Qwen2.5-1.5B but for a small vocabulary, in BF16 everywhere, so that what
differs is the format of the layers. BF16, FP8 as DeepSeek and Qwen publish it and with a scale a
row, compressed-tensors' W8A8 and NVFP4, AutoRound's W4A16, mlx-lm's 4 bits, GGUF's Q8_0 and Q4_K.
`versions.py` measures two of them in turns:

    python bench/versions.py src src --models FOLDER/Q8_0.gguf FOLDER/fp8 --only prefill

Needs the gguf package.
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from noise import SPREAD, Tensor, noise

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 1536, 8960, 12, 2, 128, 4096
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
}
LINEAR = {  # name in the folder -> name in a GGUF, rows, columns
    "self_attn.q_proj": ("attn_q", HEADS * HEAD_DIM, HIDDEN),
    "self_attn.k_proj": ("attn_k", KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.v_proj": ("attn_v", KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.o_proj": ("attn_output", HIDDEN, HEADS * HEAD_DIM),
    "mlp.gate_proj": ("ffn_gate", INTERMEDIATE, HIDDEN),
    "mlp.up_proj": ("ffn_up", INTERMEDIATE, HIDDEN),
    "mlp.down_proj": ("ffn_down", HIDDEN, INTERMEDIATE),
}

Array = np.ndarray
Stored = dict[str, tuple[str, Array]]  # suffix -> safetensors' word for the type, content
RNG = np.random.default_rng(0)


def bf16(shape: tuple[int, ...], value: float | None = None) -> tuple[str, Array]:
    """Noise, or one value, as BF16."""
    floats = (
        (RNG.standard_normal(shape) * SPREAD).astype(np.float32)
        if value is None
        else np.full(shape, value, np.float32)
    )
    return "BF16", (floats.view(np.uint32) >> 16).astype("<u2")


def codes(*shape: int, dtype: str = "<u4") -> Array:
    """Random bits."""
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max, shape, dtype, endpoint=True)


def w8a8(rows: int, cols: int) -> Stored:
    """compressed-tensors int-quantized: int8 with a scale a row."""
    scale = bf16((rows, 1), SPREAD / 74)
    return {"weight": ("I8", codes(rows, cols, dtype="i1")), "weight_scale": scale}


def fp8_codes(rows: int, cols: int) -> tuple[str, Array]:
    """Codes of e4m3 as a quantiser makes them of noise: of the largest magnitude 448."""
    sizes = np.minimum(np.abs(RNG.standard_normal((rows, cols), np.float32)) * 448 / 4.5, 448)
    power = np.clip(np.floor(np.log2(np.maximum(sizes, 2.0**-9))), -6, 8)
    units = np.minimum(np.rint(sizes / 2.0 ** (power - 3)), 15)  # of the last bit
    normal = (power + 7) * 8 + units - 8
    found = np.where(units < 8, units, normal).astype(np.uint8)
    return "F8_E4M3", found | codes(rows, cols, dtype="u1") & 128


def fp8(rows: int, cols: int) -> Stored:
    """DeepSeek's and Qwen's FP8: a scale for a block of 128 x 128."""
    grid = -(-rows // 128), -(-cols // 128)
    scale = RNG.uniform(0.9, 1.1, grid).astype(np.float32) * np.float32(SPREAD * 4.5 / 448)
    return {"weight": fp8_codes(rows, cols), "weight_scale_inv": ("F32", scale)}


def fp8_channel(rows: int, cols: int) -> Stored:
    """compressed-tensors' FP8: a scale a row."""
    return {"weight": fp8_codes(rows, cols), "weight_scale": bf16((rows, 1), SPREAD * 4.5 / 448)}


def nvfp4(rows: int, cols: int) -> Stored:
    """compressed-tensors nvfp4-pack-quantized: e2m1 with an e4m3 scale for 16 columns."""
    return {
        "weight_packed": ("U8", codes(rows, cols // 2, dtype="u1")),
        "weight_scale": ("F8_E4M3", np.full((rows, cols // 16), 0x38, np.uint8)),  # 1.0
        "weight_global_scale": ("F32", np.array([2.8 / SPREAD], np.float32)),
        "input_global_scale": ("F32", np.array([1.0], np.float32)),
    }


def autoround(rows: int, cols: int) -> Stored:
    """auto_round:auto_gptq: 4 bits in words down the columns, a float16 scale for 128."""
    groups = cols // 128
    return {
        "qweight": ("I32", codes(cols // 8, rows, dtype="<i4")),
        "qzeros": ("I32", np.full((groups, rows // 8), 0x77777777, "<i4")),
        "scales": ("F16", np.full((groups, rows), SPREAD / 4.6, "<f2")),
    }


def mlx(rows: int, cols: int) -> Stored:
    """mlx-lm's affine 4 bits, a scale and a bias for 64 columns."""
    return {
        "weight": ("U32", codes(rows, cols // 8)),
        "scales": bf16((rows, cols // 64), SPREAD / 4.6),
        "biases": bf16((rows, cols // 64), -7.5 * SPREAD / 4.6),
    }


INT = {"actorder": None, "group_size": None, "observer": "minmax", "symmetric": True}


def compressed(form: str, weights: dict[str, object], inputs: dict[str, object]) -> dict:
    """compressed-tensors' part of config.json."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": form,
            "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": {"group_0": group},
        }
    }


def eight(strategy: str, *, dynamic: bool) -> dict[str, object]:
    """One side of W8A8."""
    return {**INT, "num_bits": 8, "type": "int", "strategy": strategy, "dynamic": dynamic}


def four(dynamic: bool | str) -> dict[str, object]:
    """One side of NVFP4."""
    kind = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    return {**INT, **kind, "dynamic": dynamic}


AFFINE = {"group_size": 64, "bits": 4, "mode": "affine"}
FP8_CHANNEL = {**eight("channel", dynamic=False), "type": "float"}
FOLDERS: dict[str, tuple[Callable[[int, int], Stored], dict[str, object]]] = {
    "bf16": (lambda rows, cols: {"weight": bf16((rows, cols))}, {}),
    "fp8": (
        fp8,
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    ),
    "fp8-channel": (
        fp8_channel,
        compressed(
            "float-quantized", FP8_CHANNEL, {**FP8_CHANNEL, "strategy": "token", "dynamic": True}
        ),
    ),
    "w8a8": (
        w8a8,
        compressed("int-quantized", eight("channel", dynamic=False), eight("token", dynamic=True)),
    ),
    "nvfp4": (nvfp4, compressed("nvfp4-pack-quantized", four(dynamic=False), four("local"))),
    "autoround": (
        autoround,
        {
            "quantization_config": {
                "quant_method": "auto-round",
                "packing_format": "auto_round:auto_gptq",
                "bits": 4,
                "group_size": 128,
                "sym": True,
                "data_type": "int",
                "block_name_to_quantize": "model.layers",
            }
        },
    ),
    "mlx": (mlx, {"quantization": AFFINE, "quantization_config": AFFINE}),
}


def tensors(layers: int, linear: Callable[[int, int], Stored]) -> Iterator[tuple[str, str, Array]]:
    """All tensors of a folder: name, type, content."""
    yield "model.embed_tokens.weight", *bf16((VOCABULARY, HIDDEN))
    yield "lm_head.weight", *bf16((VOCABULARY, HIDDEN))
    yield "model.norm.weight", *bf16((HIDDEN,), 1.0)
    for layer in range(layers):
        start = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{start}{norm}.weight", *bf16((HIDDEN,), 1.0)
        for name, (_, rows, cols) in LINEAR.items():
            for suffix, stored in linear(rows, cols).items():
                yield f"{start}{name}.{suffix}", *stored
            if name[-6] in "qkv" and "self" in name:
                yield f"{start}{name}.bias", *bf16((rows,))


def write_folder(folder: Path, layers: int, form: str) -> None:
    """Write config.json and one safetensors file."""
    linear, more = FOLDERS[form]
    folder.mkdir(parents=True)
    config = {**CONFIG, "num_hidden_layers": layers, **more}
    (folder / "config.json").write_text(json.dumps(config))
    header: dict[str, object] = {"__metadata__": {"format": "mlx" if form == "mlx" else "pt"}}
    contents = []
    at = 0
    for name, dtype, content in tensors(layers, linear):
        end = at + content.nbytes
        header[name] = {"dtype": dtype, "shape": list(content.shape), "data_offsets": [at, end]}
        contents.append(content)
        at = end
    head = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for content in contents:
            file.write(np.ascontiguousarray(content).tobytes())


def write_gguf(path: Path, layers: int, kind: Kind) -> None:
    """Write the same model with layers of one GGUF type."""
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(layers)
    writer.add_context_length(32768)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)

    def add_bf16(name: str) -> None:
        content = bf16((VOCABULARY, HIDDEN))[1].view(np.uint8)
        writer.add_tensor(name, content, raw_dtype=Kind.BF16)

    add_bf16("token_embd.weight")
    add_bf16("output.weight")
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for layer in range(layers):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(HIDDEN, np.float32))
        for name, rows, cols in LINEAR.values():
            content = noise(RNG, Tensor(f"blk.{layer}.{name}.weight", (rows, cols), kind, noise))
            writer.add_tensor(f"blk.{layer}.{name}.weight", content, raw_dtype=kind)
            if name in ("attn_q", "attn_k", "attn_v"):
                writer.add_tensor(f"blk.{layer}.{name}.bias", np.zeros(rows, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--only", default=",".join([*FOLDERS, "Q8_0", "Q4_K"]))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for form in options.only.split(","):
        if form in FOLDERS:
            write_folder(options.folder / form, options.layers, form)
        else:
            write_gguf(options.folder / f"{form}.gguf", options.layers, Kind[form])


if __name__ == "__main__":
    main()
