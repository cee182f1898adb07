"""What a model is, read from its files without loading it: family, sizes, quantisation, memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dure.formats.card import read_card
from dure.formats.checkpoint import Checkpoint, open_checkpoint
from dure.formats.context import stretched_context
from dure.formats.jsonfile import read_list
from dure.formats.multimodal import language_config
from dure.formats.quantized_checkpoint import parameters_or_tensors

if TYPE_CHECKING:
    from dure.formats.expert_file import ExpertFile
    from dure.formats.quantized_checkpoint import Parameter
    from dure.formats.tensors import TensorInfo

_GGUF_KEYS = {
    "layers": "block_count",
    "hidden": "embedding_length",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "context": "context_length",
    "experts": "expert_count",
    "experts_used": "expert_used_count",
    "vocabulary": "vocab_size",
}
_CONFIG_KEYS = {
    "layers": ("num_hidden_layers",),
    "hidden": ("hidden_size",),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "context": ("max_position_embeddings", "model_max_length"),
    "experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "experts_used": (
        "num_experts_per_tok",
        "num_experts_per_token",
        "moe_topk",
        "top_k_experts",
    ),
    "vocabulary": ("vocab_size",),
}


@dataclass(frozen=True)
class ModelFacts:
    """What a model's files say about it. Missing numbers are 0, missing texts empty."""

    path: Path
    kind: str
    title: str
    architecture: str
    parameters: int
    active_parameters: int  # those that work on a token; all of them unless there are experts
    quantisation: Mapping[
        str, float
    ]  # what is stored -> its share of the parameters, largest first
    weight_bytes: int
    context: int
    vocabulary: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    experts_used: int
    license: str
    lineage: str
    chat_template: str
    tensors: tuple[TensorInfo, ...]
    experts_file: ExpertFile | None = None  # of a folder that `dure convert` wrote
    embeds: bool = False  # whether it is made for embeddings, and for no text

    def cache_bytes(self, tokens: int) -> int:
        """Return the bytes of `tokens` keys and values in float16; 0 if the files do not say."""
        return tokens * self.layers * self.kv_heads * self.head_dim * 2 * 2


def read_facts(path: Path) -> ModelFacts:
    """Read the facts of the model at `path` from its headers alone. Raises ModelFileError."""
    checkpoint = open_checkpoint(path)
    card = read_card(path) if path.is_dir() else {}
    numbers = _numbers(checkpoint)
    heads, hidden = numbers["heads"], numbers["hidden"]
    numbers["head_dim"] = numbers["head_dim"] or (hidden // heads if heads else 0)
    numbers["kv_heads"] = numbers["kv_heads"] or heads
    tensors = tuple(checkpoint.tensors.values())
    named = parameters_or_tensors(checkpoint)
    total = _elements(named.values())
    return ModelFacts(
        path=path,
        kind=checkpoint.kind,
        title=_text(checkpoint.metadata.get("general.name")),
        architecture=_architecture(checkpoint),
        parameters=total,
        active_parameters=total - _idle(named, numbers),
        quantisation=_mix(named.values()),
        weight_bytes=sum(tensor.size_bytes for tensor in tensors)
        + (checkpoint.experts.size_bytes if checkpoint.experts else 0),
        license=_text(checkpoint.metadata.get("general.license")) or _first(card.get("license")),
        lineage=_lineage(checkpoint, card),
        chat_template=checkpoint.chat_template or "",
        tensors=tensors,
        experts_file=checkpoint.experts,
        embeds=_embeds(checkpoint),
        **numbers,
    )


def _architecture(checkpoint: Checkpoint) -> str:
    named = _text(checkpoint.metadata.get("general.architecture"))
    return named or _text(checkpoint.config.get("model_type"))


def _embeds(checkpoint: Checkpoint) -> bool:
    """Check for GGUF's pooling_type (mean, cls or last), or sentence-transformers' Pooling."""
    if checkpoint.kind == "gguf":
        kind = checkpoint.metadata.get(f"{_architecture(checkpoint)}.pooling_type")
        return isinstance(kind, int) and kind in (1, 2, 3)
    path = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    modules = path / "modules.json"
    return modules.exists() and any(
        isinstance(each, Mapping) and str(each.get("type")).endswith(".Pooling")
        for each in read_list(modules)
    )


def _numbers(checkpoint: Checkpoint) -> dict[str, int]:
    if checkpoint.kind == "gguf":
        prefix = _architecture(checkpoint) + "."
        found = {
            field: _number(checkpoint.metadata.get(prefix + key))
            for field, key in _GGUF_KEYS.items()
        }
        tokens = checkpoint.metadata.get("tokenizer.ggml.tokens")
        count = len(tokens) if isinstance(tokens, Sized) else 0
        return {**found, "vocabulary": found["vocabulary"] or count}
    config = language_config(checkpoint.config)
    found = {
        field: next((n for key in keys if (n := _number(config.get(key)))), 0)
        for field, keys in _CONFIG_KEYS.items()
    }
    return {**found, "context": max(found["context"], stretched_context(config, found["context"]))}


def _number(value: Any) -> int:
    """Convert `value` to an integer; of a list with one number per layer, the largest."""
    if value is None or isinstance(value, (str, bytes, bool, Mapping)):
        return 0
    try:
        return int(max(value)) if hasattr(value, "__len__") else int(value)
    except (TypeError, ValueError, OverflowError):
        return 0


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _elements(tensors: Iterable[Parameter]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors)


def _idle(tensors: Mapping[str, Parameter], numbers: Mapping[str, int]) -> int:
    """Count the parameters of the experts that a token does not use."""
    experts, used = numbers["experts"], numbers["experts_used"]
    if not 0 < used < experts:
        return 0
    of_experts = _elements(t for n, t in tensors.items() if "_exps." in n or ".experts." in n)
    return of_experts * (experts - used) // experts


def _mix(tensors: Iterable[Parameter]) -> dict[str, float]:
    counted: Counter[str] = Counter()
    for tensor in tensors:
        counted[tensor.stored] += math.prod(tensor.shape)
    total = max(1, counted.total())
    return {dtype: count / total for dtype, count in counted.most_common()}


def _lineage(checkpoint: Checkpoint, card: Mapping[str, list[str]]) -> str:
    """Format what the model was made from: "distilled, from Qwen2.5 7B (Qwen)"."""
    metadata = checkpoint.metadata
    name = _text(metadata.get("general.base_model.0.name")) or _first(card.get("base_model"))
    maker = _text(metadata.get("general.base_model.0.organization"))
    own = _text(metadata.get("general.name")) or _text(checkpoint.config.get("_name_or_path"))
    told = (own, checkpoint.path.name, _text(metadata.get("general.finetune")))
    distilled = any("distill" in text.lower() for text in told)
    how = "distilled" if distilled else _first(card.get("base_model_relation"))
    source = f"{name} ({maker})" if name and maker else name
    return f"{how}, from {source}" if how and source else how or source


def _first(texts: Sequence[str] | None) -> str:
    return texts[0] if texts else ""
