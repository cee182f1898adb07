"""Which type a folder's matrices have in its GGUF: quantised, as they were, or float32."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import packings
import pytest
from hub_folders import TOKENS, WIDE
from tiny_gguf import read_folder, write_folder
from tiny_models import furthest, loaded, prefill_logits

from dure.convert.gguf import convert
from dure.convert.recipes import recipe_named
from dure.convert.requantize import requantize
from dure.errors import UnsupportedModelError
from dure.formats.checkpoint import open_checkpoint
from dure.formats.imatrix import Importance, ImportanceMatrix
from dure.kernels.dequantize import dequantize

PACKED: dict[str, tuple[dict[str, Any], Callable[[np.ndarray], packings.Packed]]] = {
    "fp8": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, packings.fp8),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 32}, packings.gptq),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32}, packings.awq),
}


def test_a_quantised_file_holds_the_nearest_blocks(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = folder("qwen3_moe", **WIDE), tmp_path / "out.gguf"
    convert(source, out, quantize="q4", threads=2)
    weights = open_checkpoint(source).tensors
    stored = open_checkpoint(out).tensors
    types = {name.split(".")[-2]: tensor.dtype for name, tensor in stored.items()}
    assert types["ffn_down_exps"] == "Q4_K"
    assert types["attn_q"] == types["token_embd"] == "Q6_K"
    assert types["ffn_gate_inp"] == types["attn_norm"] == "F32"
    expert = stored["blk.1.ffn_up_exps.weight"]
    assert expert.shape == (8, 256, 256)
    values = dequantize("Q4_K", expert.read_rows(3 * 256, 4 * 256))
    original = weights["model.layers.1.mlp.experts.3.up_proj.weight"].read().view(np.float32)
    assert np.square(values - original).mean() < 6e-3 * original.var()
    logits = [prefill_logits(loaded(path), TOKENS) for path in (source, out)]
    assert (
        np.corrcoef(logits[0].ravel(), logits[1].ravel())[0, 1] > 0.95
    )  # a router may choose otherwise


def test_a_mixtures_folder_with_importance_becomes_what_its_float_file_does(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    source, whole = folder("qwen3_moe", **WIDE), tmp_path / "whole.gguf"
    convert(source, whole, threads=2)
    draw = np.random.default_rng(0)
    matrix = ImportanceMatrix(
        {
            name: Importance(draw.lognormal(0, 2, (count, each.shape[-1])), np.ones(count))
            for name, each in open_checkpoint(whole).tensors.items()
            if name.startswith("blk.1.") and len(each.shape) > 1 and "gate_inp" not in name
            for count in [each.shape[0] if len(each.shape) == 3 else 1]
        },
        ("a.txt",),
    )
    paths = [tmp_path / f"{name}.gguf" for name in ("plain", "folder", "file")]
    convert(source, paths[0], quantize="Q4_K_M", threads=2)
    convert(source, paths[1], quantize="Q4_K_M", importance=matrix, threads=2)
    requantize(whole, paths[2], recipe_named("Q4_K_M"), importance=matrix, threads=2)
    plain, ours, theirs = (open_checkpoint(path).tensors for path in paths)
    assert ours.keys() == theirs.keys()
    changed = set()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert tensor.read().tobytes() == theirs[name].read().tobytes(), name
        if tensor.read().tobytes() != plain[name].read().tobytes():
            changed.add(name)
    assert changed == matrix.entries.keys()
    assert open_checkpoint(paths[1]).metadata["quantize.imatrix.dataset"] == "a.txt"


def test_the_heads_matrices_are_quantised_as_they_are_turned(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    latents = {"kv_lora_rank": 256, "q_lora_rank": 256, "qk_nope_head_dim": 64, "v_head_dim": 64}
    source, out = folder("deepseek_v3", **WIDE, **latents), tmp_path / "out.gguf"
    convert(source, out, quantize="q8")
    stored = open_checkpoint(out).tensors
    keys, values = (stored[f"blk.1.attn_{which}_b.weight"] for which in "kv")
    assert (keys.dtype, keys.shape) == ("Q8_0", (4, 256, 64))
    assert (values.dtype, values.shape) == ("Q8_0", (4, 64, 256))
    both = open_checkpoint(source).tensors["model.layers.1.self_attn.kv_b_proj.weight"]
    original = both.read().view(np.float32).reshape(4, 128, 256)
    for stack, part in ((keys, original[:, :64].swapaxes(1, 2)), (values, original[:, 64:])):
        got = dequantize("Q8_0", stack.read()).reshape(part.shape)
        assert np.abs(got - part).max() <= np.abs(part).max() / 254 * 1.01


def test_bfloat16_stays_as_it_is_but_in_vectors(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    import ml_dtypes  # noqa: PLC0415  # safetensors' own way to bfloat16
    from safetensors.numpy import load_file, save_file  # noqa: PLC0415

    source, out = folder("llama"), tmp_path / "out.gguf"
    arrays = load_file(source / "model.safetensors")
    save_file(
        {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()},
        source / "model.safetensors",
    )
    convert(source, out)
    before, after = open_checkpoint(source).tensors, open_checkpoint(out).tensors
    assert after["output.weight"].dtype == "BF16"
    np.testing.assert_array_equal(after["output.weight"].read(), before["lm_head.weight"].read())
    assert after["output_norm.weight"].dtype == "F32"


def test_experts_in_mxfp4_stay_as_they_are_block_by_block(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = folder("gpt_oss"), tmp_path / "out.gguf"
    config, parameters = read_folder(source)
    stored, _ = packings.gpt_oss_experts(parameters)
    write_folder(source, {**config, "quantization_config": {"quant_method": "mxfp4"}}, stored)
    convert(source, out)
    written = open_checkpoint(out)
    types = {name: tensor.dtype for name, tensor in written.tensors.items()}
    parts = ("gate", "up", "down")
    assert {types[f"blk.0.ffn_{part}_exps.weight"] for part in parts} == {"MXFP4"}
    assert {types[f"blk.0.ffn_{part}_exps.bias"] for part in parts} == {"F32"}
    assert written.metadata["general.file_type"] == 38
    expected = prefill_logits(loaded(source), TOKENS)
    assert furthest(expected, prefill_logits(loaded(out), TOKENS)) <= 1e-5
    convert(source, out, quantize="q8", force=True)
    assert open_checkpoint(out).tensors["blk.0.ffn_up_exps.weight"].dtype == "Q8_0"


@pytest.mark.parametrize(
    "name, small, large",
    [
        (
            "qwen3_next",
            ("ssm_conv1d.weight", "ssm_a", "ssm_dt.bias", "ssm_norm.weight"),
            ("attn_qkv", "ssm_ba"),
        ),
        (
            "bailing_hybrid",
            ("ssm_conv1d_q.weight", "ssm_a", "ssm_dt.bias", "ssm_norm.weight"),
            ("attn_q", "ssm_f_a", "ssm_g_a", "ssm_beta"),
        ),
    ],
)
def test_what_a_recurrent_layer_keeps_small_stays_float32(
    folder: Callable[..., Path],
    tmp_path: Path,
    name: str,
    small: tuple[str, ...],
    large: tuple[str, ...],
) -> None:
    import ml_dtypes  # noqa: PLC0415  # safetensors' own way to bfloat16
    from safetensors.numpy import save_file  # noqa: PLC0415

    source, out = folder(name, **WIDE), tmp_path / "out.gguf"
    _, arrays = read_folder(source)
    halved = {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()}
    save_file(halved, source / "model.safetensors")
    for scheme, matrices in ((None, "BF16"), ("q6", "Q6_K")):
        convert(source, out, quantize=scheme, force=True)  # type: ignore[arg-type]
        types = {key: tensor.dtype for key, tensor in open_checkpoint(out).tensors.items()}
        assert {types[f"blk.1.{part}"] for part in (*small, "ffn_gate_inp.weight")} == {"F32"}
        assert {types[f"blk.1.{part}.weight"] for part in large} == {matrices}
        loaded(out)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, "fp8") for name in ("llama", "qwen3_moe", "deepseek_v3", "qwen3_next")),
        *(("llama", "gptq"), ("qwen3_moe", "awq"), ("deepseek_v3", "gptq"), ("qwen3_next", "awq")),
    ],
)
def test_a_quantised_folder_is_quantised_anew_from_what_it_stands_for(
    folder: Callable[..., Path], tmp_path: Path, name: str, method: str
) -> None:
    source = folder(name, **WIDE)
    config, arrays = read_folder(source)
    settings, pack = PACKED[method]

    def packed(each: str, values: np.ndarray) -> packings.Packed | None:
        return pack(values) if each.endswith(("_proj.weight", "qkvz.weight")) else None

    values = packings.write_packed(tmp_path / "packed", config, arrays, settings, packed)
    write_folder(source, config, values)
    for each in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / each, tmp_path / "packed")
    with pytest.raises(UnsupportedModelError, match=r"\.weight as ") as caught:
        convert(tmp_path / "packed", tmp_path / "none.gguf")
    assert "--quantize" in caught.value.hint
    convert(tmp_path / "packed", tmp_path / "packed.gguf", quantize="q8")
    convert(source, tmp_path / "plain.gguf", quantize="q8")
    ours, plain = (open_checkpoint(tmp_path / f"{n}.gguf").tensors for n in ("packed", "plain"))
    assert {n: t.dtype for n, t in ours.items()} == {n: t.dtype for n, t in plain.items()}
    for each, tensor in ours.items():
        np.testing.assert_array_equal(tensor.read(), plain[each].read(), err_msg=each)
