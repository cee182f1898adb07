"""Ling-3.0, tiny and flash (inclusionAI 2026): layers of Kimi Delta Attention to one of latent
attention with a gate for each head, and DeepSeek-V3's router.

The decays of a delta layer have a lower bound, and what they and the gates are made of is projected
once, where Kimi-Linear projects twice. In flash, what the experts of the last layers compute has a
limit. Ling-2.5 has the same model_type and other layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dure.errors import ModelFileError, UnsupportedModelError
from dure.layers.basic import GatedMLP
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import DecoderLayer
from dure.layers.kimi_delta import KimiDeltaAttention
from dure.layers.latent_attention import LatentAttention
from dure.layers.moe import SparseMLP
from dure.layers.rope import RopeConfig
from dure.models.deepseek_config import V3, DeepseekConfig, best_pairs

if TYPE_CHECKING:
    from dure.models.config import Config
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = "bailingmoe3"
TENSOR_ALIASES = {
    "model.word_embeddings.": "model.embed_tokens.",
    ".attention.dense.": ".self_attn.o_proj.",
    ".attention.": ".self_attn.",
    ".forget_gate.": ".",
    ".mlp.gate.expert_bias": ".mlp.gate.e_score_correction_bias",
    "blk.{}.attn_gate": "model.layers.{}.self_attn.g_proj",
    "blk.{}.ssm_a": "model.layers.{}.self_attn.A",
    "blk.{}.ssm_beta": "model.layers.{}.self_attn.b_proj",
    "blk.{}.ssm_dt.bias": "model.layers.{}.self_attn.dt_bias",
    "blk.{}.ssm_f_a": "model.layers.{}.self_attn.f_proj",
    "blk.{}.ssm_g_a": "model.layers.{}.self_attn.g_proj",
    "blk.{}.ssm_norm": "model.layers.{}.self_attn.o_norm",
}
_USUAL = replace(
    V3,
    experts=512,
    dense_layers=2,
    query_latent=1,  # none
    context_length=262_144,
    theta=6_000_000.0,
    halves=False,
)
_NAMES = ("BailingMoeV3ForCausalLM", "BailingHybridForCausalLM")
# What the makers' file may say, and the values that this file computes.
_EXPECTED: dict[str, tuple[Any, ...]] = {
    "gating_func": (2,),  # in GGUF: 2 is sigmoid
    "score_function": ("sigmoid",),
    "gated_attention_proj_granularity_type": ("head_wise",),
    "moe_router_enable_expert_bias": (True,),
    "no_kda_lora": (True,),
    "use_kda_lora": (False,),
    "linear_silu": (True,),
    "mtp_use_kda": (False,),
    "num_kv_heads_for_linear_attn": (0,),
    "scale_router_input": (False,),
    "up_proj_norm": (False,),
    "use_bias": (False,),
    "use_mla_nope": (False,),
    "use_nGPT": (False,),
    "use_qk_norm": (True,),
    "use_qkv_bias": (False,),
    "value_norm": (False,),
}


@dataclass(frozen=True)
class BailingHybridConfig(DeepseekConfig):
    """The sizes of one Ling-3.0."""

    recurrent: tuple[bool, ...]  # for each layer: delta attention, or latent attention
    delta_dim: int  # of a head of delta attention, of which there are as many as of attention
    kernel: int  # of the convolutions, in tokens
    bound: float  # of the decays' logarithms, below 0; 0 for none
    limits: tuple[tuple[float, float], ...]  # of each layer's experts and shared one; 0 for none

    @classmethod
    def of(cls, config: Config) -> BailingHybridConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        _refuse_others(config)
        config.expect("hidden_act", "silu")  # of convolutions, too
        for key, allowed in _EXPECTED.items():
            config.expect(key, *allowed)
        sizes = DeepseekConfig.read(config, _USUAL, drafts_counted=config.is_gguf)
        _check_first_context(config, sizes)
        width = sizes.expert_intermediate
        config.expect("moe_shared_expert_intermediate_size", width, width * sizes.shared_experts)
        groups = (1, 1) if config.is_gguf else (8, 4)
        return cls(
            **{
                **vars(sizes),
                "routing": best_pairs(config, sizes.experts, chosen=8, groups=groups, scale=2.5),
            },
            recurrent=_recurrent(config, sizes.layers, sizes.extra_layers),
            delta_dim=config.integer(
                "linear_head_dim", config.integer("head_dim", 128, high=2**17), high=1024
            ),
            kernel=config.integer(
                "linear_conv_kernel_dim", config.integer("short_conv_kernel_size", 4), high=16
            ),
            bound=_bound(config),
            limits=tuple(
                zip(
                    _limits(config, "expert_swiglu_limit_list", sizes.layers),
                    _limits(config, "share_expert_swiglu_limit_list", sizes.layers),
                    strict=True,
                )
            ),
        )


def _refuse_others(config: Config) -> None:
    """Raise UnsupportedModelError for Ling-2.5."""
    named = config.values.get("architectures")
    if isinstance(named, list) and named and not any(each in _NAMES for each in named):
        raise UnsupportedModelError(
            f"{config.source} is of {str(named[0])[:60]}, whose model_type is Ling-3.0's and whose "
            "layers are not: Ling-2.5 and 2.6 would need lightning attention. dure runs "
            f"{_NAMES[0]}."
        )


def _check_first_context(config: Config, sizes: DeepseekConfig) -> None:
    """Refuse a scaling that names no first context: transformers may take another than ours."""
    if config.is_gguf or sizes.rope.type not in ("yarn", "llama3"):
        return
    usual = config.replaced({"max_position_embeddings": _USUAL.context_length}).values
    taken = RopeConfig.from_hf(usual, sizes.rotated, partial=False, default_theta=_USUAL.theta)
    if taken != sizes.rope:
        raise UnsupportedModelError(
            f"{config.source} does not say from which context it scales ({sizes.rope.type}).",
            hint="add original_max_position_embeddings to its table of the rotation.",
        )


def _limits(config: Config, key: str, layers: int) -> tuple[float, ...]:
    """Return the limit of each layer's experts; 0 for none.

    The list may go on, with layers that draft, and a layer after its end has no limit. The makers'
    own code for transformers passes over it, and the model was trained with it.
    """
    listed = config.values.get(key)
    each = [] if listed is None else listed if isinstance(listed, list) else [listed] * layers
    limits = [0 if limit is None else limit for limit in each]
    if not all(type(limit) in (int, float) and 0 <= limit < math.inf for limit in limits):
        raise ModelFileError(
            f"{config.source} has {key} = {str(listed)[:60]}; a layer's limit is a number above 0, "
            "or 0 for none."
        )
    return tuple([*map(float, limits), *[0.0] * layers][:layers])


def _bound(config: Config) -> float:
    """Return the lower bound of the decays' logarithms, a number below 0; 0 for none."""
    value = config.values.get("kda_lower_bound")  # a GGUF may have it, too, where none counts
    if not config.flag("kda_safe_gate", True):
        return 0.0
    value = -5.0 if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not -88 <= value < 0:
        raise ModelFileError(
            f"{config.source} has kda_lower_bound = {str(value)[:60]}; it must be from -88 to 0, "
            "and not 0."
        )
    return float(value)


def _recurrent(config: Config, layers: int, drafts: int) -> tuple[bool, ...]:
    """Return for each layer whether it is recurrent.

    That is by layer_types, else all but the last of each group and those after the last whole
    group, as in the makers' code.
    """
    if config.values.get("layer_types"):
        return config.recurrent_layers(layers, drafts=drafts)
    group = config.integer("layer_group_size", 6)
    last = layers // group * group
    return tuple((layer + 1) % group != 0 and layer < last for layer in range(layers))


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    mixer: KimiDeltaAttention | LatentAttention

    def __init__(self, config: BailingHybridConfig, weights: Weights, index: int) -> None:
        name = f"model.layers.{index}"
        super().__init__(weights, name, config)
        if config.recurrent[index]:
            self.mixer = KimiDeltaAttention(
                weights,
                f"{name}.self_attn",
                hidden=config.hidden,
                heads=config.heads,
                head_dim=config.delta_dim,
                kernel=config.kernel,
                norm_eps=config.norm_eps,
                narrow=False,
                bound=config.bound,
            )
        else:
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
                gated=True,
            )
        if not config.sparse_layers[index]:
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
            shared="shared_experts" if config.shared_experts else None,
            shared_intermediate=config.shared_experts * config.expert_intermediate,
            limits=config.limits[index],
        )


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = BailingHybridConfig.of(config)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
        for extra in range(sizes.layers, sizes.layers + sizes.extra_layers):  # those that draft
            weights.skip_all(f"model.layers.{extra}.")
            weights.skip_all(f"blk.{extra}.")  # GGUF's tensors that have no name in transformers
