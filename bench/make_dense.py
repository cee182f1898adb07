"""Writes a dense model of noise in the shapes of MiMo-7B and the types of Q4_K_M.

    python bench/make_dense.py OUT.gguf --vocabulary QWEN2.5.gguf [--layers 36]

Its answers are noise, too, but what it computes, reads and keeps is what the real one does: as
llama.cpp has MiMo-7B, a qwen2 without the layer that guesses tokens. 36 layers are 4.7 GB. Needs
the gguf package; the vocabulary is copied from another GGUF file, as many tokens as MiMo has.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import gguf
from gguf import GGMLQuantizationType as Kind
from make_moe import copy_vocabulary, write
from noise import Tensor, noise, ones

from dure.planning.shapes import gguf_types

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM = 4096, 11008, 32, 8, 128
VOCABULARY = 151680
PARTS = {  # each with its name in safetensors, which the rule for types goes by
    "attn_q": ("self_attn.q_proj", (HEADS * HEAD_DIM, HIDDEN)),
    "attn_k": ("self_attn.k_proj", (KV_HEADS * HEAD_DIM, HIDDEN)),
    "attn_v": ("self_attn.v_proj", (KV_HEADS * HEAD_DIM, HIDDEN)),
    "attn_output": ("self_attn.o_proj", (HIDDEN, HEADS * HEAD_DIM)),
    "ffn_gate": ("mlp.gate_proj", (INTERMEDIATE, HIDDEN)),
    "ffn_up": ("mlp.up_proj", (INTERMEDIATE, HIDDEN)),
    "ffn_down": ("mlp.down_proj", (HIDDEN, INTERMEDIATE)),
}
BIASED = ("attn_q", "attn_k", "attn_v")


def tensors(layers: int) -> Iterator[Tensor]:
    """All tensors of the file, in its order."""
    type_of = gguf_types("Q4_K_M", layers=layers, tied=False)
    table = VOCABULARY, HIDDEN
    for name, long in (("token_embd", "model.embed_tokens"), ("output", "lm_head")):
        yield Tensor(f"{name}.weight", table, Kind[type_of(f"{long}.weight", table)], noise)
    yield Tensor("output_norm.weight", (HIDDEN,), Kind.F32, ones)
    for layer in range(layers):
        for norm in ("attn_norm", "ffn_norm"):
            yield Tensor(f"blk.{layer}.{norm}.weight", (HIDDEN,), Kind.F32, ones)
        for name, (long, shape) in PARTS.items():
            kind = Kind[type_of(f"model.layers.{layer}.{long}.weight", shape)]
            yield Tensor(f"blk.{layer}.{name}.weight", shape, kind, noise)
            if name in BIASED:
                yield Tensor(f"blk.{layer}.{name}.bias", shape[:1], Kind.F32, noise)


def main() -> None:
    """Write the file that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vocabulary", type=Path, required=True, help="a GGUF file to copy from")
    parser.add_argument("--layers", type=int, default=36)
    options = parser.parse_args()
    writer = gguf.GGUFWriter(options.out, "qwen2")
    writer.add_name(f"noise in the shapes of MiMo-7B, {options.layers} layers")
    writer.add_block_count(options.layers)
    writer.add_context_length(32768)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(640000)
    copy_vocabulary(writer, gguf.GGUFReader(options.vocabulary), VOCABULARY)
    write(writer, lambda: tensors(options.layers))


if __name__ == "__main__":
    main()
