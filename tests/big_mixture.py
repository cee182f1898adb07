"""A mixture of experts of noise, large enough for budgets of memory to matter; written in a second.

Its vocabulary is that of `fake_model.ByteTokenizer`: a token a byte.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from fake_model import VOCAB_SIZE
from gguf import GGMLQuantizationType as Kind

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 64
SCALES = {Kind.Q4_K: (0, 2, 7.5, 0.0004), Kind.Q6_K: (208, None, 0.0, 0.00008)}
"""Where a block has its float16 scale and minimum, the code that both make zero, and a scale that
gives weights of a deviation of about 0.1."""


@dataclass(frozen=True)
class Mixture:
    """The sizes of a mixture. The default has experts of 480 KB in the file, 370 MB of them."""

    layers: int = 12
    experts: int = 64
    chosen: int = 4
    hidden: int = 512
    intermediate: int = 512
    tied: bool = False  # whether the head is the embedding, which then stays in memory

    def tensors(self) -> dict[str, tuple[tuple[int, ...], Kind]]:
        """Shape and type of every tensor, by its name in the file."""
        hidden, width = self.hidden, self.intermediate
        shapes: dict[str, tuple[tuple[int, ...], Kind]] = {
            "token_embd": ((VOCAB_SIZE, hidden), Kind.Q4_K),
            "output_norm": ((hidden,), Kind.F32),
        }
        if not self.tied:
            shapes["output"] = (VOCAB_SIZE, hidden), Kind.Q6_K
        for layer in range(self.layers):
            more = Kind.Q6_K if layer % 2 else Kind.Q4_K
            shapes |= {
                f"blk.{layer}.{name}": each
                for name, each in {
                    "attn_norm": ((hidden,), Kind.F32),
                    "attn_q": ((HEADS * HEAD_DIM, hidden), Kind.Q4_K),
                    "attn_k": ((KV_HEADS * HEAD_DIM, hidden), Kind.Q4_K),
                    "attn_v": ((KV_HEADS * HEAD_DIM, hidden), more),
                    "attn_q_norm": ((HEAD_DIM,), Kind.F32),
                    "attn_k_norm": ((HEAD_DIM,), Kind.F32),
                    "attn_output": ((hidden, HEADS * HEAD_DIM), Kind.Q4_K),
                    "ffn_norm": ((hidden,), Kind.F32),
                    "ffn_gate_inp": ((self.experts, hidden), Kind.F32),
                    "ffn_gate_exps": ((self.experts, width, hidden), Kind.Q4_K),
                    "ffn_up_exps": ((self.experts, width, hidden), Kind.Q4_K),
                    "ffn_down_exps": ((self.experts, hidden, width), more),
                }.items()
            }
        return shapes

    def write(self, path: Path, *, seed: int = 0) -> Path:
        """The GGUF, now at `path`."""
        rng = np.random.default_rng(seed)
        writer = gguf.GGUFWriter(path, "qwen3moe")
        writer.add_block_count(self.layers)
        writer.add_context_length(4096)
        writer.add_embedding_length(self.hidden)
        writer.add_feed_forward_length(self.intermediate)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_key_length(HEAD_DIM)
        writer.add_value_length(HEAD_DIM)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_freq_base(1e6)
        writer.add_vocab_size(VOCAB_SIZE)
        writer.add_expert_count(self.experts)
        writer.add_expert_used_count(self.chosen)
        writer.add_expert_feed_forward_length(self.intermediate)
        for name, (shape, kind) in self.tensors().items():
            writer.add_tensor(f"{name}.weight", _drawn(rng, shape, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def _drawn(rng: np.random.Generator, shape: tuple[int, ...], kind: Kind) -> np.ndarray:
    """Norms of ones, a router that chooses evenly, or random blocks."""
    if kind == Kind.F32 and len(shape) == 1:
        return np.ones(shape, np.float32)
    if kind == Kind.F32:
        return rng.standard_normal(shape, np.float32) * np.float32(4 / shape[-1] ** 0.5)
    size, size_bytes = gguf.GGML_QUANT_SIZES[kind]
    count = math.prod(shape) // size
    words = rng.integers(0, 2**64, -(-count * size_bytes // 8), np.uint64)
    blocks = words.view(np.uint8)[: count * size_bytes].reshape(count, size_bytes)
    scale_at, minimum_at, middle, scale = SCALES[kind]
    blocks[:, scale_at : scale_at + 2] = np.float16([scale]).view(np.uint8)
    if minimum_at is not None:
        blocks[:, minimum_at : minimum_at + 2] = np.float16([scale * middle]).view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)
