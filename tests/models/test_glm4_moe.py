"""What GLM-4.5's checkpoints have behind the last layer: one that drafts, known and not run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import read_folder, write_folder, write_gguf
from tiny_models import furthest, loaded, prefill_logits

from dure.errors import ModelFileError, UnsupportedModelError


def with_a_draft_layer(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters of two layers and, as the third, what the makers' files have there."""
    extra = {
        name.replace("layers.1.", "layers.2."): values
        for name, values in parameters.items()
        if ".layers.1." in name
    }
    extra["model.layers.2.eh_proj.weight"] = np.zeros((64, 128), np.float32)
    for norm in ("enorm", "hnorm", "shared_head.norm"):
        extra[f"model.layers.2.{norm}.weight"] = np.ones(64, np.float32)
    return parameters | extra


def test_a_folder_s_draft_layer_is_recognised_and_not_run(
    tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    small = tiny("glm4_moe")
    config, parameters = read_folder(small.folder)
    parameters, tokens = with_a_draft_layer(parameters), small.sequences[0]
    known = {**config, "num_mtp_layers": 1}
    model = loaded(write_folder(tmp_path, known, parameters))
    assert prefill_logits(model, tokens).tobytes() == prefill_logits(small.model, tokens).tobytes()
    with pytest.raises(UnsupportedModelError, match=r"layers\.2"):
        none = {**config, "num_nextn_predict_layers": 0}
        loaded(write_folder(tmp_path, none, parameters))


def test_a_gguf_counts_the_draft_layer_among_the_others(
    tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    small = tiny("glm4_moe")
    config, parameters = read_folder(small.folder)
    known = {**config, "num_nextn_predict_layers": 1}
    write_gguf(tmp_path / "model.gguf", known, with_a_draft_layer(parameters))
    model = loaded(tmp_path / "model.gguf")
    assert len(model.kv_cache_specs) == 2
    tokens = small.sequences[0]
    assert furthest(prefill_logits(small.model, tokens), prefill_logits(model, tokens)) < 1e-5


def test_groups_that_cannot_be_are_named(tiny: Callable[[str], Any], tmp_path: Path) -> None:
    config, parameters = read_folder(tiny("glm4_moe").folder)
    with pytest.raises(ModelFileError, match=r"n_group = 3 and topk_group = 2"):
        loaded(write_folder(tmp_path, {**config, "n_group": 3}, parameters))
