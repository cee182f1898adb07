"""MiniCPM3 (OpenBMB 2024, arXiv 2404.06395): DeepSeek's attention over latents in a dense model,
whose embeddings, branches and last hidden states are scaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.layers.basic import GatedMLP
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import DecoderLayer
from dure.layers.latent_attention import LatentAttention
from dure.layers.rope import RopeConfig
from dure.models.deepseek_config import score_scale

if TYPE_CHECKING:
    from dure.models.config import Config
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = "minicpm3"


@dataclass(frozen=True)
class MiniCPM3Config:
    """The sizes of one MiniCPM3."""

    vocab_size: int
    hidden: int
    intermediate: int
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
    mlp_bias: bool  # on all three of the MLP
    scale: float  # of attention scores
    rope: RopeConfig
    embedding_scale: float
    residual_scale: float
    logit_divisor: float

    @classmethod
    def read(cls, config: Config, weights: Weights) -> MiniCPM3Config:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.check_activation()
        gguf = config.is_gguf
        hidden = config.integer("hidden_size")
        layers = config.integer("num_hidden_layers", high=1024)
        heads = config.integer("num_attention_heads", high=65536)
        if gguf:  # llama.cpp has as many heads of keys
            config.expect("num_key_value_heads", heads)
        rotated = config.integer("rotary_dim" if gguf else "qk_rope_head_dim", 32)
        plain = config.integer("qk_nope_head_dim", 64)
        if gguf:
            plain = config.integer("head_dim", plain + rotated, low=rotated + 1) - rotated
        no_queries = gguf or "q_lora_rank" in config.values
        queries = config.integer("q_lora_rank", 1 if no_queries else 768)
        rope = _rope(config, weights, rotated)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size"),
            layers=layers,
            heads=heads,
            query_latent=queries if queries > 1 else None,
            latent=config.integer("kv_lora_rank", 256),
            plain=plain,
            rotated=rotated,
            value=config.integer("v_head_dim", config.integer("value_head_dim", hidden // heads)),
            norm_eps=config.positive("rms_norm_eps", 1e-5),
            context_length=config.context_length(32768),
            tied=config.flag("tie_word_embeddings", True),
            bias=config.flag("attention_bias", False),
            mlp_bias=config.flag("mlp_bias", False),
            scale=score_scale(plain + rotated, rope),
            rope=rope,
            # A GGUF has no keys for these; they are those of the 4B model in llama.cpp, too.
            embedding_scale=_or_one(config, "scale_emb", 12.0),
            residual_scale=_or_one(config, "scale_depth", 1.4, layers**0.5) / layers**0.5,
            logit_divisor=hidden / _or_one(config, "dim_model_base", 256.0, hidden),
        )


def _or_one(config: Config, key: str, usual: float, if_null: float = 1.0) -> float:
    """Return the number at `key`, or the one that makes a scale of 1 if the config says null."""
    off = key in config.values and config.values[key] is None
    return if_null if off else config.positive(key, usual)


def _rope(config: Config, weights: Weights, rotated: int) -> RopeConfig:
    """Read the rotation; a GGUF has LongRoPE's factors as tensors."""
    factors = ("rope_factors_long.weight", "rope_factors_short.weight")
    table = config.values.get("rope_scaling")
    if not (weights.is_gguf and isinstance(table, Mapping) and all(map(weights.has, factors))):
        return RopeConfig.from_hf(config.values, rotated, partial=False)
    keys = ("rope_theta", "max_position_embeddings")
    values = {key: config.values[key] for key in keys if key in config.values}
    named = zip(("long_factor", "short_factor"), factors, strict=True)
    values["rope_scaling"] = {
        **table,
        **{key: weights.vector(name, rotated // 2).tolist() for key, name in named},
    }
    return RopeConfig.from_hf(values, rotated, partial=False)


class Block(DecoderLayer):
    """One decoder layer: x += s attention(norm x); x += s mlp(norm x)."""

    def __init__(self, config: MiniCPM3Config, weights: Weights, index: int) -> None:
        name = f"model.layers.{index}"
        super().__init__(weights, name, config, residual_scale=config.residual_scale)
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
            interleaved=False,
        )
        self.mlp = GatedMLP(
            weights, f"{name}.mlp", config.hidden, config.intermediate, bias=config.mlp_bias
        )


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = MiniCPM3Config.read(config, weights)
        super().__init__(
            weights,
            sizes,
            lambda index: Block(sizes, weights, index),
            embedding_scale=sizes.embedding_scale,
            logit_divisor=sizes.logit_divisor,
        )
