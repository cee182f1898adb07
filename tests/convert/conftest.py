"""Tiny models' folders as the hub has them, and their files; each is made once a module."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_folders import AS_IN_LLAMA_CPP, CARD, write_tokenizer
from tiny_models import oracle, saved

from dure.convert.gguf import convert


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a folder as the hub has it: weights, config, tokenizer, template and README; once."""
    found: dict[tuple[str, str], Path] = {}

    def make(name: str, **changes: Any) -> Path:
        path = found.get((name, repr(changes)))
        if path is None:
            path = found[name, repr(changes)] = tmp_path_factory.mktemp("model")
            saved(name, oracle(name, **AS_IN_LLAMA_CPP.get(name, {}) | changes), path)
            write_tokenizer(path)
            (path / "README.md").write_text(CARD)
        return path

    return make


@pytest.fixture
def folder(tmp_path: Path, made: Callable[..., Path]) -> Callable[..., Path]:
    """Makes a copy of such a folder."""
    return lambda name, **changes: shutil.copytree(made(name, **changes), tmp_path / "model")


@pytest.fixture(scope="module")
def converted(
    made: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Makes such a folder's file; once."""
    found: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in found:
            found[name] = tmp_path_factory.mktemp("converted") / "out.gguf"
            convert(made(name), found[name])
        return found[name]

    return make
