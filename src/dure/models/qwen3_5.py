"""Qwen3.5, 3.6 and 3.8 (Qwen team 2026), dense: three Gated DeltaNet layers to one of attention.

The mixtures of experts (qwen3_5_moe) are these with routed MLPs. Of what also sees, this is the
text part: all three positions of a text's token are one, so its rotation is the ordinary one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.layers.attention import Attention
from dure.layers.basic import GatedMLP
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import DecoderLayer
from dure.layers.delta_net import GatedDeltaNet
from dure.layers.moe import Routing, SparseMLP
from dure.layers.mtp import MTPNames, load_mtp
from dure.layers.rope import RopeConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dure.models.config import Config
    from dure.weights.loader import Weights

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]

GGUF_ARCHITECTURE = "qwen35"
MODEL_TYPES = ("qwen3_5_text",)
TENSOR_ALIASES = {".mlp.shared_expert.": ".mlp.shared_experts.", "model.mtp.": "mtp."}


@dataclass(frozen=True)
class Qwen35Config:
    """The sizes of one Qwen3.5 model."""

    vocab_size: int
    hidden: int
    intermediate: int  # of the dense models
    expert_intermediate: int
    shared_intermediate: int
    experts: int  # 0: dense
    routing: Routing
    recurrent: tuple[bool, ...]  # for each layer: Gated DeltaNet, or attention
    heads: int
    kv_heads: int
    head_dim: int
    key_heads: int  # of the recurrent layers, as are the four fields below
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    norm_eps: float
    norm_offset: float  # what is added to a stored norm: safetensors keep w - 1, GGUF w
    tiled: bool  # value heads in llama.cpp's order
    context_length: int
    tied: bool
    bias: bool  # on the attention projections
    rope: RopeConfig

    @property
    def layers(self) -> int:
        """The number of layers, of both kinds."""
        return len(self.recurrent)

    @classmethod
    def read(cls, config: Config, *, gguf: bool, sparse: bool) -> Qwen35Config:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute.

        sparse: whether the MLPs are mixtures of experts.
        """
        config.expect("gating_func", 0, 1)  # in GGUF: 0 is unset, 1 softmax
        config.expect("hidden_act", "silu")
        if sparse and config.is_gguf:  # transformers' class has no such key
            config.expect("norm_topk_prob", True)
        heads, kv_heads = config.heads(kv=2 if sparse else 4)
        experts, top_k = config.experts(256, 8) if sparse else (0, 0)
        layers = config.integer("num_hidden_layers", high=1024)
        drafts = 0
        if gguf:  # its block_count includes the multi-token prediction layers
            drafts = config.integer("num_nextn_predict_layers", 0, low=0, high=layers - 1)
        layers -= drafts
        head_dim = config.head_dim(256)
        key_heads = config.integer("linear_num_key_heads", 16, high=1024)
        value_heads = config.multiple("linear_num_value_heads", key_heads, 32, high=1024)
        value_dim = config.integer("linear_value_head_dim", 128, high=1024)
        if gguf:
            value_dim = config.multiple("linear_inner_size", value_heads, 4096, high=2**20)
            value_dim //= value_heads
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=config.integer("hidden_size"),
            intermediate=0 if sparse else config.integer("intermediate_size", 12288),
            expert_intermediate=config.integer("moe_intermediate_size", 512),
            shared_intermediate=config.integer("shared_expert_intermediate_size", 512),
            experts=experts,
            routing=Routing(top_k, normalize=True),
            recurrent=config.recurrent_layers(layers, drafts=drafts),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            key_heads=key_heads,
            value_heads=value_heads,
            key_dim=config.integer("linear_key_head_dim", 128, high=1024),
            value_dim=value_dim,
            kernel=config.integer("linear_conv_kernel_dim", 4, high=16),
            norm_eps=config.positive("rms_norm_eps", 1e-6),
            norm_offset=0.0 if gguf or config.flag("norms_are_whole", False) else 1.0,
            tiled=gguf,
            context_length=config.context_length(32768),
            tied=config.flag("tie_word_embeddings", False),
            bias=config.flag("attention_bias", False),
            rope=RopeConfig.from_hf(config.values, head_dim, fraction=0.25),
        )


class Block(DecoderLayer):
    """One decoder layer: x += attention or DeltaNet(norm x); x += mlp(norm x)."""

    def __init__(
        self, config: Qwen35Config, weights: Weights, name: str, *, recurrent: bool
    ) -> None:
        super().__init__(weights, name, config, norm_offset=config.norm_offset)
        self.mixer = _mixer(config, weights, name, recurrent=recurrent)
        if not config.experts:
            self.mlp = GatedMLP(weights, f"{name}.mlp", config.hidden, config.intermediate)
        else:
            self.mlp = SparseMLP(
                weights,
                f"{name}.mlp",
                hidden=config.hidden,
                intermediate=config.expert_intermediate,
                experts=config.experts,
                routing=config.routing,
                shared="shared_experts",
                shared_intermediate=config.shared_intermediate,
                shared_gate="shared_expert_gate",
            )


def _mixer(
    config: Qwen35Config, weights: Weights, name: str, *, recurrent: bool
) -> GatedDeltaNet | Attention:
    """Build the layer's token mixer: Gated DeltaNet or attention."""
    if recurrent:
        return GatedDeltaNet(
            weights,
            f"{name}.linear_attn",
            hidden=config.hidden,
            key_heads=config.key_heads,
            value_heads=config.value_heads,
            key_dim=config.key_dim,
            value_dim=config.value_dim,
            kernel=config.kernel,
            norm_eps=config.norm_eps,
            flat=True,
            tiled=config.tiled,
        )
    return Attention(
        weights,
        f"{name}.self_attn",
        hidden=config.hidden,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        bias=config.bias,
        output_bias=config.bias,
        norm_eps=config.norm_eps,
        norm_offset=config.norm_offset,
        gated=True,
    )


class Model(Decoder):
    """The whole model: token ids to logits."""

    SPARSE = False

    def __init__(self, config: Config, weights: Weights) -> None:
        gguf = weights.is_gguf
        self.config = sizes = Qwen35Config.read(config, gguf=gguf, sparse=self.SPARSE)

        def make_layer(index: int) -> Block:
            name = f"model.layers.{index}"
            return Block(sizes, weights, name, recurrent=sizes.recurrent[index])

        super().__init__(weights, sizes, make_layer, norm_offset=sizes.norm_offset)
        after = len(self.layers)
        names = MTPNames(
            "mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden", "mtp.fc", "mtp.norm"
        )
        block = "mtp.layers.0"
        if gguf:
            names, block = MTPNames.nextn(after, is_gguf=True), f"model.layers.{after}"
        self.mtp, self.draft_problem = load_mtp(
            weights,
            sizes,
            names,
            lambda found: Block(sizes, found, block, recurrent=False),
            self.norm,
            leftovers=("mtp.", f"model.layers.{after}.", f"blk.{after}.nextn."),
            norm_offset=sizes.norm_offset,
        )
