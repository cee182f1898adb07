"""Converts a Hugging Face folder to a GGUF file for dure and llama.cpp, quantised if asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dure import machine, models
from dure.convert.checked import Converted, Progress, converted, write_checked
from dure.convert.convolutions import CONVOLUTIONS
from dure.convert.encode import Target, importance_of
from dure.convert.family import SECOND_NORM, WITHOUT_BIAS, WITHOUT_WINDOW, Family, without_windows
from dure.convert.family import routed as _routed
from dure.convert.gemma import GEMMA
from dure.convert.latent import LATENT, dense_in_front
from dure.convert.llama_likes import LLAMA_LIKES
from dure.convert.recipes import Types, recipe_named
from dure.convert.requantize import file_type, imatrix_metadata
from dure.convert.sinks import SINKS
from dure.convert.tensors import KEPT, Layout, gguf_tensors, otherwise, tensor_plan
from dure.errors import UnsupportedModelError
from dure.formats.card import read_card
from dure.formats.checkpoint import open_checkpoint
from dure.formats.gguf_writer import TensorPlan, check_target
from dure.formats.quantized.base import is_quantized
from dure.formats.quantized_checkpoint import parameters
from dure.formats.tensors import TensorInfo
from dure.layers.rope import RopeConfig, rope_frequencies, stretched_theta
from dure.models.config import one_activation, read_config
from dure.models.gguf_keys import gguf_keys
from dure.text.gguf_export import gguf_vocabulary
from dure.weights.names import from_gguf
from dure.weights.quantize import part_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.convert.recipes import Recipe
    from dure.convert.tensors import Tensor
    from dure.formats.checkpoint import Checkpoint
    from dure.formats.imatrix import ImportanceMatrix
    from dure.models.config import Config

_FLOATS = ("F32", "F16", "BF16")
_NEVER = 1e30  # llama.cpp's divisor of a frequency that does not turn

# What the families' configs call the sizes, in config.json's language.
_SIZES = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "norm_eps": "rms_norm_eps",
    "context_length": "max_position_embeddings",
    "intermediate": "intermediate_size",
    "experts": "num_experts",
    "experts_per_token": "num_experts_per_tok",
    "expert_intermediate": "moe_intermediate_size",
    "shared_experts": "n_shared_experts",
    "shared_intermediate": "shared_expert_intermediate_size",
    "normalize": "norm_topk_prob",
}


def convert(
    folder: Path,
    out: Path,
    *,
    quantize: str | None = None,
    importance: ImportanceMatrix | None = None,
    threads: int | None = None,
    force: bool = False,
    tell_size: Callable[[int], None] | None = None,
    progress: Progress | None = None,
    checking: Progress | None = None,
) -> Converted:
    """Convert the model in `folder` to the GGUF file `out`.

    quantize: the recipe for matrices, by name; None keeps the type of each, which floats and MXFP4
    can. Vectors and routers are float32 in any case. importance: of the matrices' columns. threads:
    for quantising; None for all cores. The rest is as of `write_checked`.
    Returns what was written. Raises UnsupportedModelError for what llama.cpp would compute
    differently, and InvalidRequestError if `out` exists and not `force`.
    """
    recipe = None if quantize is None else recipe_named(quantize)
    check_target(out, force=force)
    checkpoint = open_checkpoint(folder)
    config, family = _understood(checkpoint, recipe)
    sizes: Any = models.checked_model(checkpoint).config
    module = models.family_of(checkpoint)
    architecture = family.architecture or module.GGUF_ARCHITECTURE
    keys = _architecture(config, sizes, family, architecture)
    tensor_aliases = getattr(module, "TENSOR_ALIASES", None) or {}
    tensors = gguf_tensors(checkpoint, sizes, family.layout, tensor_aliases, keep=recipe is None)
    types = None if recipe is None else Types(recipe, tensors)
    workers = machine.usable_threads() if threads is None else threads
    plans = [
        tensor_plan(tensor, _target(name, tensor, types, importance, workers))
        for name, tensor in tensors.items()
    ]
    plans = [*_rope_factors(config, sizes.rope, family), *plans]
    metadata = {
        **_general(checkpoint, architecture, file_type(recipe, plans)),
        **imatrix_metadata(importance),
        **keys,
        **gguf_vocabulary(checkpoint, sizes.vocab_size, lists_merges=family.lists_merges),
    }
    size = write_checked(
        out,
        metadata,
        plans,
        force=force,
        tell_size=tell_size,
        progress=progress,
        checking=checking,
    )
    return converted(out, size, architecture, plans)


def _understood(checkpoint: Checkpoint, recipe: Recipe | None) -> tuple[Config, Family]:
    """Read the config and find the family's table; UnsupportedModelError if it does not convert."""
    if checkpoint.experts is not None:
        raise UnsupportedModelError(
            f"{checkpoint.path} has its experts packed for dure's kernels.",
            hint="convert the model that it was made from.",
        )
    if checkpoint.kind == "gguf":
        raise UnsupportedModelError(
            f"{checkpoint.path} is a GGUF file already.",
            hint="--quantize TYPE writes it anew in fewer bits.",
        )
    name = models.family_of(checkpoint).__name__.rpartition(".")[2]
    if name not in _FAMILIES:
        raise UnsupportedModelError(
            f"{checkpoint.path} is a {name!r} model, which dure runs but does not convert.",
            hint=f"it converts {', '.join(_FAMILIES)}.",
        )
    found = parameters(checkpoint).values()
    packed = next((t for t in found if is_quantized(t) and t.dtype not in KEPT), None)
    if packed is not None and recipe is None:
        raise UnsupportedModelError(
            f"{checkpoint.path} has {packed.name} as {packed.stored}, which GGUF cannot say.",
            hint="quantise it anew: --quantize q8, q6, q4, Q4_K_M, …",
        )
    other = next((t for t in found if isinstance(t, TensorInfo) and t.dtype not in _FLOATS), None)
    if other is not None:
        raise UnsupportedModelError(
            f"{checkpoint.path} has {other.name} as {other.dtype}, and what is converted is "
            f"{', '.join(_FLOATS)}.",
            hint="convert the folder that it was quantised from, with --quantize.",
        )
    family, config = _FAMILIES[name], read_config(checkpoint)
    for key, (default, needed) in {**_EVERYWHERE, **family.needs}.items():
        value = one_activation(config.values.get(key))
        if (default if value is None else value) != needed:
            raise otherwise(
                f"{config.source} has {key} = {default if value is None else value!r}, and "
                f"llama.cpp computes {name} only with {needed!r}."
            )
    return config, family


def _target(
    name: str,
    tensor: Tensor,
    types: Types | None,
    importance: ImportanceMatrix | None,
    threads: int,
) -> Target:
    """Choose the type that the GGUF stores a tensor in."""
    stored, shape = tensor.rows[0].tensor.dtype, tensor.shape
    if part_of(from_gguf(name), len(shape)) in ("vector", "router") or name.endswith(".bias"):
        stored, types = "F32", None
    dtype = None if types is None else types.of(name, len(shape), shape[-1])
    height = shape[-2] if len(shape) > 1 else 1
    if dtype is None:
        return Target(name, stored, height, threads)
    # Columns that change places are under other numbers in a matrix made from the folder.
    weights = None
    if all(rows.columns is None for rows in tensor.rows):
        weights = importance_of(importance, name, shape)
    return Target(name, dtype, height, threads, weights)


def _rope_factors(config: Config, rope: RopeConfig, family: Family) -> list[TensorPlan]:
    """Make the tensors of a scaling by tensors: divisors of the plain frequencies."""
    found: dict[str, NDArray[np.float32]] = {}
    if rope.type == "llama3" or family.factors:
        plain = rope_frequencies(RopeConfig("default", rope.theta, rope.dim))[0]
        scaled = rope_frequencies(rope)[0]
        found["rope_freqs"] = np.full_like(plain, _NEVER)  # for those that do not turn
        np.divide(plain, scaled, out=found["rope_freqs"], where=scaled > 0)
    if rope.type == "longrope":
        table = config.values.get("rope_parameters") or config.values["rope_scaling"]
        for each in ("long", "short"):
            found[f"rope_factors_{each}"] = np.array(table[f"{each}_factor"])
    floats = {name: values.astype(np.float32) for name, values in found.items()}
    return [
        TensorPlan(f"{name}.weight", "F32", each.shape, partial(_as_bytes, each))
        for name, each in floats.items()
    ]


def _as_bytes(values: NDArray[np.float32]) -> list[NDArray[np.uint8]]:
    return [values.view(np.uint8)]


def _architecture(config: Config, sizes: Any, family: Family, architecture: str) -> dict[str, Any]:
    """Make the keys under the architecture's name; defaults of the config are spelled out."""
    values = {theirs: getattr(sizes, ours, None) for ours, theirs in _SIZES.items()}
    values |= {
        "rope_theta": stretched_theta(sizes.rope),
        "rotary_dim": sizes.rope.dim,
        "value_head_dim": values["head_dim"],
        "rope_scaling": _rope_scaling(config, sizes, family),
        **family.values(config, sizes),
    }
    keys = gguf_keys(values, architecture)
    return {**keys, f"{architecture}.vocab_size": sizes.vocab_size}


def _rope_scaling(config: Config, sizes: Any, family: Family) -> dict[str, Any]:
    """Make the table of the rotation's scaling; refuse what GGUF has no keys for."""
    rope: RopeConfig = sizes.rope
    latent = family.magnitudes or hasattr(sizes, "latent")
    if rope.dim % 2:
        raise otherwise(
            f"{config.source} rotates {rope.dim} dimensions of a head (partial_rotary_factor), and "
            "llama.cpp turns pairs."
        )
    # A base says ntk-alpha, and tensors what the family reads by them.
    if rope.type in ("default", "dynamic", "ntk-alpha", *family.ropes):
        return {}
    if rope.type == "linear":
        return {"rope_type": "linear", "factor": rope.factor}
    # GGUF has one number for both magnitudes, and llama.cpp heeds it where keys are latents.
    same = latent and rope.mscale is not None and rope.mscale == rope.mscale_all_dim
    bare = rope.mscale is None and rope.mscale_all_dim is None
    plain = rope.attention_factor is None and (bare or same)
    if rope.type != "yarn" or not plain or rope.truncate != family.truncates:
        raise otherwise(
            f"{config.source} scales its rotation in a way that GGUF cannot say ({rope.type})."
        )
    return {
        "rope_type": "yarn",
        "factor": rope.factor,
        "original_max_position_embeddings": rope.original_context,
        "beta_fast": rope.beta_fast,
        "beta_slow": rope.beta_slow,
        # Where llama.cpp takes `mscale` for 1, 1 is the only equal; else files have a tenth of it.
        "mscale_all_dim": 10.0 if family.magnitudes and same else rope.mscale_all_dim,
    }


def _general(checkpoint: Checkpoint, architecture: str, written: int) -> dict[str, Any]:
    """Make the `general.` keys: name, licence, origin, and the number of the file's type."""
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    card = read_card(folder)
    found: dict[str, Any] = {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": folder.absolute().name,
        "general.file_type": written,
        "general.quantization_version": 2,
    }
    if card.get("license"):
        found["general.license"] = card["license"][0]
    bases = card.get("base_model", [])
    if bases:
        found["general.base_model.count"] = len(bases)
    for index, base in enumerate(bases):
        maker, _, name = base.rpartition("/")
        found[f"general.base_model.{index}.name"] = name
        found[f"general.base_model.{index}.repo_url"] = f"https://huggingface.co/{base}"
        if maker:
            found[f"general.base_model.{index}.organization"] = maker
    return found


def _mixture_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Refuse shares that are not normalised; whether they are, Qwen3-VL need not say."""
    if not sizes.normalize:
        raise otherwise(
            f"{config.source} has norm_topk_prob = False, and llama.cpp computes qwen3_moe only "
            "with True."
        )
    return {}


def _ernie_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make ERNIE's values; llama.cpp needs all dense layers in front of the mixtures."""
    dense = sizes.layers - len(sizes.sparse_layers)
    if sizes.sparse_layers != frozenset(range(dense, sizes.layers)):
        raise otherwise(
            f"{config.source} has dense layers among or behind its mixtures of experts "
            "(moe_layer_interval, moe_layer_end_index), and llama.cpp has them only in front."
        )
    shared = sizes.shared_experts * sizes.expert_intermediate
    return {
        "first_k_dense_replace": dense,
        "moe_layer_interval": 1,
        "shared_expert_intermediate_size": shared or None,
    }


def _hunyuan_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make Hunyuan's values: routed and shared experts have one width."""
    width, chosen = sizes.intermediate, set(sizes.experts_per_token)
    if len(chosen) > 1:
        raise otherwise(
            f"{config.source} has another moe_topk in each layer, and llama.cpp has one for all."
        )
    return {
        "num_experts_per_tok": chosen.pop(),
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": width,
    }


def _minimax_values(_config: Config, sizes: Any) -> dict[str, Any]:
    """Make MiniMax's values: the experts' width and the router's score function."""
    return {"moe_intermediate_size": sizes.intermediate, "gating_func": _SIGMOID}


def _glm_values(_config: Config, sizes: Any) -> dict[str, Any]:
    """Make GLM's values: DeepSeek's router over ordinary attention."""
    return {"first_k_dense_replace": sizes.dense_layers, **_routed(sizes.routing)}


def _ling2_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make Ling-2.0's values: GLM's, and the width of one shared expert, as llama.cpp counts."""
    width = sizes.expert_intermediate if sizes.shared_experts else None
    return {**_glm_values(config, sizes), "shared_expert_intermediate_size": width}


def _hy3_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make Hy3's values: GLM's, with its dense layers in front."""
    return {**_glm_values(config, sizes), "first_k_dense_replace": dense_in_front(config, sizes)}


def _dots_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make dots.llm1's values: DeepSeek's router, and no window, for which it has no key."""
    without_windows(config, sizes.windows)
    if sizes.kv_heads != sizes.heads:
        raise otherwise(
            f"{config.source} has {sizes.kv_heads} key-value heads for {sizes.heads} heads, and "
            "llama.cpp reads this family only with as many."
        )
    return _glm_values(config, sizes)


def _recurrent_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make Qwen3-Next's values: recurrent layers under the keys of state-space models."""
    if sizes.key_dim != sizes.value_dim:
        raise otherwise(
            f"{config.source} has linear_key_head_dim = {sizes.key_dim} and linear_value_head_dim "
            f"= {sizes.value_dim}, and llama.cpp computes this family only with one for both."
        )
    kinds = ["linear_attention" if each else "full_attention" for each in sizes.recurrent]
    layers = range(1, sizes.layers + 1)
    intervals = (n for n in layers if sizes.recurrent == tuple(i % n != 0 for i in layers))
    interval = next(intervals, None)
    return {
        "num_experts_per_tok": sizes.routing.top_k,
        "norm_topk_prob": sizes.routing.normalize,
        "linear_conv_kernel_dim": sizes.kernel,
        "linear_num_key_heads": sizes.key_heads,
        "linear_num_value_heads": sizes.value_heads,
        "linear_key_head_dim": sizes.key_dim,
        "linear_inner_size": sizes.value_heads * sizes.value_dim,
        "full_attention_interval": interval,
        "layer_types": kinds if interval is None else None,
    }


def _qwen35_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make Qwen3.5's values: Qwen3-Next's, and the sections of its rotation, which text has not."""
    dense: dict[str, Any] = {}
    if not sizes.experts:
        keys = ("num_experts", "num_experts_per_tok", "norm_topk_prob")
        widths = ("moe_intermediate_size", "shared_expert_intermediate_size")
        dense = dict.fromkeys((*keys, *widths))
    rope = config.values.get("rope_parameters") or config.values.get("rope_scaling") or {}
    sections = list(rope.get("mrope_section", _SECTIONS))
    return {
        **_recurrent_values(config, sizes),
        "intermediate_size": sizes.intermediate or None,
        "mrope_section": [*sections, 0][:4],
        **dense,
    }


_SIGMOID = 2  # llama.cpp's number for it
_SECTIONS = (11, 11, 10)  # Qwen3.5's, where its config says none
_ONLY_MIXTURES = {"decoder_sparse_step": (1, 1), "mlp_only_layers": ([], [])}
_QWEN35 = Family(
    Layout(kinds=SECOND_NORM, drafts="mtp.", tiled=True),
    needs={**WITHOUT_BIAS, "rms_norm_eps": (1e-6, 1e-6)},
    values=_qwen35_values,
)
# What no family has there, or is asked of no key.
_EVERYWHERE = {"mlp_bias": (False, False), "hidden_act": ("silu", "silu")}
_ERNIE = {"use_bias": (False, False)}
_FAMILIES: Mapping[str, Family] = {
    **LLAMA_LIKES,
    **LATENT,
    **SINKS,
    **GEMMA,
    **CONVOLUTIONS,
    "qwen2": Family(needs=WITHOUT_WINDOW),
    "qwen3": Family(needs={**WITHOUT_WINDOW, **WITHOUT_BIAS}),
    "qwen3_moe": Family(
        needs={**WITHOUT_WINDOW, **WITHOUT_BIAS, **_ONLY_MIXTURES}, values=_mixture_values
    ),
    "qwen2_moe": Family(
        needs={
            **WITHOUT_WINDOW,
            **_ONLY_MIXTURES,
            "qkv_bias": (True, True),
            "norm_topk_prob": (False, False),
        }
    ),
    # The eps of its queries' and keys' lengths is llama.cpp's eps of all norms.
    "qwen3_next": Family(
        Layout(kinds=SECOND_NORM, drafts="mtp."),
        needs={
            **WITHOUT_BIAS,
            **_ONLY_MIXTURES,
            "norm_topk_prob": (True, True),
            "rms_norm_eps": (1e-6, 1e-6),
        },
        values=_recurrent_values,
    ),
    "qwen3_5": _QWEN35,
    "qwen3_5_moe": _QWEN35,
    "ernie4_5": Family(needs=_ERNIE),
    "ernie4_5_moe": Family(Layout(drafts="model.mtp_"), needs=_ERNIE, values=_ernie_values),
    "hunyuan_v1_dense": Family(needs=WITHOUT_BIAS),
    "hunyuan_v1_moe": Family(needs=WITHOUT_BIAS, values=_hunyuan_values),
    "minimax_m2": Family(needs={"tie_word_embeddings": (False, False)}, values=_minimax_values),
    "glm4_moe": Family(Layout(kinds=SECOND_NORM), values=_glm_values),
    "bailing_moe_v2": Family(
        needs={"use_qkv_bias": (False, False), "use_bias": (False, False)}, values=_ling2_values
    ),
    "hy_v3": Family(needs=WITHOUT_BIAS, values=_hy3_values),
    "dots1": Family(needs=WITHOUT_BIAS, values=_dots_values),
    "solar_open": Family(Layout(kinds=SECOND_NORM), architecture="glm4moe", values=_glm_values),
    "mimo": Family(Layout(drafts="model.mtp_layers."), architecture="qwen2", needs=WITHOUT_WINDOW),
    "pangu_embedded": Family(needs={"bias": (True, True), "attention_bias": (True, True)}),
}
