"""DeepSeek-V3, V3.1, R1 and Prover-V2-671B (DeepSeek-AI 2024, arXiv 2412.19437), and Kimi-K2 and
Moonlight, which are the same model in other sizes: V2's layers with another router, sigmoid scores
and a learned bias that counts only for the choice of experts.

In GGUF files V2 and V3 are one
architecture, which deepseek_v2 reads.
"""

from __future__ import annotations

from dure.models import deepseek_v2
from dure.models.deepseek_config import V3

GGUF_ARCHITECTURE = None
MODEL_TYPES = ("kimi_k2",)


class Model(deepseek_v2.Model):
    """The whole model: token ids to logits."""

    DEFAULTS = V3
