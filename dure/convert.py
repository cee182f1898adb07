"""A Hugging Face folder as a GGUF file that llama.cpp computes alike, quantised if asked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dure import machine, models
from dure.config import gguf_keys, read_config
from dure.errors import UnsupportedModelError
from dure.formats.blocks import BLOCKS
from dure.formats.card import read_card
from dure.formats.checkpoint import open_checkpoint
from dure.formats.gguf_writer import TensorPlan, check_target, write_gguf
from dure.formats.packed import is_idle_bias, parameters
from dure.formats.packed_layouts import PackedMatrix
from dure.formats.tensors import TensorInfo
from dure.kernels.dequantize_reference import dequantize
from dure.quantize import part_of, quantize_rows, type_for
from dure.recast import Dequantised
from dure.rope import RopeConfig, rope_frequencies, stretched_theta
from dure.text.gguf_export import gguf_vocabulary
from dure.weights import from_gguf, gguf_name, plain_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.config import Config
    from dure.formats.checkpoint import Checkpoint
    from dure.quantize import Scheme

    Source = TensorInfo | Dequantised
    Bytes = NDArray[np.uint8]

_CHUNK_WEIGHTS = 1 << 21  # read, converted and written at once
_FLOATS = ("F32", "F16", "BF16")
# general.file_type, which tells a person what most of the file is.
_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "Q4_K": 15, "Q6_K": 18, "BF16": 32}

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.((?:gate|up|down)_proj)\.weight")
_FUSED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)")


@dataclass(frozen=True)
class _Family:
    """What llama.cpp computes of a family whatever the file says; a config that differs is refused.
    `pairs`: it turns neighbours (2i, 2i + 1), so that the rows of q and k change places."""

    pairs: bool = False
    architecture: str | None = None  # llama.cpp's name, where the model file says none
    needs: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)  # key -> (default, needed)


_WITHOUT_WINDOW = {"use_sliding_window": (False, False)}
_LITE_LAYERS = (26, 27)
_LATENT = {"attention_bias": (False, False), "rope_interleave": (True, True)}
_FAMILIES: Mapping[str, _Family] = {
    "llama": _Family(pairs=True),
    "qwen2": _Family(needs=_WITHOUT_WINDOW),
    "qwen3": _Family(needs={**_WITHOUT_WINDOW, "attention_bias": (False, False)}),
    "qwen3_moe": _Family(
        needs={
            **_WITHOUT_WINDOW,
            "attention_bias": (False, False),
            "norm_topk_prob": (False, True),
            "decoder_sparse_step": (1, 1),
            "mlp_only_layers": ([], []),
        }
    ),
    "qwen2_moe": _Family(
        needs={
            **_WITHOUT_WINDOW,
            "qkv_bias": (True, True),
            "norm_topk_prob": (False, False),
            "decoder_sparse_step": (1, 1),
            "mlp_only_layers": ([], []),
        }
    ),
    "ernie4_5": _Family(),
    "hunyuan_v1_dense": _Family(needs={"attention_bias": (False, False)}),
    # Groups it knows by the sum of their best two, as V3 has them and V2 does not.
    "deepseek_v2": _Family(needs={**_LATENT, "topk_method": ("greedy", "greedy")}),
    "deepseek_v3": _Family(architecture="deepseek2", needs=_LATENT),
}


# What the families' configs call the sizes, in config.json's language.
_SIZES = {
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "norm_eps": "rms_norm_eps",
    "context_length": "max_position_embeddings",
    "intermediate": "intermediate_size",
    "experts": "num_experts",
    "experts_per_token": "num_experts_per_tok",
    "expert_intermediate": "moe_intermediate_size",
    "shared_intermediate": "shared_expert_intermediate_size",
    "normalize": "norm_topk_prob",
}


@dataclass(frozen=True)
class Converted:
    """What was written."""

    path: Path
    size_bytes: int
    architecture: str
    types: Mapping[str, int]  # tensor type -> how many tensors


@dataclass(frozen=True)
class _Rows:
    """Rows of a tensor of the folder, counted over all its leading dimensions."""

    tensor: Source
    start: int
    stop: int
    turned: bool = False  # the columns are the GGUF's rows


@dataclass
class _Tensor:
    """A tensor of the GGUF, and the rows it is made of."""

    shape: tuple[int, ...]
    rows: list[_Rows]
    heads: int = 0  # whose rows change places; 0: none


def convert(
    folder: Path,
    out: Path,
    *,
    quantize: Scheme | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Converted:
    """Writes the model in `folder` to the GGUF file `out`, and says what it wrote.

    Without `quantize` every matrix keeps its type, which a quantised folder's cannot; vectors and
    routers are float32 in any case. progress(done, total) is told bytes of weights. Raises
    UnsupportedModelError, by name, for what llama.cpp would compute otherwise, and
    InvalidRequestError if `out` exists and not `force`.
    """
    check_target(out, force=force)
    checkpoint = open_checkpoint(folder)
    config, family = _understood(checkpoint, quantize)
    sizes: Any = models.checked_model(checkpoint).config
    architecture = family.architecture or models.family_of(checkpoint).GGUF_ARCHITECTURE
    tensors = _tensors(checkpoint, sizes, pairs=family.pairs)
    sparse = any("_exps." in name for name in tensors)
    workers = machine.usable_threads() if threads is None else threads
    plans = [
        _plan(name, tensor, _type(name, tensor, quantize, sparse=sparse), workers)
        for name, tensor in tensors.items()
    ]
    if sizes.rope.type == "llama3":
        plans.insert(0, _rope_factors(sizes.rope))
    metadata = {
        **_general(checkpoint, architecture, plans),
        **_architecture(config, sizes, architecture),
        **gguf_vocabulary(checkpoint, sizes.vocab_size),
    }
    size = write_gguf(out, metadata, plans, force=force, progress=progress)
    types = [plan.dtype for plan in plans]
    return Converted(
        out, size, architecture, {each: types.count(each) for each in sorted({*types})}
    )


def _understood(checkpoint: Checkpoint, quantize: Scheme | None) -> tuple[Config, _Family]:
    """The config of a model that llama.cpp computes alike, and what it knows of the family."""
    if checkpoint.kind == "gguf":
        raise UnsupportedModelError(
            f"{checkpoint.path} is a GGUF file already.",
            hint="give the folder of safetensors that it was made from.",
        )
    name = models.family_of(checkpoint).__name__.rpartition(".")[2]
    found = parameters(checkpoint).values()
    packed = next((t for t in found if isinstance(t, PackedMatrix)), None)
    if packed is not None and quantize is None:
        raise UnsupportedModelError(
            f"{checkpoint.path} has {packed.name} as {packed.stored}, which GGUF cannot say.",
            hint="quantise it anew: --quantize q8, q6 or q4.",
        )
    other = next((t for t in found if isinstance(t, TensorInfo) and t.dtype not in _FLOATS), None)
    if other is not None:
        raise UnsupportedModelError(
            f"{checkpoint.path} has {other.name} as {other.dtype}, and what is converted is "
            f"{', '.join(_FLOATS)}.",
            hint="convert the folder that it was quantised from, with --quantize.",
        )
    if name not in _FAMILIES:
        raise UnsupportedModelError(
            f"{checkpoint.path} is a {name!r} model, which dure runs but does not convert.",
            hint=f"it converts {', '.join(_FAMILIES)}.",
        )
    family, config = _FAMILIES[name], read_config(checkpoint)
    for key, (default, needed) in family.needs.items():
        value = config.values.get(key)
        if (default if value is None else value) != needed:
            raise UnsupportedModelError(
                f"{config.source} has {key} = {default if value is None else value!r}, and "
                f"llama.cpp computes {name} only with {needed!r}.",
                hint="run the folder as it is.",
            )
    return config, family


def _tensors(checkpoint: Checkpoint, sizes: Any, *, pairs: bool) -> dict[str, _Tensor]:
    """The tensors of the GGUF by name, in the order in which a model reads them."""
    spellings = getattr(models.family_of(checkpoint), "SPELLINGS", None) or {}
    moving = {"attn_q": sizes.heads, "attn_k": sizes.kv_heads} if pairs else {}
    extra = range(sizes.layers, sizes.layers + getattr(sizes, "extra_layers", 0))
    drafts = tuple(f"model.layers.{layer}." for layer in extra)  # which llama.cpp does not run
    found: dict[str, _Tensor] = {}
    stored = parameters(checkpoint)
    for theirs, tensor in sorted(stored.items(), key=_natural):
        name = plain_name(theirs, spellings)
        if name is None or (name == "lm_head.weight" and sizes.tied) or name.startswith(drafts):
            continue
        if is_idle_bias(theirs, stored):
            continue
        source = Dequantised(tensor) if isinstance(tensor, PackedMatrix) else tensor
        for part, shape, rows in _parts(name, source, sizes):
            written = gguf_name(part)
            if written is None:
                raise UnsupportedModelError(
                    f"{checkpoint.path} has the tensor {theirs}, which GGUF has no name for."
                )
            if written in found:  # the next expert of a stack
                found[written].rows.append(rows)
            else:
                kind = written.split(".")[-2]
                found[written] = _Tensor(shape, [rows], moving.get(kind, 0))
    for each in found.values():
        if len(each.rows) > 1:
            each.shape = (len(each.rows), *each.shape)
    return found


def _parts(name: str, tensor: Source, sizes: Any) -> Iterator[tuple[str, tuple[int, ...], _Rows]]:
    """What one tensor of the folder adds to the GGUF: name, shape, rows. An expert is a part of its
    layer's stack; a fused stack has gate and up in turn; what makes keys and values of latents is
    two stacks of one matrix a head, of which that of the keys is turned."""
    if name.endswith(".kv_b_proj.weight"):
        for head in range(sizes.heads):
            first = head * (sizes.plain + sizes.value)
            keys = _Rows(tensor, first, first + sizes.plain, turned=True)
            values = _Rows(tensor, keys.stop, keys.stop + sizes.value)
            yield name.replace("kv_b", "k_b"), (sizes.latent, sizes.plain), keys
            yield name.replace("kv_b", "v_b"), (sizes.value, sizes.latent), values
        return
    if match := _EXPERT.fullmatch(name):
        yield f"{match[1]}.{match[3]}.weight", tensor.shape, _Rows(tensor, 0, tensor.num_rows)
        return
    fused = _FUSED.fullmatch(name)
    if fused is None or len(tensor.shape) != 3:
        yield name, tensor.shape, _Rows(tensor, 0, tensor.num_rows)
        return
    count, height, cols = tensor.shape
    halves = ("gate_proj", "up_proj") if fused[2] == "gate_up_proj" else ("down_proj",)
    rows = height // len(halves)
    for expert in range(count):
        for index, half in enumerate(halves):
            first = expert * height + index * rows
            part = _Rows(tensor, first, first + rows)
            yield f"{fused[1]}.{half}.weight", (rows, cols), part


def _natural(item: tuple[str, Any]) -> list[tuple[int, str]]:
    """Sorts layer 10 behind layer 9."""
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", item[0])]


def _type(name: str, tensor: _Tensor, scheme: Scheme | None, *, sparse: bool) -> str:
    """How the GGUF stores a tensor."""
    stored = tensor.rows[0].tensor.dtype
    part = part_of(from_gguf(name), len(tensor.shape))
    if part in ("vector", "router"):
        return "F32"
    if scheme is None:
        return stored
    wanted = type_for(scheme, part, tensor.shape[-1], sparse=sparse)
    return stored if wanted in _FLOATS else wanted


def _plan(name: str, tensor: _Tensor, dtype: str, threads: int) -> TensorPlan:
    def pieces() -> Iterator[Bytes]:
        for rows in tensor.rows:
            if rows.turned:
                yield _turned(rows, dtype, threads)
            else:
                yield from _converted(rows, dtype, tensor.heads, threads)

    return TensorPlan(name, dtype, tensor.shape, pieces)


def _converted(rows: _Rows, dtype: str, heads: int, threads: int) -> Iterator[Bytes]:
    """The bytes of those rows in another type, a few at a time."""
    source = rows.tensor
    is_vector = len(source.shape) == 1  # which lies in its file as one row
    height = source.shape[0] if is_vector else rows.stop - rows.start
    head_dim = height // heads if heads else 1  # a head's rows are moved together
    chunk = head_dim * max(1, _CHUNK_WEIGHTS // (head_dim * source.shape[-1]))
    for start in range(rows.start, rows.stop, chunk):
        raw = source.read_rows(start, min(rows.stop, start + chunk))
        if heads:
            each = BLOCKS[source.dtype].block_bytes if is_vector else source.row_bytes
            raw = _interleaved(raw.reshape(-1, each), head_dim).reshape(raw.shape)
        if dtype != source.dtype:
            raw = _encoded(dequantize(source.dtype, raw), dtype, threads)
        yield raw.reshape(-1)


def _turned(rows: _Rows, dtype: str, threads: int) -> Bytes:
    """The bytes of those rows' columns, in turn, in another type."""
    source = rows.tensor
    raw = source.read_rows(rows.start, rows.stop)
    numbers = raw.view(np.uint32 if source.dtype == "F32" else np.uint16)
    turned = np.ascontiguousarray(numbers.T).view(np.uint8)
    if dtype != source.dtype:
        turned = _encoded(dequantize(source.dtype, turned), dtype, threads)
    return turned.reshape(-1)


def _interleaved(lines: Bytes, head_dim: int) -> Bytes:
    """The lines with each head's two halves in turn: what llama.cpp rotates are neighbours."""
    halves = lines.reshape(-1, 2, head_dim // 2, lines.shape[-1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(lines.shape)


def _encoded(values: NDArray[np.float32], dtype: str, threads: int) -> Bytes:
    if dtype == "F32":
        return values.view(np.uint8)
    return quantize_rows(np.ascontiguousarray(values), dtype, threads=threads)


def _rope_factors(rope: RopeConfig) -> TensorPlan:
    """llama3's scaling as GGUF has it: what each plain frequency is divided by."""
    plain = rope_frequencies(RopeConfig("default", rope.theta, rope.dim))[0]
    factors = (plain / rope_frequencies(rope)[0]).astype(np.float32)
    return TensorPlan("rope_freqs.weight", "F32", factors.shape, lambda: [factors.view(np.uint8)])


def _architecture(config: Config, sizes: Any, architecture: str) -> dict[str, Any]:
    """The keys under the architecture's name, what the config leaves to defaults spelled out."""
    values = {
        **config.values,
        **{theirs: getattr(sizes, ours, None) for ours, theirs in _SIZES.items()},
        "rope_theta": stretched_theta(sizes.rope),
        "rotary_dim": sizes.rope.dim,
        "value_head_dim": getattr(sizes, "head_dim", None),
        "rope_scaling": _rope_scaling(config, sizes.rope),
        "sliding_window": None,
        **(_latent_sizes(config, sizes) if hasattr(sizes, "latent") else {}),
    }
    keys = gguf_keys(values, architecture)
    return {**keys, f"{architecture}.vocab_size": sizes.vocab_size}


def _latent_sizes(config: Config, sizes: Any) -> dict[str, Any]:
    """What a model over latents calls its sizes, to llama.cpp: one head of keys, its entries."""
    if sizes.query_latent is None and sizes.layers not in _LITE_LAYERS:
        raise UnsupportedModelError(
            f"{config.source} has no q_lora_rank and {sizes.layers} layers, and llama.cpp knows "
            "DeepSeek-V2-Lite, which has none either, by its 27 layers.",
            hint="run the folder as it is.",
        )
    routing = sizes.routing
    grouped = routing.groups > 1
    return {
        "num_key_value_heads": 1,
        "head_dim": sizes.latent + sizes.rotated,
        "value_head_dim": sizes.latent,
        "qk_head_dim": sizes.plain + sizes.rotated,
        "v_head_dim": sizes.value,
        "q_lora_rank": sizes.query_latent,
        "kv_lora_rank": sizes.latent,
        "n_shared_experts": sizes.shared_experts,
        "first_k_dense_replace": sizes.dense_layers,
        "num_experts_per_tok": routing.top_k,
        "norm_topk_prob": routing.normalize,
        "routed_scaling_factor": routing.scale,
        "gating_func": ("softmax", "sigmoid").index(routing.score) + 1,
        "n_group": routing.groups if grouped else None,
        "topk_group": routing.kept_groups if grouped else None,
        "num_nextn_predict_layers": None,
    }


def _rope_scaling(config: Config, rope: RopeConfig) -> dict[str, Any]:
    """config.json's table of the scaling, as far as GGUF has keys for it; the rest is refused."""
    if rope.type in ("default", "llama3", "ntk-alpha"):  # a tensor, and a base, say the last two
        return {}
    if rope.type == "linear":
        return {"rope_type": "linear", "factor": rope.factor}
    # GGUF has one number for both magnitudes, and llama.cpp heeds it where keys are latents.
    same = rope.mscale == rope.mscale_all_dim if "kv_lora_rank" in config.values else False
    bare = rope.mscale is None and rope.mscale_all_dim is None
    plain = rope.attention_factor is None and (bare or same)
    if rope.type != "yarn" or not plain or not rope.truncate:
        raise UnsupportedModelError(
            f"{config.source} scales its rotation in a way that GGUF cannot say ({rope.type}).",
            hint="run the folder as it is.",
        )
    return {
        "rope_type": "yarn",
        "factor": rope.factor,
        "original_max_position_embeddings": rope.original_context,
        "beta_fast": rope.beta_fast,
        "beta_slow": rope.beta_slow,
        "mscale_all_dim": rope.mscale_all_dim,
    }


def _general(checkpoint: Checkpoint, architecture: str, plans: list[TensorPlan]) -> dict[str, Any]:
    """The keys that tell a person what the file is."""
    weights: dict[str, int] = {}
    for plan in plans:
        weights[plan.dtype] = weights.get(plan.dtype, 0) + int(np.prod(plan.shape, dtype=np.int64))
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    card = read_card(folder)
    found: dict[str, Any] = {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": folder.absolute().name,
        "general.file_type": _FILE_TYPES[_most(weights)],
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


def _most(weights: Mapping[str, int]) -> str:
    """The type of most weights, of those that a file is named after."""
    return max((each for each in weights if each in _FILE_TYPES), key=lambda each: weights[each])
