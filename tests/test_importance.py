"""An importance matrix is what a model's matrices are multiplied with, squared and averaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import read_folder, write_gguf
from tiny_models import VOCAB_SIZE, oracle, random_sequences, saved

from dure import models
from dure.errors import InvalidRequestError
from dure.formats.checkpoint import open_checkpoint
from dure.formats.imatrix import ImportanceMatrix
from dure.importance import Watched, compute_imatrix

TOKENS = random_sequences(48, seed=3)[0]
WINDOW = 16


def computed(path: Path, *, exact: bool = True, threads: int = 1) -> ImportanceMatrix:
    """The importance matrix of a model on TOKENS."""
    checkpoint, watched = open_checkpoint(path), Watched()
    model = models.load_model(checkpoint, exact=exact, threads=threads, on_made=watched.add)
    aliases = getattr(models.family_of(checkpoint), "TENSOR_ALIASES", {})
    return compute_imatrix(
        model, watched, TOKENS, tensor_aliases=aliases, dataset="some.txt", window=WINDOW
    )


def hooked(model: object, names: dict[str, str]) -> dict[str, np.ndarray]:
    """Mean squares by column of the inputs of transformers' own layers."""
    import torch  # noqa: PLC0415

    sums: dict[str, np.ndarray] = {}
    modules = dict(model.named_modules())  # type: ignore[attr-defined]

    def hook(name: str) -> Callable[..., None]:
        def see(_module: object, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            sums[name] = sums.get(name, 0) + x.square().sum(0).numpy()

        return see

    for theirs, ours in names.items():
        modules[theirs].register_forward_pre_hook(hook(ours))
    with torch.no_grad():
        for start in range(0, len(TOKENS), WINDOW):
            model(torch.tensor([TOKENS[start : start + WINDOW]]))  # type: ignore[operator]
    return {name: each / len(TOKENS) for name, each in sums.items()}


def test_a_dense_models_are_those_of_transformers(tmp_path: Path) -> None:
    model = oracle("qwen2")
    saved("qwen2", model, tmp_path)
    write_gguf(tmp_path / "in.gguf", *read_folder(tmp_path))
    parts = {"self_attn.q_proj": "attn_q", "self_attn.o_proj": "attn_output"}
    parts |= {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    layers = range(model.config.num_hidden_layers)
    names = {
        f"model.layers.{i}.{a}": f"blk.{i}.{b}.weight" for i in layers for a, b in parts.items()
    }
    expected = hooked(model, names)
    for path in (tmp_path, tmp_path / "in.gguf"):
        found = computed(path)
        for name, means in expected.items():
            # Keys and values are float16 in the cache, so what o_proj takes has 11 bits, squared.
            np.testing.assert_allclose(found.entries[name].means()[0], means, rtol=4e-3)
        assert found.chunks == len(TOKENS) // WINDOW
        assert "token_embd.weight" not in found.entries
    rough = computed(tmp_path, exact=False, threads=2)
    for name, means in expected.items():
        np.testing.assert_allclose(rough.entries[name].means()[0], means, rtol=0.1, atol=1e-4)


def test_each_expert_has_the_rows_that_it_was_given(tmp_path: Path) -> None:
    model = oracle("qwen3_moe")
    saved("qwen3_moe", model, tmp_path)
    found = computed(tmp_path)
    top_k = model.config.num_experts_per_tok
    for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
        entry = found.entries[f"blk.0.{name}.weight"]
        assert entry.counts.sum() == len(TOKENS) * top_k
        assert len(entry.counts) == model.config.num_experts
        assert (entry.sums[entry.counts > 0] > 0).all()
        assert (entry.sums[entry.counts == 0] == 0).all()
    # Every token goes to some expert, so the experts' inputs are those of all tokens, k times.
    gate = found.entries["blk.0.ffn_gate_exps.weight"]
    hidden = hooked(model, {"model.layers.0.post_attention_layernorm": "before"})["before"]
    assert gate.sums.shape[1] == len(hidden)
    threads = computed(tmp_path, threads=3)
    for name, entry in found.entries.items():
        np.testing.assert_array_equal(threads.entries[name].sums, entry.sums)


def test_a_text_shorter_than_a_window_is_refused(tmp_path: Path) -> None:
    saved("qwen2", oracle("qwen2"), tmp_path)
    watched, checkpoint = Watched(), open_checkpoint(tmp_path)
    model = models.load_model(checkpoint, on_made=watched.add)
    assert model.vocab_size == VOCAB_SIZE
    with pytest.raises(InvalidRequestError, match="15 tokens, less than one window"):
        compute_imatrix(model, watched, TOKENS[:15], tensor_aliases={}, window=WINDOW)
