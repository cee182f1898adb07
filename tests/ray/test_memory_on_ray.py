"""A model whose weights are larger than the budget of each node, but not than both together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_embedders import VOCAB_SIZE, write_texts

from dure import LLM, SamplingParams
from dure.errors import NotEnoughMemoryError

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own

HIDDEN, WIDE, LAYERS, HEADS, KV_HEADS, HEAD = 1024, 8192, 8, 8, 2, 128
BUDGET = 420_000_000
PARAMS = SamplingParams(max_tokens=8, temperature=0.8, seed=5, logprobs=3, ignore_eos=True)
SETTINGS: dict[str, Any] = {"threads": 1, "context": 256}


def written(folder: Path) -> Path:
    """A dense model of 444 MB in float16, each matrix of one drawn tile."""
    drawn = np.random.default_rng(1)
    shapes = {"model.embed_tokens.weight": (VOCAB_SIZE, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        of = f"model.layers.{layer}"
        shapes |= {
            f"{of}.input_layernorm.weight": (HIDDEN,),
            f"{of}.post_attention_layernorm.weight": (HIDDEN,),
            f"{of}.self_attn.q_proj.weight": (HEADS * HEAD, HIDDEN),
            f"{of}.self_attn.k_proj.weight": (KV_HEADS * HEAD, HIDDEN),
            f"{of}.self_attn.v_proj.weight": (KV_HEADS * HEAD, HIDDEN),
            f"{of}.self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD),
            f"{of}.mlp.gate_proj.weight": (WIDE, HIDDEN),
            f"{of}.mlp.up_proj.weight": (WIDE, HIDDEN),
            f"{of}.mlp.down_proj.weight": (HIDDEN, WIDE),
        }
    tensors = {}
    for name, shape in shapes.items():
        tile = drawn.standard_normal((min(64, shape[0]), *shape[1:])).astype(np.float16)
        scale = np.float16(1.0 if len(shape) == 1 else shape[1] ** -0.5)
        tensors[name] = np.resize(tile * scale, shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": WIDE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_texts(folder, ends=False)
    return folder


def test_a_model_that_fits_no_node_alone_runs_on_two(cluster: Any, tmp_path: Path) -> None:
    folder = written(tmp_path)
    assert (folder / "model.safetensors").stat().st_size > BUDGET
    with pytest.raises(NotEnoughMemoryError):
        LLM(folder, memory=BUDGET, **SETTINGS)
    with pytest.raises(
        NotEnoughMemoryError,
        match=r"in 2 stages needs .* of memory, and the nodes have 0.30 GB and 0.30 GB",
    ) as refused:
        LLM(folder, ray=cluster.address, stages=2, memory=300_000_000, **SETTINGS)
    assert "add a node" in str(refused.value.hint)
    prompts = ["What both have in common", "and one that is short"]
    with LLM(folder, **SETTINGS) as alone:
        expected = [(each.text, each.logprobs) for each in alone.generate(prompts, PARAMS)]
    with LLM(folder, ray=cluster.address, stages=2, memory=BUDGET, **SETTINGS) as llm:
        assert llm.stages is not None
        [stage] = llm.stages.status()
        assert (stage.first_layer, stage.last_layer) == (0, LAYERS // 2 - 1)
        assert stage.memory_bytes <= BUDGET
        assert [(each.text, each.logprobs) for each in llm.generate(prompts, PARAMS)] == expected
