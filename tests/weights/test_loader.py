"""Weights: what the model asks for is what the file has, in name, shape and type, or refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from tiny_gguf import (
    Arrays,
    config_of,
    matrices_as,
    parameters_of,
    read_folder,
    write_folder,
    write_gguf,
)
from tiny_models import loaded, prefill_logits

from dure import kernels
from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.checkpoint import Checkpoint, open_checkpoint
from dure.kernels.dequantize import LAYOUTS, row_bytes
from dure.models import load_model, memory_needed
from dure.weights.loader import Weights

FAMILIES = ("llama", "qwen2", "qwen3", "qwen3_moe")
TOKENS = [3, 1, 4, 1, 5]

Change = Callable[[Arrays], None]


def saved(
    folder: Path, name: str = "llama", change: Change = lambda _: None, **config: Any
) -> Path:
    """A saved tiny model whose parameters went through `change`."""
    settings = config_of(name, **config)
    parameters = parameters_of(settings)
    change(parameters)
    return write_folder(folder, settings, parameters)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_tensor_is_named(tmp_path: Path, family: str) -> None:
    names = list(parameters_of(config_of(family, num_hidden_layers=1)))
    assert len(names) > 10
    for name in names:
        folder = saved(tmp_path, family, lambda p, name=name: p.pop(name), num_hidden_layers=1)
        with pytest.raises(ModelFileError) as caught:
            loaded(folder)
        assert f"no tensor {name}." in caught.value.message
        assert "incomplete" in caught.value.hint


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tensor_of_another_shape_is_refused_with_both(tmp_path: Path, family: str) -> None:
    parameters = parameters_of(config_of(family, num_hidden_layers=1))
    for name, values in parameters.items():
        for wrong in (values[:-1], values[..., :-1], values[None], np.append(values, values)):
            if wrong.shape == values.shape:
                continue
            change = {name: np.ascontiguousarray(wrong)}
            folder = saved(tmp_path, family, lambda p, c=change: p.update(c), num_hidden_layers=1)
            with pytest.raises(ModelFileError) as caught:
                loaded(folder)
            assert f"{name} has shape {wrong.shape}" in caught.value.message
            assert str(values.shape) in caught.value.message


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_norm.weight",  # qwen3's, in a llama
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.2.input_layernorm.weight",  # one layer more than the config has
        "mtp.norm.weight",
    ],
)
def test_a_tensor_that_nobody_asked_for_is_refused_by_name(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path, change=lambda p: p.update({name: np.ones(64, np.float32)}))
    with pytest.raises(UnsupportedModelError) as caught:
        loaded(folder)
    assert name in caught.value.message


def test_many_strange_tensors_are_counted_and_some_named(tmp_path: Path) -> None:
    strange = {f"strange.{i:03}": np.ones(1, np.float32) for i in range(200)}
    with pytest.raises(UnsupportedModelError, match=r"200 tensors .*strange\.004, …\)"):
        loaded(saved(tmp_path, change=lambda p: p.update(strange)))


@pytest.mark.parametrize("family", FAMILIES)
def test_many_missing_tensors_are_counted_and_five_named(tmp_path: Path, family: str) -> None:
    """As from a folder of which a shard is missing; what is there too much is said beside it."""

    def change(parameters: Arrays) -> None:
        for name in [name for name in parameters if "model.layers.1." in name]:
            parameters[name.replace(".1.", ".one.", 1)] = parameters.pop(name)

    count = sum("model.layers.1." in name for name in parameters_of(config_of(family)))
    with pytest.raises(ModelFileError) as caught:
        loaded(saved(tmp_path, family, change))
    lacks, has = caught.value.message.split(" It has ")
    assert f"lacks {count} tensors" in lacks
    assert f"{count} that the model does not" in has
    assert lacks.count("model.layers.1.") == has.count("model.layers.one.") == 5
    assert lacks.endswith(", ….")


def test_many_misshaped_tensors_are_counted_and_five_named(tmp_path: Path) -> None:
    """As of a config that belongs to another size of the model."""
    folder = saved(tmp_path)
    write_folder(
        folder, config_of("llama", hidden_size=128, head_dim=16), parameters_of(config_of("llama"))
    )
    with pytest.raises(ModelFileError, match="21 tensors have other shapes") as caught:
        loaded(folder)
    assert "model.embed_tokens.weight (256, 64), not (256, 128);" in caught.value.message
    assert caught.value.message.count(", not ") == 5


def test_a_config_of_impossible_size_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    config = config_of("qwen3_moe", hidden_size=2**31 - 2, num_experts=65536, head_dim=65536)
    folder = write_folder(tmp_path, config, parameters_of(config_of("qwen3_moe")))
    with pytest.raises(ModelFileError, match="lacks at least 99,") as caught:
        loaded(folder)
    assert " It has " not in caught.value.message


def test_tables_that_are_computed_anyway_and_a_repeated_head_are_passed_over(
    tmp_path: Path,
) -> None:
    def drop(parameters: dict[str, np.ndarray]) -> None:
        del parameters["lm_head.weight"]

    expected = prefill_logits(
        loaded(saved(tmp_path, change=drop, tie_word_embeddings=True)), TOKENS
    )

    def add(parameters: dict[str, np.ndarray]) -> None:
        parameters["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
        parameters["lm_head.weight"] = parameters["model.embed_tokens.weight"].copy()

    folder = saved(tmp_path, change=add, tie_word_embeddings=True)
    assert prefill_logits(loaded(folder), TOKENS).tobytes() == expected.tobytes()


def test_a_gguf_tensor_with_an_unknown_name_is_refused(tmp_path: Path) -> None:
    config = config_of("qwen2")
    path = tmp_path / "model.gguf"
    write_gguf(path, config, parameters_of(config))
    renamed = path.read_bytes().replace(b"blk.1.attn_q.bias", b"blk.1.attn_r.bias")
    path.write_bytes(renamed)
    with pytest.raises(ModelFileError, match=r"no tensor .*\.1\.self_attn\.q_proj\.bias"):
        loaded(path)
    assert Weights(open_checkpoint(path)).has("blk.1.attn_r.bias")


def with_tensor(folder: Path, name: str, raw: np.ndarray, kind: Kind) -> Weights:
    """The weights of a GGUF with one tensor."""
    writer = gguf.GGUFWriter(folder / "one.gguf", "llama")
    writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Weights(open_checkpoint(folder / "one.gguf"))


def test_a_quantised_norm_and_a_type_we_do_not_run_are_refused(tmp_path: Path) -> None:
    weights = with_tensor(tmp_path, "output_norm.weight", np.zeros(68, np.uint8), Kind.Q8_0)
    with pytest.raises(UnsupportedModelError, match=r"model\.norm\.weight is stored as Q8_0"):
        weights.vector("model.norm.weight", 64)
    weights = with_tensor(tmp_path, "output.weight", np.zeros((16, 292), np.uint8), Kind.Q8_K)
    with pytest.raises(UnsupportedModelError, match="Q8_K") as caught:
        weights.matrix("lm_head.weight", 16, 256)
    assert "Q4_K" in caught.value.hint


def test_experts_of_one_layer_stored_in_different_types_are_refused(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.5.up_proj.weight"

    def half(parameters: Arrays) -> None:
        parameters[name] = parameters[name].astype(np.float16)

    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.mlp\.experts differ in type"):
        loaded(saved(tmp_path, "qwen3_moe", half))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("quantize", [None, "q8"])
def test_a_weight_that_is_not_finite_is_refused_with_its_tensor(
    tmp_path: Path, quantize: Any, value: float
) -> None:
    for name in (
        "model.norm.weight",
        "model.embed_tokens.weight",
        "model.layers.1.mlp.down_proj.weight",
    ):

        def spoil(parameters: Arrays, name: str = name) -> None:
            parameters[name].reshape(-1)[-3] = value

        folder = saved(tmp_path, "llama", spoil)
        with pytest.raises(ModelFileError) as caught:
            load_model(open_checkpoint(folder), quantize=quantize)
        assert name in caught.value.message


@pytest.mark.parametrize("dtype", ["F16", "Q4_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K", "Q2_K", "Q3_K"])
def test_a_block_whose_scale_is_not_finite_is_refused_with_its_tensor(
    tmp_path: Path, dtype: str
) -> None:
    raw = gguf.quants.quantize(np.ones((16, 256), np.float32), Kind.Q8_0)
    if dtype != "Q8_0":
        raw = np.zeros((16, row_bytes(dtype, 256)), np.uint8)
    field = "value" if dtype == "F16" else "scale"
    blocks = raw.view(LAYOUTS[dtype])
    blocks[field][7, -1] = np.nan  # float16: the bits of its exponent
    weights = with_tensor(tmp_path, "output.weight", raw, Kind[dtype])
    weights.matrix("lm_head.weight", 16, 256)
    with pytest.raises(ModelFileError, match=r"lm_head\.weight .*NaN"):
        weights.finish()


def test_a_matrix_without_rows_is_of_another_shape(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"

    def empty(parameters: Arrays) -> None:
        parameters[name] = parameters[name][:0]

    checkpoint = open_checkpoint(saved(tmp_path, "llama", empty))
    assert memory_needed(checkpoint) > 0
    with pytest.raises(ModelFileError, match=r"up_proj\.weight has shape \(0, "):
        load_model(checkpoint)


def test_a_large_matrix_is_packed_in_pieces_without_losing_a_row(tmp_path: Path) -> None:
    """A thread packs 2 MiB at a time, of which it reads 256 KiB at a time: 7 MB here, whose rows
    do not come out even."""
    values = np.random.default_rng(0).normal(0, 1, (3011, 600)).astype(np.float32)
    folder = write_folder(tmp_path, {}, {"w.weight": values})
    weights = Weights(open_checkpoint(folder), threads=2)
    matrix = weights.matrix("w.weight", 3011, 600)
    weights.finish()
    assert np.array_equal(values, matrix.row_values(np.arange(3011, dtype=np.int32)))


def test_a_file_that_is_cut_before_its_weights_are_packed_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {}, {"w.weight": np.ones((64, 600), np.float32)})
    weights = Weights(open_checkpoint(folder))
    weights.matrix("w.weight", 64, 600)
    os.truncate(next(folder.glob("*.safetensors")), 1000)
    with pytest.raises(ModelFileError, match="changed while it was in use"):
        weights.finish()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_progress_rises_to_all_bytes_of_the_file(
    tmp_path: Path, family: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dure.weights.loader._REPORT_SECONDS", 0)
    checkpoint = open_checkpoint(saved(tmp_path, family, tie_word_embeddings=tied))
    seen: list[tuple[int, int]] = []
    load_model(checkpoint, progress=lambda done, total: seen.append((done, total)))
    total = sum(tensor.size_bytes for tensor in checkpoint.tensors.values())
    assert {total} == {each for _, each in seen}
    done = [each for each, _ in seen]
    assert done == sorted(done)
    assert done[-1] == total
    assert len(done) > 10


def test_the_memory_a_model_needs_is_what_its_packed_weights_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def recorded(kind: type) -> Callable[..., Any]:
        def make(*arguments: Any) -> Any:
            made.append(kind(*arguments))
            return made[-1]

        return make

    config = config_of("qwen3_moe")
    path = tmp_path / "model.gguf"
    write_gguf(path, config, parameters_of(config), matrices_as(Kind.Q8_0))
    monkeypatch.setattr(kernels, "Matrix", recorded(kernels.Matrix))
    monkeypatch.setattr(kernels, "Experts", recorded(kernels.Experts))
    loaded(path)
    vectors = [each for each in made if getattr(each, "rows", 0) == 1]  # kept as plain arrays
    packed = sum(each.nbytes for each in made if each not in vectors)
    expected = packed + sum(4 * each.cols for each in vectors)
    experts = sum(getattr(each, "count", 0) for each in made)
    assert (len(vectors), experts) == (9, 16)
    # Each expert starts on a page of 4 KiB, which nobody counts.
    assert 0 <= expected - memory_needed(open_checkpoint(path)) < 4096 * experts


def test_a_checkpoint_without_any_tensor_is_incomplete() -> None:
    checkpoint = Checkpoint(Path("empty"), "safetensors", {}, config=config_of("qwen3"))
    with pytest.raises(ModelFileError, match=r"lacks 25 tensors .*model\.embed_tokens\.weight,"):
        load_model(checkpoint)
    assert memory_needed(checkpoint) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_those_that_transformers_saves(tmp_path: Path, family: str) -> None:
    """Our hand-made parameters are a real model's: else the tests above would prove nothing."""
    from tiny_models import oracle  # noqa: PLC0415  # seconds

    oracle(family).save_pretrained(tmp_path)
    expected = {name: values.shape for name, values in read_folder(tmp_path)[1].items()}
    config = config_of(family)
    assert expected == {name: values.shape for name, values in parameters_of(config).items()}
