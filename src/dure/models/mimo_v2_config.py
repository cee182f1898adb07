"""The sizes of MiMo-V2, whose layers with a window have other heads and rotations than the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dure.errors import ModelFileError
from dure.layers.moe import Routing
from dure.layers.rope import CONFIG_KEYS, RopeConfig

if TYPE_CHECKING:
    from dure.models.config import Config
    from dure.weights.loader import Weights

_ROTATED = 0.334  # of a head
_THETAS = {"full_attention": 5_000_000.0, "sliding_attention": 10_000.0}


@dataclass(frozen=True)
class LayerSizes:
    """What differs between layers with a window and those without."""

    window: int | None
    kv_heads: int
    sinks: bool
    rope: RopeConfig


@dataclass(frozen=True)
class MimoV2FlashConfig:
    """The sizes of one MiMo-V2."""

    vocab_size: int
    hidden: int
    intermediate: int
    expert_intermediate: int
    experts: int
    routing: Routing
    sparse: tuple[bool, ...]  # of each layer
    layers: int
    extra_layers: int  # that only draft, after these: a GGUF's
    heads: int
    head_dim: int
    value_dim: int
    value_scale: float
    kinds: tuple[LayerSizes, ...]  # of each layer
    draft_kind: LayerSizes  # of those that draft
    norm_eps: float
    context_length: int
    tied: bool
    bias: bool  # on q, k and v
    rope: RopeConfig

    @classmethod
    def read(cls, config: Config, weights: Weights) -> MimoV2FlashConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.check_activation()
        config.expect("scoring_func", "sigmoid")
        config.expect("topk_method", "noaux_tc")
        config.expect("n_shared_experts", 0)
        config.expect("gating_func", 2)  # in GGUF: 2 is sigmoid
        # GGUF counts the layers that draft.
        drafts = config.integer("num_nextn_predict_layers", 0, low=0, high=64)
        drafts = drafts if config.is_gguf else 0
        layers = config.integer("num_hidden_layers", low=drafts + 1, high=1024) - drafts
        experts = config.integer("num_experts", 256, high=65536)
        head_dim = config.head_dim(192)
        usual = config.integer("value_head_dim", 128, high=65536)  # GGUF's name for it
        value_dim = config.integer("v_head_dim", usual, high=65536)
        heads = config.heads(kv=4)[0]
        for key, same in (
            ("swa_head_dim", head_dim),
            ("swa_v_head_dim", value_dim),
            ("head_dim_swa", head_dim),  # and GGUF's names for them
            ("value_head_dim_swa", value_dim),
            ("swa_num_attention_heads", heads),
        ):
            config.expect(key, same)
        usual_eps = config.positive("layernorm_epsilon", 1e-5)  # the makers' name for it
        *kinds, draft_kind = _layer_kinds(config, weights, layers, drafts, head_dim)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=config.integer("hidden_size"),
            intermediate=config.integer("intermediate_size"),
            expert_intermediate=config.integer("moe_intermediate_size", 2048),
            experts=experts,
            routing=_routing(config, experts),
            sparse=_sparse(config, weights, layers),
            layers=layers,
            extra_layers=drafts,
            heads=heads,
            head_dim=head_dim,
            value_dim=value_dim,
            value_scale=_value_scale(config),
            kinds=tuple(kinds),
            draft_kind=draft_kind,
            norm_eps=config.positive("rms_norm_eps", usual_eps),
            context_length=config.context_length(131072),
            tied=config.flag("tie_word_embeddings", False),
            bias=(
                weights.has("model.layers.0.self_attn.q_proj.bias")
                if config.is_gguf
                else config.flag("attention_bias", False)
            ),
            rope=kinds[0].rope,
        )


def _value_scale(config: Config) -> float:
    """Return what values are multiplied with: 1 where the config says null.

    Converters before 2026 wrote no key for it, and a file does not show that it is missing.
    """
    if config.is_gguf and config.values.get("attention_value_scale") is None:
        raise ModelFileError(
            f"{config.source} does not say attention.value_scale, by which MiMo-V2 scales values.",
            hint="an older converter left it out: get a newer file, or convert the folder anew.",
        )
    off = "attention_value_scale" in config.values
    return config.positive("attention_value_scale", 1.0 if off else 0.707)


def _routing(config: Config, experts: int) -> Routing:
    """Read the router: sigmoid scores with a bias for the choice; best-two group scores."""
    chosen = config.integer("num_experts_per_tok", 8, high=experts)
    groups, kept = config.expert_groups(experts, chosen)
    return Routing(
        top_k=chosen,
        normalize=config.flag("norm_topk_prob", True),
        score="sigmoid",
        group_rule="top2" if groups > 1 else "none",
        groups=groups,
        kept_groups=kept,
        scale=config.positive("routed_scaling_factor", 1.0),
    )


def _per_layer(config: Config, key: str, layers: int, known: Mapping[Any, bool]) -> Any:
    """Return the list at `key` as flags, one a layer; None if there is none."""
    found = config.values.get(key)
    if found is None:
        return None
    values = found if isinstance(found, list) else [found]
    if len(values) != layers or any(each not in known for each in values):
        raise ModelFileError(
            f"{config.source} has {key} = {found!r:.60}; it must be one of "
            f"{' or '.join(map(repr, known))} for each of {layers} layers."
        )
    return tuple(known[each] for each in values)


def _sparse(config: Config, weights: Weights, layers: int) -> tuple[bool, ...]:
    """Return which layers are mixtures: all but the first, if the config does not say.

    A GGUF says it by its tensors.
    """
    if config.is_gguf:
        return tuple(weights.has(f"model.layers.{i}.mlp.gate.weight") for i in range(layers))
    names = {"dense": False, "sparse": True}
    found = _per_layer(config, "mlp_layer_types", layers, names)
    found = found or _per_layer(config, "moe_layer_freq", layers, {0: False, 1: True})
    return found or tuple(i > 0 for i in range(layers))


def _layer_kinds(
    config: Config, weights: Weights, layers: int, drafts: int, head_dim: int
) -> tuple[LayerSizes, ...]:
    """Return each layer's window, KV heads, sinks and rotation; last, of layers that draft."""
    kinds = config.layer_kinds(layers, "full_attention", "sliding_attention", drafts=drafts)
    pattern = _per_layer(config, "hybrid_layer_pattern", layers, {0: False, 1: True})
    if kinds is not None:
        sliding = tuple(kind == "sliding_attention" for kind in kinds)
    elif pattern is not None:
        sliding = pattern
    else:
        sliding = tuple(i > 0 and (i + 1) % 6 != 0 for i in range(layers))
    heads, kv_heads = config.heads(kv=4)
    usual = kv_heads if config.is_gguf else 2 * kv_heads
    narrow = config.integer("swa_num_key_value_heads", usual, high=heads)
    if heads % narrow:
        raise ModelFileError(
            f"{config.source} has {narrow} KV heads in its layers with a window, which do not "
            f"divide the {heads} heads."
        )
    # The makers' files count the tokens before the query, transformers' the query, too.
    window = config.integer("sliding_window", 129)
    window = config.integer("sliding_window_size", window - 1, low=0) + 1
    full = LayerSizes(
        None,
        kv_heads,
        config.flag("add_full_attention_sink_bias", False),
        _rope(config, head_dim, "full_attention", "rope_theta"),
    )
    near = LayerSizes(
        window,
        narrow,
        config.flag("add_swa_attention_sink_bias", True),
        _rope(
            config,
            head_dim,
            "sliding_attention",
            "rope_local_base_freq" if config.is_gguf else "swa_rope_theta",
        ),
    )
    found = (*(near if each else full for each in sliding), near)
    if not config.is_gguf:
        return found
    names = (f"model.layers.{i}.self_attn.sinks" for i in range(layers + 1))
    return tuple(
        replace(kind, sinks=weights.has(name)) for kind, name in zip(found, names, strict=True)
    )


def _rotated(config: Config, kind: str) -> Any:
    """Return which part of a head turns in one kind of layers whose own table does not say it.

    That is what the config says beside its tables. Where it has tables, transformers looks there
    only after it has met one that scales, and then rotates whole heads if there is nothing.
    """
    beside = config.values.get("partial_rotary_factor")
    tables = config.values.get("rope_parameters")
    if not isinstance(tables, Mapping) or not isinstance(tables.get(kind), Mapping):
        return _ROTATED if beside is None else beside
    usual = 1.0 if _is_scaled(tables[kind]) else _ROTATED
    looks = _is_scaled(tables[kind]) or _is_scaled(tables.get("full_attention"))
    return beside if looks and beside is not None else usual


def _is_scaled(table: Any) -> bool:
    """Check whether a table of one kind of layers scales its rotation."""
    if not isinstance(table, Mapping):
        return False
    return (table.get("rope_type") or table.get("type") or "default") != "default"


def _rope(config: Config, head_dim: int, kind: str, theta: str) -> RopeConfig:
    """Read the rotation of one kind of layers, whose base has a key of its own in makers' files."""
    names = {key: key for key in CONFIG_KEYS} | {"rope_theta": theta}
    if config.is_gguf and kind == "sliding_attention":
        del names["rope_scaling"]  # its one table is of layers without a window
        if "rotary_dim_swa" in config.values:
            names["rotary_dim"] = "rotary_dim_swa"
    values = {key: config.values.get(name) for key, name in names.items()}
    if not config.is_gguf:
        values["partial_rotary_factor"] = _rotated(config, kind)
    return RopeConfig.from_hf(values, head_dim, layer_type=kind, default_theta=_THETAS[kind])
