"""Llama 2 and 3, and models with the same block: SmolLM2, DeepSeek-Prover-7B, R1-Distill-Llama,
InternLM3, IQuest-Coder
(Touvron et al. 2023, arXiv 2307.09288; Grattafiori et al. 2024, arXiv 2407.21783).

GGUF files use the same architecture name for Mixtral, so its experts are here, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.layers.attention import Attention
from dure.layers.basic import GatedMLP
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import DecoderLayer
from dure.layers.moe import Routing, SparseMLP
from dure.layers.rope import RopeConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dure.models.config import Config
    from dure.weights.loader import Weights

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]

GGUF_ARCHITECTURE = "llama"
MODEL_TYPES = ("internlm3", "iquestcoder")
_USUAL = {"internlm3": (2, 32768), "iquestcoder": (8, 131072)}  # KV heads, and tokens of a context


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of one Llama model."""

    vocab_size: int
    hidden: int
    intermediate: int
    experts: int  # of each layer, each `intermediate` wide; 0: a dense MLP
    experts_per_token: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    context_length: int
    tied: bool
    bias: bool  # on all four attention projections
    mlp_bias: bool  # on all three of the MLP
    interleaved: bool  # rotated pairs are (2i, 2i + 1)
    rope: RopeConfig

    @classmethod
    def read(cls, config: Config, *, gguf: bool) -> LlamaConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.check_activation()
        config.expect("clip_qkv", False)
        # InternLM3's and IQuest-Coder's classes have defaults of their own.
        name = str(config.values.get("model_type"))
        kin = name in MODEL_TYPES
        few, longest = _USUAL.get(name, (None, 2048))
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads(kv=few)
        head_dim = config.head_dim(128 if kin else hidden // heads, null=hidden // heads)
        context = config.context_length(longest)
        experts = config.integer("num_experts", 0, low=0, high=65536) if gguf else 0
        chosen = config.integer("num_experts_per_tok", high=experts) if experts else 0
        if config.flag(
            "use_sliding_window", True
        ):  # Llama has no sliding window: a config that sets one is of another model
            config.expect("sliding_window", context)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size"),
            experts=experts,
            experts_per_token=chosen,
            layers=config.integer("num_hidden_layers", high=1024),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-5 if kin else 1e-6),
            context_length=context,
            tied=config.flag("tie_word_embeddings", False),
            bias=_bias(config, "attention_bias", "qkv_bias"),
            mlp_bias=_bias(config, "mlp_bias", "bias"),
            # GGUF converters permute the rows of q and k for interleaved RoPE.
            interleaved=gguf,
            rope=RopeConfig.from_hf(config.values, head_dim, partial=config.is_gguf),
        )


def _bias(config: Config, key: str, own: str) -> bool:
    """Check whether a config says that there are biases; InternLM3 has its `own` key first."""
    found = config.flag(key, False)
    return config.flag(own, found) if config.values.get("model_type") == "internlm3" else found


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: LlamaConfig, weights: Weights, index: int) -> None:
        name = f"model.layers.{index}"
        super().__init__(weights, name, config)
        self.mixer = Attention(
            weights,
            f"{name}.self_attn",
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            bias=config.bias,
            output_bias=config.bias,
            interleaved=config.interleaved,
        )
        if not config.experts:
            self.mlp = GatedMLP(
                weights, f"{name}.mlp", config.hidden, config.intermediate, bias=config.mlp_bias
            )
            return
        self.mlp = SparseMLP(
            weights,
            f"{name}.mlp",
            hidden=config.hidden,
            intermediate=config.intermediate,
            experts=config.experts,
            routing=Routing(config.experts_per_token, normalize=True),
        )


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = LlamaConfig.read(config, gguf=weights.is_gguf)
        factors = None  # llama3 RoPE scaling, which GGUF stores as a tensor
        if weights.has("rope_freqs.weight"):
            factors = weights.vector("rope_freqs.weight", sizes.rope.dim // 2)
        super().__init__(
            weights, sizes, lambda index: Block(sizes, weights, index), rope_factors=factors
        )
