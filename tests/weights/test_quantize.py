"""Which part of a model gets which type, and what cannot be quantised."""

from __future__ import annotations

import numpy as np
import pytest

from dure.errors import InvalidRequestError, ModelFileError
from dure.weights.quantize import check_scheme, quantize_rows, type_for


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


def test_an_unknown_scheme_is_refused_with_those_there_are() -> None:
    assert check_scheme("q6") == "q6"
    with pytest.raises(InvalidRequestError, match="q5") as refused:
        check_scheme("q5")
    assert "q8, q6, q4" in (refused.value.hint or "")


def test_weights_that_are_no_numbers_are_the_files_fault() -> None:
    with pytest.raises(ModelFileError, match="finite"):
        quantize_rows(np.full((1, 32), np.nan, np.float32), "Q8_0")
