"""What the server reports about its models: names, lineage, context, quantisation."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dure import hub, models
from dure.errors import DureError
from dure.formats.checkpoint import open_checkpoint
from dure.hub.facts import read_facts
from dure.hub.identity import files_identity

if TYPE_CHECKING:
    from dure.hub import ResolvedModel
    from dure.llm import LLM
    from dure.server.serving.model_pool import ModelPool

log = logging.getLogger("dure.server")


class ModelInfo:
    """Metadata of the served models. Thread-safe; each model's files are read once."""

    def __init__(self, registry: ModelPool) -> None:
        self._registry = registry
        self._created = int(time.time())
        self._known: dict[str, dict[str, Any]] = {}
        self._runs: dict[Path, bool] = {}
        self._lock = threading.Lock()

    def all(self) -> list[dict[str, Any]]:
        """Describe every model served: those named at the start, or else all on this machine."""
        names = list(self._registry.served) or self._on_this_machine()
        loaded = [entry.name for entry in self._registry.loaded()]
        return [self.of(name) for name in dict.fromkeys([*loaded, *names])]

    def forget(self, name: str) -> None:
        """Read a model's files again when it is asked for next."""
        with self._lock:
            for known in [each for each in self._known if each.casefold() == name.casefold()]:
                del self._known[known]

    def _on_this_machine(self) -> list[str]:
        """List the names of the models here that a client may ask for.

        Other programs keep models of all kinds: only those of a family that runs are listed.
        """
        found = []
        for model in hub.local_models():
            if hub.parse_name(model.name).kind == "path":
                continue
            with self._lock:
                runs = self._runs.get(model.path)
                if runs is None:
                    runs = self._runs[model.path] = model.owner == "dure" or _runs(model.path)
            if runs:
                found.append(model.name)
        return found

    def of(self, name: str) -> dict[str, Any]:
        """Describe one model as an entry of OpenAI's model list, with further metadata."""
        entry = self._registry.entries.get(name)
        worker = None if entry is None else entry.worker
        with self._lock:
            if name not in self._known:
                self._known[name] = _read(self._registry.source(name))
            read = self._known[name]
        value = {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "dure",
            "aliases": [
                alias for alias, target in self._registry.aliases.items() if target in (name, "")
            ],
            **read,
            "loaded": worker is not None,
        }
        if worker is not None:
            context = _in_memory(worker.llm)
            value["meta"] = {**read.get("meta", {}), **context}
            value["max_model_len"] = value["context_length"] = worker.llm.context
        return value


def _runs(path: Path) -> bool:
    """Whether the files at `path` are of a family that runs."""
    try:
        models.family_of(open_checkpoint(path))
    except (DureError, OSError):
        return False
    return True


def _in_memory(llm: LLM) -> dict[str, Any]:
    return {
        "n_ctx": llm.context,
        "n_ctx_train": llm.model.context_length,
        "n_vocab": llm.tokenizer.vocab_size,
    }


def _read(name: str) -> dict[str, Any]:
    """Read the metadata in the model's files; return {} if they cannot be read."""
    try:
        found = hub.resolve(name, allow_download=False)
        return _described(found)
    except (DureError, OSError):
        log.debug("no facts of %s", name, exc_info=True)
        return {}


def _described(found: ResolvedModel) -> dict[str, Any]:
    facts, entry = read_facts(found.path), found.entry
    files = files_identity(facts)
    lineage = f"{entry.publisher}: {entry.lineage}" if entry else facts.lineage
    return {
        "created": int(files.modified),
        "modified": files.modified,
        "digest": files.digest,
        "file_bytes": files.size_bytes,
        "root": found.path.name,
        "title": (entry.title if entry else "") or facts.title,
        "architecture": facts.architecture,
        "lineage": lineage,
        "license": (entry.license if entry else "") or facts.license,
        "quantization": next(iter(facts.quantisation), ""),
        "parameters": facts.parameters,
        "active_parameters": facts.active_parameters,
        "size_bytes": facts.weight_bytes,
        "max_model_len": facts.context,
        "context_length": facts.context,
        "meta": {
            "n_ctx_train": facts.context,
            "n_embd": facts.hidden,
            "n_params": facts.parameters,
            "size": facts.weight_bytes,
        },
    }
