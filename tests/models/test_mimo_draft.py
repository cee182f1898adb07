"""MiMo's layer for the token after the next: loaded, and what its makers' formula says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy_oracle import attention, gated, normed
from tiny_gguf import read_folder, write_folder
from tiny_models import drawn, furthest, loaded

from dure.batch import Batch
from dure.formats.checkpoint import open_checkpoint
from dure.models import load_model

NAME = "model.mtp_layers.0"
HIDDEN, WIDTH, KV = 64, 96, 32
SHAPES = {
    "token_layernorm.weight": (HIDDEN,),
    "hidden_layernorm.weight": (HIDDEN,),
    "input_proj.weight": (HIDDEN, 2 * HIDDEN),
    "input_layernorm.weight": (HIDDEN,),
    "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    "self_attn.q_proj.bias": (HIDDEN,),
    "self_attn.k_proj.weight": (KV, HIDDEN),
    "self_attn.k_proj.bias": (KV,),
    "self_attn.v_proj.weight": (KV, HIDDEN),
    "self_attn.v_proj.bias": (KV,),
    "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
    "post_attention_layernorm.weight": (HIDDEN,),
    "mlp.gate_proj.weight": (WIDTH, HIDDEN),
    "mlp.up_proj.weight": (WIDTH, HIDDEN),
    "mlp.down_proj.weight": (HIDDEN, WIDTH),
    "final_layernorm.weight": (HIDDEN,),
}
PARAMETERS = {f"{NAME}.{name}": drawn(f"{NAME}.{name}", shape) for name, shape in SHAPES.items()}


def batch(tokens: Any, start: int, stop: int) -> Batch:
    """Rows [start, stop) of one sequence; its blocks are 2, 0 and 1."""
    count = stop - start
    return Batch(
        tokens=np.array(tokens[start:stop], np.int32),
        positions=np.arange(start, stop, dtype=np.int32),
        sequences=np.zeros(count, np.int32),
        block_tables=np.array([[2, 0, 1]], np.int32),
        logit_rows=np.arange(count, dtype=np.int32),
    )


def caches(layers: tuple[Any, ...]) -> tuple[np.ndarray, ...]:
    return tuple(np.full((3, *layer.block_shape()), np.nan, np.float32) for layer in layers)


def with_heads(path: Path) -> Any:
    return load_model(open_checkpoint(path), exact=True, draft_heads=True)


def trunk(model: Any, rows: Batch) -> np.ndarray:
    """The hidden states of all rows after the last block."""
    return model.run(model.embed(rows), rows, caches(model.kv_cache_specs))


@pytest.fixture
def with_draft(tiny: Callable[[str], Any], tmp_path: Path) -> Path:
    """The tiny MiMo with its drafting layer."""
    config, parameters = read_folder(tiny("mimo").folder)
    return write_folder(tmp_path, config, parameters | PARAMETERS)


def trunk_states(oracle: Any, tokens: list[int]) -> np.ndarray:
    """transformers' hidden states (tokens, hidden) before the last norm."""
    import torch  # noqa: PLC0415

    seen: list[Any] = []
    hook = oracle.model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        oracle(torch.tensor([tokens]))
    hook.remove()
    return np.asarray(seen[0][0], np.float64)


def expected(config: dict[str, Any], p: dict[str, np.ndarray], states: Any, tokens: Any) -> Any:
    """Logits after tokens[1:], from the states of tokens[:-1]."""
    eps = config["rms_norm_eps"]
    embedded = p["model.embed_tokens.weight"][tokens[1:]].astype(float)
    both = (
        normed(states[:-1], p[f"{NAME}.hidden_layernorm.weight"], eps),
        normed(embedded, p[f"{NAME}.token_layernorm.weight"], eps),
    )
    x = np.hstack(both) @ p[f"{NAME}.input_proj.weight"].T.astype(float)
    h = normed(x, p[f"{NAME}.input_layernorm.weight"], eps)
    flat = {**config, "rope_theta": config["rope_parameters"]["rope_theta"]}
    x = x + attention(h, p, f"{NAME}.self_attn", flat, first=1)
    h = normed(x, p[f"{NAME}.post_attention_layernorm.weight"], eps)
    x = x + gated(h, p, f"{NAME}.mlp")
    x = normed(x, p[f"{NAME}.final_layernorm.weight"], eps)
    return (x @ p["lm_head.weight"].T.astype(float)).astype(np.float32)


@pytest.mark.parametrize("cut", [[74], [1] * 74, [7, 1, 32, 34]])
def test_drafts_are_what_the_formula_says_however_the_tokens_come(
    tiny: Callable[[str], Any], with_draft: Path, cut: list[int]
) -> None:
    small, model = tiny("mimo"), with_heads(with_draft)
    tokens = small.sequences[0]
    config, parameters = read_folder(with_draft)
    states = trunk_states(small.oracle, tokens)
    hidden = trunk(model, batch(tokens, 0, 75))
    assert furthest(states.astype(np.float32), hidden) < 1e-4
    cache, rows, start = caches(model.draft_cache_specs), [], 0
    for count in cut:
        step = batch(tokens[1:], start, start + count)
        states_out, logits = model.draft(hidden[start : start + count], step, cache)
        assert states_out.shape == (count, HIDDEN)
        rows.append(logits)
        start += count
    wanted = expected(config, parameters, states, tokens)
    assert furthest(wanted, np.concatenate(rows)) < 1e-4


def test_the_drafting_layer_changes_nothing_of_the_trunk(
    tiny: Callable[[str], Any], with_draft: Path
) -> None:
    small, model = tiny("mimo"), with_heads(with_draft)
    tokens = small.sequences[1]
    logits = model.forward(batch(tokens, 0, 40), caches(model.kv_cache_specs))
    assert furthest(small.expected[1], logits) < 1e-4
    assert model.kv_cache_specs == small.model.kv_cache_specs  # the engine keeps nothing for it


def test_a_copy_without_the_drafting_layer_has_no_heads(
    tiny: Callable[[str], Any], with_draft: Path
) -> None:
    assert with_heads(tiny("mimo").folder).draft_cache_specs == ()
    assert loaded(with_draft).draft_cache_specs == ()  # nor one that is not asked for them


def test_a_drafting_layer_that_is_incomplete_is_left_out_and_why(
    with_draft: Path, tmp_path: Path
) -> None:
    config, parameters = read_folder(with_draft)
    del parameters[f"{NAME}.mlp.up_proj.weight"]
    model = with_heads(write_folder(tmp_path / "incomplete", config, parameters))
    assert model.draft_cache_specs == ()
    assert f"{NAME}.mlp.up_proj.weight" in model.draft_problem
