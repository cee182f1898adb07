"""Write the tiny float models that the quantisers of this folder start from.

Usage: base.py OUT. Two folders: OUT/qwen2 (dense, biases) and OUT/qwen3_moe (4 experts a layer).
Every parameter is drawn from a fixed seed and kept as bfloat16. Sizes are multiples of 128, so that
groups of 32, 64 and 128 fit, and head counts are 6 and 2.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

COMMON = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
MODELS = {
    "qwen2": {**COMMON, "num_attention_heads": 8, "head_dim": 32},
    "qwen3": COMMON,
    "llama": {**COMMON, "num_attention_heads": 8, "head_dim": 32},
    "qwen3_moe": {
        **COMMON,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
}
TEXT = [
    "The village pools its labour, and every field is done before the rain.",
    "def add(a, b):\n    return a + b\n",
    "In 1789 the harvest failed; bread was 14 sous a loaf, and rising.",
    "Once upon a time there lived a miller who had three sons, a mill, a donkey and a cat.",
    '{"name": "weather", "arguments": {"city": "Seoul", "days": 3}}',
]


def write_tokenizer(folder: Path) -> None:
    """Write a byte-level BPE tokenizer of at most 512 entries and a ChatML template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>", "<|im_end|>", "<|pad|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|pad|>",
        "chat_template": template,
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def write_old_keys(path: Path) -> None:
    """Add the keys that folders on the hub have, and transformers 5 no longer writes."""
    config = json.loads(path.read_text())
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    config["torch_dtype"] = config["dtype"]
    if "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")
    if config["model_type"] == "qwen2":
        del config["head_dim"]  # older readers take hidden_size / heads, which it is
    path.write_text(json.dumps(config, indent=2, sort_keys=True))


def draw(model: torch.nn.Module, one_sided: bool) -> None:
    """Draw every parameter: matrices of deviation 0.06, norms about 1, biases of deviation 0.1."""
    generator = torch.Generator().manual_seed(20)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(1 + 0.2 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(noise)
            else:
                parameter.copy_(0.06 * noise)
                if one_sided and "layers" in name:  # groups whose zero point is 0, or the largest
                    parameter[::5] = parameter[::5].abs()
                    parameter[2::5] = -parameter[2::5].abs()


def main(out: Path) -> None:
    """Write one folder a model."""
    for name, fields in MODELS.items():
        config = AutoConfig.for_model(name, **fields)
        model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
        draw(model, one_sided=name == "llama")
        model.save_pretrained(out / name)
        write_old_keys(out / name / "config.json")
        write_tokenizer(out / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
