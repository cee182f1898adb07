"""GLM-4.7-Flash (Zhipu AI 2026): DeepSeek-V3's layers, with heads whose values are wider than the
unrotated part of their keys.

GGUF files call it deepseek2, as they do DeepSeek's own; deepseek_v2 reads them.
"""

from __future__ import annotations

from dataclasses import replace

from dure.models import deepseek_v2
from dure.models.deepseek_config import V3

GGUF_ARCHITECTURE = None


class Model(deepseek_v2.Model):
    """The whole model: token ids to logits."""

    DEFAULTS = replace(
        V3,
        experts=64,
        chosen=4,
        dense_layers=1,
        groups=(1, 1),
        scale=1.8,
        query_latent=768,
        plain=192,
        value=256,
        context_length=202_752,
        norm_eps=1e-5,
    )
