"""Writes a mixture of experts of noise, in the shapes of a real one and as many layers as asked.

    python bench/make_moe.py OUT.gguf --vocabulary QWEN2.5.gguf [--layers 12]
                             [--shapes qwen3-30b-a3b | qwen3.6-35b-a3b | gpt-oss-20b | …]
                             [--skew 0.6 --sticky 0.5]

Its answers are noise, too, but the work is real: the shapes, the types (those of Q4_K_M), and how
many experts a token takes. gpt-oss's experts are MXFP4 and all else of it Q8_0, Gemma 4's matrices
are Q4_0, as their makers publish them. 12 layers are 5 or 6 GB. Needs the gguf package; the
vocabulary is copied from another GGUF file.

As it stands, its routers choose by what its blocks happen to add up to, which is soon the same for
all tokens: after some hundred of them, a layer needs half of its experts. --skew and --sticky
decide instead: 0 and 0 is the worst case for a cache of experts, where each token draws its own (of
a text, which repeats its tokens, the last used 50 % still hit 73 %), and 0.6 and 0.5 is how trained
routers choose. A router's logit is then a sum of

- a constant of each expert, so that some are chosen more often than others. --skew is its standard
  deviation over that of what changes from token to token;
- a part that drifts over some tens of tokens. --sticky is its share of the variance that changes;
- a part that the token itself decides.

0.6 and 0.5 follow what others measured on Qwen3-30B-A3B (BigMoeOnEdge's documents; pull request
1359 of kekzl/imp; gpu-container's imatrix of prose, code and mathematics), and give on 12 layers:

                                                           measured there      this file
    slots that the token before had, too                   35-43 %, 45 %       44 %
    slots that one of the 8 tokens before had              80 %                82 %
    hits of a cache of the last used 11.5, 23, 40 %        53, 76, 90-95 %     57, 82, 92 %
    slots of a layer's most used half of experts, first    90 %, 4.3 %         89 %, 5.6 %
    named by a layer's router on the MLP input before it   81-89 %             83 %

`routings.py` measures the same of any file.

How it is done: the first 256 dimensions of the embedding hold one constant, and no block writes to
them, so that routers read each expert's constant there. In the first block, queries and keys see
those dimensions alone: its attention is one function of the distance, smoothed by RoPE's slow
frequencies, and what it adds is a moving mean of the values of tokens, which see the others alone.
All later blocks add little to the rest of the residual stream.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from moe_2026 import SHAPES
from noise import SPREAD, Tensor, noise, ones

HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 2048, 32, 4, 128
QWEN_EXPERTS = {"qwen3-30b-a3b": (128, 8, 768), "64-experts": (64, 12, 1536)}  # chosen, width
CONSTANT = 256  # dimensions, of which a block of a K-quant has as many
SLOW_PAIRS = slice(13, 26)  # of RoPE: periods of 104 to 1720 tokens
SLOW_NORM = 3.75  # of queries and keys there: heads see windows of 16 to 40 tokens
SLOW_OUTPUT = 0.045  # attention's output in the first block that makes the drifting part as large
LATER = 0.45  # what later blocks add, over what noise of SPREAD adds
GROWTH = 0.01  # of the stream's variance in a block, for which the constants make up


@dataclass(frozen=True)
class Routing:
    """How routers choose; see the top of this file."""

    skew: float
    sticky: float


def qwen_tensors(
    shapes: str, layers: int, vocabulary: int, routing: Routing | None
) -> Iterator[Tensor]:
    """All tensors of the file, in its order. Every other layer has V and down in more bits."""
    experts, _, width = QWEN_EXPERTS[shapes]
    yield Tensor(
        "token_embd.weight", (vocabulary, HIDDEN), Kind.Q4_K, embedding if routing else noise
    )
    yield Tensor("output.weight", (vocabulary, HIDDEN), Kind.Q6_K, noise)
    yield Tensor("output_norm.weight", (HIDDEN,), Kind.F32, without_constant if routing else ones)
    heads, kv_heads = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    for layer in range(layers):
        more = Kind.Q6_K if layer % 2 else Kind.Q4_K
        parts: dict[str, tuple[tuple[int, ...], Kind]] = {
            "attn_norm": ((HIDDEN,), Kind.F32),
            "attn_q": ((heads, HIDDEN), Kind.Q4_K),
            "attn_k": ((kv_heads, HIDDEN), Kind.Q4_K),
            "attn_v": ((kv_heads, HIDDEN), more),
            "attn_q_norm": ((HEAD_DIM,), Kind.F32),
            "attn_k_norm": ((HEAD_DIM,), Kind.F32),
            "attn_output": ((HIDDEN, heads), Kind.Q4_K),
            "ffn_norm": ((HIDDEN,), Kind.F32),
            "ffn_gate_inp": ((experts, HIDDEN), Kind.F32),
            "ffn_gate_exps": ((experts, width, HIDDEN), Kind.Q4_K),
            "ffn_up_exps": ((experts, width, HIDDEN), Kind.Q4_K),
            "ffn_down_exps": ((experts, HIDDEN, width), more),
        }
        special = routing_draws(routing, layer) if routing else {}
        for name, (shape, kind) in parts.items():
            draw = special.get(name, ones if len(shape) == 1 else noise)
            yield Tensor(f"blk.{layer}.{name}.weight", shape, kind, draw)


def routing_draws(
    routing: Routing, layer: int
) -> dict[str, Callable[[np.random.Generator, Tensor], np.ndarray]]:
    """How those tensors of a block are drawn that decide the routing, by their names."""
    slow, own = math.sqrt(routing.sticky), math.sqrt(1 - routing.sticky)
    output = SLOW_OUTPUT * slow / own if layer == 0 else LATER * SPREAD
    rest = {
        "attn_output": lambda rng, tensor: noise(rng, tensor, spread=output, rows_from=CONSTANT),
        "ffn_down_exps": lambda rng, tensor: noise(
            rng, tensor, spread=LATER * SPREAD, rows_from=CONSTANT
        ),
        "ffn_gate_inp": lambda rng, tensor: router(
            rng, tensor, routing.skew * math.sqrt(1 / own**2 + GROWTH * layer)
        ),
    }
    if layer > 0:
        return rest
    return {
        **rest,
        "attn_q": lambda rng, tensor: noise(rng, tensor, columns=slice(0, CONSTANT)),
        "attn_k": lambda rng, tensor: noise(rng, tensor, columns=slice(0, CONSTANT)),
        "attn_v": lambda rng, tensor: noise(rng, tensor, columns=slice(CONSTANT, None)),
        "attn_q_norm": slow_pairs,
        "attn_k_norm": slow_pairs,
    }


def deepseek_tensors(layers: int, vocabulary: int) -> Iterator[Tensor]:
    """The same of DeepSeek-V2-Lite. Rows that no K-quant divides are Q5_0 or Q8_0."""
    yield Tensor("token_embd.weight", (vocabulary, HIDDEN), Kind.Q4_K, noise)
    yield Tensor("output.weight", (vocabulary, HIDDEN), Kind.Q6_K, noise)
    yield Tensor("output_norm.weight", (HIDDEN,), Kind.F32, ones)
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
            draw = ones if len(shape) == 1 else noise
            yield Tensor(f"blk.{layer}.{name}.weight", shape, kind, draw)


def without_constant(rng: np.random.Generator, tensor: Tensor) -> np.ndarray:
    """The last norm, whose head shall not prefer the same tokens always."""
    del rng
    return (np.arange(*tensor.shape) >= CONSTANT).astype(np.float32)


def slow_pairs(rng: np.random.Generator, tensor: Tensor) -> np.ndarray:
    """The norm of queries or keys that leaves RoPE's slow frequencies: it turns i and i + d / 2."""
    del rng
    halves = np.zeros((2, tensor.shape[0] // 2), np.float32)
    halves[:, SLOW_PAIRS] = SLOW_NORM
    return halves.reshape(-1)


def router(rng: np.random.Generator, tensor: Tensor, constants: float) -> np.ndarray:
    """A router that draws from all but the constant dimensions, and from those a constant.

    constants: the standard deviation of an expert's constant, where the rest of the residual stream
    has the variance 1 as the constant dimensions have.
    """
    count, hidden = tensor.shape
    rows = rng.standard_normal(tensor.shape, np.float32) * np.float32(4 / math.sqrt(hidden))
    spread = 4 * constants * math.sqrt(1 - CONSTANT / hidden)
    rows[:, :CONSTANT] = rng.standard_normal((count, 1)) * (spread / CONSTANT)
    return rows


def embedding(rng: np.random.Generator, tensor: Tensor) -> np.ndarray:
    """Noise of standard deviation 1, and -1 in the constant dimensions; Q4_K."""
    data = noise(rng, tensor, spread=1.0, columns=slice(CONSTANT, None))
    first = data[:, : gguf.GGML_QUANT_SIZES[tensor.kind][1]]  # a row's first block
    first[:, 2:4] = np.float16([1.0]).view(np.uint8)
    first[:, 4:16] = [0] * 4 + [1] * 4 + [16] * 4  # scales and minimums of 6 bits: 0 and 1
    return data


def add_keys(
    writer: gguf.GGUFWriter, shapes: str, layers: int, vocabulary: gguf.GGUFReader
) -> None:
    """The sizes, and the vocabulary of the other file as it stands there."""
    writer.add_name(f"noise in the shapes of {shapes}, {layers} layers")
    writer.add_block_count(layers)
    writer.add_context_length(40960)
    writer.add_layer_norm_rms_eps(1e-6)
    if shapes in SHAPES:
        SHAPES[shapes].add_sizes(writer, layers)
    elif shapes in QWEN_EXPERTS:
        add_qwen_sizes(writer, shapes)
    else:
        add_deepseek_sizes(writer)
    copy_vocabulary(writer, vocabulary)


def copy_vocabulary(
    writer: gguf.GGUFWriter, vocabulary: gguf.GGUFReader, most: int | None = None
) -> None:
    """The keys of a tokenizer as they stand in the other file; the first `most` tokens."""
    size = len(vocabulary.fields["tokenizer.ggml.tokens"].data)
    for key, field in vocabulary.fields.items():
        if key.startswith("tokenizer."):
            if field.types[0] == gguf.GGUFValueType.ARRAY:
                entries = field.contents()
                writer.add_array(key, entries[:most] if len(entries) == size else entries)
            else:
                writer.add_key_value(key, field.contents(), field.types[0])


def add_qwen_sizes(writer: gguf.GGUFWriter, shapes: str) -> None:
    """Of heads and experts."""
    experts, chosen, width = QWEN_EXPERTS[shapes]
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(chosen * width)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_freq_base(1e6)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(chosen)
    writer.add_expert_feed_forward_length(width)


def add_deepseek_sizes(writer: gguf.GGUFWriter) -> None:
    """Of latents, heads and experts."""
    writer.add_embedding_length(HIDDEN)
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


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--vocabulary", type=Path, required=True, help="a GGUF file to copy from")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument(
        "--shapes",
        choices=[*QWEN_EXPERTS, "deepseek-v2-lite", *SHAPES],
        default="qwen3-30b-a3b",
    )
    parser.add_argument("--skew", type=float, help="of experts' popularity; 0 or more")
    parser.add_argument("--sticky", type=float, help="the drifting share; 0, or more and below 1")
    options = parser.parse_args()
    options.routing = None
    if options.skew is not None or options.sticky is not None:
        options.routing = Routing(options.skew or 0.0, options.sticky or 0.0)
        if options.routing.skew < 0 or not 0 <= options.routing.sticky < 1:
            parser.error("--skew is 0 or more, and --sticky at least 0 and below 1")
        if options.shapes not in QWEN_EXPERTS:
            parser.error(f"--skew and --sticky are made for {', '.join(QWEN_EXPERTS)}")
    return options


def architecture_of(shapes: str) -> str:
    """What llama.cpp calls it."""
    if shapes in SHAPES:
        return SHAPES[shapes].architecture
    return "qwen3moe" if shapes in QWEN_EXPERTS else "deepseek2"


def tensors(options: argparse.Namespace, vocabulary: int) -> Iterator[Tensor]:
    """All tensors of the file."""
    if options.shapes in SHAPES:
        return SHAPES[options.shapes].tensors(options.layers, vocabulary)
    if options.shapes in QWEN_EXPERTS:
        return qwen_tensors(options.shapes, options.layers, vocabulary, options.routing)
    return deepseek_tensors(options.layers, vocabulary)


def main() -> None:
    """Write the file that the command line asks for."""
    options = parse()
    source = gguf.GGUFReader(options.vocabulary)
    size = len(source.fields["tokenizer.ggml.tokens"].data)
    writer = gguf.GGUFWriter(options.out, architecture_of(options.shapes))
    add_keys(writer, options.shapes, options.layers, source)
    write(writer, lambda: tensors(options, size))


def write(writer: gguf.GGUFWriter, listed: Callable[[], Iterator[Tensor]]) -> None:
    """Write the file, whose keys are known, one tensor in memory at a time."""
    rng = np.random.default_rng(0)
    for tensor in listed():
        block, block_bytes = gguf.GGML_QUANT_SIZES[tensor.kind]
        plain = tensor.kind == Kind.F32
        # The writer wants floats by their shape, and blocks by the shape of their bytes.
        shape = tensor.shape
        stored = shape if plain else (*shape[:-1], shape[-1] // block * block_bytes)
        dtype = np.dtype(np.float32 if plain else np.uint8)
        size_bytes = math.prod(stored) * dtype.itemsize
        kind = None if plain else tensor.kind
        writer.add_tensor_info(tensor.name, stored, dtype, size_bytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in listed():
        writer.write_tensor_data(tensor.draw(rng, tensor))
    writer.close()


if __name__ == "__main__":
    main()
