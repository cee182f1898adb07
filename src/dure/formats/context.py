"""How a config scales its rotation, and how many tokens that stretches the context to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MOST_TOKENS = 1 << 24


def one_rotation(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return config.json with one table of its rotation, where it has rope_scaling, too.

    Then that one says how the rotation is scaled, as in transformers: it is what people add to a
    file to stretch its context. What it leaves out of base and rotated part are those of
    rope_parameters, in whose place it stands. Tables of kinds of layers stay as they are.
    """
    added, table = config.get("rope_scaling"), config.get("rope_parameters")
    if not isinstance(added, Mapping) or not isinstance(table, Mapping) or not added:
        return config
    if any(isinstance(each, Mapping) for each in table.values()):
        return config
    kept = {key: table[key] for key in ("rope_theta", "partial_rotary_factor") if key in table}
    kept = {key: each for key, each in kept.items() if config.get(key) is None}
    rest = {key: each for key, each in config.items() if key != "rope_scaling"}
    return {**rest, "rope_parameters": {**kept, **added}}


def stretched_context(config: Mapping[str, Any], longest: int) -> int:
    """Return factor x original context of YaRN, or of linear scaling that names it; else 0.

    config: config.json, with `rope_parameters` or `rope_scaling`. longest: max_position_embeddings,
    which is YaRN's original where the table has none. What is no table or number counts as absent.
    """
    config = one_rotation(config)
    table = next(
        (t for key in ("rope_parameters", "rope_scaling") if (t := config.get(key)) is not None),
        None,
    )
    if not isinstance(table, Mapping):
        return 0
    kind = table.get("rope_type", table.get("type"))
    original = table.get("original_max_position_embeddings")
    if kind == "yarn":  # as transformers: what stands beside the table is obeyed
        beside = config.get("original_max_position_embeddings")
        original = original if beside is None else beside
        original = longest if original is None else original
    factor = table.get("factor")
    if kind not in ("yarn", "linear"):
        return 0
    return int(min(_number(original) * _number(factor), MOST_TOKENS))


def _number(value: object) -> float:
    """Return a finite number above 0, capped at MOST_TOKENS; 0 for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        return 0.0
    return float(min(value, MOST_TOKENS)) if value != math.inf else 0.0
