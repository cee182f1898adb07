"""How a config scales its rotation, and how many tokens that stretches the context to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MOST_TOKENS = 1 << 24
TABLES = ("rope_parameters", "rope_scaling")
"""Where a config.json has its rotation; the first that is there counts."""


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


def context_beside(config: Mapping[str, Any], kind: object) -> Any:
    """Return the first training's context that stands beside the config's table; None if none does.

    kind: of the rotation. It goes before what the table says, as in transformers (5.24,
    `standardize_rope_params`), since Phi-3's configs have it there; not before tables of kinds of
    layers, and of linear scaling nobody asks.
    """
    table = _table(config)
    of_kinds = isinstance(table, Mapping) and any(isinstance(t, Mapping) for t in table.values())
    if of_kinds or kind not in ("llama3", "yarn", "longrope"):
        return None
    return config.get("original_max_position_embeddings")


def stretched_context(config: Mapping[str, Any], longest: int) -> int:
    """Return factor x original context of YaRN, or of linear scaling that names it; else 0.

    config: config.json, with `rope_parameters` or `rope_scaling`. longest: max_position_embeddings,
    which is YaRN's original where the table has none. What is no table or number counts as absent.
    """
    config = one_rotation(config)
    table = _table(config)
    if not isinstance(table, Mapping):
        return 0
    kind = table.get("rope_type", table.get("type"))
    original = table.get("original_max_position_embeddings")
    beside = context_beside(config, kind)
    original = original if beside is None else beside
    if kind == "yarn" and original is None:
        original = longest
    factor = table.get("factor")
    if kind not in ("yarn", "linear"):
        return 0
    return int(min(_number(original) * _number(factor), MOST_TOKENS))


def _table(config: Mapping[str, Any]) -> Any:
    return next((table for key in TABLES if (table := config.get(key)) is not None), None)


def _number(value: object) -> float:
    """Return a finite number above 0, capped at MOST_TOKENS; 0 for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        return 0.0
    return float(min(value, MOST_TOKENS)) if value != math.inf else 0.0
