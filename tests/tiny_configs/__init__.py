"""The configs of the tiny models: a file for each group of families.

A file has MODELS: name -> (config.json's model_type, what differs from COMMON), which all tests of
families run; or UNUSUAL, the same of valid but unusual configs, which tests/family_grid.py runs;
and, if some of its families have a state that goes through every token, RECURRENT: their model
types. Its names must be in no other file.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from tiny_configs.common import COMMON, VOCAB_SIZE

__all__ = ["COMMON", "MODELS", "RECURRENT", "UNUSUAL", "VOCAB_SIZE"]

Configs = dict[str, tuple[str, dict[str, Any]]]


def _collected() -> tuple[Configs, Configs, set[str]]:
    models: Configs = {}
    unusual: Configs = {}
    recurrent: set[str] = set()
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for found, all_found in (("MODELS", models), ("UNUSUAL", unusual)):
            configs = getattr(module, found, {})
            twice = sorted((models.keys() | unusual.keys()) & configs.keys())
            if twice:
                raise RuntimeError(f"{info.name}.py repeats the tiny models {twice}")
            all_found.update(configs)
        recurrent |= getattr(module, "RECURRENT", set())
    return models, unusual, recurrent


MODELS, UNUSUAL, RECURRENT = _collected()
"""RECURRENT: model types whose logits are held to 5e-4 and not to 1e-4."""
