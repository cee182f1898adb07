"""GLM-5 to 5.3 (Zhipu AI 2026): DeepSeek-V3.2's layers with other sizes; its indexers rotate
neighbours, and layers may share what the indexer of a layer before them chose (arXiv 2603.12201).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dure.errors import ModelFileError
from dure.models import deepseek_v32
from dure.models.deepseek_config import V3

if TYPE_CHECKING:
    from dure.models.config import Config
    from dure.models.deepseek_config import DeepseekConfig
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = "glm-dsa"
_KINDS = {"full": True, "shared": False, "F": True, "S": False}


class Model(deepseek_v32.Model):
    """The whole model: token ids to logits."""

    INDEX_HEADS, INTERLEAVED = 32, True
    DEFAULTS = replace(
        V3,
        groups=(1, 1),
        query_latent=2048,
        plain=192,
        value=256,
        context_length=202_752,
        norm_eps=1e-5,
        halves=False,
    )

    def _full_layers(
        self, config: Config, weights: Weights, sizes: DeepseekConfig
    ) -> Sequence[bool]:
        """Return for each layer whether it has an indexer of its own.

        That is by indexer_types, else the makers' pattern, else every index_topk_freq-th layer from
        index_skip_topk_offset - 1 on and all before; of a GGUF, by its tensors.
        """
        if config.is_gguf:
            names = (f"model.layers.{i}.self_attn.indexer.wk.weight" for i in range(sizes.layers))
            full = tuple(weights.has(name) for name in names)
        else:
            full = own_indexers(config, sizes.layers, drafts=sizes.extra_layers)
        if not full[0]:
            raise ModelFileError(
                f"{config.source} has no indexer in its first layer, which could share no choice."
            )
        return full


def own_indexers(config: Config, layers: int, *, drafts: int = 0) -> tuple[bool, ...]:
    """Return for each layer of a folder whether it has an indexer of its own.

    drafts: multi-token prediction layers after these, which the config's lists may include.
    """
    for key in ("indexer_types", "index_topk_pattern"):
        kinds = config.values.get(key)
        if kinds is None:
            continue
        wrong = not isinstance(kinds, list | str) or len(kinds) not in (layers, layers + drafts)
        if wrong or any(not isinstance(k, str) or k not in _KINDS for k in kinds):
            raise ModelFileError(
                f"{config.source} has {key} = {str(kinds)[:60]}; it must be full or shared for "
                f"each of {layers} layers."
            )
        return tuple(_KINDS[kind] for kind in kinds[:layers])
    every = max(config.integer("index_topk_freq", 1, low=0), 1)
    offset = config.integer("index_skip_topk_offset", 2, low=0)
    return tuple(max(i - offset + 1, 0) % every == 0 for i in range(layers))
