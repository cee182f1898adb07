"""The same folder through sentence-transformers itself, where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_embedders as tiny

from dure import LLM

TEXTS = ["Hello", "A long text, " * 12, "두레", "a"]
SETTINGS: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("Pooling", "Normalize"), {}),
    *(
        (("Pooling",), {"pooling": {f"pooling_mode_{name}": True}})
        for name in (
            *("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens"),
            *("weightedmean_tokens", "lasttoken"),
        )
    ),
    (
        ("Pooling", "Dense", "Normalize"),
        {"pooling": {"pooling_mode_mean_tokens": True, "include_prompt": False}},
    ),
]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("kinds", "options"), SETTINGS, ids=str)
def test_embeddings_are_sentence_transformers_own(
    kinds: tuple[str, ...], options: dict[str, Any], tmp_path: Path
) -> None:
    sentences = pytest.importorskip("sentence_transformers")
    folder = tmp_path / "embedder"
    tiny.oracle().model.save_pretrained(folder)
    tiny.write_texts(folder)
    tiny.write_modules(folder, *kinds, **options)
    if "Dense" in kinds:
        tiny.write_dense(folder / "2_Dense", 24)
    theirs = sentences.SentenceTransformer(str(folder), device="cpu")
    ours = LLM(folder, threads=1, context=256, exact=True)
    for name in ("query", "document"):
        wanted = theirs.encode(TEXTS, prompt_name=name, batch_size=1)
        made = np.stack([each.vector for each in ours.embed(TEXTS, prompt_name=name)])
        assert np.abs(made - wanted).max() < 1e-4
