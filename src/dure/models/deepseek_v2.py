"""DeepSeek-V2, V2-Lite and Coder-V2 (DeepSeek-AI 2024, arXiv 2405.04434): multi-head latent
attention (MLA), and routed experts beside shared ones.

GGUF files use the same architecture name for DeepSeek-V3, so its router is here, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.errors import UnsupportedModelError
from dure.layers.basic import GatedMLP
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import DecoderLayer
from dure.layers.latent_attention import LatentAttention
from dure.layers.moe import Routing, SparseMLP
from dure.layers.mtp import MTPNames, load_mtp
from dure.layers.rope import RopeConfig, magnitude_scale

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dure.models.config import Config
    from dure.weights.loader import Weights

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]

GGUF_ARCHITECTURE = "deepseek2"
_SIGMOID = 2  # what a GGUF's expert_gating_func calls it; 1 is softmax


@dataclass(frozen=True)
class DeepseekConfig:
    """The sizes of one DeepSeek-V2 or V3."""

    vocab_size: int
    hidden: int
    intermediate: int
    expert_intermediate: int
    experts: int
    shared_experts: int
    dense_layers: int  # the first layers, which have a dense MLP
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
    interleaved: bool
    scale: float  # of attention scores
    rope: RopeConfig
    routing: Routing
    corrected: bool  # the router has a bias for the choice (e_score_correction_bias)

    @classmethod
    def read(
        cls, config: Config, *, gguf: bool, version: int, counts_drafts: bool = False
    ) -> DeepseekConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute.

        version: 2 or 3, for the defaults. counts_drafts: whether the number of layers includes
        those that only guess tokens, as newer GGUF files have it.
        """
        for key, allowed in (("hidden_act", "silu"), ("mlp_bias", False), ("moe_layer_freq", 1)):
            config.expect(key, allowed)
        experts = config.integer("num_experts", 64 if version == 2 else 256, high=65536)
        layers = config.integer("num_hidden_layers", high=1024)
        extra = config.integer("num_nextn_predict_layers", 0, low=0, high=64)
        if counts_drafts:
            layers -= min(extra, layers - 1)
        rotated = config.integer("qk_rope_head_dim", config.integer("rotary_dim", 64))
        whole = config.integer("qk_head_dim", config.integer("head_dim", 192)) if gguf else 0
        plain = whole - rotated if gguf else config.integer("qk_nope_head_dim", 128)
        value = config.integer("v_head_dim", config.integer("value_head_dim", 128))
        latent = config.integer("kv_lora_rank", 512)
        if min(plain, value, latent) < 16 or plain % 16 or value % 16 or latent % 16:
            raise UnsupportedModelError(
                f"{config.source} has heads of {plain} and {value} dimensions out of latents of "
                f"{latent}; dure runs multiples of 16."
            )
        no_latent = gguf or "q_lora_rank" in config.values
        queries = config.integer("q_lora_rank", 1 if no_latent else 1536)
        rope = RopeConfig.from_hf({**config.values, "rotary_dim": rotated}, rotated)
        context = config.context_length(2048 if version == 2 else 4096)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=config.integer("hidden_size"),
            intermediate=config.integer("intermediate_size"),
            expert_intermediate=config.integer("moe_intermediate_size"),
            experts=experts,
            shared_experts=config.integer("n_shared_experts", 2 if version == 2 else 1, low=0),
            dense_layers=config.integer("first_k_dense_replace", 0 if version == 2 else 3, low=0),
            extra_layers=extra,
            layers=layers,
            heads=config.integer("num_attention_heads", high=65536),
            query_latent=queries if queries > 1 else None,
            latent=latent,
            plain=plain,
            rotated=rotated,
            value=value,
            norm_eps=config.positive("rms_norm_eps", 1e-6),
            context_length=context,
            tied=config.flag("tie_word_embeddings", False),
            bias=config.flag("attention_bias", False),
            interleaved=config.flag("rope_interleave", True),
            scale=_scale(plain + rotated, rope),
            rope=rope,
            routing=(_best_groups if version == 2 else _best_pairs)(config, experts, gguf=gguf),
            corrected=version > 2,
        )


def _scale(width: int, rope: RopeConfig) -> float:
    """Return the factor of attention scores; YaRN's magnitude counts twice, for q and for k."""
    stretched = rope.type != "default" and rope.mscale_all_dim
    magnitude = magnitude_scale(rope.factor, rope.mscale_all_dim or 0.0) if stretched else 1.0
    return float(width**-0.5) * magnitude**2


def _best_groups(config: Config, experts: int, *, gguf: bool) -> Routing:
    """Read V2's router: softmax scores; a group counts as much as its best expert."""
    config.expect("scoring_func", "softmax")
    config.expect("topk_method", "greedy", "group_limited_greedy")
    # Where it is true, the original multiplies by the scale or normalises; transformers ignores it.
    config.expect("norm_topk_prob", False)
    grouped = gguf or config.values.get("topk_method") == "group_limited_greedy"
    groups, kept = _groups(config, experts, gguf=gguf) if grouped else (1, 1)
    return Routing(
        top_k=config.integer("num_experts_per_tok", high=experts),
        normalize=False,
        group_rule="max" if groups > 1 else "none",
        groups=groups,
        kept_groups=kept,
        scale=config.positive("routed_scaling_factor", 1.0),
    )


def _best_pairs(config: Config, experts: int, *, gguf: bool) -> Routing:
    """Read V3's router: sigmoid scores; a group counts as much as its best two experts."""
    config.expect("scoring_func", "sigmoid")
    config.expect("topk_method", "noaux_tc")
    groups, kept = _groups(config, experts, gguf=gguf)
    return Routing(
        top_k=config.integer("num_experts_per_tok", 8, high=experts),
        # config.json's default is True; GGUF writes it only where it is true.
        normalize=config.flag("norm_topk_prob", not gguf),
        score="sigmoid",
        group_rule="top2" if groups > 1 else "none",
        groups=groups,
        kept_groups=kept,
        scale=config.positive("routed_scaling_factor", 1.0 if gguf else 2.5),
    )


def _groups(config: Config, experts: int, *, gguf: bool) -> tuple[int, int]:
    """Return how many groups of experts there are, and how many a token's experts may come from."""
    # GGUF files from before September 2025 lack these keys for the two models that have groups.
    usual = {160: (8, 3), 256: (8, 4)}.get(experts, (1, 1)) if gguf else (8, 4)
    chosen = config.integer("num_experts_per_tok", 8, high=experts)
    return config.expert_groups(experts, chosen, usual=usual)


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: DeepseekConfig, weights: Weights, index: int) -> None:
        name = f"model.layers.{index}"
        super().__init__(weights, name, config)
        self.mixer = LatentAttention(
            weights,
            f"{name}.self_attn",
            hidden=config.hidden,
            heads=config.heads,
            latent=config.latent,
            plain=config.plain,
            rotated=config.rotated,
            value=config.value,
            query_latent=config.query_latent,
            scale=config.scale,
            bias=config.bias,
            interleaved=config.interleaved,
        )
        if index < config.dense_layers:
            self.mlp = GatedMLP(weights, f"{name}.mlp", config.hidden, config.intermediate)
            return
        self.mlp = SparseMLP(
            weights,
            f"{name}.mlp",
            hidden=config.hidden,
            intermediate=config.expert_intermediate,
            experts=config.experts,
            routing=config.routing,
            bias="gate.e_score_correction_bias" if config.corrected else None,
            shared="shared_experts" if config.shared_experts else None,
            shared_intermediate=config.shared_experts * config.expert_intermediate,
        )


class Model(Decoder):
    """The whole model: token ids to logits."""

    VERSION = 2

    def __init__(self, config: Config, weights: Weights) -> None:
        sigmoid = weights.is_gguf and config.values.get("gating_func") == _SIGMOID
        last = config.integer("num_hidden_layers", high=1024) - 1
        sizes = DeepseekConfig.read(
            config,
            gguf=weights.is_gguf,
            version=3 if sigmoid else self.VERSION,
            counts_drafts=weights.has(f"blk.{last}.nextn.eh_proj.weight"),
        )
        self.config = sizes
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
        names = MTPNames.nextn(sizes.layers, is_gguf=weights.is_gguf)
        self.mtp, self.draft_problem = load_mtp(
            weights, sizes, names, lambda found: Block(sizes, found, sizes.layers), self.norm
        )
        for extra in range(sizes.layers, sizes.layers + sizes.extra_layers):
            weights.skip_all(f"model.layers.{extra}.")
            weights.skip_all(f"blk.{extra}.")  # GGUF's tensors that have no name in transformers
