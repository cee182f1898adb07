"""Tiny models' folders as the hub has them, for the tests of conversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_configs.families_2025 import YARN
from tiny_configs.gemma import ropes
from tiny_models import VOCAB_SIZE, random_sequences
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

# llama.cpp wants an end of text, and no more of a vocabulary than the model's.
END = "<|im_end|>"
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
CARD = "---\nlicense: mit\nbase_model:\n- Maker/Base\n---\nA model.\n"
WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "moe_intermediate_size": 256}
SLIDING = {"sliding_attention": YARN, "full_attention": YARN}
OTHER_BASE, SAME_BASE = (
    {"sliding_attention": {"rope_type": "default", "rope_theta": theta}, "full_attention": YARN}
    for theta in (3000.0, 10000.0)
)
TOKENS = random_sequences(40, seed=1)[0]

# What llama.cpp does not compute of these, as it computes it.
AS_IN_LLAMA_CPP: dict[str, dict[str, Any]] = {
    "dots1": {"num_key_value_heads": 4},
    "ernie4_5_moe": {"moe_layer_interval": 1, "num_hidden_layers": 3},
    "ernie4_5_moe-unshared": {"moe_layer_end_index": -1},
    "olmo3": {"rope_parameters": SAME_BASE},
    "olmo3-full": {"attention_bias": False},
    "olmoe": {"num_key_value_heads": 4},
    "qwen3_next-mixed": {"linear_value_head_dim": 20},
    "qwen3_5-odd": {"linear_value_head_dim": 20},
    "qwen3_5-thirds": {"linear_value_head_dim": 12},
}
SIX = {"num_hidden_layers": 7, "layer_types": None}  # Gemma 3's order of windows
SIX["rope_parameters"] = ropes({"rope_type": "linear", "factor": 8.0})
AS_IN_LLAMA_CPP |= {"gemma3": SIX, "gemma3_text": {**SIX, "rope_parameters": ropes()}}


def write_tokenizer(path: Path, cutter: pre_tokenizers.PreTokenizer | None = None) -> None:
    """255 letters of the byte alphabet, one merge, and an end of text: 257 less U+0000's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCAB_SIZE - 2]
    vocabulary = {text: index for index, text in enumerate([*alphabet, "he", END])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("h", "e")]))
    tokenizer.pre_tokenizer = cutter or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"eos_token": END, "add_bos_token": False, "chat_template": TEMPLATE}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
