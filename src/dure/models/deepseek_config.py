"""The sizes of DeepSeek-V2, V3 and the families that are made of their layers: all have the keys of
DeepSeek's config.json, and differ in what they take for one that is absent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.errors import ModelFileError
from dure.layers.moe import Routing
from dure.layers.rope import RopeConfig, magnitude_scale

if TYPE_CHECKING:
    from dure.models.config import Config


@dataclass(frozen=True)
class Defaults:
    """What transformers takes for the keys that a config.json lacks; all families of these layers
    have the same keys.
    """

    sigmoid: bool  # V3's router, else V2's
    experts: int
    chosen: int
    shared_experts: int
    dense_layers: int
    groups: tuple[int, int]  # of experts, and how many of these a token's experts may come from
    scale: float  # of routed experts
    query_latent: int
    plain: int
    value: int
    context_length: int
    norm_eps: float = 1e-6
    theta: float = 10_000.0  # the rotation's base
    halves: bool = False  # whether rope_interleave may be false


V2 = Defaults(
    sigmoid=False,
    experts=64,
    chosen=0,
    shared_experts=2,
    dense_layers=0,
    groups=(8, 4),
    scale=1.0,
    query_latent=1536,
    plain=128,
    value=128,
    context_length=2048,
)
V3 = Defaults(
    sigmoid=True,
    experts=256,
    chosen=8,
    shared_experts=1,
    dense_layers=3,
    groups=(8, 4),
    scale=2.5,
    query_latent=1536,
    plain=128,
    value=128,
    context_length=4096,
    halves=True,
)


@dataclass(frozen=True)
class DeepseekConfig:
    """The sizes of one DeepSeek-V2 or V3."""

    vocab_size: int
    hidden: int
    intermediate: int
    expert_intermediate: int
    experts: int
    shared_experts: int
    sparse_layers: tuple[bool, ...]  # each layer: a mixture of experts, or a dense MLP
    extra_layers: int  # multi-token prediction layers after the last: not run
    layers: int
    heads: int
    query_latent: int | None
    latent: int
    plain: int  # dimensions of a head's key that are not rotated
    rotated: int
    value: int
    norm_eps: float
    context_length: int
    tied: bool
    bias: bool  # on the projections to latents, and the output's
    mlp_bias: bool  # on all three of dense layers' MLP, and of the shared experts
    interleaved: bool
    scale: float  # of attention scores
    rope: RopeConfig
    routing: Routing
    corrected: bool  # the router has a bias for the choice (e_score_correction_bias)

    @classmethod
    def read(
        cls, config: Config, usual: Defaults, *, drafts_counted: bool = False
    ) -> DeepseekConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute.

        usual: the family's values of keys that are not there. drafts_counted: whether the number of
        layers includes those that only guess tokens, as newer GGUF files have it.
        """
        gguf = config.is_gguf
        config.check_activation()
        config.expect("moe_layer_freq", 1)
        if usual.sigmoid:  # which transformers passes over
            config.expect("mlp_bias", False)
            if not usual.halves:
                config.expect("rope_interleave", True)
        heads = config.integer("num_attention_heads", high=65536)
        if gguf:  # one head of keys, which all share; files of before April 2025 say all heads
            config.expect("num_key_value_heads", 1, heads)
        experts = config.integer("num_experts", usual.experts, high=65536)
        layers = config.integer("num_hidden_layers", high=1024)
        extra = config.integer("num_nextn_predict_layers", 0, low=0, high=64)
        if drafts_counted:
            layers -= min(extra, layers - 1)
        rotated = config.integer("qk_rope_head_dim", config.integer("rotary_dim", 64))
        whole = config.integer("qk_head_dim", config.integer("head_dim", 192)) if gguf else 0
        plain = whole - rotated if gguf else config.integer("qk_nope_head_dim", usual.plain)
        if plain < 1:
            raise ModelFileError(
                f"{config.source} has keys of {whole} dimensions, of which {rotated} are rotated; "
                "some must not be."
            )
        value = config.integer("v_head_dim", config.integer("value_head_dim", usual.value))
        latent = config.integer("kv_lora_rank", 512)
        no_latent = gguf or "q_lora_rank" in config.values
        queries = config.integer("q_lora_rank", 1 if no_latent else usual.query_latent)
        rope = RopeConfig.from_hf(config.values, rotated, partial=False, default_theta=usual.theta)
        context = config.context_length(usual.context_length)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=config.integer("hidden_size"),
            intermediate=config.integer("intermediate_size"),
            expert_intermediate=config.integer("moe_intermediate_size"),
            experts=experts,
            shared_experts=config.integer("n_shared_experts", usual.shared_experts, low=0),
            sparse_layers=config.sparse_layers(layers, usual.dense_layers, drafts=extra),
            extra_layers=extra,
            layers=layers,
            heads=heads,
            query_latent=queries if queries > 1 else None,
            latent=latent,
            plain=plain,
            rotated=rotated,
            value=value,
            norm_eps=config.positive("rms_norm_eps", usual.norm_eps),
            context_length=context,
            tied=config.flag("tie_word_embeddings", False),
            bias=config.flag("attention_bias", False),
            mlp_bias=config.flag("mlp_bias", False),
            # Other classes pass over it, and null is false to V3's.
            interleaved=not usual.halves or config.flag("rope_interleave", True, null=False),
            scale=score_scale(plain + rotated, rope),
            rope=rope,
            routing=(_best_pairs if usual.sigmoid else _best_groups)(config, experts, usual),
            corrected=usual.sigmoid,
        )

    @property
    def dense_layers(self) -> int:
        """How many layers there are before the first mixture of experts."""
        return self.sparse_layers.index(True) if True in self.sparse_layers else self.layers


def score_scale(width: int, rope: RopeConfig) -> float:
    """Return the factor of attention scores; YaRN's magnitude counts twice, for q and for k."""
    stretched = rope.type != "default" and rope.mscale_all_dim
    magnitude = magnitude_scale(rope.factor, rope.mscale_all_dim or 0.0) if stretched else 1.0
    return float(width**-0.5) * magnitude**2


def _best_groups(config: Config, experts: int, usual: Defaults) -> Routing:
    """Read V2's router: softmax scores; a group counts as much as its best expert."""
    config.expect("scoring_func", "softmax")
    config.expect("topk_method", "greedy", "group_limited_greedy")
    # Where it is true, the original multiplies by the scale or normalises; transformers ignores it.
    config.expect("norm_topk_prob", False)
    grouped = config.is_gguf or config.values.get("topk_method") == "group_limited_greedy"
    top_k = config.integer("num_experts_per_tok", high=experts)
    known = _known_groups(experts) if config.is_gguf else usual.groups
    groups, kept = (1, 1)
    if grouped:
        groups, kept = config.expert_groups(experts, 1, usual=known)
        # Experts of the other groups have a share of 0, however many are chosen.
        top_k = min(top_k, kept * (experts // groups))
    return Routing(
        top_k=top_k,
        normalize=False,
        group_rule="max" if groups > 1 else "none",
        groups=groups,
        kept_groups=kept,
        scale=config.positive("routed_scaling_factor", usual.scale),
    )


def _best_pairs(config: Config, experts: int, usual: Defaults) -> Routing:
    """Read V3's router; GGUF files of before September 2025 lack the keys of its groups."""
    config.expect("scoring_func", "sigmoid")
    config.expect("topk_method", "noaux_tc")
    return best_pairs(
        config,
        experts,
        chosen=usual.chosen,
        groups=_known_groups(experts) if config.is_gguf else usual.groups,
        scale=usual.scale,
    )


def best_pairs(
    config: Config,
    experts: int,
    *,
    chosen: int | None = None,
    groups: tuple[int, int] = (1, 1),
    normalize: bool = True,
    scale: float = 1.0,
) -> Routing:
    """Read a router as DeepSeek-V3 has it: sigmoid scores; a group counts as much as its best two.

    The others are what a config.json that lacks the keys means: experts of a token, how many groups
    there are and are kept, whether weights are normalised, and their factor. A GGUF has the flag
    only where it is true, and the factor where it is not 1.
    """
    top_k = config.integer("num_experts_per_tok", chosen, high=experts)
    count, kept = config.expert_groups(experts, top_k, usual=groups)
    return Routing(
        top_k=top_k,
        normalize=config.flag("norm_topk_prob", normalize and not config.is_gguf, null=False),
        score="sigmoid",
        group_rule="top2" if count > 1 else "none",
        groups=count,
        kept_groups=kept,
        scale=config.positive("routed_scaling_factor", 1.0 if config.is_gguf else scale),
    )


def _known_groups(experts: int) -> tuple[int, int]:
    """Return the groups of the models of so many experts that have some: V2 and V3."""
    return {160: (8, 3), 256: (8, 4)}.get(experts, (1, 1))
