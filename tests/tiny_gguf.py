"""GGUF files of tiny models, written by the gguf package as llama.cpp's converters do."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from tiny_gguf_gemma import as_gemma4, with_whole_norms
from tiny_gguf_keys import (
    PERMUTED,
    add_keys,
    add_latent_keys,
    add_mimo_keys,
    add_rope_factors,
    head_dim_of,
)
from tiny_gguf_recast import deinterleaved, in_halves, rejoined, with_convolutions
from tiny_gguf_recurrent import delta_shapes, recast, recast_kda
from tiny_models import COMMON, MODELS, drawn

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "qwen3_5_moe_text": gguf.MODEL_ARCH.QWEN35MOE,
    "qwen3_5_text": gguf.MODEL_ARCH.QWEN35,
    "qwen3_next": gguf.MODEL_ARCH.QWEN3NEXT,
    "qwen3_vl_moe_text": gguf.MODEL_ARCH.QWEN3VLMOE,
    "qwen3_vl_text": gguf.MODEL_ARCH.QWEN3VL,
    "ernie4_5": gguf.MODEL_ARCH.ERNIE4_5,
    "hunyuan_v1_dense": gguf.MODEL_ARCH.HUNYUAN_DENSE,
    "PanguEmbedded": gguf.MODEL_ARCH.PANGU_EMBED,
    "qwen2_moe": gguf.MODEL_ARCH.QWEN2MOE,
    "ernie4_5_moe": gguf.MODEL_ARCH.ERNIE4_5_MOE,
    "hunyuan_v1_moe": gguf.MODEL_ARCH.HUNYUAN_MOE,
    "lfm2": gguf.MODEL_ARCH.LFM2,
    "lfm2_moe": gguf.MODEL_ARCH.LFM2MOE,
    "minimax_m2": gguf.MODEL_ARCH.MINIMAXM2,
    "deepseek_v2": gguf.MODEL_ARCH.DEEPSEEK2,
    "deepseek_v3": gguf.MODEL_ARCH.DEEPSEEK2,
    "glm4_moe": gguf.MODEL_ARCH.GLM4_MOE,
    "gpt_oss": gguf.MODEL_ARCH.GPT_OSS,
    "mimo_v2_flash": gguf.MODEL_ARCH.MIMO2,
    "exaone": gguf.MODEL_ARCH.EXAONE,
    "exaone4": gguf.MODEL_ARCH.EXAONE4,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "gemma4_text": gguf.MODEL_ARCH.GEMMA4,
    "gemma4_unified_text": gguf.MODEL_ARCH.GEMMA4,
    "glm4": gguf.MODEL_ARCH.GLM4,
    "granite": gguf.MODEL_ARCH.GRANITE,
    "internlm3": gguf.MODEL_ARCH.LLAMA,
    "iquestcoder": gguf.MODEL_ARCH.LLAMA,
    "ministral3": gguf.MODEL_ARCH.MISTRAL3,
    "minicpm3": gguf.MODEL_ARCH.MINICPM3,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "olmo2": gguf.MODEL_ARCH.OLMO2,
    "olmo3": gguf.MODEL_ARCH.OLMO2,
    "olmoe": gguf.MODEL_ARCH.OLMOE,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "seed_oss": gguf.MODEL_ARCH.SEED_OSS,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3,
    "glm4_moe_lite": gguf.MODEL_ARCH.DEEPSEEK2,
    "solar_open": gguf.MODEL_ARCH.GLM4_MOE,
    "deepseek_v32": gguf.MODEL_ARCH.GLM_DSA,
    "glm_moe_dsa": gguf.MODEL_ARCH.GLM_DSA,
    "bailing_hybrid": gguf.MODEL_ARCH.KIMI_LINEAR,
    "bailing_moe_v2": gguf.MODEL_ARCH.BAILINGMOE2,
    "dots1": gguf.MODEL_ARCH.DOTS1,
    "exaone_moe": gguf.MODEL_ARCH.EXAONE_MOE,
    "hy_v3": gguf.MODEL_ARCH.DOTS1,
    "kimi_linear": gguf.MODEL_ARCH.KIMI_LINEAR,
}

# Architectures that the gguf package does not know: their names, over tensors of one above.
_NEWER = {"bailing_hybrid": "bailingmoe3", "hy_v3": "hy_v3", "deepseek_v32": "deepseek32"}
_ALIASES = {  # parts of names in folders -> those that the tensor maps above know
    "lfm2_moe": {".feed_forward.experts.": ".block_sparse_moe.experts."},
    "hy_v3": {
        ".mlp.router.gate.": ".mlp.gate.",
        ".mlp.expert_bias": ".mlp.gate.e_score_correction_bias",
        ".mlp.shared_mlp.": ".mlp.shared_experts.",
    },
}

# Types that the gguf package can read but not write: where a block's float16 scale and float16
# minimum lie, and the code whose value is then zero, so that random codes average out.
_RANDOM_BLOCKS: Mapping[Kind, tuple[int, int | None, float]] = {
    Kind.Q2_K: (80, 82, 1.5),
    Kind.Q3_K: (108, None, 0.0),
    Kind.Q4_K: (0, 2, 7.5),
    Kind.Q5_K: (0, 2, 15.5),
    Kind.Q6_K: (208, None, 0.0),
    Kind.IQ4_NL: (0, None, 0.0),
    Kind.IQ4_XS: (0, None, 0.0),
}
Config = Mapping[str, Any]
Arrays = dict[str, np.ndarray]
Types = Callable[[str], Kind]  # a parameter's name in the folder -> how the GGUF stores it


@dataclass(frozen=True)
class Stored:
    """One tensor as a file holds it."""

    raw: np.ndarray  # uint8 (..., row bytes)
    kind: Kind

    @property
    def values(self) -> np.ndarray:
        """What it stands for, float32, by the gguf package's own dequantisation."""
        return gguf.quants.dequantize(self.raw, self.kind).astype(np.float32)


def float32(name: str) -> Kind:
    """Everything as F32: what `Types` is at its plainest."""
    return Kind.F32


def matrices_as(kind: Kind) -> Types:
    """Matrices in `kind`; vectors and routers in F32, as converters leave them."""
    return lambda name: Kind.F32 if is_plain(name) else kind


def is_plain(name: str) -> bool:
    """Whether converters keep a parameter in F32 whatever the file's type is."""
    plain = ("norm.weight", ".bias", "mlp.gate.weight", "conv1d.weight", "expert_gate.weight")
    plain += (".A_log",)
    return name.endswith(plain)


def store(values: np.ndarray, kind: Kind, rng: np.random.Generator) -> Stored:
    """The values in `kind`; where gguf cannot quantise to it, random blocks of the same spread."""
    if kind in _RANDOM_BLOCKS:
        return Stored(random_blocks(rng, kind, values.shape, float(values.std())), kind)
    raw = gguf.quants.quantize(np.ascontiguousarray(values), kind)
    return Stored(raw.view(np.uint8), kind)


def random_blocks(
    rng: np.random.Generator, kind: Kind, shape: tuple[int, ...], spread: float
) -> np.ndarray:
    """Random blocks for a tensor of `shape`, uint8 (..., row bytes), with about that deviation."""
    scale_at, min_at, middle = _RANDOM_BLOCKS[kind]
    size, size_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (math.prod(shape) // size, size_bytes), np.uint8)

    def set_scale(scale: float) -> None:
        blocks[:, scale_at : scale_at + 2] = np.float16([scale]).view(np.uint8)
        if min_at is not None:
            blocks[:, min_at : min_at + 2] = np.float16([scale * middle]).view(np.uint8)

    set_scale(1.0)
    unit = gguf.quants.dequantize(blocks[:64], kind).std()
    set_scale(spread / float(unit))
    return blocks.reshape(*shape[:-1], shape[-1] // size * size_bytes)


def parameters_of(config: Config) -> Arrays:
    """Drawn float32 parameters of a config, under the names and in the shapes of hub files."""
    hidden, head_dim = config["hidden_size"], head_dim_of(config)
    q, kv = (config[f"num_{which}_heads"] * head_dim for which in ("attention", "key_value"))
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (config["vocab_size"], hidden),
    }
    for index in range(config["num_hidden_layers"]):
        gated = config["model_type"] == "qwen3_next"
        layer = {
            "input_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (2 * q if gated else q, hidden),
            "self_attn.k_proj.weight": (kv, hidden),
            "self_attn.v_proj.weight": (kv, hidden),
            "self_attn.o_proj.weight": (hidden, q),
            "post_attention_layernorm.weight": (hidden,),
            **_mlp_shapes(config, index),
        }
        if config["model_type"] == "qwen2":
            sizes = {"q": q, "k": kv, "v": kv}
            layer |= {f"self_attn.{part}_proj.bias": (size,) for part, size in sizes.items()}
        if config["model_type"].startswith("qwen3"):
            layer |= {f"self_attn.{part}_norm.weight": (head_dim,) for part in "qk"}
        if gated and (index + 1) % 4:
            layer = {name: shape for name, shape in layer.items() if "self_attn" not in name}
            layer |= _recurrent_shapes(config)
        if "kv_lora_rank" in config:
            norms = {name: shape for name, shape in layer.items() if "norm" in name}
            recurrent = (
                config.get("layer_types", ["full_attention"] * 99)[index] != "full_attention"
            )
            mixer = delta_shapes(config) if recurrent else _latent_shapes(config)
            layer = {**norms, **mixer, **_mlp_shapes(config, index)}
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    return {name: drawn(name, shape) for name, shape in shapes.items()}


def _recurrent_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    hidden, heads = config["hidden_size"], config["linear_num_value_heads"]
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    values = heads * config["linear_value_head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "in_proj_qkvz.weight": (2 * keys + 2 * values, hidden),
        "in_proj_ba.weight": (2 * heads, hidden),
        "conv1d.weight": (2 * keys + values, 1, config["linear_conv_kernel_dim"]),
        "A_log": (heads,),
        "dt_bias": (heads,),
        "norm.weight": (config["linear_value_head_dim"],),
        "out_proj.weight": (hidden, values),
    }
    return {f"linear_attn.{name}": shape for name, shape in shapes.items()}


def _latent_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    queries, latent, value = (config[key] for key in ("q_lora_rank", "kv_lora_rank", "v_head_dim"))
    plain, rotated = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "q_a_proj.weight": (queries, hidden),
        "q_a_layernorm.weight": (queries,),
        "q_b_proj.weight": (heads * (plain + rotated), queries),
        "kv_a_proj_with_mqa.weight": (latent + rotated, hidden),
        "kv_a_layernorm.weight": (latent,),
        "kv_b_proj.weight": (heads * (plain + value), latent),
        "o_proj.weight": (hidden, heads * value),
    }
    return {f"self_attn.{name}": shape for name, shape in shapes.items()}


def _mlp_shapes(config: Config, index: int) -> dict[str, tuple[int, ...]]:
    hidden = config["hidden_size"]

    def gated(prefix: str, size: int) -> dict[str, tuple[int, ...]]:
        return {
            f"{prefix}.gate_proj.weight": (size, hidden),
            f"{prefix}.up_proj.weight": (size, hidden),
            f"{prefix}.down_proj.weight": (hidden, size),
        }

    latent = config["model_type"] in ("deepseek_v3", "kimi_linear")
    sparse = latent or config["model_type"] in ("qwen3_moe", "qwen3_next")
    if not sparse or index < config.get("first_k_dense_replace", 0):
        return gated("mlp", config["intermediate_size"])
    experts = config.get("n_routed_experts") or config["num_experts"]
    shapes: dict[str, tuple[int, ...]] = {"mlp.gate.weight": (experts, hidden)}
    if latent:
        shapes["mlp.gate.e_score_correction_bias"] = (experts,)
        width = config["n_shared_experts"] * config["moe_intermediate_size"]
        shapes |= gated("mlp.shared_experts", width)
    if config["model_type"] == "qwen3_next":
        shapes |= gated("mlp.shared_expert", config["shared_expert_intermediate_size"])
        shapes["mlp.shared_expert_gate.weight"] = (1, hidden)
    for expert in range(experts):
        shapes |= gated(f"mlp.experts.{expert}", config["moe_intermediate_size"])
    return shapes


def config_of(name: str, **changes: Any) -> dict[str, Any]:
    """The config.json of a model in tiny_models.MODELS, as far as we read it."""
    model_type, settings = MODELS[name]
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    defaults = {"rms_norm_eps": 1e-6, "rope_parameters": rope, "hidden_act": "silu"}
    return {"model_type": model_type, **defaults, **COMMON, **settings, **changes}


def read_folder(folder: Path) -> tuple[dict[str, Any], Arrays]:
    """config.json and the float32 parameters of a saved model, of one that sees its text's, with
    the experts one by one.
    """
    from safetensors.numpy import load_file  # noqa: PLC0415

    config = json.loads((folder / "config.json").read_text())
    parameters = load_file(folder / "model.safetensors")
    fused = config["model_type"] == "gpt_oss" or config["model_type"].startswith("gemma4")
    if not fused:  # wherever they are
        parameters = one_by_one(parameters)
    if "text_config" not in config:
        return config, parameters
    text = {**config["text_config"], "tie_word_embeddings": config["tie_word_embeddings"]}
    found = {
        name.replace(prefix, "model."): values
        for prefix in ("model.language_model.", "language_model.model.")
        for name, values in parameters.items()
        if name.startswith(prefix)
    }
    head = {name: parameters[name] for name in ("lm_head.weight",) if name in parameters}
    return text, found | head


def one_by_one(parameters: Arrays) -> Arrays:
    """The parameters with fused experts as a matrix an expert."""
    out: Arrays = {}
    for name, values in parameters.items():
        before, found, part = name.partition(".experts.")
        halves = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(part)
        if not found or halves is None:
            out[name] = values
            continue
        for expert, both in enumerate(values):
            for half, each in zip(halves, np.split(both, len(halves)), strict=True):
                out[f"{before}.experts.{expert}.{half}.weight"] = np.ascontiguousarray(each)
    return out


def fused_again(parameters: Arrays) -> Arrays:
    """The parameters with the experts of a layer in two tensors, as transformers saves Gemma 4."""
    out: Arrays = {}
    for name, tensor in _stacked({n: Stored(a, Kind.F32) for n, a in parameters.items()}).items():
        out[name] = tensor.raw
    for name in [name for name in out if name.endswith(".experts.gate_proj.weight")]:
        before = name.removesuffix("gate_proj.weight")
        halves = out.pop(name), out.pop(f"{before}up_proj.weight")
        out[f"{before}gate_up_proj"] = np.concatenate(halves, axis=1)
        out[f"{before}down_proj"] = out.pop(f"{before}down_proj.weight")
    return out


def write_folder(folder: Path, config: Config, parameters: Arrays) -> Path:
    """The folder, now holding config.json and one model.safetensors."""
    from safetensors.numpy import save_file  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(parameters, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_gguf(
    path: Path,
    config: Config,
    parameters: Arrays,
    types: Types = float32,
    *,
    seed: int = 0,
    halves: bool = True,
) -> Arrays:
    """The parameters as the GGUF at `path` now stands for them, under the names they had (of
    qwen3_next as llama.cpp's converter recasts them).

    halves: of latent attention, as files have it since April 2025; not so, as those before.
    """
    rng = np.random.default_rng(seed)
    if config["model_type"] == "glm4_moe":  # whose converter counts the layers that draft
        drafts = config.get("num_nextn_predict_layers", 0)
        config = {**config, "num_hidden_layers": config["num_hidden_layers"] + drafts}
    if "linear_num_key_heads" in config:
        parameters = recast(config, parameters)
    if config["model_type"] == "gpt_oss":
        parameters = deinterleaved(parameters)
    if config["model_type"] == "gemma3_text":
        parameters = with_whole_norms(parameters)
    if config["model_type"].startswith("gemma4"):
        config, parameters = as_gemma4(config, parameters)
    if config["model_type"] in ("lfm2", "lfm2_moe"):
        config, parameters = with_convolutions(config, parameters)
    if config["model_type"] in ("kimi_linear", "bailing_hybrid"):
        config, parameters = recast_kda(config, parameters)
    sinks = (".sinks", ".attention_sink_bias")
    parameters = {
        f"{name}.weight" if name.endswith(sinks) else name: each
        for name, each in parameters.items()
    }
    drafting = config["model_type"] in ("bailing_moe_v2", "hy_v3")
    if drafting and not any("eh_proj" in name for name in parameters):
        config = {**config, "num_nextn_predict_layers": 0}  # what the tiny config says has no layer
    for theirs, ours in _ALIASES.get(config["model_type"], {}).items():
        parameters = {name.replace(theirs, ours): each for name, each in parameters.items()}
    latent = "kv_lora_rank" in config
    halves = halves and latent and config["model_type"] != "minicpm3"
    if halves:
        parameters = in_halves(parameters, config)
    stored = {
        name: store(values, Kind.F32 if values.ndim == 1 else types(name), rng)
        for name, values in sorted(parameters.items())
    }
    values = {name: tensor.values for name, tensor in stored.items()}
    if halves:
        values = rejoined(values, config)
    architecture = ARCHITECTURES[config["model_type"]]
    named = _NEWER.get(config["model_type"], gguf.MODEL_ARCH_NAMES[architecture])
    writer = gguf.GGUFWriter(path, named)
    add_keys(writer, config)
    if latent:
        add_latent_keys(writer, config, halves=halves)
        if any(".nextn." in name for name in parameters):  # else the tiny config's is not there
            writer.add_nextn_predict_layers(config["num_nextn_predict_layers"])
    else:
        if "kv_heads" in config:
            writer.add_head_count_kv(config["kv_heads"])
            writer.add_shortconv_l_cache(config["conv_L_cache"])
        elif config["model_type"] == "mimo_v2_flash":
            add_mimo_keys(writer, config)
        else:
            writer.add_head_count_kv(config["num_key_value_heads"])
        if config["model_type"] != "phi3":
            writer.add_key_length(head_dim_of(config))
            writer.add_value_length(config.get("v_head_dim") or head_dim_of(config))
    if config["model_type"] in PERMUTED:
        stored = {name: _permuted(name, tensor, config) for name, tensor in stored.items()}
    add_rope_factors(writer, config)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    for name, tensor in _stacked(stored).items():
        # Converters take the bias of the choice of experts for a bias among others.
        biases = name.replace("e_score_correction_bias", "e_score_correction.bias")
        suffixed = biases.replace(".expert_bias", ".expert_bias.bias")
        if config["model_type"] == "hy_v3":  # whose converter does not
            suffixed = suffixed.removesuffix(".bias")
        written = names.get_name(suffixed, try_suffixes=(".weight", ".bias"))
        if name.startswith("blk."):  # GGUF's own name, which gguf-py may not know
            written = name
        assert written is not None, name
        raw = tensor.raw[0] if suffixed != name and tensor.raw.ndim == 2 else tensor.raw
        writer.add_tensor(written, raw, raw_dtype=tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def _permuted(name: str, tensor: Stored, config: Config) -> Stored:
    """llama's q and k with each head's two halves interleaved, row by row."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    kind = name.split(".")[-2]
    if kind not in heads:
        return tensor
    count = config[heads[kind]]
    rows = tensor.raw.reshape(count, 2, head_dim_of(config) // 2, -1)
    return Stored(rows.swapaxes(1, 2).reshape(tensor.raw.shape), tensor.kind)


def _stacked(stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """The same with the experts of a layer as one tensor (experts, rows, row bytes) a matrix."""
    out: dict[str, Stored] = {}
    groups: dict[str, dict[int, Stored]] = {}
    for name, tensor in stored.items():
        before, found, after = name.partition(".experts.")
        if found and after[0].isdigit():
            expert, _, rest = after.partition(".")
            groups.setdefault(f"{before}.experts.{rest}", {})[int(expert)] = tensor
        else:
            out[name] = tensor
    for name, experts in groups.items():
        raw = np.stack([experts[index].raw for index in range(len(experts))])
        out[name] = Stored(raw, experts[0].kind)
    return out
