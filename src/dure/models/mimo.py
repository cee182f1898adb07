"""MiMo-7B (Xiaomi 2025, arXiv 2505.07608): Qwen2's graph, and a multi-token prediction (MTP) layer.

The MTP layer drafts the token after the next one, from the hidden state and the next token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.layers.attention import Attention
from dure.layers.basic import GatedMLP
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import DecoderLayer
from dure.layers.mtp import MTPNames, load_mtp
from dure.layers.rope import RopeConfig

if TYPE_CHECKING:
    from dure.models.config import Config
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = None  # converters write it as a qwen2, without the MTP layer


@dataclass(frozen=True)
class MimoConfig:
    """The sizes of one MiMo."""

    vocab_size: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    context_length: int
    tied: bool
    windows: tuple[int | None, ...]  # each layer's sliding window, None for full attention
    rope: RopeConfig

    @classmethod
    def read(cls, config: Config) -> MimoConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.expect("hidden_act", "silu")
        config.expect("num_nextn_predict_layers", 0, 1)
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads()
        layers = config.integer("num_hidden_layers", high=1024)
        head_dim = config.head_dim(hidden // heads)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-5),
            context_length=config.context_length(32768),
            tied=config.flag("tie_word_embeddings", False),
            windows=config.windows(layers),
            rope=RopeConfig.from_hf(
                config.values, head_dim, default_theta=640_000.0, partial=config.is_gguf
            ),
        )


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: MimoConfig, weights: Weights, name: str, window: int | None) -> None:
        super().__init__(weights, name, config)
        self.mixer = Attention(
            weights,
            f"{name}.self_attn",
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            bias=True,
            window=window,
        )
        self.mlp = GatedMLP(weights, f"{name}.mlp", config.hidden, config.intermediate)


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = MimoConfig.read(config)
        super().__init__(
            weights,
            sizes,
            lambda i: Block(sizes, weights, f"model.layers.{i}", sizes.windows[i]),
        )
        name = "model.mtp_layers.0"  # fine-tuned checkpoints often lack it
        names = MTPNames(
            f"{name}.token_layernorm",
            f"{name}.hidden_layernorm",
            f"{name}.input_proj",
            f"{name}.final_layernorm",
        )
        self.mtp, self.draft_problem = load_mtp(
            weights,
            sizes,
            names,
            lambda found: Block(sizes, found, name, None),
            self.norm,
            leftovers=("model.mtp_layers.",),
            hidden_first=True,
            before_norm=True,
        )
