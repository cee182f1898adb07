"""A reader of what sentence-transformers writes beside a model: modules, pooling, prompts."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mutations import damaged_bytes, damaged_json, json_bytes
from reader import Reader

from dure.errors import DureError
from dure.formats.checkpoint import Checkpoint
from dure.pooling.config import PoolingConfig, read_pooling

_KINDS = ("Transformer", "Pooling", "Dense", "Normalize", "LogitScore", "Dropout", "LSTM")


class Pooling(Reader):
    """The folder's small files, damaged; a dense layer's weights, too."""

    name = "pooling"

    def __init__(self, folder: Path, *, small: bool = False) -> None:
        super().__init__(folder, small=small)
        import tiny_embedders  # noqa: PLC0415

        (folder / "base").mkdir(exist_ok=True)
        tiny_embedders.write_dense(folder / "base", 4, 8)
        self.weights = (folder / "base" / "model.safetensors").read_bytes()

    def draw(self, rng: random.Random) -> dict[str, bytes]:
        kinds = ["Transformer", *rng.choices(_KINDS[1:4], k=rng.randrange(4))]
        kinds += rng.choices(_KINDS, k=rng.randrange(2))
        modules = [
            {"idx": i, "path": f"{i}_{kind}" if i else "", "type": f"sentence.models.{kind}"}
            for i, kind in enumerate(kinds)
        ]
        files: dict[str, Any] = {
            "modules.json": modules,
            "config_sentence_transformers.json": {
                "prompts": {"query": "q: ", "document": ""},
                "default_prompt_name": rng.choice((None, "query", "x")),
            },
            "sentence_bert_config.json": {"max_seq_length": rng.choice((8, 512, -1))},
        }
        for i, kind in enumerate(kinds[1:], 1):
            files[f"{i}_{kind}/config.json"] = {
                "pooling_mode_mean_tokens": rng.random() < 0.5,
                "pooling_mode": rng.choice((None, "max", ["cls", "mean"])),
                "include_prompt": rng.random() < 0.5,
                **{"in_features": 8, "out_features": 4, "bias": rng.random() < 0.8},
                "activation_function": rng.choice(("torch.nn.Tanh", "torch.nn.Identity", "GELU")),
                **{"true_token_id": 3, "false_token_id": rng.choice((None, 4))},
            }
        damaged = rng.choice(sorted(files))
        drawn = {
            name: json_bytes(rng, damaged_json(rng, value) if name == damaged else value)
            for name, value in files.items()
        }
        for i, kind in enumerate(kinds[1:], 1):
            if kind == "Dense" and rng.random() < 0.9:
                whole = rng.random() < 0.6
                raw = self.weights if whole else damaged_bytes(rng, self.weights, head=256)
                drawn[f"{i}_{kind}/model.safetensors"] = raw
        return drawn

    def read(self, drawn: Mapping[str, bytes]) -> bool:
        path = self.folder / "model"
        shutil.rmtree(path, ignore_errors=True)
        for name, data in drawn.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        try:
            made = read_pooling(Checkpoint(path, "safetensors", {}, config={"model_type": "qwen3"}))
        except DureError:
            return False
        assert isinstance(made, PoolingConfig)
        return True


POOLING_READERS: Mapping[str, type[Reader]] = {Pooling.name: Pooling}
