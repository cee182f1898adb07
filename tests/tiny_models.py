"""Tiny random models of every family, and a way to run them over a hand-made paged cache.

transformers is the oracle. Every parameter is drawn, since its initial values (norms of 1, biases
of 0) would hide a parameter that is not applied.
"""

from __future__ import annotations

import copy
import json
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import DTypeLike
from numpy_oracle import PanguProMoE
from tiny_configs import COMMON, MODELS, RECURRENT, VOCAB_SIZE

from dure.batch import BLOCK_SIZE, Batch, States, StateSpec
from dure.formats.checkpoint import open_checkpoint
from dure.models import Model, load_model

# Families that transformers lacks: the class whose maths is theirs, what makes it so, and what
# their own config.json says instead.
STAND_INS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "pangu_embedded": (
        "llama",
        {"attention_bias": True},
        {"model_type": "PanguEmbedded", "bias": True, "attention_bias": None},
    ),
    "bailing_moe_v2": (
        "glm4_moe",
        {"use_qk_norm": True, "norm_topk_prob": True},
        {"model_type": "bailing_moe_v2", "score_function": "sigmoid"},
    ),
    "mimo": ("qwen2", {}, {"model_type": "mimo", "num_nextn_predict_layers": 1}),
}


# What a family calls the stand-in's keys and, by parts of their names, its tensors; the last are
# made of several, one under the other.
_LINGS_KEYS = {
    "attention_bias": "use_qkv_bias",
    "n_routed_experts": "num_experts",
    "n_shared_experts": "num_shared_experts",
}
_LINGS_NAMES = {
    "embed_tokens": "word_embeddings",
    "self_attn.o_proj": "attention.dense",
    "self_attn.q_norm": "attention.query_layernorm",
    "self_attn.k_norm": "attention.key_layernorm",
    "e_score_correction_bias": "expert_bias",
}


def _as_ling(folder: Path) -> None:
    """Give a saved GLM-4.5 the keys and tensors of Ling-2.0, which is the same model."""
    from safetensors.numpy import load_file, save_file  # noqa: PLC0415

    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({_LINGS_KEYS.get(key, key): each for key, each in config.items()}))
    found: dict[str, np.ndarray] = {}
    for key, values in load_file(folder / "model.safetensors").items():
        name = key
        for theirs, ours in _LINGS_NAMES.items():
            name = name.replace(theirs, ours)
        found[name] = values
    for name in [name for name in found if ".self_attn.q_proj." in name]:
        parts = [found.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        fused = name.replace(".self_attn.q_proj.", ".attention.query_key_value.")
        found[fused] = np.concatenate(parts)
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})


# Families whose maths no class of transformers has.
NUMPY: dict[str, Any] = {"pangu_pro_moe": PanguProMoE}


def oracle(name: str, **changes: Any) -> Any:
    """The transformers model (or ours in numpy), float32, with every parameter and buffer drawn."""
    model_type, settings = MODELS[name]
    return oracle_of(model_type, {**settings, **changes})


def oracle_of(model_type: str, settings: Mapping[str, Any]) -> Any:
    """The same of a model_type and of what differs from COMMON."""
    import torch  # noqa: PLC0415  # seconds: only the tests that need an oracle pay
    from transformers import (  # noqa: PLC0415
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    if model_type in NUMPY:
        return NUMPY[model_type]({**COMMON, **settings}, drawn)
    stand_in, same, _ = STAND_INS.get(model_type, (model_type, {}, {}))
    values = copy.deepcopy({**COMMON, **settings, **same})  # transformers writes into tables
    make, options = AutoModelForCausalLM, {"attn_implementation": "eager", "dtype": torch.float32}
    if "vision_config" in values:
        make, values = AutoModelForImageTextToText, wrapped(values)
    model = make.from_config(AutoConfig.for_model(stand_in, **values), **options)
    with torch.no_grad():
        for key, values in model.state_dict().items():
            values.copy_(torch.from_numpy(drawn(key, tuple(values.shape))))
    return model.eval()


def wrapped(values: dict[str, Any]) -> dict[str, Any]:
    """The config of a model that also sees, whose `values` but vision_config are its text's."""
    outside = {key: values[key] for key in ("vision_config", "tie_word_embeddings")}
    text = {key: value for key, value in values.items() if key != "vision_config"}
    return {"text_config": text, **outside}


def saved(name: str, model: Any, folder: Path) -> Path:
    """The folder, now holding the oracle `model` as the makers of that family publish theirs."""
    return saved_as(MODELS[name][0], model, folder)


def saved_as(model_type: str, model: Any, folder: Path, **options: Any) -> Path:
    """The same of a model_type. options: of transformers' save_pretrained."""
    model.save_pretrained(folder, **options)
    if model_type in STAND_INS:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | STAND_INS[model_type][2]))
    if model_type == "bailing_moe_v2":
        _as_ling(folder)
    return folder


def reopened(folder: Path, **options: Any) -> Any:
    """The transformers model of a saved folder, float32 whatever it was saved as."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText  # noqa: PLC0415

    sees = "text_config" in json.loads((folder / "config.json").read_text())
    make = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    model = make.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, **options
    )
    return model.eval()


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values for one parameter, the same in every run: norms around 1, all else around 0."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    around_one = ("norm.weight", "norm_1.weight", "norm_2.weight", "layer_scalar", "router.scale")
    if name.endswith((*around_one, "router_scale", "per_expert_scale")):
        return (1 + rng.normal(0, 0.2, shape)).astype(np.float32)
    if name.endswith(".A_log"):  # states that last from 1 token to 100
        return np.log(rng.uniform(0.05, 8, shape)).astype(np.float32)
    if name.endswith(".dt_bias"):
        return rng.uniform(-4, 1, shape).astype(np.float32)
    spread = 0.2 if name.endswith((".bias", "proj_bias")) else 0.08
    if name.endswith((".sinks", ".attention_sink_bias")):  # as the scores beside them
        spread = 1.0
    return rng.normal(0, spread, shape).astype(np.float32)


def oracle_logits(model: Any, tokens: Sequence[int]) -> np.ndarray:
    """The oracle's logits (tokens, vocabulary) of one sequence in one pass."""
    if isinstance(model, tuple(NUMPY.values())):
        return np.asarray(model.logits(tokens))
    import torch  # noqa: PLC0415

    with torch.no_grad(), _wide_delta_rule(model):
        return np.asarray(model(torch.tensor([list(tokens)]), use_cache=False).logits[0])


@contextmanager
def _wide_delta_rule(model: Any) -> Iterator[None]:
    """Let a transformers model with gated delta rules compute them in float64, token by token.

    Its own form, by chunks in float32, solves a triangular system whose error is amplified: the
    logits then differ by up to 1e-3 with torch's kernels, which no tolerance can tell from a fault.
    Everything else, what goes into the rule too, stays transformers' own.
    """
    if model.config.model_type not in RECURRENT:
        yield
        return
    module = sys.modules[type(model).__module__]
    with ExitStack() as stack:
        # transformers up to 5.23 calls what the layer holds, and from 5.24 on the module's function
        holders = [(module, "torch_chunk_gated_delta_rule")]
        holders += [(module, "chunk_kimi_delta_attention")]
        holders += [(layer, "chunk_gated_delta_rule") for layer in model.modules()]
        found = [each for each in holders if hasattr(*each)]
        assert found, "transformers computes the gated delta rule in another place than was known"
        for holder, name in found:
            stack.enter_context(patch.object(holder, name, delta_rule))
        yield


def delta_rule(
    query: Any,
    key: Any,
    value: Any,
    g: Any,
    beta: Any,
    *,
    use_qk_l2norm_in_kernel: bool = False,
    **_: Any,
) -> tuple[Any, Any]:
    """Return the output (batch, tokens, value heads, width) of the gated delta rule, and the state.

    query and key (batch, tokens, key heads, width), value (batch, tokens, value heads, width), g
    and beta (batch, tokens, value heads), or g (..., key width); in float64, from an empty state.
    Source: arXiv 2412.06464, equation 10; of a g for each channel arXiv 2510.26692, equation 1.
    """
    import torch  # noqa: PLC0415

    dtype, groups = query.dtype, value.shape[2] // key.shape[2]
    q, k, v, g, beta = (each.double() for each in (query, key, value, g, beta))
    if use_qk_l2norm_in_kernel:
        q, k = (x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6) for x in (q, k))
    q, k = (x.repeat_interleave(groups, dim=2) for x in (q * q.shape[-1] ** -0.5, k))
    state = v.new_zeros(*v[:, 0].shape, k.shape[-1])  # (batch, heads, value width, key width)
    out = []
    for t in range(v.shape[1]):
        decay = g[:, t].exp()
        state = state * (decay[..., None, :] if decay.ndim == 3 else decay[..., None, None])
        missing = (v[:, t] - (state @ k[:, t, :, :, None])[..., 0]) * beta[:, t, :, None]
        state = state + missing[..., None] * k[:, t, :, None, :]
        out.append((state @ q[:, t, :, :, None])[..., 0])
    return torch.stack(out, dim=1).to(dtype), state.transpose(-1, -2).to(dtype)


def loaded(path: Path, *, threads: int = 1, exact: bool = True) -> Model:
    """Our model of a folder or GGUF file."""
    return load_model(open_checkpoint(path), threads=threads, exact=exact)


def random_sequences(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Token sequences of these lengths."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB_SIZE, length).tolist() for length in lengths]


class PagedRun:
    """Sequences that run through a model step by step, over blocks in random order.

    Every slot of the cache that no token has filled holds NaN, so that reading one shows.
    """

    def __init__(
        self,
        model: Model,
        sequences: Sequence[Sequence[int]],
        *,
        dtype: DTypeLike = np.float32,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.sequences = [np.array(tokens, np.int32) for tokens in sequences]
        self.done = [0] * len(sequences)
        self.logits: list[list[np.ndarray]] = [[] for _ in sequences]
        needed = [-(-len(tokens) // BLOCK_SIZE) for tokens in sequences]
        num_blocks = 2 * sum(needed) + 3
        order = np.random.default_rng(seed).permutation(num_blocks).astype(np.int32)
        self.tables = np.full((len(sequences), max(needed)), -1, np.int32)
        for row, count in enumerate(needed):
            self.tables[row, :count], order = order[:count], order[count:]
        num_slots = 2 * len(sequences) + 1
        slots = np.random.default_rng(seed).permutation(num_slots).astype(np.int32)
        self.slots = slots[: len(sequences)]
        self.cache = tuple(
            np.full((num_slots, layer.size), np.nan, np.float32)
            if isinstance(layer, StateSpec)
            else np.full((num_blocks, *layer.block_shape()), np.nan, dtype)
            for layer in model.kv_cache_specs
        )

    def step(self, counts: Sequence[int]) -> None:
        """Runs the next `counts[i]` tokens of each sequence in one pass; all logits are kept."""
        active = [index for index, count in enumerate(counts) if count]
        spans = [(index, self.done[index], self.done[index] + counts[index]) for index in active]
        tokens = np.concatenate([self.sequences[index][start:stop] for index, start, stop in spans])
        batch = Batch(
            tokens=tokens,
            positions=np.concatenate([np.arange(*span[1:], dtype=np.int32) for span in spans]),
            sequences=np.repeat(
                np.arange(len(active), dtype=np.int32), [counts[index] for index in active]
            ),
            block_tables=np.ascontiguousarray(self.tables[active]),
            logit_rows=np.arange(len(tokens), dtype=np.int32),
            states=States(self.slots[active], np.empty((0, 2), np.int32)),
        )
        rows = self.model.forward(batch, self.cache)
        assert rows.shape == (len(tokens), self.model.vocab_size)
        for index, start, stop in spans:
            self.logits[index].append(rows[: stop - start])
            rows = rows[stop - start :]
            self.done[index] = stop

    def finish(self, steps: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The logits (tokens, vocabulary) of every sequence after these steps, which end all."""
        for counts in steps:
            self.step(counts)
        assert self.done == [len(tokens) for tokens in self.sequences]
        return [np.concatenate(rows) for rows in self.logits]


def prefill_logits(
    model: Model, tokens: Sequence[int], *, dtype: DTypeLike = np.float32
) -> np.ndarray:
    """Our logits (tokens, vocabulary) of one sequence in one pass."""
    return PagedRun(model, [tokens], dtype=dtype).finish([(len(tokens),)])[0]


def furthest(expected: np.ndarray, actual: np.ndarray) -> float:
    """The largest absolute difference; a NaN on either side is infinitely far."""
    assert expected.shape == actual.shape
    difference = np.abs(expected - actual).max()
    return float("inf") if np.isnan(difference) else float(difference)
