"""Writes a mixture of experts of noise, in the shapes of a real one and as many layers as asked.

    python bench/make_moe.py OUT.gguf --vocabulary QWEN2.5.gguf [--layers 12]
                             [--shapes qwen3-30b-a3b | deepseek-v2-lite]

Its answers are noise, too, but the work is real: the shapes, the types (those of Q4_K_M), and how
many experts a token takes. Norms are ones and the router is drawn, so that experts are chosen about
evenly. 12 layers are 5 GB. Needs the gguf package; the vocabulary is copied from another GGUF file.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 2048, 32, 4, 128
EXPERTS, CHOSEN, INTERMEDIATE = 128, 8, 768
SPREAD = 0.02  # the standard deviation of quantised weights
SCALES = {  # where a block has its float16 scale and minimum, and the code that both make zero
    Kind.Q4_K: (0, 2, 7.5),
    Kind.Q6_K: (208, None, 0.0),
    Kind.Q5_0: (0, None, 0.0),
    Kind.Q8_0: (0, None, 0.0),
}

Tensor = tuple[str, tuple[int, ...], Kind]  # name, shape as numpy has it, type


def qwen_tensors(layers: int, vocabulary: int) -> Iterator[Tensor]:
    """All tensors of the file, in its order. Every other layer has V and down in more bits."""
    yield "token_embd.weight", (vocabulary, HIDDEN), Kind.Q4_K
    yield "output.weight", (vocabulary, HIDDEN), Kind.Q6_K
    yield "output_norm.weight", (HIDDEN,), Kind.F32
    heads, kv_heads = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    for layer in range(layers):
        more = Kind.Q6_K if layer % 2 else Kind.Q4_K
        shapes: dict[str, tuple[tuple[int, ...], Kind]] = {
            "attn_norm": ((HIDDEN,), Kind.F32),
            "attn_q": ((heads, HIDDEN), Kind.Q4_K),
            "attn_k": ((kv_heads, HIDDEN), Kind.Q4_K),
            "attn_v": ((kv_heads, HIDDEN), more),
            "attn_q_norm": ((HEAD_DIM,), Kind.F32),
            "attn_k_norm": ((HEAD_DIM,), Kind.F32),
            "attn_output": ((HIDDEN, heads), Kind.Q4_K),
            "ffn_norm": ((HIDDEN,), Kind.F32),
            "ffn_gate_inp": ((EXPERTS, HIDDEN), Kind.F32),
            "ffn_gate_exps": ((EXPERTS, INTERMEDIATE, HIDDEN), Kind.Q4_K),
            "ffn_up_exps": ((EXPERTS, INTERMEDIATE, HIDDEN), Kind.Q4_K),
            "ffn_down_exps": ((EXPERTS, HIDDEN, INTERMEDIATE), more),
        }
        for name, (shape, kind) in shapes.items():
            yield f"blk.{layer}.{name}.weight", shape, kind


def deepseek_tensors(layers: int, vocabulary: int) -> Iterator[Tensor]:
    """The same of DeepSeek-V2-Lite. Rows that no K-quant divides are Q5_0 or Q8_0."""
    yield "token_embd.weight", (vocabulary, HIDDEN), Kind.Q4_K
    yield "output.weight", (vocabulary, HIDDEN), Kind.Q6_K
    yield "output_norm.weight", (HIDDEN,), Kind.F32
    for layer in range(layers):
        more = layer % 2 == 1
        shapes: dict[str, tuple[tuple[int, ...], Kind]] = {
            "attn_norm": ((HIDDEN,), Kind.F32),
            "attn_q": ((16 * 192, HIDDEN), Kind.Q4_K),
            "attn_kv_a_mqa": ((512 + 64, HIDDEN), Kind.Q4_K),
            "attn_kv_a_norm": ((512,), Kind.F32),
            "attn_k_b": ((16, 512, 128), Kind.Q8_0),
            "attn_v_b": ((16, 128, 512), Kind.Q6_K if more else Kind.Q4_K),
            "attn_output": ((HIDDEN, 16 * 128), Kind.Q4_K),
            "ffn_norm": ((HIDDEN,), Kind.F32),
        }
        if layer == 0:
            shapes["ffn_gate"] = shapes["ffn_up"] = (10944, HIDDEN), Kind.Q4_K
            shapes["ffn_down"] = (HIDDEN, 10944), Kind.Q5_0
        else:
            shapes["ffn_gate_inp"] = (64, HIDDEN), Kind.F32
            shapes["ffn_gate_exps"] = shapes["ffn_up_exps"] = (64, 1408, HIDDEN), Kind.Q4_K
            shapes["ffn_down_exps"] = (64, HIDDEN, 1408), Kind.Q8_0 if more else Kind.Q5_0
            shapes["ffn_gate_shexp"] = shapes["ffn_up_shexp"] = (2816, HIDDEN), Kind.Q4_K
            shapes["ffn_down_shexp"] = (HIDDEN, 2816), Kind.Q6_K if more else Kind.Q4_K
        for name, (shape, kind) in shapes.items():
            yield f"blk.{layer}.{name}.weight", shape, kind


def drawn(rng: np.random.Generator, shape: tuple[int, ...], kind: Kind) -> np.ndarray:
    """A tensor's content: ones, a router, or random blocks as uint8 (..., row bytes)."""
    if kind == Kind.F32:
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        return rng.standard_normal(shape, np.float32) * np.float32(4 / math.sqrt(shape[-1]))
    size, size_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (math.prod(shape) // size, size_bytes), np.uint8)
    scale_at, minimum_at, middle = SCALES[kind]

    def set_scale(scale: float) -> None:
        blocks[:, scale_at : scale_at + 2] = np.float16([scale]).view(np.uint8)
        if minimum_at is not None:
            blocks[:, minimum_at : minimum_at + 2] = np.float16([scale * middle]).view(np.uint8)

    set_scale(1.0)
    set_scale(SPREAD / float(gguf.quants.dequantize(blocks[:256], kind).std()))
    return blocks.reshape(*shape[:-1], -1)


def add_keys(
    writer: gguf.GGUFWriter, shapes: str, layers: int, vocabulary: gguf.GGUFReader
) -> None:
    """The sizes, and the vocabulary of the other file as it stands there."""
    writer.add_name(f"noise in the shapes of {shapes}, {layers} layers")
    writer.add_block_count(layers)
    writer.add_context_length(40960)
    writer.add_embedding_length(HIDDEN)
    writer.add_layer_norm_rms_eps(1e-6)
    add_sizes = {"qwen3-30b-a3b": add_qwen_sizes, "deepseek-v2-lite": add_deepseek_sizes}[shapes]
    add_sizes(writer)
    for key, field in vocabulary.fields.items():
        if key.startswith("tokenizer."):
            if field.types[0] == gguf.GGUFValueType.ARRAY:
                writer.add_array(key, field.contents())
            else:
                writer.add_key_value(key, field.contents(), field.types[0])


def add_qwen_sizes(writer: gguf.GGUFWriter) -> None:
    """Of heads and experts."""
    writer.add_feed_forward_length(CHOSEN * INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_freq_base(1e6)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(CHOSEN)
    writer.add_expert_feed_forward_length(INTERMEDIATE)


def add_deepseek_sizes(writer: gguf.GGUFWriter) -> None:
    """Of latents, heads and experts."""
    writer.add_feed_forward_length(10944)
    writer.add_head_count(16)
    writer.add_head_count_kv(1)
    writer.add_key_length(512 + 64)
    writer.add_value_length(512)
    writer.add_key_length_mla(192)
    writer.add_value_length_mla(128)
    writer.add_kv_lora_rank(512)
    writer.add_rope_dimension_count(64)
    writer.add_rope_freq_base(1e4)
    writer.add_leading_dense_block_count(1)
    writer.add_expert_count(64)
    writer.add_expert_used_count(6)
    writer.add_expert_shared_count(2)
    writer.add_expert_feed_forward_length(1408)
    writer.add_expert_weights_scale(1.0)


def main() -> None:
    """Write the file, one tensor in memory at a time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--vocabulary", type=Path, required=True, help="a GGUF file to copy from")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument(
        "--shapes", choices=["qwen3-30b-a3b", "deepseek-v2-lite"], default="qwen3-30b-a3b"
    )
    options = parser.parse_args()
    source = gguf.GGUFReader(options.vocabulary)
    size = len(source.fields["tokenizer.ggml.tokens"].data)
    is_qwen = options.shapes == "qwen3-30b-a3b"
    writer = gguf.GGUFWriter(options.out, "qwen3moe" if is_qwen else "deepseek2")
    tensors = qwen_tensors if is_qwen else deepseek_tensors
    add_keys(writer, options.shapes, options.layers, source)
    rng = np.random.default_rng(0)
    for name, shape, kind in tensors(options.layers, size):
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        plain = kind == Kind.F32
        # The writer wants floats by their shape, and blocks by the shape of their bytes.
        stored = shape if plain else (*shape[:-1], shape[-1] // block * block_bytes)
        dtype = np.dtype(np.float32 if plain else np.uint8)
        size_bytes = math.prod(stored) * dtype.itemsize
        writer.add_tensor_info(name, stored, dtype, size_bytes, None if plain else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, shape, kind in tensors(options.layers, size):
        writer.write_tensor_data(drawn(rng, shape, kind))
    writer.close()


if __name__ == "__main__":
    main()
