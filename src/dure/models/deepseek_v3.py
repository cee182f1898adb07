"""DeepSeek-V3, V3.1, R1 and Prover-V2-671B (DeepSeek-AI 2024, arXiv 2412.19437): V2's layers with
another router, whose sigmoids a learned bias corrects for the choice of experts alone.

The layer behind the last, which predicts the token after the next, is recognised and not run. In
GGUF files both are one architecture, which deepseek_v2 reads.
"""

from __future__ import annotations

from dure.models import deepseek_v2

GGUF_ARCHITECTURE = None


class Model(deepseek_v2.Model):
    """Tokens to logits."""

    VERSION = 3
