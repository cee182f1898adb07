"""Ollama's store: manifests that name blobs.

$OLLAMA_MODELS (else ~/.ollama/models; on Linux also /usr/share/ollama/.ollama/models)
  manifests-v2/HOST/NAMESPACE/MODEL/TAG    a link to the blob that is the manifest; newer versions
  manifests/HOST/NAMESPACE/MODEL/TAG       the manifest itself: JSON that lists the layers
  blobs/sha256-DIGEST                      a layer; sha256-DIGEST-partial… while it is downloaded
Layers are the GGUF file, and texts: template, system message, parameters, licence. The template
is a Go program, which is not run: `ollama_template` says what takes its place.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dure.hub.names import ModelName
from dure.hub.settings import ModelSettings
from dure.hub.store import LocalModel, read_json_file
from dure.hub.stores.base import local
from dure.hub.stores.ollama_template import template_for

MAX_TEXT_BYTES = 1 << 20  # of a template, system message or parameters; real ones have kilobytes

_OWNER = "Ollama"
_HOST, _NAMESPACE = "registry.ollama.ai", "library"
_HUB_HOSTS = ("hf.co", "huggingface.co")
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})", re.IGNORECASE)
_TYPE = "application/vnd.ollama.image."
_LIST = "application/vnd.ollama.manifest.list.v2+json"
_PARAMETERS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "num_predict": "max_tokens",
    "stop": "stop",
}
_OF_THE_MACHINE = {
    "num_gpu",
    "num_thread",
    "num_batch",
    "main_gpu",
    "use_mmap",
    "use_mlock",
    "numa",
}


@dataclass(frozen=True)
class OllamaStore:
    """The models that Ollama pulled or created."""

    folder: Path
    owner: str = _OWNER

    def find(self, wanted: ModelName) -> LocalModel | None:
        """Return the model of an Ollama name: `name`, `name:tag`, `user/name:tag`, hf.co's."""
        if wanted.kind not in ("catalogue", "ollama", "huggingface") or wanted.revision:
            return None
        asked = wanted.text.removeprefix("ollama:").casefold()
        names = {asked, asked + ":latest"} if ":" not in asked.rpartition("/")[2] else {asked}
        names |= {f"{host}/{name}" for host in _HUB_HOSTS for name in names if "/" in name}
        for manifest in self._manifests():
            if self._name(manifest).casefold() in names:
                model = self._read(manifest)
                if model is not None:
                    return replace(model, name=wanted.text)
        return None

    def models(self) -> list[LocalModel]:
        """List the models whose blobs are all here, by Ollama's names."""
        return [model for each in self._manifests() if (model := self._read(each)) is not None]

    def removal(self, model: LocalModel) -> str:
        """Say how a model is removed."""
        return f"`ollama rm {model.name.removeprefix('ollama:')}` removes it"

    def _manifests(self) -> Iterator[Path]:
        seen = set()
        for root in (self.folder / "manifests-v2", self.folder / "manifests"):
            for path in sorted(root.glob("*/*/*/*")):
                place = path.relative_to(root).as_posix().casefold()
                if place not in seen and not path.name.startswith(".") and path.is_file():
                    seen.add(place)
                    yield path

    def _name(self, manifest: Path) -> str:
        """Write a name as Ollama does: without its own host and namespace."""
        host, namespace, model, tag = manifest.parts[-4:]
        parts = [] if host == _HOST else [host]
        parts += [] if (host, namespace) == (_HOST, _NAMESPACE) else [namespace]
        return "/".join([*parts, model]) + f":{tag}"

    def _read(self, path: Path) -> LocalModel | None:
        """Read one manifest; None if a blob is missing or short, or it has no GGUF file."""
        layers: list[tuple[str, Path, int]] = []
        for layer in self._layers(read_json_file(path)):
            blob = self._blob(layer)
            if blob is None:
                return None
            layers.append((str(layer["mediaType"]).removeprefix(_TYPE), blob, layer["size"]))
        weights = [(blob, size) for kind, blob, size in layers if kind == "model"]
        if len(weights) != 1 or any(kind == "adapter" for kind, _, _ in layers):
            return None
        texts = {kind: _text(blob) for kind, blob, _ in layers if kind in _TEXTS}
        found = local(self._name(path), *weights[0], _OWNER, revision=weights[0][0].name)
        licence = texts.get("license", "").strip().partition("\n")[0][:60].strip()
        return replace(found, license=licence, settings=_settings(texts))

    def _layers(self, manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return the layers of a manifest; of a list of several, those of the one with a GGUF."""
        if manifest.get("mediaType") == _LIST:
            children = manifest.get("manifests")
            children = children if isinstance(children, list) else []
            listed = [each for each in children if isinstance(each, dict)]
            listed = [each for each in listed if each.get("runner") in ("ollama", "llamacpp")]
            child = listed[0] if listed else {}
            blob = _blob_name(child.get("digest"))
            if not child.get("layers") and blob:
                child = read_json_file(self.folder / "blobs" / blob)
            manifest = child
        layers = manifest.get("layers")
        return [x for x in layers if isinstance(x, dict)] if isinstance(layers, list) else []

    def _blob(self, layer: Mapping[str, Any]) -> Path | None:
        """Return a layer's blob if it is here with all its bytes."""
        name, size = _blob_name(layer.get("digest")), layer.get("size")
        if not name or not isinstance(layer.get("mediaType"), str):
            return None
        blob = self.folder / "blobs" / name
        try:
            return blob if blob.stat().st_size == size else None
        except OSError:
            return None


_TEXTS = ("template", "system", "params", "license", "messages")


def ollama_folders() -> list[Path]:
    """List the folders in which Ollama keeps models here, whether they exist or not."""
    given = os.environ.get("OLLAMA_MODELS")
    if given:
        return [Path(given).expanduser()]
    try:
        own = [Path.home() / ".ollama" / "models"]
    except RuntimeError:
        own = []
    return [*own, Path("/usr/share/ollama/.ollama/models")]


def settings_of(
    parameters: Mapping[str, Any], *, system: str = "", go_template: str = ""
) -> ModelSettings:
    """Translate Ollama's parameters, system message and template to settings.

    What has no meaning here, or a value of the wrong type, is named in the notes.
    """
    sampling, notes = {}, []
    context = parameters.get("num_ctx")
    for name, value in parameters.items():
        if name in _PARAMETERS:
            known = _PARAMETERS[name]
            if known == "stop":
                value = [value] if isinstance(value, str) else value  # noqa: PLW2901
            if not _is_of_type(known, value):
                notes.append(f"Ollama's parameter {name} is not used: {value!r:.40} is no value")
            elif not (known == "seed" and value == -1) and not (
                known == "max_tokens" and value < 1
            ):
                sampling[known] = value  # what is left out is none, as if not given
        elif name != "num_ctx" and name not in _OF_THE_MACHINE:
            notes.append(f"Ollama's parameter {name} is not used")
    template, note = template_for(go_template)
    return ModelSettings(
        sampling,
        context if isinstance(context, int) and context > 0 else None,
        system,
        fallback_template=template,
        template_note=note,
        go_template=go_template,
        notes=tuple(notes),
    )


def _is_of_type(field: str, value: Any) -> bool:
    """Whether a value is of the type of a field of SamplingParams."""
    if field == "stop":
        return isinstance(value, list) and all(isinstance(text, str) for text in value)
    wanted = int if field in ("top_k", "seed", "max_tokens") else (int, float)
    return isinstance(value, wanted) and not isinstance(value, bool)


def _settings(texts: Mapping[str, str]) -> ModelSettings:
    try:
        parameters = json.loads(texts.get("params") or "{}")
    except (ValueError, RecursionError):
        parameters = {}
    return settings_of(
        parameters if isinstance(parameters, dict) else {},
        system=texts.get("system", ""),
        go_template=texts.get("template", ""),
    )


def _blob_name(digest: object) -> str:
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    return f"sha256-{match[1].lower()}" if match else ""


def _text(blob: Path) -> str:
    try:
        with blob.open("rb") as file:
            return file.read(MAX_TEXT_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
