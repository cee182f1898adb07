"""Writes a model whose own drafting head is right in a known share of cases, to measure by it.

    python bench/make_mtp.py FOLDER [--share 0.8] [--layers 16] [--hidden 1024]

The shapes are MiMo's: a dense model with an MTP layer, in BF16. It continues one fixed cycle
through its vocabulary, whatever the prompt. The hidden state is the last token's embedding and a
little noise of each block, which computes all that a real one does; row n of the output head is the
embedding of the token that n follows. The MTP layer passes the embedding of its token on: as it is
for the share of tokens that it is right for; the others are in pairs, and it takes each for its
twin, and is as sure of that. To do so with one matrix, right ones have embeddings in the first half
of the dimensions, the others in the second, where twins have the two quarters exchanged.

`cycle.json` beside the weights has "next", the token after each (-1: it is in no cycle), and
"right", whether the head is right about what follows it. So what an answer should accept can be
counted (`Cycle.share_of`), and what that should bring is said by `rows.py FOLDER --heads --share
0.8`. `speculation.py FOLDER --only cycle --on heads` measures it. 16 layers of 1024 are 0.5 GB.
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

HEAD_DIM = 64
NOISE = 0.02  # of a hidden state's length, that each block adds
LOGIT = 40.0  # of the right token, about; that of any other is below a quarter of it
SPECIAL = "<|endoftext|>"

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Shapes:
    """The sizes of the model."""

    vocabulary: int = 8192
    hidden: int = 1024
    intermediate: int = 4096
    layers: int = 16

    @property
    def heads(self) -> int:
        """Query heads; a quarter as many have keys and values."""
        return self.hidden // HEAD_DIM

    @property
    def config(self) -> dict[str, Any]:
        """config.json."""
        return {
            "architectures": ["MiMoForCausalLM"],
            "model_type": "mimo",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": max(1, self.heads // 4),
            "head_dim": HEAD_DIM,
            "num_nextn_predict_layers": 1,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5,
            "rope_theta": 640000.0,
            "tie_word_embeddings": False,
            "hidden_act": "silu",
            "torch_dtype": "bfloat16",
            "eos_token_id": 0,
        }


@dataclass(frozen=True)
class Cycle:
    """What the model says: the token after each, and where its head is right about it."""

    following: Array  # (vocabulary,) int; the special token 0 is in no cycle: -1
    right: Array  # (vocabulary,) bool

    @classmethod
    def drawn(cls, vocabulary: int, share: float, rng: np.random.Generator) -> Cycle:
        """One cycle through all tokens but 0, with `share` of them right."""
        order = 1 + rng.permutation(vocabulary - 1)
        following = np.full(vocabulary, -1, np.int64)
        following[order] = np.roll(order, -1)
        right = np.ones(vocabulary, bool)
        right[rng.permutation(order)[: 2 * round((1 - share) * len(order) / 2)]] = False
        return cls(following, right)

    def after(self, token: int, count: int) -> list[int]:
        """Return the `count` tokens that follow."""
        tokens = []
        for _ in range(count):
            token = int(self.following[token])
            tokens.append(token)
        return tokens

    def share_of(self, tokens: Sequence[int]) -> float:
        """Return in what share of an answer's tokens but the last the head knows the next one."""
        return float(self.right[list(tokens[:-1])].mean())


def embeddings(shapes: Shapes, cycle: Cycle, rng: np.random.Generator) -> Array:
    """Draw rows of length sqrt(hidden), as norms make them."""
    half, quarter = shapes.hidden // 2, shapes.hidden // 4
    rows = np.zeros((shapes.vocabulary, shapes.hidden), np.float32)
    rows[:, :half] = rng.standard_normal((shapes.vocabulary, half), np.float32)
    wrong = np.flatnonzero(~cycle.right)
    rows[wrong] = np.roll(rows[wrong], half, axis=1)
    one, twin = wrong[::2], wrong[1::2]
    rows[twin, half:] = np.roll(rows[one, half:], quarter, axis=1)
    rows *= np.float32(np.sqrt(shapes.hidden)) / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def output_head(shapes: Shapes, cycle: Cycle, embedded: Array) -> Array:
    """The head: row n is the embedding of the token that n follows. Token 0 is never said."""
    rows = np.zeros_like(embedded)
    inside = np.flatnonzero(cycle.following >= 0)
    rows[cycle.following[inside]] = embedded[inside]
    return rows * np.float32(LOGIT / shapes.hidden)


def block(shapes: Shapes, name: str, rng: np.random.Generator) -> Iterator[tuple[str, Array]]:
    """One decoder layer, which adds NOISE of the hidden state's length twice or less."""
    hidden, middle = shapes.hidden, shapes.intermediate
    width, narrow = shapes.heads * HEAD_DIM, max(1, shapes.heads // 4) * HEAD_DIM

    def drawn(rows: int, cols: int, gain: float) -> Array:
        spread = np.float32(gain / np.sqrt(cols))
        return rng.standard_normal((rows, cols), np.float32) * spread

    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield f"{name}.{norm}.weight", np.ones(hidden, np.float32)
    for part, rows in (("q", width), ("k", narrow), ("v", narrow)):
        yield f"{name}.self_attn.{part}_proj.weight", drawn(rows, hidden, 1.0)
        yield f"{name}.self_attn.{part}_proj.bias", np.zeros(rows, np.float32)
    yield f"{name}.self_attn.o_proj.weight", drawn(hidden, width, NOISE)
    yield f"{name}.mlp.gate_proj.weight", drawn(middle, hidden, 1.0)
    yield f"{name}.mlp.up_proj.weight", drawn(middle, hidden, 1.0)
    yield f"{name}.mlp.down_proj.weight", drawn(hidden, middle, NOISE)


def tensors(shapes: Shapes, cycle: Cycle, rng: np.random.Generator) -> Iterator[tuple[str, Array]]:
    """All parameters, by name."""
    hidden = shapes.hidden
    embedded = embeddings(shapes, cycle, rng)
    yield "model.embed_tokens.weight", embedded
    yield "lm_head.weight", output_head(shapes, cycle, embedded)
    yield "model.norm.weight", np.ones(hidden, np.float32)
    for layer in range(shapes.layers):
        yield from block(shapes, f"model.layers.{layer}", rng)
    name = "model.mtp_layers.0"
    for norm in ("token_layernorm", "hidden_layernorm", "final_layernorm"):
        yield f"{name}.{norm}.weight", np.ones(hidden, np.float32)
    passed_on = np.eye(hidden, dtype=np.float32)
    passed_on[hidden // 2 :] = np.roll(passed_on[hidden // 2 :], hidden // 4, axis=0)
    ignored = rng.standard_normal((hidden, hidden), np.float32) * NOISE / np.sqrt(hidden)
    yield f"{name}.input_proj.weight", np.hstack([ignored, passed_on]).astype(np.float32)
    yield from block(shapes, name, rng)


def bfloat16(values: Array) -> Array:
    """Round float32 to the nearest BF16, as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """Write a tokenizer.json: the special token, all bytes, and words that no text is cut into."""
    texts = [SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    texts += [f"Ġw{number}" for number in range(len(texts), vocabulary)]
    tokenizer = Tokenizer(models.BPE({text: i for i, text in enumerate(texts)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": SPECIAL}))


def write(folder: Path, shapes: Shapes, share: float, seed: int = 0) -> Cycle:
    """Write the folder, and return what the model says."""
    if shapes.vocabulary <= 257 or shapes.hidden % (4 * HEAD_DIM):
        raise SystemExit("The vocabulary needs more than 257 tokens, and hidden is in 256s.")
    rng = np.random.default_rng(seed)
    cycle = Cycle.drawn(shapes.vocabulary, share, rng)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shapes.config, indent=1))
    said = {"next": cycle.following.tolist(), "right": cycle.right.tolist()}
    (folder / "cycle.json").write_text(json.dumps(said))
    write_tokenizer(folder, shapes.vocabulary)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    contents, at = [], 0
    for name, values in tensors(shapes, cycle, rng):
        stored = bfloat16(values)
        end = at + stored.nbytes
        offsets = [at, end]
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": offsets}
        contents.append(stored)
        at = end
    head = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for stored in contents:
            file.write(stored.tobytes())
    return cycle


def main() -> None:
    """Write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--share", type=float, default=0.8, help="of tokens the head is right for")
    parser.add_argument("--seed", type=int, default=0)
    for name in ("vocabulary", "hidden", "intermediate", "layers"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Shapes(), name))
    options = parser.parse_args()
    shapes = Shapes(options.vocabulary, options.hidden, options.intermediate, options.layers)
    write(options.folder, shapes, options.share, options.seed)


if __name__ == "__main__":
    main()
