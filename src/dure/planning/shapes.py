"""The tensors of a model of which nothing is known but its config: enough to plan it.

The family's own file is asked which tensors it wants. So a model of the catalogue has a plan
without a connection.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dure import models
from dure.errors import ModelNotFoundError
from dure.formats.blocks import BLOCKS
from dure.formats.checkpoint import Checkpoint
from dure.formats.tensors import TensorInfo
from dure.models.config import read_config
from dure.weights.header_weights import HeaderWeights

if TYPE_CHECKING:
    from dure.formats.source import SourceFile
    from dure.hub import CatalogueEntry
    from dure.weights.rows_on_disk import RowsOnDisk

TypeOf = Callable[[str, tuple[int, ...]], str]
"""From a tensor's name and shape to its type."""

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


class _Asking(HeaderWeights):
    """Weights that have every tensor that a model asks for; experts are stacked."""

    def __init__(self, checkpoint: Checkpoint, type_of: TypeOf) -> None:
        super().__init__(checkpoint)
        self.tensors: dict[str, TensorInfo] = {}
        self._type_of = type_of

    def has(self, name: str) -> bool:
        """Check for what there are two ways to store: experts are one tensor a part."""
        return ".experts." in name and name.endswith("_proj.weight")

    def _take(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        dtype = self._type_of(name, shape)
        block = BLOCKS[dtype]
        size = math.prod(shape) // block.block_size * block.block_bytes
        no_file = cast("SourceFile", None)
        self.tensors[name] = TensorInfo(name, dtype, shape, no_file, 0, size)
        return self.tensors[name]

    def floats(self, name: str, *shapes: tuple[int, ...], offset: float = 0.0) -> Any:
        """Return ones; see HeaderWeights."""
        self._take(name, shapes[0])
        return super().floats(name, *shapes, offset=offset)

    def rows_on_disk(self, name: str, rows: int, cols: int) -> RowsOnDisk | None:
        """Return None: everything is in memory."""
        del name, rows, cols
        return None


def sketch(name: str, config: Mapping[str, Any], type_of: TypeOf) -> Checkpoint:
    """Return the checkpoint that a model of this config.json has; its tensors cannot be read.

    type_of: the type of each tensor. Raises UnsupportedModelError for what does not run.
    """
    empty = Checkpoint(Path(name), "safetensors", {}, config=dict(config))
    weights = _Asking(empty, type_of)
    models.family_of(empty).Model(read_config(empty), weights)
    return Checkpoint(Path(name), "safetensors", weights.tensors, config=dict(config))


def catalogued(entry: CatalogueEntry) -> Checkpoint:
    """Return the checkpoint of a model of the catalogue, from what the package knows of it.

    Raises ModelNotFoundError if the package does not know its sizes.
    """
    config = _configs().get(entry.name)
    if config is None:
        raise ModelNotFoundError(
            f"The package does not know the sizes of {entry.name}.",
            hint=f"dure pull {entry.name}, then plan it",
        )
    config = dict(config)
    repeated = bool(config.pop("head_repeated", False))
    tied = bool(config["tie_word_embeddings"])
    config["tie_word_embeddings"] = tied and not repeated
    rule = gguf_types(
        entry.quantisation, layers=config["num_hidden_layers"], tied=tied and not repeated
    )
    return sketch(entry.name, {"max_position_embeddings": entry.context, **config}, rule)


@lru_cache(maxsize=1)
def _configs() -> Mapping[str, Mapping[str, Any]]:
    """Read the configs of the catalogue's models: the keys of config.json that decide sizes."""
    path = Path(__file__).with_name("catalogue_configs.json")
    configs: Mapping[str, Mapping[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return configs


def gguf_types(quantisation: str, *, layers: int, tied: bool) -> TypeOf:
    """Return the rule by which llama.cpp gives tensors a type in a file of this quantisation.

    Q4_K_M has values and down projections of half of the layers in Q6_K, and the head; where rows
    are no multiple of 256, Q5_0 and Q8_0 take the place of Q4_K and Q6_K. Others have one type,
    but Q8_0 for a tied head of fewer bits. Source: llama_tensor_get_type of llama-quant.cpp.
    """

    def more_bits(layer: int) -> bool:
        eighth = layers // 8
        return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2

    def type_of(name: str, shape: tuple[int, ...]) -> str:
        if len(shape) < 2 or name.endswith(".mlp.gate.weight"):
            return "F32"
        is_head = name == "lm_head.weight" or (tied and name == "model.embed_tokens.weight")
        if quantisation != "Q4_K_M":
            return "Q8_0" if is_head else quantisation
        match = _LAYER.match(name)
        wide = match is not None and name.endswith(("v_proj.weight", "down_proj.weight"))
        larger = is_head or (wide and match is not None and more_bits(int(match[1])))
        if shape[-1] % 256:
            return "Q8_0" if larger else "Q5_0"
        return "Q6_K" if larger else "Q4_K"

    return type_of
