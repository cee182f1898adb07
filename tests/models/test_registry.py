"""A model file's name is the registry: what every file in dure/models has to be."""

from __future__ import annotations

import pkgutil
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import ARCHITECTURES
from tiny_models import MODELS

import dure.models
from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.checkpoint import Checkpoint
from dure.models import families, family_of

NO_FAMILY = {
    *("config", "deepseek_config", "gemma4_config", "gguf_defaults", "gguf_keys", "gguf_layers"),
    *("family_keys", "gguf_rope", "mimo_v2_config", "not_run", "windows"),
}
FILES = sorted({m.name for m in pkgutil.iter_modules(dure.models.__path__)} - NO_FAMILY)


def checkpoint(model_type: Any, *, kind: Any = "safetensors") -> Checkpoint:
    """A checkpoint that says nothing but what it is."""
    key = {"safetensors": ("config", "model_type"), "gguf": ("metadata", "general.architecture")}
    field, name = key[kind]
    return Checkpoint(Path("some-model"), kind, {}, **{field: {name: model_type}})


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_a_family(name: str) -> None:
    module = families()[name]
    assert module.__name__ == f"dure.models.{name}"
    assert isinstance(module.Model, type)
    assert callable(module.Model.forward)
    assert isinstance(module.Model.kv_cache_specs, property)
    assert module.__doc__
    for written in (name, *getattr(module, "MODEL_TYPES", ())):
        assert family_of(checkpoint(written)) is module
    if module.GGUF_ARCHITECTURE is not None:
        assert families()[module.GGUF_ARCHITECTURE] is module
        assert family_of(checkpoint(module.GGUF_ARCHITECTURE, kind="gguf")) is module


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_short_enough_to_read_at_once(name: str) -> None:
    path = Path(dure.models.__path__[0]) / f"{name}.py"
    assert len(path.read_text().splitlines()) <= 250


def test_every_family_is_compared_with_transformers_and_with_gguf() -> None:
    """A family without a tiny model would pass all parity tests by not being in them."""
    types = {model_type for model_type, _ in MODELS.values()}
    assert set(FILES) == {families()[name].__name__.split(".")[-1] for name in types}
    with_gguf = {name for name in FILES if families()[name].GGUF_ARCHITECTURE is not None}
    written = {families()[name].__name__.split(".")[-1] for name in ARCHITECTURES}
    # llama, deepseek_v2 and glm4_moe read those of other families that are of their architectures.
    others = {"deepseek_v3", "glm4_moe_lite", "mistral", "mixtral", "solar_open"}
    assert with_gguf == written - others


@pytest.mark.parametrize(
    ("written", "near"),
    [
        ("qwen3_mo", "qwen3_moe"),
        ("Qwen2", "qwen2"),
        ("qwen3_nxt", "qwen3_next"),
        ("llama5", "llama"),
        ("qwen2_5_vl", "qwen3_vl"),
        ("deepseek_v5", "deepseek_v3"),
    ],
)
@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_an_unknown_architecture_is_refused_with_the_nearest(
    written: str, near: str, kind: str
) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        family_of(checkpoint(written, kind=kind))
    assert repr(written) in caught.value.message
    assert near in caught.value.hint
    assert "nearest" in caught.value.hint


@pytest.mark.parametrize("written", ["zork", "zzz" * 10**6, "\x00\n"])
def test_an_architecture_that_resembles_none_is_refused_with_all(written: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        family_of(checkpoint(written))
    assert all(name in caught.value.hint for name in FILES)
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("written", [None, "", 7, ["llama"], {}])
@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_a_checkpoint_that_does_not_say_what_it_is_is_refused(written: Any, kind: str) -> None:
    with pytest.raises(ModelFileError, match=r"model_type|general\.architecture"):
        family_of(checkpoint(written, kind=kind))


def test_a_model_that_brings_its_own_code_is_told_that_it_is_never_run() -> None:
    own = {"model_type": "shiny", "auto_map": {"AutoModel": "modeling_shiny.Shiny"}}
    with pytest.raises(UnsupportedModelError, match="auto_map"):
        family_of(Checkpoint(Path("some-model"), "safetensors", {}, config=own))
