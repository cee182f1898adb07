"""A GGUF file is written anew in fewer bits: the types that its name says, all else as it was."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from packed_mixtures import gguf_mixture
from tiny_gguf import read_folder, write_gguf
from tiny_models import loaded, oracle, prefill_logits, random_sequences, saved

from dure.convert import checked
from dure.convert.recipes import RECIPES, Types, recipe_named
from dure.convert.requantize import requantize
from dure.errors import InvalidRequestError, ModelFileError
from dure.formats.checkpoint import open_checkpoint
from dure.formats.gguf import encoded_metadata, read_gguf
from dure.formats.imatrix import Importance, ImportanceMatrix
from dure.kernels.dequantize import dequantize

WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
TOKENS = random_sequences(40, seed=1)[0]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model of 256 columns in float32, with two layers."""
    folder = tmp_path_factory.mktemp("model")
    saved("qwen2", oracle("qwen2", **WIDE), folder)
    write_gguf(folder / "in.gguf", *read_folder(folder))
    return folder / "in.gguf"


def test_each_bit_less_makes_the_logits_less_exact(source: Path, tmp_path: Path) -> None:
    expected = prefill_logits(loaded(source), TOKENS)
    errors, sizes = [], [source.stat().st_size]
    for name in ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"):
        out = tmp_path / f"{name}.gguf"
        written = requantize(source, out, recipe_named(name)).written
        assert written.size_bytes == out.stat().st_size
        sizes.append(written.size_bytes)
        errors.append(float((prefill_logits(loaded(out), TOKENS) - expected).std()))
    assert sizes == sorted(sizes, reverse=True)
    assert errors[0] < 0.05 * expected.std()
    # A bit less doubles the steps; in mixtures some matrices have one more.
    assert all(1.3 < late / early < 6 for early, late in itertools.pairwise(errors))


def test_everything_but_matrices_and_their_types_stays(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    requantize(source, out, recipe_named("Q4_K_S"))
    before, after = encoded_metadata(source), encoded_metadata(out)
    changed = {"general.file_type", "general.quantization_version", "general.alignment"}
    assert {**before, **dict.fromkeys(changed, b"")} == {
        **after,
        **dict.fromkeys(changed, b""),
    }
    assert read_gguf(out).metadata["general.file_type"] == 14
    were, are = read_gguf(source).tensors, read_gguf(out).tensors
    assert list(are) == list(were)
    for name, tensor in are.items():
        assert tensor.shape == were[name].shape
        if len(tensor.shape) < 2:
            np.testing.assert_array_equal(tensor.read(), were[name].read())
    theirs = gguf.GGUFReader(out)
    for each in theirs.tensors:
        values = gguf.quants.dequantize(each.data, each.tensor_type)
        mine = dequantize(are[each.name].dtype, are[each.name].read())
        np.testing.assert_array_equal(values.reshape(mine.shape), mine)


def types_of(recipe: str, layers: int, *, tied: bool = False, experts: bool = False) -> Any:
    """What a recipe says of a model's tensors of 4,096 columns."""
    down = "ffn_down_exps" if experts else "ffn_down"
    kinds = ("attn_q", "attn_v", "attn_norm", "ffn_gate_inp", down)
    names = [f"blk.{i}.{kind}.weight" for i in range(layers) for kind in kinds]
    names += ["token_embd.weight", *(() if tied else ("output.weight",))]
    types = Types(recipe_named(recipe), names)
    return lambda name: types.of(name, 1 if "norm" in name else 3 if "exps" in name else 2, 4096)


def test_named_mixtures_have_llama_cpps_types() -> None:
    of = types_of("Q4_K_M", 32)
    more = [i for i in range(32) if of(f"blk.{i}.ffn_down.weight") == "Q6_K"]
    assert more == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert [of(f"blk.{i}.attn_v.weight") == "Q6_K" for i in range(32)] == [
        i in more for i in range(32)
    ]
    assert of("blk.0.attn_q.weight") == "Q4_K"
    assert of("output.weight") == "Q6_K"
    assert of("token_embd.weight") == "Q4_K"
    assert types_of("q4_k_m", 32, tied=True)("token_embd.weight") == "Q6_K"
    assert of("blk.0.attn_norm.weight") is None
    assert of("blk.0.ffn_gate_inp.weight") is None
    assert types_of("Q4_K", 32)("blk.6.ffn_down.weight") == "Q6_K"
    assert types_of("Q4_K_S", 32)("blk.3.ffn_down.weight") == "Q5_K"
    assert types_of("Q4_K_S", 32)("blk.4.ffn_down.weight") == "Q4_K"
    mixture = types_of("MXFP4", 2, experts=True)
    assert mixture("blk.0.ffn_down_exps.weight") == "MXFP4"
    assert mixture("blk.0.attn_q.weight") == "Q8_0"
    assert types_of("MXFP4", 2)("blk.0.ffn_down.weight") == "MXFP4"


def test_rows_that_blocks_do_not_divide_get_smaller_blocks_or_stay() -> None:
    wanted = {"Q4_K_S": "Q5_0", "Q5_K_S": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}
    for name, smaller in wanted.items():
        types = Types(recipe_named(name), ["output.weight"])
        assert types.of("blk.0.attn_q.weight", 2, 96) == smaller
        assert types.of("blk.0.attn_q.weight", 2, 50) is None


def test_a_name_that_is_no_type_is_refused_with_all() -> None:
    with pytest.raises(InvalidRequestError, match="Q9_K") as error:
        recipe_named("Q9_K")
    assert all(name in str(error.value.hint) for name in RECIPES)


@pytest.mark.parametrize("name", ["q4", "Q4_K_M", "MXFP4"])
def test_a_mixtures_experts_are_written_and_its_router_stays(tmp_path: Path, name: str) -> None:
    source = gguf_mixture(tmp_path / "in.gguf", "Q8_0")
    requantize(source, tmp_path / "out.gguf", recipe_named(name))
    tensors = read_gguf(tmp_path / "out.gguf").tensors
    kinds = {each.dtype for key, each in tensors.items() if "_exps." in key}
    assert kinds & {"Q4_K", "Q5_0", "MXFP4"}
    before = read_gguf(source).tensors
    router = "blk.0.ffn_gate_inp.weight"
    np.testing.assert_array_equal(tensors[router].read(), before[router].read())
    assert np.isfinite(prefill_logits(loaded(tmp_path / "out.gguf"), TOKENS)).all()


def test_what_has_as_few_bits_is_not_quantised_again(source: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    requantize(source, first, recipe_named("Q6_K"))
    anew = requantize(first, second, recipe_named("Q4_K_M"))
    assert anew.again > 0
    assert read_gguf(second).tensors["output.weight"].dtype == "Q6_K"
    with pytest.raises(InvalidRequestError, match="no matrix that Q8_0 would make smaller"):
        requantize(first, tmp_path / "third.gguf", recipe_named("Q8_0"))


def test_importance_lowers_the_error_where_inputs_are_large(source: Path, tmp_path: Path) -> None:
    name = "blk.0.attn_q.weight"
    squares = np.random.default_rng(0).lognormal(0, 2, (1, 256))
    matrix = ImportanceMatrix({name: Importance(squares, np.ones(1))}, ("a.txt",), 3, 512)
    recipe = recipe_named("Q4_K_S")
    plain, weighed = tmp_path / "plain.gguf", tmp_path / "weighed.gguf"
    requantize(source, plain, recipe)
    assert requantize(source, weighed, recipe, importance=matrix).weighed == 1
    exact = read_gguf(source).tensors[name].read().view(np.float32)

    def cost(path: Path) -> float:
        tensor = read_gguf(path).tensors[name]
        return float((squares * np.square(dequantize(tensor.dtype, tensor.read()) - exact)).sum())

    assert cost(weighed) < 0.9 * cost(plain)
    metadata = read_gguf(weighed).metadata
    assert metadata["quantize.imatrix.dataset"] == "a.txt"
    assert metadata["quantize.imatrix.chunks_count"] == 3
    assert metadata["quantize.imatrix.entries_count"] == 1


def test_each_expert_has_its_own_importance(tmp_path: Path) -> None:
    source, name = gguf_mixture(tmp_path / "in.gguf", "F32"), "blk.0.ffn_down_exps.weight"
    exact = read_gguf(source).tensors[name]
    count, _, cols = exact.shape
    squares = np.random.default_rng(0).lognormal(0, 2, (count, cols))
    matrix = ImportanceMatrix({name: Importance(squares, np.ones(count))})
    out = tmp_path / "out.gguf"
    requantize(source, out, recipe_named("Q4_K_S"), importance=matrix)
    wanted = exact.read().view(np.float32).reshape(exact.shape)
    tensor = read_gguf(out).tensors[name]
    errors = np.square(dequantize(tensor.dtype, tensor.read()).reshape(exact.shape) - wanted)
    each = np.einsum("erc,fc->ef", errors, squares / squares.mean(1, keepdims=True))
    own = np.diag(each)
    assert (own < each.sum(1) / count).all()


def test_importance_of_another_model_is_refused(source: Path, tmp_path: Path) -> None:
    recipe = recipe_named("Q4_K_M")
    other = ImportanceMatrix({"blk.0.attn_q.weight": Importance(np.ones((1, 96)), np.ones(1))})
    with pytest.raises(ModelFileError, match=r"96 values for blk\.0\.attn_q\.weight"):
        requantize(source, tmp_path / "out.gguf", recipe, importance=other)
    none = ImportanceMatrix({"blk.9.attn_q.weight": Importance(np.ones((1, 96)), np.ones(1))})
    with pytest.raises(InvalidRequestError, match="knows none"):
        requantize(source, tmp_path / "out.gguf", recipe, importance=none)
    assert not list(tmp_path.iterdir())


def test_the_size_is_said_before_and_what_is_read_again_must_be_what_was_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, said = tmp_path / "out.gguf", []
    written = requantize(source, out, recipe_named("Q8_0"), tell_size=said.append).written
    assert said == [written.size_bytes]
    out.unlink()
    write = checked.write_gguf

    def spoiled(path: Path, *arguments: Any, **options: Any) -> int:
        size = write(path, *arguments, **options)
        with path.open("r+b") as file:
            file.seek(size - 40)
            file.write(b"\x55")
        return size

    monkeypatch.setattr(checked, "write_gguf", spoiled)
    with pytest.raises(ModelFileError, match="is not what was written"):
        requantize(source, out, recipe_named("Q8_0"))
    assert not list(tmp_path.iterdir())


def test_a_folder_is_converted_with_the_same_names(source: Path, tmp_path: Path) -> None:
    assert open_checkpoint(source.parent / "model.safetensors").kind == "safetensors"
    types = Types(recipe_named("IQ4_XS"), read_gguf(source).tensors)
    assert types.of("blk.1.ffn_up.weight", 2, 256) == "IQ4_XS"
