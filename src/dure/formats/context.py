"""How many tokens a config's scaling of its rotation stretches the context to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MOST_TOKENS = 1 << 24


def stretched_context(config: Mapping[str, Any], longest: int) -> int:
    """Return factor x original context of YaRN, or of linear scaling that names the original; else 0.

    config: config.json, with `rope_parameters` or `rope_scaling`. longest: max_position_embeddings,
    which is YaRN's original where the table has none. What is no table or number counts as absent.
    """
    table = next(
        (t for key in ("rope_parameters", "rope_scaling") if (t := config.get(key)) is not None),
        None,
    )
    if not isinstance(table, Mapping):
        return 0
    kind = table.get("rope_type", table.get("type"))
    original = table.get("original_max_position_embeddings")
    if kind == "yarn" and original is None:
        original = config.get("original_max_position_embeddings", longest)
    factor = table.get("factor")
    if kind not in ("yarn", "linear") or not _is_number(original) or not _is_number(factor):
        return 0
    return int(min(original * factor, MOST_TOKENS))


def _is_number(value: object) -> bool:
    """Whether it is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and value > 0 if isinstance(value, float) else 0 < value < 1 << 60
