"""Gemma 4's sizes, which differ from layer to layer, of every form in which configs have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dure.errors import ModelFileError, UnsupportedModelError
from dure.layers.moe import Routing
from dure.layers.rope import RopeConfig
from dure.models.config import Config

if TYPE_CHECKING:
    Has = Callable[[str], bool]

_SLIDING, _FULL = "sliding_attention", "full_attention"
_PERIOD = 6  # the last of so many layers has no window, if the config does not say it
_HEADS, _VOCABULARY = (8, 4), 262144  # where makers' files leave them out
_ROPES: Mapping[str, Mapping[str, Any]] = {
    _SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    _FULL: {
        "rope_type": "proportional",
        "rope_theta": 1_000_000.0,
        "partial_rotary_factor": 0.25,
    },
}


@dataclass(frozen=True)
class LayerSizes:
    """What differs between layers."""

    window: int | None
    kv_heads: int
    head_dim: int
    values_are_keys: bool
    source: int  # the layer whose keys and values it attends to: itself, or one before
    intermediate: int
    rope: RopeConfig


@dataclass(frozen=True)
class Gemma4Config:
    """The sizes of one Gemma 4."""

    vocab_size: int
    hidden: int
    kinds: tuple[LayerSizes, ...]  # of each layer
    heads: int
    routing: Routing | None  # None: no experts
    experts: int
    expert_intermediate: int
    own_width: int  # of a layer's own embedding; 0: none
    own_rows: int  # tokens that have one
    norm_eps: float
    context_length: int
    tied: bool
    rope: RopeConfig  # of layers without a window
    bias: bool  # on all attention projections
    logit_cap: float | None

    @property
    def layers(self) -> int:
        """The number of layers."""
        return len(self.kinds)

    @classmethod
    def read(cls, config: Config, has: Has) -> Gemma4Config:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute.

        has: whether the checkpoint has a tensor, by which GGUF says where values are keys.
        """
        config.expect("hidden_activation", "gelu_pytorch_tanh")
        config.expect("use_bidirectional_attention", "vision", False)
        vocab_size = config.integer("vocab_size", _VOCABULARY)
        none = _is_unified(config) or config.is_gguf
        own_width = config.integer("hidden_size_per_layer_input", 0 if none else 256, low=0)
        own_rows = config.integer("vocab_size_per_layer_input", _VOCABULARY)
        own_rows = vocab_size if config.is_gguf else own_rows
        if own_width and own_rows < vocab_size:
            raise ModelFileError(
                f"{config.source} has vocab_size_per_layer_input = {own_rows:,}, fewer than the "
                f"{vocab_size:,} tokens."
            )
        routing, experts = _routing(config)
        kinds = _kinds(config, has)
        capped = config.values.get("final_logit_softcapping")
        return cls(
            vocab_size=vocab_size,
            hidden=config.integer("hidden_size"),
            kinds=kinds,
            heads=config.heads(*_HEADS)[0] if not config.is_gguf else _heads(config),
            routing=routing,
            experts=experts,
            expert_intermediate=config.integer("moe_intermediate_size") if routing else 0,
            own_width=own_width,
            own_rows=own_rows,
            norm_eps=config.positive("rms_norm_eps", 1e-6),
            context_length=config.context_length(_context(config)),
            tied=config.flag("tie_word_embeddings", True),
            rope=next((each.rope for each in kinds if each.window is None), kinds[0].rope),
            bias=config.flag("attention_bias", False),
            logit_cap=config.positive("final_logit_softcapping") if capped else None,
        )


def _is_unified(config: Config) -> bool:
    """Check whether it is the 12B, whose class has defaults of its own."""
    return str(config.values.get("model_type")).startswith("gemma4_unified")


def _context(config: Config) -> int:
    """Return the tokens of a sequence where the config does not say them."""
    return 262144 if _is_unified(config) else 131072


def _heads(config: Config) -> int:
    return config.integer("num_attention_heads", high=65536)


def _routing(config: Config) -> tuple[Routing | None, int]:
    """Read the router, and how many experts there are; None and 0 without any."""
    key = "num_experts_per_tok" if config.is_gguf else "top_k_experts"
    there = bool(config.values.get("num_experts"))
    if not (there if config.is_gguf else config.flag("enable_moe_block", False)):
        return None, 0
    experts = config.integer("num_experts", high=65536)
    return Routing(config.integer(key, high=experts), normalize=True), experts


def _kinds(config: Config, has: Has) -> tuple[LayerSizes, ...]:
    """Return the sizes of each layer."""
    layers = config.integer("num_hidden_layers", high=1024)
    names = config.layer_kinds(layers, _FULL, _SLIDING)
    if names is None:
        names = [_SLIDING if (i + 1) % _PERIOD else _FULL for i in range(layers)]
    names = [*names[:-1], _FULL]  # whatever the config says
    sources = _sources(config, names)
    head_dims, kv_heads = _of_gguf(config, names) if config.is_gguf else _of_folder(config, names)
    same = _values_are_keys(config, names, has)
    widths = _widths(config, sources)
    usual = 1024 if _is_unified(config) else 512
    window = config.integer("sliding_window", usual) if _SLIDING in names else 0
    ropes = {
        (name, head_dim): _rope(config, head_dim, name)
        for name, head_dim in sorted({*zip(names, head_dims, strict=True)})
    }
    if sum(name == _FULL for name, _ in ropes) > 1:
        raise UnsupportedModelError(
            f"{config.source} has heads of several sizes in its layers without a window "
            "(per_layer_config), which dure does not run."
        )
    return tuple(
        LayerSizes(
            window=window if name == _SLIDING else None,
            kv_heads=kv_heads[index],
            head_dim=head_dims[index],
            values_are_keys=same[index],
            source=sources[index],
            intermediate=widths[index],
            rope=ropes[name, head_dims[index]],
        )
        for index, name in enumerate(names)
    )


def _sources(config: Config, names: list[str]) -> list[int]:
    """Return each layer's source of keys and values: the last layer of its kind that has some."""
    layers = len(names)
    shared = config.integer("num_kv_shared_layers", 0, low=0, high=layers - 1)
    last = {name: index for index, name in enumerate(names[: layers - shared])}
    if last.keys() != set(names):
        raise ModelFileError(
            f"{config.source} has num_kv_shared_layers = {shared}: none of the {layers - shared} "
            "layers before has keys and values of the same kind to share."
        )
    own = range(layers - shared)
    return [*own, *(last[name] for name in names[layers - shared :])]


def _of_folder(config: Config, names: list[str]) -> tuple[list[int], list[int]]:
    """Return each layer's head size and KV heads, of a config.json.

    Makers' files have keys for the layers without a window, transformers 5.24 a table a layer.
    """
    heads, usual = config.heads(*_HEADS)
    head_dim = config.head_dim(256)
    tables = config.values.get("per_layer_config")
    if tables is None:
        wide = config.integer("global_head_dim", 512, high=65536)
        few = usual
        if config.flag("attention_k_eq_v", False):
            few = config.integer("num_global_key_value_heads", usual, high=heads)
        full = {"head_dim": wide, "num_key_value_heads": few}
        own_sizes: dict[int, Mapping[str, Any]] = {
            index: full for index, name in enumerate(names) if name == _FULL
        }
    else:
        own_sizes = _tables(config, tables, len(names))
    each = []
    for index in range(len(names)):
        values = {"num_attention_heads": heads, "num_key_value_heads": usual, "head_dim": head_dim}
        own = Config({**values, **own_sizes.get(index, {})}, f"{config.source} (layer {index})")
        each.append((own.head_dim(head_dim), own.heads()[1]))
    return [size for size, _ in each], [count for _, count in each]


def _tables(config: Config, tables: Any, layers: int) -> dict[int, Mapping[str, Any]]:
    """Return per_layer_config's tables by the numbers of their layers."""
    if not isinstance(tables, Mapping) or not all(isinstance(t, Mapping) for t in tables.values()):
        raise ModelFileError(f"{config.source} has a per_layer_config that is not a table of them.")
    found: dict[int, Mapping[str, Any]] = {}
    for key, table in tables.items():
        if not key.isascii() or not key.isdigit() or int(key[:9]) >= layers:
            raise UnsupportedModelError(
                f"{config.source} has per_layer_config for {key[:20]!r}, which is none of its "
                f"{layers} layers."
            )
        other = next((k for k in table if k not in ("head_dim", "num_key_value_heads")), None)
        if other is not None:
            raise UnsupportedModelError(
                f"{config.source} has {other[:40]!r} in its per_layer_config, which dure does not "
                "read for this architecture, so running it would give wrong answers."
            )
        found[int(key)] = table
    return found


def _of_gguf(config: Config, names: list[str]) -> tuple[list[int], list[int]]:
    """Return each layer's head size and KV heads, of a GGUF's keys."""
    wide, heads = config.head_dim(512), _heads(config)
    head_dim = config.integer("head_dim_swa", wide, high=65536)
    for size, suffix in ((wide, ""), (head_dim, "_swa")):
        config.expect(f"value_head_dim{suffix}", size)
        config.expect(f"rotary_dim{suffix}", size)
    if "rotary_dim_swa" not in config.values:  # llama.cpp then rotates as many in both kinds
        config.expect("rotary_dim", head_dim)
    counts = config.of_each_layer("num_key_value_heads", len(names), heads, high=heads)
    if head_dim % 2 or any(heads % each for each in counts):
        raise ModelFileError(
            f"{config.source} has KV heads that do not divide the {heads} heads, or heads of an "
            "odd size."
        )
    return [wide if name == _FULL else head_dim for name in names], list(counts)


def _values_are_keys(config: Config, names: list[str], has: Has) -> list[bool]:
    """Return for each layer whether its values are its keys."""
    if config.is_gguf:
        proj = "model.layers.{}.self_attn.v_proj.weight"
        return [not has(proj.format(index)) for index in range(len(names))]
    same = config.flag("attention_k_eq_v", False)
    return [same and name == _FULL for name in names]


def _widths(config: Config, sources: list[int]) -> list[int]:
    """Return the width of each layer's MLP."""
    if config.is_gguf:
        return list(config.of_each_layer("intermediate_size", len(sources)))
    width = config.integer("intermediate_size", high=2**30)
    double = config.flag("use_double_wide_mlp", False)
    return [
        2 * width if double and source != index else width for index, source in enumerate(sources)
    ]


def _rope(config: Config, head_dim: int, kind: str) -> RopeConfig:
    """Read the rotation of one kind of layers."""
    longest = config.integer("max_position_embeddings", _context(config))
    values: dict[str, Any] = {"max_position_embeddings": longest}
    theta = _ROPES[kind]["rope_theta"]
    if config.is_gguf:  # rope_freqs.weight says which frequencies turn
        base = "rope_theta" if kind == _FULL else "rope_local_base_freq"
        scaling = config.values.get("rope_scaling") if kind == _FULL else None
        values |= {"rope_theta": config.values.get(base), "rope_scaling": scaling}
        return RopeConfig.from_hf(values, head_dim, default_theta=theta, partial=False)
    tables = config.values.get("rope_parameters")
    table = tables.get(kind) if isinstance(tables, Mapping) else tables
    values["rope_parameters"] = _ROPES[kind] if table is None else table
    return RopeConfig.from_hf(values, head_dim, default_theta=theta, partial=False)
