"""Ollama's model routes: the models served, the details of one, and those in memory."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from starlette.responses import PlainTextResponse

from dure import __version__, hub
from dure.chat.dialects import dialect_of
from dure.errors import InvalidRequestError
from dure.hub.facts import ModelFacts, read_facts
from dure.hub.modelfile import modelfile_of
from dure.server.http.sse import json_response
from dure.server.ollama.chat import known_name
from dure.server.ollama.schemas import ShowBody
from dure.server.wire.body import read_as
from dure.server.wire.validation import refuse

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from dure.chat.dialects import Dialect
    from dure.server.serving.model_pool import PooledModel
    from dure.server.serving.service import Service

SPOKEN = "0.13.0"
"""The version of Ollama whose API we implement: clients require a minimum."""

_OLLAMAS_WORDS = {"repetition_penalty": "repeat_penalty", "max_tokens": "num_predict"}

_FOR_EVER = timedelta(days=365 * 100)


async def root(_: Service, __: Request) -> Response:
    """GET and HEAD /: the line by which clients recognise Ollama."""
    return PlainTextResponse("Ollama is running")


async def version(_: Service, __: Request) -> Response:
    """GET /api/version"""
    return json_response({"version": SPOKEN, "dure": __version__})


async def tags(service: Service, _: Request) -> Response:
    """GET /api/tags: list the models served."""
    models = [_listed(facts) for facts in await service.models()]
    return json_response({"models": models})


async def ps(service: Service, _: Request) -> Response:
    """GET /api/ps: list the models in memory, and when each expires."""
    models = []
    for entry in service.registry.loaded():
        facts = await service.model(entry.name)
        listed = _listed(facts)
        listed.pop("modified_at")
        models.append(
            {
                **listed,
                "size_vram": 0,  # there is none
                "expires_at": _expires(entry),
                "context_length": facts.get("context_length", 0),
            }
        )
    return json_response({"models": models})


async def show(service: Service, request: Request) -> Response:
    """POST /api/show: describe one model without loading it."""
    body = await read_as(request, ShowBody)
    refuse(body, {})
    asked = body.model or body.name
    if not asked:
        raise InvalidRequestError("Which model is meant?", hint='give "model": "NAME"')
    name = known_name(service, asked)
    facts = await service.model(name)
    source = service.registry.source(name)
    found = await service.off_loop(lambda: hub.resolve(source, allow_download=False))
    read = await service.off_loop(lambda: read_facts(found.path))
    dialect = _dialect(service, name) or dialect_of(read.chat_template, lambda _: False)
    listed = _listed(facts)
    for word in ("name", "model"):
        listed.pop(word)
    return json_response(
        {
            "license": read.license,
            "modelfile": modelfile_of(hub.preset_of(source) or hub.Preset(name, name)),
            "parameters": _parameters(found),
            "system": found.settings.system,
            "template": (
                found.settings.template or read.chat_template or found.settings.fallback_template
            ),
            **listed,
            "model_info": _model_info(facts, read),
            "capabilities": ["embedding"] if read.embeds else _capabilities(dialect),
        }
    )


def _parameters(found: hub.ResolvedModel) -> str:
    """Write the model's defaults as Ollama does: a name and a value a line."""
    values = {**found.settings.sampling}
    values |= {"num_ctx": found.settings.context} if found.settings.context else {}
    lines = [
        f"{_OLLAMAS_WORDS.get(name, name):<30} {json.dumps(each)}"
        for name, value in values.items()
        for each in (value if isinstance(value, (list, tuple)) else [value])
    ]
    return "\n".join(lines)


def _listed(facts: dict[str, Any]) -> dict[str, Any]:
    """Return what tags, ps and show say of a model in the same words."""
    return {
        "name": facts["id"],
        "model": facts["id"],
        "modified_at": _utc(facts.get("modified", facts["created"])),
        "size": facts.get("file_bytes", 0),
        "digest": facts.get("digest", ""),
        "details": _details(facts),
    }


def _utc(seconds: float) -> str:
    made = datetime.fromtimestamp(seconds, timezone.utc)
    return made.isoformat().replace("+00:00", "Z")


def _details(facts: dict[str, Any]) -> dict[str, Any]:
    family = facts.get("architecture", "")
    return {
        "parent_model": "",
        "format": "gguf" if str(facts.get("root", "")).endswith(".gguf") else "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": _billions(facts.get("parameters", 0)),
        "quantization_level": facts.get("quantization", ""),
    }


def _model_info(facts: dict[str, Any], read: ModelFacts) -> dict[str, Any]:
    """Return the model's sizes under Ollama's names; if it is loaded, the context served."""
    family = read.architecture
    return {
        "general.architecture": family,
        "general.parameter_count": read.parameters,
        f"{family}.context_length": facts.get("context_length") or read.context,
        f"{family}.embedding_length": read.hidden,
        f"{family}.block_count": read.layers,
        f"{family}.attention.head_count": read.heads,
        f"{family}.attention.head_count_kv": read.kv_heads,
        "dure.lineage": read.lineage,
    }


def _dialect(service: Service, name: str) -> Dialect | None:
    """Return the dialect of a model in memory; None if it is not loaded."""
    entry = service.registry.entries.get(name)
    return entry.worker.llm.dialect if entry is not None and entry.worker is not None else None


def _capabilities(dialect: Dialect) -> list[str]:
    """Return the model's capabilities under Ollama's names."""
    found = ["completion"]
    if dialect.calls is not None:
        found.append("tools")
    if dialect.think is not None:
        found.append("thinking")
    return found


def _expires(entry: PooledModel) -> str:
    kept = _FOR_EVER
    if entry.keep_alive is not None and entry.keep_alive >= 0:
        used = time.monotonic() if entry.users else entry.used
        left = used + entry.keep_alive - time.monotonic()
        kept = timedelta(seconds=min(left, _FOR_EVER.total_seconds()))
    return (datetime.now(timezone.utc) + kept).isoformat().replace("+00:00", "Z")


def _billions(parameters: int) -> str:
    if parameters >= 1e9:
        return f"{parameters / 1e9:.1f}B"
    return f"{parameters / 1e6:.0f}M"
