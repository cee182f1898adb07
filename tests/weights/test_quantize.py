"""Which part of a model gets which type, and what cannot be quantised."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dure.errors import InvalidRequestError, ModelFileError
from dure.weights.quantize import DtypePolicy, check_scheme, quantize_rows, type_for


def test_q4_of_a_sparse_model_makes_only_the_experts_small() -> None:
    parts = ("experts", "attention", "dense", "embedding", "head", "router", "vector")
    types = [type_for("q4", part, 2048, sparse=True) for part in parts]
    assert types == ["Q4_K", "Q6_K", "Q6_K", "Q6_K", "Q6_K", "F32", "F32"]


def test_q4_of_a_dense_model_makes_its_layers_small() -> None:
    parts = ("attention", "dense", "embedding", "head")
    types = [type_for("q4", part, 2048, sparse=False) for part in parts]
    assert types == ["Q4_K", "Q4_K", "Q6_K", "Q6_K"]


@pytest.mark.parametrize(
    "cols, q4, q6, q8",
    [(256, "Q4_K", "Q6_K", "Q8_0"), (96, "Q5_0", "Q8_0", "Q8_0"), (40, "F16", "F16", "F16")],
)
def test_rows_that_blocks_do_not_divide_get_smaller_blocks(
    cols: int, q4: str, q6: str, q8: str
) -> None:
    types = [type_for(s, "experts", cols, sparse=True) for s in ("q4", "q6", "q8")]
    assert types == [q4, q6, q8]


def types(
    *names: str, dtype: str = "BF16", cols: int = 128, also: str = "", **options: Any
) -> list[str]:
    """The types in memory of matrices of a checkpoint, which may hold one more."""
    tensors: Any = {n: SimpleNamespace(dtype=dtype, shape=(64, cols)) for n in (*names, also)}
    policy = DtypePolicy(tensors, options.get("quantize"), exact=options.get("exact", False))
    return [policy.of(name, tensors[name]) for name in names]


def test_floats_that_are_multiplied_become_integers() -> None:
    layer = "model.layers.0.self_attn.q_proj.weight"
    for dtype, made in [
        ("BF16", "B16G64"),
        ("F16", "H16G64"),
        ("F8G128", "E8G128"),
        ("F8G32", "E8G32"),
        ("F32", "F32"),
        ("Q8_0", "Q8_0"),
    ]:
        assert types(layer, dtype=dtype) == [made]
        assert types(layer, dtype=dtype, exact=True) == [dtype]
    assert types(layer, cols=96) == ["BF16"]  # no whole groups
    assert types(layer, quantize="q8") == ["Q8_0"]
    assert types("model.layers.0.mlp.experts.down_proj.weight") == ["B16G64"]
    assert types("model.layers.0.mlp.gate.weight") == ["BF16"]  # a router


def test_a_table_that_is_only_looked_up_keeps_its_floats() -> None:
    table, others = "model.embed_tokens.weight", "model.embed_tokens_per_layer.weight"
    assert types(table, others) == ["B16G64", "BF16"]  # the table is the head, too
    assert types(table, "lm_head.weight") == ["BF16", "B16G64"]


def test_an_unknown_scheme_is_refused_with_those_there_are() -> None:
    assert check_scheme("q6") == "q6"
    with pytest.raises(InvalidRequestError, match="q5") as refused:
        check_scheme("q5")
    assert "q8, q6, q4" in (refused.value.hint or "")


def test_weights_that_are_no_numbers_are_the_files_fault() -> None:
    with pytest.raises(ModelFileError, match="finite"):
        quantize_rows(np.full((1, 32), np.nan, np.float32), "Q8_0")
