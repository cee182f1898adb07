"""Is the memory that `dure plan` says what a process really has at its peak? A Markdown table.

    python bench/plan_memory.py [MODEL.gguf ...] [--noise FOLDER] [--contexts 256,1024,2048]
                                [--memory 5GB] [--cache-dtype q8] [--threads 2]

Each model is loaded in a process of its own for each context, with a cache of as many tokens, and
given a prompt that fills it: so VmHWM, the most memory that the process had, is compared with the
plan's sum. Beside the models that are named, five of noise are written to FOLDER: a dense one, a
mixture, one with latent attention, one with recurrent layers, and a quantised folder (mlx, 4 bits).
--memory is a budget as `dure run` has it, --cache-dtype the type of the KV cache.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from make_mtp import write_tokenizer

from dure.formats.checkpoint import open_checkpoint
from dure.loading.memory import parse_size
from dure.planning.memory import footprint
from dure.planning.shapes import sketch
from dure.planning.work import work_of

COMMON = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "hidden_act": "silu",
}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "dense": {
        "model_type": "qwen3",
        "head_dim": 64,
        "num_hidden_layers": 12,
        "intermediate_size": 2816,
    },
    "mixture": {
        "model_type": "qwen3_moe",
        "head_dim": 64,
        "num_hidden_layers": 8,
        "intermediate_size": 2048,
        "moe_intermediate_size": 384,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "norm_topk_prob": True,
    },
    "latent": {
        "model_type": "deepseek_v3",
        "num_hidden_layers": 8,
        "num_key_value_heads": 16,
        "intermediate_size": 2048,
        "moe_intermediate_size": 384,
        "first_k_dense_replace": 1,
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "q_lora_rank": 384,
        "kv_lora_rank": 256,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "num_nextn_predict_layers": 0,
    },
    "recurrent": {
        "model_type": "qwen3_5_text",
        "head_dim": 64,
        "num_hidden_layers": 12,
        "intermediate_size": 2816,
        "linear_num_key_heads": 8,
        "linear_num_value_heads": 16,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
        "linear_conv_kernel_dim": 4,
        "full_attention_interval": 4,
    },
    "mlx-4-bits": {
        "model_type": "qwen3",
        "head_dim": 64,
        "num_hidden_layers": 24,
        "intermediate_size": 4096,
        "quantization": {"group_size": 64, "bits": 4},
    },
}
GROUP = 64  # columns that share a scale and a bias

Array = np.ndarray[Any, np.dtype[Any]]


def stored(
    name: str, shape: tuple[int, ...], *, quantised: bool
) -> Iterator[tuple[str, str, Array]]:
    """Yield what a folder has for one tensor: names, safetensors' words for the types, contents."""
    rng = np.random.default_rng(len(name))
    matrix = len(shape) > 1 and not name.endswith("conv1d.weight")
    if not (quantised and matrix):
        values = rng.standard_normal(shape, np.float32) * np.float32(0.02) if matrix else None
        floats = np.full(shape, 0.5, np.float32) if values is None else values
        yield name, "BF16", (floats.view(np.uint32) >> 16).astype("<u2")
        return
    rows, cols = shape
    base = name.removesuffix(".weight")
    yield f"{base}.weight", "U32", rng.integers(0, 1 << 32, (rows, cols // 8), "<u4")
    for part, value in (("scales", 0.01), ("biases", -0.075)):
        yield f"{base}.{part}", "F16", np.full((rows, cols // GROUP), value, "<f2")


def write(folder: Path, config: Mapping[str, Any]) -> None:
    """Write a folder of noise for this config."""
    whole = {**COMMON, **config}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(whole))
    write_tokenizer(folder, whole["vocab_size"])
    plain = {key: value for key, value in whole.items() if key != "quantization"}
    header: dict[str, Any] = {"__metadata__": {"format": "mlx" if plain != whole else "pt"}}
    contents, at = [], 0
    for name, tensor in sketch(folder.name, plain, lambda *_: "F32").tensors.items():
        for key, dtype, content in _one_by_one(name, tensor.shape, quantised=plain != whole):
            end = at + content.nbytes
            header[key] = {
                "dtype": dtype,
                "shape": list(content.shape),
                "data_offsets": [at, end],
            }
            contents.append(content)
            at = end
    head = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for content in contents:
            file.write(content.tobytes())


def _one_by_one(
    name: str, shape: tuple[int, ...], *, quantised: bool
) -> Iterator[tuple[str, str, Array]]:
    """Yield a tensor, or of stacked experts each by itself, as makers store them."""
    if ".experts." not in name:
        yield from stored(name, shape, quantised=quantised)
        return
    before, part = name.split(".experts.")
    for expert in range(shape[0]):
        yield from stored(f"{before}.experts.{expert}.{part}", shape[1:], quantised=quantised)


def measured(model: Path, context: int, options: argparse.Namespace) -> tuple[int, int]:
    """Return what is planned for a model with this context, and what a process has at its peak."""
    checkpoint = open_checkpoint(model)
    plan = footprint(
        checkpoint,
        work_of(checkpoint, model.name),
        context=context,
        budget=options.memory,
        cache_dtype=options.cache_dtype,
    )
    if plan.problem:
        raise SystemExit(f"{plan.problem} {plan.hint}")
    settings = {
        "threads": options.threads,
        "context": context,
        "memory": options.memory,
        "cache_dtype": options.cache_dtype,
        "cache_bytes": plan.cache_bytes or None,
    }
    asked = json.dumps([str(model), settings])
    command = [sys.executable, __file__, "--child", asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return plan.peak_bytes, int(done.stdout.split()[-1])


def child(asked: str) -> None:
    """Load, fill the cache with one prompt, and print the most memory that this process had."""
    from dure import LLM, SamplingParams  # noqa: PLC0415 - only the child measures itself

    model, settings = json.loads(asked)
    llm = LLM(model, **settings)
    tokens = np.random.default_rng(0).integers(300, 20000, settings["context"] - 2).tolist()
    llm.generate([tokens], SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))


def main() -> None:
    """Write the models that are not there, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--noise", type=Path, metavar="FOLDER", help="where models are written")
    parser.add_argument("--contexts", default="256,1024,2048")
    parser.add_argument("--memory", type=parse_size, help="a budget, such as 5GB")
    parser.add_argument("--cache-dtype", choices=["f16", "q8"], default="f16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    models = list(options.models)
    for name, config in CONFIGS.items() if options.noise else ():
        folder = options.noise / name
        if not folder.exists():
            write(folder, config)
        models.append(folder)
    print("| model | context | planned, MB | VmHWM, MB | planned over measured |")
    print("|---|---|---|---|---|")
    for model in models:
        for context in map(int, options.contexts.split(",")):
            planned, peak = measured(model, context, options)
            figures = f"{planned / 1e6:.0f} | {peak / 1e6:.0f} | {planned / peak:.3f}"
            print(f"| {model.stem} | {context:,} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
