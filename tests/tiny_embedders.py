"""Tiny embedding models and rerankers as makers publish them, and what torch makes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tiny_models import oracle_of
from tokenizers import decoders, models, pre_tokenizers, processors

END = "<|endoftext|>"
MARKS = [END, "<|im_start|>", "<|im_end|>"]
WORDS = ["<think>", "</think>"]
VOCAB_SIZE = 320
QUERY = "Instruct: Find the passage\nQuery:"
PROMPTS = {"query": QUERY, "document": ""}
SETTINGS = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": 512}


def tokenizer(*, ends: bool = True) -> tokenizers.Tokenizer:
    """A token a byte, "yes" and "no", and Qwen's marks; `ends`: an end after each text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    merges = [("y", "e"), ("ye", "s"), ("n", "o")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    made = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(MARKS)
    made.add_tokens(WORDS)
    if ends:
        end = (END, made.token_to_id(END))
        made.post_processor = processors.TemplateProcessing("$A " + END, "$A $B", [end])
    return made


def oracle(model_type: str = "qwen3", **changes: Any) -> Any:
    """The transformers model with a head, every parameter drawn."""
    return oracle_of(model_type, {**SETTINGS, **changes})


def write_texts(
    folder: Path, *, ends: bool = True, config: Mapping[str, Any] | None = None
) -> None:
    """Write the tokenizer beside a model."""
    tokenizer(ends=ends).save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "pad_token": END, "tokenizer_class": "Qwen2Tokenizer"}
    write(folder / "tokenizer_config.json", {**settings, **(config or {})})


def write(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def write_modules(
    folder: Path,
    *kinds: str,
    pooling: Mapping[str, Any] | None = None,
    prompts: Mapping[str, str] = PROMPTS,
    **more: Any,
) -> None:
    """Write sentence-transformers' files: these modules after the model."""
    modules = [{"idx": 0, "name": "0", "path": "", "type": _type("Transformer")}]
    for number, kind in enumerate(kinds, 1):
        place = f"{number}_{kind}"
        modules.append({"idx": number, "name": str(number), "path": place, "type": _type(kind)})
        (folder / place).mkdir(exist_ok=True)
        if kind == "Pooling":
            chosen = {"pooling_mode_lasttoken": True} if pooling is None else pooling
            write(folder / place / "config.json", {"word_embedding_dimension": 64, **chosen})
    write(folder / "modules.json", modules)
    write(folder / "sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": False})
    own = {"prompts": dict(prompts), "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write(folder / "config_sentence_transformers.json", {**own, **more})


def _type(kind: str) -> str:
    return f"sentence_transformers.models.{kind}"


def write_dense(place: Path, rows: int, cols: int = 64, activation: str = "Tanh") -> Any:
    """Write a dense layer (rows, cols); return its weight and bias."""
    from safetensors.numpy import save_file  # noqa: PLC0415

    rng = np.random.default_rng(5)
    weight = rng.normal(0, 0.2, (rows, cols)).astype(np.float32)
    bias = rng.normal(0, 0.2, rows).astype(np.float32)
    save_file({"linear.weight": weight, "linear.bias": bias}, place / "model.safetensors")
    kind = f"torch.nn.modules.activation.{activation}"
    settings = {"in_features": cols, "out_features": rows, "bias": True}
    write(place / "config.json", {**settings, "activation_function": kind})
    return weight, bias


def hidden(model: Any, ids: Sequence[int]) -> np.ndarray:
    """The states (tokens, hidden) after the last norm, of transformers."""
    import torch  # noqa: PLC0415

    with torch.no_grad():
        return np.asarray(model.model(torch.tensor([list(ids)]), use_cache=False)[0][0])


def pooled(states: np.ndarray, mode: str, skip: int = 0) -> np.ndarray:
    """The vector of states (tokens, hidden), by the formulas of sentence-transformers' Pooling."""
    seen = states.astype(np.float64)[skip:]
    weights = np.arange(skip + 1, len(states) + 1)
    found = {
        "cls": seen[0],
        "max": seen.max(0),
        "mean": seen.mean(0),
        "mean_sqrt_len_tokens": seen.sum(0) / np.sqrt(len(seen)),
        "weightedmean": (seen * weights[:, None]).sum(0) / weights.sum(),
        "lasttoken": seen[-1],
    }
    return found[mode]


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector with the length 1."""
    return vector / np.linalg.norm(vector)


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers.": "blk.",
}


def write_gguf(
    path: Path, model: Any, *, pooling: int, ends: bool | None = None, ranks: bool = False
) -> Path:
    """Write a Qwen3 as llama.cpp's converter writes its embedders and, if it `ranks`, rerankers.

    pooling: llama.cpp's number. ends: add_eos_token; None: the key is not there.
    """
    import gguf  # noqa: PLC0415

    config, texts = model.config, tokenizer()
    writer = gguf.GGUFWriter(str(path), "qwen3")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_uint32("qwen3.pooling_type", pooling)
    ids = texts.get_vocab(with_added_tokens=True)
    tokens = sorted(ids, key=lambda token: ids[token])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if each in MARKS else 4 if each in WORDS else 1 for each in tokens])
    writer.add_token_merges(["y e", "ye s", "n o"])
    writer.add_eos_token_id(ids[END])
    if ends is not None:
        writer.add_add_eos_token(ends)
    for name, values in model.state_dict().items():
        for theirs, ours in _GGUF_NAMES.items():
            name = name.replace(theirs, ours)  # noqa: PLW2901
        if name != "output.weight" or not config.tie_word_embeddings:
            writer.add_tensor(name, values.numpy())
    if ranks:
        rows = model.lm_head.weight[[ids["yes"], ids["no"]]].detach().numpy()
        writer.add_tensor("cls.output.weight", np.ascontiguousarray(rows))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
