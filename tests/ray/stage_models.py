"""One tiny model of each kind that is cut in stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_embedders import VOCAB_SIZE, write_texts
from tiny_models import oracle, saved

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3-tied-bias": {"num_hidden_layers": 5},
    "qwen3_moe": {"num_hidden_layers": 5},
    "deepseek_v3": {"num_hidden_layers": 5},
    "qwen3_next": {},
}
"""A dense one, a mixture, one of latent attention and a recurrent one."""


def written(name: str, folder: Path) -> Path:
    """Write the model of a family, drawn, and its tokenizer."""
    made = saved(name, oracle(name, vocab_size=VOCAB_SIZE, **FAMILIES[name]), folder)
    write_texts(made, ends=False)
    return made
