"""Kimi-Linear 48B-A3B (Kimi team 2025, arXiv 2510.26692): three layers of Kimi Delta Attention to
one of latent attention, which knows no positions, and DeepSeek-V3's router.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dure.errors import ModelFileError
from dure.layers.basic import GatedMLP
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import DecoderLayer
from dure.layers.kimi_delta import KimiDeltaAttention
from dure.layers.latent_attention import LatentAttention
from dure.layers.moe import SparseMLP
from dure.models.config import Config
from dure.models.deepseek_config import V3, DeepseekConfig, best_pairs

if TYPE_CHECKING:
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = "kimi-linear"
TENSOR_ALIASES = {
    ".block_sparse_moe.": ".mlp.",
    ".w1.": ".gate_proj.",
    ".w3.": ".up_proj.",
    ".w2.": ".down_proj.",
    ".forget_gate.": ".",
    "blk.{}.ssm_a": "model.layers.{}.self_attn.A",
    "blk.{}.ssm_beta": "model.layers.{}.self_attn.b_proj",
    "blk.{}.ssm_dt.bias": "model.layers.{}.self_attn.dt_bias",
    "blk.{}.ssm_norm": "model.layers.{}.self_attn.o_norm",
}
_USUAL = replace(
    V3,
    dense_layers=1,
    query_latent=1,  # none
    context_length=1_048_576,
    norm_eps=1e-5,
)
_SCALE = 2.446  # of routed experts


@dataclass(frozen=True)
class KimiLinearConfig(DeepseekConfig):
    """The sizes of one Kimi-Linear."""

    recurrent: tuple[bool, ...]  # for each layer: delta attention, or latent attention
    delta_heads: int
    delta_dim: int  # of a head
    kernel: int  # of the convolutions, in tokens

    @classmethod
    def of(cls, config: Config) -> KimiLinearConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.expect("gating_func", 2)  # in GGUF: 2 is sigmoid
        config.expect("moe_router_activation_func", "sigmoid")
        config.expect("mla_use_nope", True)
        config.expect("num_nextn_predict_layers", 0)
        config.expect("hidden_act", "silu")  # of convolutions, too
        sizes = DeepseekConfig.read(config, _USUAL)
        routing = best_pairs(config, sizes.experts, chosen=8, scale=_SCALE)
        if config.is_gguf:  # which need not say what llama.cpp does without being told
            routing = replace(routing, normalize=config.flag("norm_topk_prob", True))
        nested = _nested(config)

        def size(key: str, theirs: str, usual: int, high: int) -> int:
            return nested.integer(theirs, config.integer(key, usual, high=high), high=high)

        heads = sizes.heads if config.is_gguf else 32
        return cls(
            **{**vars(sizes), "routing": routing},
            recurrent=_recurrent(config, nested, sizes.layers),
            delta_heads=size("linear_num_heads", "num_heads", heads, 1024),
            delta_dim=size("linear_head_dim", "head_dim", 128, 1024),
            kernel=size("linear_conv_kernel_dim", "short_conv_kernel_size", 4, 16),
        )


def _nested(config: Config) -> Config:
    """Return the table of the recurrent layers' sizes, linear_attn_config; empty without one."""
    table = config.values.get("linear_attn_config")
    found: dict[str, Any] = table if isinstance(table, dict) else {}
    return Config(found, f"{config.source}: linear_attn_config")


def _recurrent(config: Config, nested: Config, layers: int) -> tuple[bool, ...]:
    """Return for each layer whether it is recurrent.

    That is by layer_types, else by the table's lists, which count from 1; else by transformers'
    rule, which is not that of the published model.
    """
    if config.values.get("layer_types"):
        return config.recurrent_layers(layers)
    attending, deltas = (set(nested.integers(f"{kind}_layers")) for kind in ("full_attn", "kda"))
    if attending or deltas:
        both = sorted([*attending, *deltas])
        if both != list(range(1, layers + 1)):
            raise ModelFileError(
                f"{nested.source} has full_attn_layers and kda_layers in which not each of 1 to "
                f"{layers} is once."
            )
        return tuple(layer + 1 in deltas for layer in range(layers))
    return tuple(layer == 0 or layer % 4 != 0 for layer in range(layers))


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    mixer: KimiDeltaAttention | LatentAttention

    def __init__(self, config: KimiLinearConfig, weights: Weights, index: int) -> None:
        name = f"model.layers.{index}"
        super().__init__(weights, name, config)
        if config.recurrent[index]:
            self.mixer = KimiDeltaAttention(
                weights,
                f"{name}.self_attn",
                hidden=config.hidden,
                heads=config.delta_heads,
                head_dim=config.delta_dim,
                kernel=config.kernel,
                norm_eps=config.norm_eps,
                narrow=True,
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
                scale=float((config.plain + config.rotated) ** -0.5),
                bias=config.bias,
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
        )


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = KimiLinearConfig.of(config)
        blocks = [None] * sizes.layers  # nothing is rotated
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index), ropes=blocks)
