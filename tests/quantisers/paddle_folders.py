"""Save tiny ERNIE 4.5 models with PaddleFormers: paddle_folders.py OUT.

Every parameter is drawn. `paddle-ernie4_5-sharding_io` is what
`save_checkpoint_format="sharding_io"` writes, `…-hf` that with save_to_hf,
`…-flex` the default ("flex_checkpoint", transformers' layout): its tensors,
float32, are the oracle of all three.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddleformers.transformers.ernie4_5.configuration import Ernie4_5Config
from paddleformers.transformers.ernie4_5.modeling import Ernie4_5ForCausalLM
from paddleformers.transformers.ernie4_5_moe.configuration import Ernie4_5_MoeConfig
from paddleformers.transformers.ernie4_5_moe.modeling import Ernie4_5_MoeForCausalLM
from safetensors.numpy import load_file, save_file

COMMON = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "use_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
MOE = {
    "moe_num_experts": 4,
    "moe_k": 2,
    "moe_intermediate_size": 128,
    "moe_num_shared_experts": 1,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": 1,
    "moe_layer_interval": 1,
}


def draw(model: Any) -> None:
    """Draw every parameter."""
    random = np.random.default_rng(20)
    for name, parameter in sorted(model.state_dict().items()):
        noise = random.standard_normal(parameter.shape).astype("float32")
        drawn = 1 + 0.2 * noise if "norm" in name else 0.06 * noise
        parameter.set_value(paddle.to_tensor(drawn).astype(parameter.dtype))


def main(out: Path) -> None:
    """Write the folders."""
    paddle.set_device("cpu")
    for kind, model_class, config in (
        ("ernie4_5", Ernie4_5ForCausalLM, Ernie4_5Config(**COMMON)),
        ("ernie4_5_moe", Ernie4_5_MoeForCausalLM, Ernie4_5_MoeConfig(**COMMON, **MOE)),
    ):
        model = model_class(config)
        draw(model)
        forms = {
            "flex": {},
            "sharding_io": {
                "save_checkpoint_format": "sharding_io",
                "save_to_hf": False,
                "safe_serialization": True,
            },
            "hf": {"save_checkpoint_format": "sharding_io", "save_to_hf": True},
        }
        oracle = None
        for form, how in forms.items():
            folder = out / f"paddle-{kind}-{form}"
            shutil.rmtree(folder, ignore_errors=True)
            try:
                model.save_pretrained(str(folder), **how)
            except Exception as error:
                print(f"FAILED {folder.name}: {type(error).__name__}: {str(error)[:300]}")
                continue
            if form == "flex":
                oracle = {}
                for path in folder.glob("*.safetensors"):
                    oracle |= {k: v.astype(np.float32) for k, v in load_file(path).items()}
            (folder / "oracle").mkdir()
            save_file(oracle, folder / "oracle" / "weights.safetensors")
            for extra in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(out / "base" / "qwen2" / extra, folder)
            print("WROTE", folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
