"""Of a model that also sees, the language model is read as if it were alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fused_mixtures import across, fused
from tiny_gguf import config_of, parameters_of, write_folder
from tiny_models import loaded, prefill_logits, random_sequences

from dure.errors import DureError, ModelFileError, UnsupportedModelError
from dure.formats.checkpoint import open_checkpoint
from dure.formats.fused_experts import turn_experts
from dure.formats.multimodal import language_config
from dure.formats.quantized_checkpoint import parameters
from dure.hub.facts import read_facts
from dure.models import family_of, memory_needed

Arrays = dict[str, np.ndarray]
(TOKENS,) = random_sequences(40)
# What stands before the names of the language model's body, and of its output.
PREFIXES = {
    "transformers": ("model.language_model.", ""),
    "transformers before 4.52": ("language_model.model.", "language_model."),
    "alone": ("model.", ""),
}
SEEING = ("visual", "model.visual", "vision_tower", "model.vision_tower", "multi_modal_projector")


def wrapper(folder: Path, config: dict[str, Any], own: Arrays, style: str, **top: Any) -> Path:
    """The folder, now with the language model `config` and `own` in a model that also sees."""
    body, output = PREFIXES[style]
    found = {
        body + name.removeprefix("model.") if name.startswith("model.") else output + name: value
        for name, value in own.items()
    }
    nan = np.full((3, 5), np.nan, np.float32)
    found |= {f"{part}.blocks.0.proj.weight": nan for part in SEEING}
    whole = {"model_type": "some_vl", "text_config": config, "vision_config": {}, **top}
    return write_folder(folder, whole, found)


def alone(folder: Path, family: str = "qwen3_moe") -> tuple[Path, dict[str, Any], Arrays]:
    """A language model on its own, its config and its parameters."""
    config = config_of(family)
    own = parameters_of(config)
    return write_folder(folder / "alone", config, own), config, own


@pytest.mark.parametrize("style", PREFIXES)
def test_the_text_part_of_a_wrapper_computes_what_it_does_alone(tmp_path: Path, style: str) -> None:
    folder, config, own = alone(tmp_path)
    seeing = wrapper(tmp_path / "seeing", config, own, style, tie_word_embeddings=False)
    expected = prefill_logits(loaded(folder), TOKENS)
    assert expected.tobytes() == prefill_logits(loaded(seeing), TOKENS).tobytes()
    one, other = open_checkpoint(folder), open_checkpoint(seeing)
    assert family_of(one) is family_of(other)
    assert memory_needed(one) == memory_needed(other)
    assert read_facts(folder).parameters == read_facts(seeing).parameters
    assert read_facts(folder).layers == read_facts(seeing).layers == 2


@pytest.mark.parametrize("inside", [True, False, None])
@pytest.mark.parametrize("on_top", [True, False, None])
def test_an_output_on_disk_counts_more_than_what_the_config_says(
    tmp_path: Path, *, on_top: bool | None, inside: bool | None
) -> None:
    folder, config, own = alone(tmp_path)
    config["tie_word_embeddings"] = inside
    top = {} if on_top is None else {"tie_word_embeddings": on_top}
    seeing = wrapper(tmp_path / "seeing", config, own, "transformers", **top)
    expected = prefill_logits(loaded(folder), TOKENS)
    assert expected.tobytes() == prefill_logits(loaded(seeing), TOKENS).tobytes()


@pytest.mark.parametrize("repeated", [True, False])
@pytest.mark.parametrize("on_top", [True, None])
@pytest.mark.parametrize("inside", [True, False])
def test_without_an_output_of_its_own_a_wrapper_uses_its_embedding(
    tmp_path: Path, *, inside: bool, on_top: bool | None, repeated: bool
) -> None:
    folder, config, own = alone(tmp_path)
    del own["lm_head.weight"]
    write_folder(folder, {**config, "tie_word_embeddings": True}, own)
    config["tie_word_embeddings"] = inside
    if repeated:
        own["lm_head.weight"] = own["model.embed_tokens.weight"]
    top = {} if on_top is None else {"tie_word_embeddings": on_top}
    seeing = wrapper(tmp_path / "seeing", config, own, "transformers", **top)
    expected = prefill_logits(loaded(folder), TOKENS)
    assert expected.tobytes() == prefill_logits(loaded(seeing), TOKENS).tobytes()


def test_a_wrapper_that_is_not_tied_and_has_no_output_is_incomplete(tmp_path: Path) -> None:
    _, config, own = alone(tmp_path)
    del own["lm_head.weight"]
    config["tie_word_embeddings"] = True
    seeing = wrapper(tmp_path, config, own, "transformers", tie_word_embeddings=False)
    with pytest.raises(ModelFileError, match=r"lm_head\.weight"):
        loaded(seeing)


def test_the_same_goes_for_a_model_alone(tmp_path: Path) -> None:
    folder, config, own = alone(tmp_path)
    tied = write_folder(tmp_path / "tied", {**config, "tie_word_embeddings": True}, own)
    expected = prefill_logits(loaded(folder), TOKENS)
    assert expected.tobytes() == prefill_logits(loaded(tied), TOKENS).tobytes()


@pytest.mark.parametrize("name", ["model.language_model.merger.weight", "model.ears.weight"])
def test_a_tensor_of_no_known_part_is_refused(tmp_path: Path, name: str) -> None:
    _, config, own = alone(tmp_path)
    own[name.replace("model.language_model.", "model.")] = np.zeros((4, 4), np.float32)
    with pytest.raises(UnsupportedModelError, match=name.rpartition(".weight")[0].split(".")[-1]):
        loaded(wrapper(tmp_path, config, own, "transformers"))


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    _, config, own = alone(tmp_path)
    folder = wrapper(tmp_path, config, own, "transformers")
    both = {f"{prefix}norm.weight": own["model.norm.weight"] for prefix in ("model.", "")}
    both["model.language_model.norm.weight"] = own["model.norm.weight"]
    write_folder(folder, json.loads((folder / "config.json").read_text()), both)
    with pytest.raises(ModelFileError, match=r"model\.norm\.weight"):
        parameters(open_checkpoint(folder))


@pytest.mark.parametrize("table", ["yes", 3, [1], True])
def test_a_text_config_that_is_no_table_is_refused(tmp_path: Path, table: Any) -> None:
    _, config, own = alone(tmp_path)
    folder = write_folder(tmp_path, {**config, "text_config": table}, own)
    for use in (loaded, read_facts):
        with pytest.raises(DureError, match="text_config"):
            use(folder)


def test_a_wrapper_of_an_unknown_language_model_is_refused_by_its_name(tmp_path: Path) -> None:
    _, config, own = alone(tmp_path)
    config["model_type"] = "shiny_text"
    with pytest.raises(UnsupportedModelError, match="shiny_text"):
        loaded(wrapper(tmp_path, config, own, "transformers"))


def test_a_text_config_lacks_what_the_wrapper_says_for_both() -> None:
    top = {"model_type": "qwen3_vl", "eos_token_id": [3, 4], "bos_token_id": 1}
    whole = {**top, "text_config": {"hidden_size": 8, "bos_token_id": 5, "eos_token_id": None}}
    assert language_config(whole, ["language_model.lm_head.weight"]) == {
        "model_type": "qwen3_vl",
        "hidden_size": 8,
        "bos_token_id": 5,
        "eos_token_id": [3, 4],
        "tie_word_embeddings": False,
    }


@pytest.mark.parametrize("width", [32, 64, 128, 20])
def test_fused_experts_lie_either_way(tmp_path: Path, width: int) -> None:
    """Of hidden size 64, so that one of the two is square for the first widths."""
    config = config_of("qwen3_moe", moe_intermediate_size=width)
    own = fused(parameters_of(config), config["num_hidden_layers"], config["num_experts"])
    expected = prefill_logits(loaded(write_folder(tmp_path / "along", config, own)), TOKENS)
    folder = write_folder(tmp_path / "across", config, across(own))
    assert expected.tobytes() == prefill_logits(loaded(folder), TOKENS).tobytes()
    checkpoints = [open_checkpoint(tmp_path / each) for each in ("along", "across")]
    assert memory_needed(checkpoints[0]) == memory_needed(checkpoints[1])


def test_turned_experts_are_read_row_by_row(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    both, down = (rng.normal(size=s).astype(np.float32) for s in ((3, 5, 8), (3, 4, 5)))
    names = [f"model.layers.0.mlp.experts.{part}" for part in ("gate_up_proj", "down_proj")]
    folder = write_folder(
        tmp_path, config_of("qwen3_moe"), dict(zip(names, (both, down), strict=True))
    )
    found = turn_experts(open_checkpoint(folder).tensors)
    rows = both.swapaxes(1, 2).reshape(24, 5)
    for start, stop in ((0, 24), (3, 3), (7, 9), (23, 24), (1, 17), (0, 8)):
        read = found[names[0]].read_rows(start, stop).view(np.float32)
        np.testing.assert_array_equal(read, rows[start:stop])


def test_a_nan_among_experts_that_lie_across_is_found(tmp_path: Path) -> None:
    config = config_of("qwen3_moe")
    own = across(fused(parameters_of(config), 2, config["num_experts"]))
    own["model.layers.1.mlp.experts.down_proj"][5, 3, 3] = np.nan
    with pytest.raises(ModelFileError, match=r"layers\.1\.mlp\.experts\.down_proj.*NaN"):
        loaded(write_folder(tmp_path, config, own))


def test_experts_of_no_known_shape_are_refused(tmp_path: Path) -> None:
    config = config_of("qwen3_moe")
    own = fused(parameters_of(config), 2, config["num_experts"])
    name = "model.layers.0.mlp.experts.gate_up_proj"
    own[name] = np.ascontiguousarray(own[name][:, :-1])
    with pytest.raises(ModelFileError, match=name):
        loaded(write_folder(tmp_path, config, own))
