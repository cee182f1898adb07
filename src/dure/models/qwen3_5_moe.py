"""Qwen3.5 and 3.6 mixtures of experts (Qwen team 2026): qwen3_5 with a routed MLP in every layer,
beside a shared expert behind a gate of its own.
"""

from __future__ import annotations

from dure.models import qwen3_5

GGUF_ARCHITECTURE = "qwen35moe"
MODEL_TYPES = ("qwen3_5_moe_text",)
TENSOR_ALIASES = qwen3_5.TENSOR_ALIASES


class Model(qwen3_5.Model):
    """The whole model: token ids to logits."""

    SPARSE = True
