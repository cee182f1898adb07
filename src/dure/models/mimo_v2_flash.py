"""MiMo-V2-Flash (Xiaomi 2025, arXiv 2601.02780): windows with sinks in five layers of six, values
narrower than keys, and DeepSeek-V3's router without a shared expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dure.errors import ModelFileError, UnsupportedModelError
from dure.layers.attention import Attention
from dure.layers.basic import GatedMLP
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import DecoderLayer
from dure.layers.moe import Routing, SparseMLP
from dure.layers.rope import Rope, RopeConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dure.models.config import Config
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = None
MODEL_TYPES = ("mimo_v2",)
TENSOR_ALIASES = {
    ".attention_sink_bias": ".sinks",
    ".mlp.e_score_correction_bias": ".mlp.gate.e_score_correction_bias",
}

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
    heads: int
    head_dim: int
    value_dim: int
    value_scale: float
    kinds: tuple[LayerSizes, ...]  # of each layer
    norm_eps: float
    context_length: int
    tied: bool
    bias: bool  # on q, k and v
    rope: RopeConfig

    @classmethod
    def read(cls, config: Config) -> MimoV2FlashConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.expect("hidden_act", "silu")
        config.expect("scoring_func", "sigmoid")
        config.expect("topk_method", "noaux_tc")
        config.expect("n_shared_experts", 0)
        layers = config.integer("num_hidden_layers", high=1024)
        experts = config.integer("num_experts", 256, high=65536)
        head_dim = config.head_dim(192)
        value_dim = config.integer("v_head_dim", 128, high=65536)
        heads = config.heads()[0]
        for key, same in (
            ("swa_head_dim", head_dim),
            ("swa_v_head_dim", value_dim),
            ("swa_num_attention_heads", heads),
        ):
            config.expect(key, same)
        norm = "layernorm_epsilon" if "layernorm_epsilon" in config.values else "rms_norm_eps"
        kinds = _layer_kinds(config, layers, head_dim)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=config.integer("hidden_size"),
            intermediate=config.integer("intermediate_size"),
            expert_intermediate=config.integer("moe_intermediate_size", 2048),
            experts=experts,
            routing=_routing(config, experts),
            sparse=_sparse(config, layers),
            layers=layers,
            heads=heads,
            head_dim=head_dim,
            value_dim=value_dim,
            value_scale=_value_scale(config),
            kinds=kinds,
            norm_eps=config.positive(norm, 1e-5),
            context_length=config.context_length(131072),
            tied=config.flag("tie_word_embeddings", False),
            bias=config.flag("attention_bias", False),
            rope=kinds[0].rope,
        )


def _value_scale(config: Config) -> float:
    """Return what values are multiplied with: 1 where the config says null."""
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


def _sparse(config: Config, layers: int) -> tuple[bool, ...]:
    """Return which layers are mixtures: all but the first, if the config does not say."""
    names = {"dense": False, "sparse": True}
    found = _per_layer(config, "mlp_layer_types", layers, names)
    found = found or _per_layer(config, "moe_layer_freq", layers, {0: False, 1: True})
    return found or tuple(i > 0 for i in range(layers))


def _layer_kinds(config: Config, layers: int, head_dim: int) -> tuple[LayerSizes, ...]:
    """Return each layer's window, KV heads, sinks and rotation."""
    kinds = config.layer_kinds(layers, "full_attention", "sliding_attention")
    pattern = _per_layer(config, "hybrid_layer_pattern", layers, {0: False, 1: True})
    if kinds is not None:
        sliding = tuple(kind == "sliding_attention" for kind in kinds)
    elif pattern is not None:
        sliding = pattern
    else:
        sliding = tuple(i > 0 and (i + 1) % 6 != 0 for i in range(layers))
    heads, kv_heads = config.heads()
    narrow = config.integer("swa_num_key_value_heads", 2 * kv_heads, high=heads)
    if heads % narrow:
        raise ModelFileError(
            f"{config.source} has {narrow} KV heads in its layers with a window, which do not "
            f"divide the {heads} heads."
        )
    # The makers' files count the tokens before the query, transformers' the query, too.
    before = config.integer("sliding_window_size", 0, low=0)
    window = before + 1 if before else config.integer("sliding_window", 129)
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
        _rope(config, head_dim, "sliding_attention", "swa_rope_theta"),
    )
    return tuple(near if each else full for each in sliding)


def _rope(config: Config, head_dim: int, kind: str, theta: str) -> RopeConfig:
    """Read the rotation of one kind of layers, whose base has a key of its own in makers' files."""
    values = {key: each for key, each in config.values.items() if key != "rope_theta"}
    if config.values.get(theta) is not None:
        values["rope_theta"] = config.values[theta]
    if values.get("partial_rotary_factor") is None:
        values["partial_rotary_factor"] = _ROTATED
    return RopeConfig.from_hf(values, head_dim, layer_type=kind, default_theta=_THETAS[kind])


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: MimoV2FlashConfig, weights: Weights, index: int) -> None:
        name, kind = f"model.layers.{index}", config.kinds[index]
        super().__init__(weights, name, config)
        self.mixer = Attention(
            weights,
            f"{name}.self_attn",
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=kind.kv_heads,
            head_dim=config.head_dim,
            bias=config.bias,
            window=kind.window,
            value_dim=config.value_dim,
            value_scale=config.value_scale,
            sinks=kind.sinks,
        )
        if not config.sparse[index]:
            self.mlp = GatedMLP(weights, f"{name}.mlp", config.hidden, config.intermediate)
            return
        self.mlp = SparseMLP(
            weights,
            f"{name}.mlp",
            hidden=config.hidden,
            intermediate=config.expert_intermediate,
            experts=config.experts,
            routing=config.routing,
            bias="gate.e_score_correction_bias",
        )


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = MimoV2FlashConfig.read(config)
        if weights.has("model.layers.0.self_attn.qkv_proj.weight"):
            raise UnsupportedModelError(
                f"{config.source} has q, k and v in one tensor, in slices of several devices "
                "(MiMo-V2.5), which dure does not read.",
                hint="MiMo-V2-Flash, which has them apart, runs.",
            )
        ropes = {each: Rope(each) for each in {kind.rope for kind in sizes.kinds}}
        super().__init__(
            weights,
            sizes,
            lambda index: Block(sizes, weights, index),
            ropes=[ropes[kind.rope] for kind in sizes.kinds],
        )
        weights.skip_all("model.mtp.")  # layers that only draft: transformers has none to hold to
