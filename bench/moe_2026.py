"""A part of `make_moe.py`: the shapes of Qwen3.6-35B-A3B, gpt-oss-20b and Gemma-4-26B-A4B."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from noise import Tensor, noise, ones

Part = tuple[tuple[int, ...], Kind]
Draw = Callable[[np.random.Generator, Tensor], np.ndarray]


@dataclass(frozen=True)
class Shapes:
    """A mixture's name in llama.cpp, its keys and its tensors."""

    architecture: str
    experts: int
    add_sizes: Callable[[gguf.GGUFWriter, int], None]
    """Given the number of layers."""
    tensors: Callable[[int, int], Iterator[Tensor]]
    """Given the number of layers and of tokens."""


def between(low: float, high: float) -> Draw:
    """Draw evenly from low to high, as float32."""
    return lambda rng, tensor: rng.uniform(low, high, tensor.shape).astype(np.float32)


def listed(layer: int, parts: Mapping[str, Part], special: Mapping[str, Draw]) -> Iterator[Tensor]:
    """A layer's tensors: vectors are ones and matrices noise where `special` says nothing else.

    A name without a suffix has `.weight`.
    """
    for name, (shape, kind) in parts.items():
        draw = special.get(name, ones if len(shape) == 1 else noise)
        whole = name if "." in name or name == "ssm_a" else f"{name}.weight"
        yield Tensor(f"blk.{layer}.{whole}", shape, kind, draw)


def qwen36(experts: int = 256) -> Shapes:
    """Qwen3.6-35B-A3B: three layers of Gated DeltaNet to one of gated attention; Q4_K_M's types."""
    hidden, width, chosen = 2048, 512, 8
    qkv, values, heads = 2 * 16 * 128 + 32 * 128, 32 * 128, 16 * 256
    special = {"ssm_a": between(-8, -0.05), "ssm_dt.bias": between(-4, 1)}

    def add_sizes(writer: gguf.GGUFWriter, layers: int) -> None:
        del layers
        writer.add_embedding_length(hidden)
        writer.add_head_count(16)
        writer.add_head_count_kv(2)
        writer.add_key_length(256)
        writer.add_value_length(256)
        writer.add_rope_freq_base(1e7)
        writer.add_rope_dimension_count(64)
        writer.add_rope_dimension_sections([11, 11, 10, 0])
        writer.add_expert_count(experts)
        writer.add_expert_used_count(chosen)
        writer.add_expert_feed_forward_length(width)
        writer.add_expert_shared_feed_forward_length(width)
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_state_size(128)
        writer.add_ssm_group_count(16)
        writer.add_ssm_time_step_rank(32)
        writer.add_ssm_inner_size(values)
        writer.add_full_attention_interval(4)

    def tensors(layers: int, vocabulary: int) -> Iterator[Tensor]:
        yield from ends(hidden, vocabulary, Kind.Q4_K, Kind.Q6_K)
        for layer in range(layers):
            more = Kind.Q6_K if layer % 2 else Kind.Q4_K
            recurrent: dict[str, Part] = {
                "attn_qkv": ((qkv, hidden), Kind.Q4_K),
                "attn_gate": ((values, hidden), Kind.Q4_K),
                "ssm_conv1d": ((qkv, 4), Kind.F32),
                "ssm_dt.bias": ((32,), Kind.F32),
                "ssm_a": ((32,), Kind.F32),
                "ssm_alpha": ((32, hidden), Kind.Q8_0),
                "ssm_beta": ((32, hidden), Kind.Q8_0),
                "ssm_norm": ((128,), Kind.F32),
                "ssm_out": ((hidden, values), Kind.Q4_K),
            }
            full: dict[str, Part] = {
                "attn_q": ((2 * heads, hidden), Kind.Q4_K),
                "attn_k": ((512, hidden), Kind.Q4_K),
                "attn_v": ((512, hidden), more),
                "attn_q_norm": ((256,), Kind.F32),
                "attn_k_norm": ((256,), Kind.F32),
                "attn_output": ((hidden, heads), Kind.Q4_K),
            }
            parts: dict[str, Part] = {
                "attn_norm": ((hidden,), Kind.F32),
                "post_attention_norm": ((hidden,), Kind.F32),
                **(recurrent if (layer + 1) % 4 else full),
                "ffn_gate_inp": ((experts, hidden), Kind.F32),
                "ffn_gate_exps": ((experts, width, hidden), Kind.Q4_K),
                "ffn_up_exps": ((experts, width, hidden), Kind.Q4_K),
                "ffn_down_exps": ((experts, hidden, width), more),
                "ffn_gate_inp_shexp": ((hidden,), Kind.F32),
                "ffn_gate_shexp": ((width, hidden), Kind.Q4_K),
                "ffn_up_shexp": ((width, hidden), Kind.Q4_K),
                "ffn_down_shexp": ((hidden, width), more),
            }
            yield from listed(layer, parts, special)

    return Shapes("qwen35moe", experts, add_sizes, tensors)


def gpt_oss(experts: int = 32) -> Shapes:
    """gpt-oss-20b: sinks, windows of 128 in every other layer; experts in MXFP4, the rest Q8_0."""
    hidden, width, heads, kv_heads = 2880, 2880, 64 * 64, 8 * 64

    def add_sizes(writer: gguf.GGUFWriter, layers: int) -> None:
        del layers
        writer.add_embedding_length(hidden)
        writer.add_feed_forward_length(width)
        writer.add_head_count(64)
        writer.add_head_count_kv(8)
        writer.add_key_length(64)
        writer.add_value_length(64)
        writer.add_rope_freq_base(150000.0)
        writer.add_rope_dimension_count(64)
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(32.0)
        writer.add_rope_scaling_orig_ctx_len(4096)
        writer.add_sliding_window(128)
        writer.add_expert_count(experts)
        writer.add_expert_used_count(4)
        writer.add_expert_feed_forward_length(width)

    def tensors(layers: int, vocabulary: int) -> Iterator[Tensor]:
        yield from ends(hidden, vocabulary, Kind.Q8_0, Kind.Q8_0)
        biased = {"attn_q": heads, "attn_k": kv_heads, "attn_v": kv_heads}
        for layer in range(layers):
            parts: dict[str, Part] = {
                "attn_norm": ((hidden,), Kind.F32),
                "post_attention_norm": ((hidden,), Kind.F32),
                "attn_sinks": ((64,), Kind.F32),
                "attn_output": ((hidden, heads), Kind.Q8_0),
                "attn_output.bias": ((hidden,), Kind.F32),
                "ffn_gate_inp": ((experts, hidden), Kind.F32),
                "ffn_gate_inp.bias": ((experts,), Kind.F32),
            }
            for name, rows in biased.items():
                parts |= {name: ((rows, hidden), Kind.Q8_0), f"{name}.bias": ((rows,), Kind.F32)}
            shapes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
            for part, (rows, cols) in shapes.items():
                parts[f"ffn_{part}_exps"] = (experts, rows, cols), Kind.MXFP4
                parts[f"ffn_{part}_exps.bias"] = (experts, rows), Kind.F32
            small = {name: between(-0.1, 0.1) for name in parts if name.endswith(".bias")}
            yield from listed(layer, parts, {**small, "attn_sinks": between(-1, 1)})

    return Shapes("gpt-oss", experts, add_sizes, tensors)


def gemma4(experts: int = 128) -> Shapes:
    """Gemma-4-26B-A4B: windows of 1024 in five layers of six, two head sizes; Q4_0."""
    hidden, width, dense, heads = 2816, 704, 2112, 16
    near, far = (256, 8), (512, 2)  # a head's size, and KV heads

    def is_full(layer: int, layers: int) -> bool:
        return (layer + 1) % 6 == 0 or layer == layers - 1

    def add_sizes(writer: gguf.GGUFWriter, layers: int) -> None:
        full = [is_full(layer, layers) for layer in range(layers)]
        writer.add_embedding_length(hidden)
        writer.add_feed_forward_length(dense)
        writer.add_head_count(heads)
        writer.add_head_count_kv([far[1] if each else near[1] for each in full])
        writer.add_key_length(far[0])
        writer.add_value_length(far[0])
        writer.add_key_length_swa(near[0])
        writer.add_value_length_swa(near[0])
        writer.add_rope_dimension_count(far[0])
        writer.add_rope_dimension_count_swa(near[0])
        writer.add_rope_freq_base(1e6)
        writer.add_rope_freq_base_swa(1e4)
        writer.add_sliding_window(1024)
        writer.add_sliding_window_pattern([not each for each in full])
        writer.add_shared_kv_layers(0)
        writer.add_embedding_length_per_layer_input(0)
        writer.add_final_logit_softcapping(30.0)
        writer.add_expert_count(experts)
        writer.add_expert_used_count(8)
        writer.add_expert_feed_forward_length(width)

    def tensors(layers: int, vocabulary: int) -> Iterator[Tensor]:
        yield Tensor("token_embd.weight", (vocabulary, hidden), Kind.Q6_K, noise)
        yield Tensor("output_norm.weight", (hidden,), Kind.F32, ones)
        yield Tensor("rope_freqs.weight", (far[0] // 2,), Kind.F32, quarter_turns)
        norms = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
        norms += ("pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2")
        for layer in range(layers):
            full = is_full(layer, layers)
            size, kv_heads = far if full else near
            rows = {"attn_q": heads * size, "attn_k": kv_heads * size}
            if not full:  # whose values are their keys
                rows["attn_v"] = kv_heads * size
            parts: dict[str, Part] = {
                **dict.fromkeys(norms, ((hidden,), Kind.F32)),
                **{name: ((count, hidden), Kind.Q4_0) for name, count in rows.items()},
                "attn_output": ((hidden, heads * size), Kind.Q4_0),
                "attn_q_norm": ((size,), Kind.F32),
                "attn_k_norm": ((size,), Kind.F32),
                "ffn_gate": ((dense, hidden), Kind.Q4_0),
                "ffn_up": ((dense, hidden), Kind.Q4_0),
                "ffn_down": ((hidden, dense), Kind.Q4_0),
                "ffn_gate_inp": ((experts, hidden), Kind.F32),
                "ffn_gate_inp.scale": ((hidden,), Kind.F32),
                "ffn_gate_up_exps": ((experts, 2 * width, hidden), Kind.Q4_0),
                "ffn_down_exps": ((experts, hidden, width), Kind.Q4_0),
                "ffn_down_exps.scale": ((experts,), Kind.F32),
                "layer_output_scale": ((1,), Kind.F32),
            }
            # Scores are products as they are: by norms of 1, a head would look at one token.
            soft = between(0.2, 0.3)
            yield from listed(layer, parts, {"attn_q_norm": soft, "attn_k_norm": soft})

    return Shapes("gemma4", experts, add_sizes, tensors)


def quarter_turns(rng: np.random.Generator, tensor: Tensor) -> np.ndarray:
    """The divisors of a rotation that turns the first quarter of a head's pairs."""
    del rng
    factors = np.full(tensor.shape, 1e30, np.float32)
    factors[: tensor.shape[0] // 4] = 1
    return factors


def ends(hidden: int, vocabulary: int, first: Kind, last: Kind) -> Iterator[Tensor]:
    """The embedding, the head and the last norm."""
    yield Tensor("token_embd.weight", (vocabulary, hidden), first, partial(noise, spread=1.0))
    yield Tensor("output.weight", (vocabulary, hidden), last, noise)
    yield Tensor("output_norm.weight", (hidden,), Kind.F32, ones)


SHAPES: Mapping[str, Shapes] = {
    "qwen3.6-35b-a3b": qwen36(),
    "gpt-oss-20b": gpt_oss(),
    "gemma-4-26b-a4b": gemma4(),
}
