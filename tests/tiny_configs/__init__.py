"""The configs of the tiny models: a file for each group of families.

A file has MODELS: name -> (config.json's model_type, what differs from COMMON); and, if some of its
families have a state that goes through every token, RECURRENT: their model types. Its names must
be in no other file.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from tiny_configs.common import COMMON, VOCAB_SIZE

__all__ = ["COMMON", "MODELS", "RECURRENT", "VOCAB_SIZE"]


def _collected() -> tuple[dict[str, tuple[str, dict[str, Any]]], set[str]]:
    models: dict[str, tuple[str, dict[str, Any]]] = {}
    recurrent: set[str] = set()
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        found = getattr(module, "MODELS", {})
        twice = sorted(models.keys() & found.keys())
        if twice:
            raise RuntimeError(f"{info.name}.py repeats the tiny models {twice}")
        models |= found
        recurrent |= getattr(module, "RECURRENT", set())
    return models, recurrent


MODELS, RECURRENT = _collected()
"""RECURRENT: model types whose logits are held to 5e-4 and not to 1e-4."""
