"""Opens a model as it lies on disk: its tensors and what is written beside them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dure.errors import ModelFileError
from dure.formats import expert_file
from dure.formats.gguf import part_names, read_gguf
from dure.formats.jsonfile import read_object
from dure.formats.mindspore import is_mindspore, read_mindspore
from dure.formats.safetensors import INDEX_NAME, read_safetensors
from dure.formats.sniff import describe
from dure.formats.source import SourceFile
from dure.formats.tensors import TensorInfo, shown

MAX_TEMPLATE_BYTES = 1 << 20
WEIGHT_NAMES = ("model.gguf", "model.safetensors")
"""What the file of all tensors but the packed experts is called."""

_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.safetensors")
_EMBEDDING = "embed_tokens.weight"
_BARE = re.compile(r"(?:embed_tokens|norm|layers\.\d+)\.")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_WANTED = "give a .gguf file, or a folder with config.json and .safetensors files."


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a model's files say.

    `metadata` is the GGUF's key-values, the other fields come from a Hugging Face folder; each is
    empty or None for the other kind. `experts`: the packed experts of a folder that `dure convert`
    wrote, whose `tensors` are all others.
    """

    path: Path  # the file or folder that was opened
    kind: Literal["gguf", "safetensors"]
    tensors: dict[str, TensorInfo]
    metadata: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    generation_config: dict[str, Any] = field(default_factory=dict)
    tokenizer_json: Path | None = None
    tokenizer_config: dict[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    experts: expert_file.ExpertFile | None = None
    is_bare: bool = False  # a folder of the model without its head, as embedding models are saved


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open the model at a GGUF file, a safetensors file, or a folder with either; read no weight.

    Raises ModelFileError if there is none or it is damaged, UnsupportedModelError if it is of a
    format that is not supported.
    """
    path = Path(path)
    if _is_folder(path):
        return _open_folder(path)
    if path.name in WEIGHT_NAMES and path.with_name(expert_file.FILE_NAME).exists():
        return _open_converted(path.parent)
    if path.name == INDEX_NAME:
        return _open_safetensors(path.parent, path)
    source = SourceFile(path)
    first = source.read(0, min(9, source.size_bytes)).tobytes()
    if first.startswith(b"GGUF"):
        source.close()
        return _open_gguf(path)
    if first[8:] == b"{" or path.suffix == ".safetensors":
        source.close()
        return _open_safetensors(path.parent, _whole_set(path))
    raise ModelFileError(f"{path} is not a model file: {describe(source)}.", hint=_WANTED)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # no permission, or a NUL in the name: opening it says which
        return False


def _open_folder(folder: Path) -> Checkpoint:
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise ModelFileError(f"{folder} cannot be listed: {error.strerror}.") from None
    if expert_file.FILE_NAME in names:
        return _open_converted(folder)
    if any(name.endswith(".safetensors") or name == INDEX_NAME for name in names):
        return _open_safetensors(folder, folder)
    models = _gguf_models(names)
    if len(models) == 1:
        return _open_gguf(folder / models[0])
    if models:
        raise ModelFileError(
            f"{folder} has {len(models)} GGUF models: {_some(models)}.", hint="give one of them."
        )
    pickles = [name for name in names if name.endswith(_PICKLES)]
    ours = [n for n in pickles if n.endswith(".ckpt") and is_mindspore(folder / n)]
    if ours:
        return _open_tensors(folder, folder, _mindspore(folder, ours))
    if pickles:
        tool = _quantised_by(folder)
        raise ModelFileError(
            f"{folder} has only PyTorch weights ({_some(pickles)}){tool and f' of {tool}'}, which "
            "can run code when they are loaded, so dure never does.",
            hint=f"save the model again with a newer {tool}, which writes safetensors."
            if tool
            else "use the model's safetensors or GGUF files, or convert it.",
        )
    raise ModelFileError(f"{folder} has no model in it.", hint=_WANTED)


def _open_converted(folder: Path) -> Checkpoint:
    """Open a folder of packed experts and, in one file, all other tensors."""
    experts = expert_file.read_expert_file(folder / expert_file.FILE_NAME)
    name = experts.weights.name
    if name not in WEIGHT_NAMES:
        raise ModelFileError(
            f"{folder / expert_file.FILE_NAME} belongs to no {' or '.join(WEIGHT_NAMES)}."
        )
    if expert_file.file_facts(folder / name) != experts.weights:
        raise ModelFileError(
            f"{folder / name} is not the file that {expert_file.FILE_NAME} was written with.",
            hint="convert the model again; the two files of a folder belong together.",
        )
    rest = (
        _open_gguf(folder / name) if name.endswith(".gguf") else _open_safetensors(folder, folder)
    )
    return replace(rest, path=folder, experts=experts)


def _quantised_by(folder: Path) -> str:
    """Return the quant_method of a folder's config.json; empty without one."""
    settings = _read_optional(folder / "config.json").get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    return method[:40] if isinstance(method, str) else ""


def _gguf_models(names: Sequence[str]) -> list[str]:
    """Return the names to open: GGUF files but later parts of a set and vision projectors."""
    models = []
    for name in names:
        parts = part_names(name)
        if name.endswith(".gguf") and "mmproj" not in name and (not parts or parts[0] == name):
            models.append(name)
    return models


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _open_gguf(path: Path) -> Checkpoint:
    file = read_gguf(path)
    template = file.metadata.get("tokenizer.chat_template")
    return Checkpoint(
        path=path,
        kind="gguf",
        tensors=file.tensors,
        metadata=file.metadata,
        chat_template=template if isinstance(template, str) else None,
    )


def _whole_set(path: Path) -> Path:
    """Return the index of the set that a file is a part of, or the file itself."""
    index = path.with_name(INDEX_NAME)
    return index if _SHARD.fullmatch(path.name) and index.exists() else path


def _mindspore(folder: Path, names: Sequence[str]) -> dict[str, TensorInfo]:
    """Read the tensors of MindSpore's files, which are parts of one model or only one."""
    found: dict[str, TensorInfo] = {}
    for name in names:
        tensors = read_mindspore(folder / name)
        twice = next((each for each in tensors if each in found), None)
        if twice is not None:
            raise ModelFileError(
                f"{folder} has {shown(twice)} in two of its .ckpt files.",
                hint="leave one model in the folder.",
            )
        found |= tensors
    return found


def _open_safetensors(folder: Path, weights: Path) -> Checkpoint:
    path = folder if weights != folder and weights.name == INDEX_NAME else weights
    return _open_tensors(folder, path, None)


def _open_tensors(folder: Path, path: Path, tensors: dict[str, TensorInfo] | None) -> Checkpoint:
    """Open a folder with a config.json; without `tensors` they are those of safetensors files."""
    if not (folder / "config.json").exists():
        raise ModelFileError(
            f"{folder} has weights but no config.json, which says what they are.",
            hint="download config.json and tokenizer.json of the same model into that folder.",
        )
    config = read_object(folder / "config.json")
    found = read_safetensors(path) if tensors is None else tensors
    is_bare = _EMBEDDING in found and not any(name.startswith("model.") for name in found)
    tokenizer_config = _read_optional(folder / "tokenizer_config.json")
    tokenizer_json = folder / "tokenizer.json"
    return Checkpoint(
        path=path,
        kind="safetensors",
        tensors={_whole_name(name): each for name, each in found.items()} if is_bare else found,
        config=config,
        generation_config=_read_optional(folder / "generation_config.json"),
        tokenizer_json=tokenizer_json if tokenizer_json.is_file() else None,
        tokenizer_config=tokenizer_config,
        chat_template=_chat_template(folder, tokenizer_config),
        is_bare=is_bare,
    )


def _whole_name(name: str) -> str:
    """Return the name that a tensor of a model without its head has in one with a head."""
    return f"model.{name}" if _BARE.match(name) else name


def _read_optional(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}


def _chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """Return the template of chat_template.jinja, else of tokenizer_config.json, else None."""
    path = folder / "chat_template.jinja"
    if path.exists():
        source = SourceFile(path)
        if source.size_bytes > MAX_TEMPLATE_BYTES:
            raise ModelFileError(
                f"{path} has {source.size_bytes:,} bytes, and the limit is {MAX_TEMPLATE_BYTES:,}."
            )
        try:
            return str(source.read(0, source.size_bytes).data, "utf-8")
        except UnicodeDecodeError:
            raise ModelFileError(f"{path} is not UTF-8 text.") from None
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):  # several with names; "default" is the one for plain chat
        named = (each for each in template if isinstance(each, dict))
        template = next(
            (each.get("template") for each in named if each.get("name") == "default"), None
        )
    return template if isinstance(template, str) else None
