"""dure show: what a model is, without loading it."""

# ruff: noqa: PLC0415 - the hub is loaded when the verb runs, not for its --help

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dure.cli import console, placement

if TYPE_CHECKING:
    from dure.hub import CatalogueEntry, ResolvedModel
    from dure.hub.facts import ModelFacts

CACHE_TOKENS = 32768  # what `dure run` gives a conversation, where the model can take as much


def command(
    model: Annotated[str, typer.Argument(help="A short name, a hub id, a file or a folder.")],
    template: Annotated[bool, typer.Option("--template", help="Print the chat template.")] = False,
    modelfile: Annotated[
        bool, typer.Option("--modelfile", help="Print a Modelfile that makes the preset again.")
    ] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List the tensors.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Show instead which layers would lie on which node of this Ray cluster, as "
            "`dure serve --ray` places them: auto, local or HOST:PORT.",
        ),
    ] = None,
    stages: Annotated[
        str, typer.Option(metavar="N", help="With --ray: how many stages; auto: one a node.")
    ] = "auto",
    replicas: Annotated[
        int, typer.Option(min=1, max=64, metavar="N", help="With --ray: how many copies of it.")
    ] = 1,
    models_dir: console.ModelsDir = None,
) -> None:
    """Show a model: family, parameters, quantisation, context, KV cache, licence, lineage, chat
    template, and whether it fits in memory. No weight is loaded.

    For a catalogue model that is not on this machine it shows the catalogue's entry.
    """
    del models_dir  # set in the environment
    from dure import hub
    from dure.errors import InvalidRequestError, ModelNotFoundError
    from dure.hub.facts import read_facts
    from dure.hub.modelfile import modelfile_of

    if modelfile:
        preset = hub.preset_of(model)
        if preset is None and not hub.is_known(model):
            hub.resolve(model, allow_download=False)  # says what was meant
        console.write(modelfile_of(preset or hub.Preset(model, model)))
        return
    if ray is None and (replicas > 1 or stages != "auto"):
        raise InvalidRequestError(
            "--replicas and --stages tell where a model would lie on a cluster, and no --ray names "
            "one.",
            hint="--ray auto; `dure plan --replicas` says what replicas on this machine take",
        )
    if ray is not None:
        placement.show(model, ray, stages, replicas, json=json)
        return
    try:
        found = hub.resolve(model, allow_download=False)
    except ModelNotFoundError:
        entry = hub.load_catalogue().find(model.strip())
        if entry is None or template or tensors:
            raise
        _print(_catalogued(entry), json=json)
        return
    facts = read_facts(found.path)
    if json:
        value = _described(found, facts)
        value |= {"chat_template": facts.chat_template} if template else {}
        value |= {"tensors": _tensors(facts)} if tensors else {}
        console.print_json(value)
    elif template:
        settings = found.settings
        used = settings.template or facts.chat_template or settings.fallback_template
        console.write(used + "\n")
    elif tensors:
        for tensor in _tensors(facts):
            shape = " x ".join(str(size) for size in tensor["shape"])
            console.write(f"{tensor['type']:<8} {shape:<22} {tensor['name']}\n")
    else:
        _print(_described(found, facts), json=False)


def _catalogued(entry: CatalogueEntry) -> dict[str, Any]:
    from dure.cli.list import fits
    from dure.machine import memory_available

    return {
        "name": entry.name,
        "here": False,
        "path": None,
        "title": entry.title,
        "architecture": entry.architecture,
        "parameters": entry.parameters,
        "active_parameters": entry.active_parameters or entry.parameters,
        "quantisation": {entry.quantisation: 1.0} if entry.quantisation else {},
        "size_bytes": entry.likely_bytes,
        "size_is_known": entry.is_known,
        "fits_at_a_glance": fits(entry, memory_available()),
        "repository": next((s.repo for s in entry.sources if s.repo), ""),
        "bits_per_weight": round(8 * entry.likely_bytes / entry.parameters, 2),
        "context": entry.context,
        "license": entry.license,
        "lineage": f"{entry.publisher}: {entry.lineage}",
        "sampling": dict(entry.sampling),
    }


def _described(found: ResolvedModel, facts: ModelFacts) -> dict[str, Any]:
    from dure.chat.dialects import dialect_of
    from dure.chat.dialects.thinking import has_switch
    from dure.formats.checkpoint import open_checkpoint
    from dure.loading.describe import describe

    entry = found.entry
    tokens = min(facts.context, CACHE_TOKENS)
    inside = describe(open_checkpoint(found.path))
    # The vocabulary is not read: what depends on it is shown when the model runs.
    dialect = dialect_of(facts.chat_template, lambda _: False)
    switch = "switchable" if has_switch(facts.chat_template) else "always"
    cache_bytes = inside.cache_bytes(tokens) if inside.caches else facts.cache_bytes(tokens)
    needed = inside.memory_bytes + cache_bytes
    return {
        "name": found.name,
        "here": True,
        "path": str(found.path),
        "owner": found.owner,
        "title": (entry.title if entry else "") or facts.title,
        "architecture": facts.architecture,
        # a file may hold the embedding twice, once as the output: the publisher counts it once
        "parameters": entry.parameters if entry else facts.parameters,
        "active_parameters": (
            entry.active_parameters or entry.parameters if entry else facts.active_parameters
        ),
        "quantisation": {dtype: round(share, 4) for dtype, share in facts.quantisation.items()},
        "size_bytes": facts.weight_bytes,
        "bits_per_weight": round(8 * facts.weight_bytes / max(1, facts.parameters), 2),
        "context": facts.context,
        "vocabulary": facts.vocabulary,
        "layers": facts.layers,
        "experts": facts.experts,
        "experts_used": facts.experts_used,
        "license": (entry.license if entry else "") or facts.license,
        "lineage": f"{entry.publisher}: {entry.lineage}" if entry else facts.lineage,
        "sampling": dict(found.sampling),
        "settings": {
            "context": found.settings.context,
            "system": found.settings.system,
            "notes": list(found.settings.notes),
        },
        "memory": {
            "weight_bytes": inside.weight_bytes,
            "expert_bytes": inside.expert_bytes,
            "cache_tokens": tokens,
            "cache_bytes": cache_bytes,
            "needed_bytes": needed,
            "available_bytes": inside.available_bytes,
            "fits": needed <= inside.available_bytes,
        },
        "family": inside.family,
        "problem": inside.problem,
        "draft_heads": {"there": inside.has_draft_heads, "problem": inside.draft_problem},
        "unused_scales": {use: list(names) for use, names in inside.unused_scales.items()},
        "parts": {part: dict(types) for part, types in inside.parts.items()},
        "caches": [asdict(each) for each in inside.caches],
        "cache_bytes_per_token": inside.token_bytes,
        "template": {
            "dialect": dialect.name,
            "thinking": switch if dialect.think else "",
            "tools": dialect.calls is not None,
        }
        if facts.chat_template
        else None,
        "has_chat_template": bool(facts.chat_template),
    }


def _tensors(facts: ModelFacts) -> list[dict[str, Any]]:
    packed = facts.experts_file.parameters().values() if facts.experts_file else ()
    return [
        {"name": t.name, "type": t.dtype, "shape": list(t.shape), "size_bytes": t.size_bytes}
        for t in (*facts.tensors, *packed)
    ]


def _print(value: dict[str, Any], *, json: bool) -> None:
    from dure.cli import console

    if json:
        console.print_json(value)
        return
    for label, text in _lines(value):
        if text:
            # a model's own words may hold terminal commands, and pipes end in terminals too
            shown = "".join(c for c in " ".join(text.split()) if c.isprintable())
            console.write(f"{label:<14}{shown}\n")


def _lines(value: dict[str, Any]) -> list[tuple[str, str]]:
    """List (label, text) of all lines to print; a line without text is left out."""
    from dure.hub import human_bytes

    active = value["active_parameters"]
    parameters = count_of(value["parameters"])
    if active != value["parameters"]:
        parameters += f", of which {count_of(active)} work on a token"
    mix = ", ".join(f"{name} {_percent(share)}" for name, share in value["quantisation"].items())
    bits = value["bits_per_weight"]
    experts = value.get("experts") and f"{value['experts']}, {value['experts_used']} a token"
    return [
        ("name", value["name"]),
        ("model", value["title"]),
        ("family", value["architecture"]),
        ("parameters", parameters),
        ("experts", experts or ""),
        ("weights", f"{human_bytes(value['size_bytes'])}, {bits:.1f} bits each: {mix}")
        if value.get("size_is_known", True)
        else ("weights", f"about {human_bytes(value['size_bytes'])} in Q4_K_M; the hub says it"),
        ("repository", value.get("repository", "")),
        ("parts", _parts(value.get("parts") or {})),
        ("computed", _computed(value.get("parts") or {})),
        ("not used", _unused(value.get("unused_scales") or {})),
        ("context", f"{value['context']:,} tokens" if value["context"] else "not stated"),
        ("vocabulary", f"{value['vocabulary']:,} tokens" if value.get("vocabulary") else ""),
        ("cache", _caches(value.get("caches") or [])),
        ("memory", _memory(value.get("memory"))),
        ("fits", value.get("fits_at_a_glance") or _fits(value.get("memory"))),
        ("draft heads", _draft_heads(value.get("draft_heads"))),
        ("runs", f"no: {value['problem']}" if value.get("problem") else ""),
        ("licence", value["license"] or "not stated"),
        ("lineage", value["lineage"]),
        ("sampling", ", ".join(f"{name} {n}" for name, n in value["sampling"].items())),
        ("system", (value.get("settings") or {}).get("system", "")[:200]),
        ("notes", "; ".join((value.get("settings") or {}).get("notes", []))),
        ("template", _template(value.get("has_chat_template"), value.get("template"))),
        ("kept by", value.get("owner") if value.get("owner") not in (None, "dure", "you") else ""),
        ("path", value["path"] or f"not on this machine: dure pull {value['name']}"),
    ]


def _memory(memory: dict[str, int] | None) -> str:
    from dure.hub import human_bytes

    if not memory:
        return ""
    total = human_bytes(memory["weight_bytes"] + memory["cache_bytes"])
    cache = f"{human_bytes(memory['cache_bytes'])} for {memory['cache_tokens']:,} tokens of context"
    return f"{total}: {human_bytes(memory['weight_bytes'])} of weights, {cache}"


def _computed(parts: dict[str, dict[str, int]]) -> str:
    """Say which types are multiplied as integers: not those of routers and of mere tables."""
    from dure.formats.blocks import AS_INTEGERS
    from dure.weights.quantize import integers_said

    kept = {"router", "other", "embedding" if "head" in parts else ""}
    kinds = {kind for part in parts.keys() - kept for kind in parts[part]}
    types = {AS_INTEGERS.get("F8G128" if "FP8" in kind else kind, "") for kind in kinds}
    return integers_said(types)


def _parts(parts: dict[str, dict[str, int]]) -> str:
    """Format the types of each part: "attention Q6_K, experts Q4_K and Q6_K"."""
    return ", ".join(f"{part} {' and '.join(types)}" for part, types in parts.items())


def _unused(scales: dict[str, list[str]]) -> str:
    """Format which of a checkpoint's static scales have no effect."""
    said = {"activations": "of activations", "cache": "of the KV cache"}
    uses = [f"{said[use]} ({', '.join(names)})" for use, names in scales.items()]
    return f"static scales {' and '.join(uses)}, which dure makes itself" if uses else ""


def _draft_heads(heads: dict[str, Any] | None) -> str:
    """Format whether a layer guesses tokens ahead; empty for a model that was made without."""
    from dure.layers.mtp import NO_DRAFT_HEADS

    if heads and heads["there"]:
        return "a layer that guesses the token after the next (MTP)"
    problem = heads["problem"] if heads else ""
    return f"no: {problem}" if problem not in ("", NO_DRAFT_HEADS) else ""


def _caches(caches: list[dict[str, Any]]) -> str:
    """Format the cache bytes per token, or per sequence, of each kind of layer."""
    from dure.hub import human_bytes

    def taken(each: dict[str, Any]) -> str:
        if each["sequence_bytes"]:
            return f"{human_bytes(each['sequence_bytes'])} a sequence"
        return f"{human_bytes(each['token_bytes'])} a token"

    return ", ".join(
        f"{taken(each)} in {each['layers']} {each['kind']} layers"
        + (f" of {each['window']:,} tokens" if each["window"] else "")
        for each in caches
    )


def _fits(memory: dict[str, int] | None) -> str:
    from dure.hub import human_bytes

    if not memory or "fits" not in memory:
        return ""
    needed, free = (human_bytes(memory[f"{which}_bytes"]) for which in ("needed", "available"))
    if memory["fits"]:
        return f"yes: a run takes {needed}, and {free} is free"
    streams = memory.get("expert_bytes", 0) > 0
    so = "; it runs all the same, with experts read from disk" if streams else ""
    return f"no: a run takes {needed}, and {free} is free{so}"


def _template(there: bool | None, dialect: dict[str, Any] | None) -> str:
    if not there or dialect is None:
        return "" if there is None else "none: completion only"
    thinking = f", thinking {dialect['thinking']}" if dialect["thinking"] else ""
    tools = ", calls tools" if dialect["tools"] else ""
    return f"{dialect['dialect']}{thinking}{tools} (`--template` prints it)"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "<1 %"


def count_of(parameters: int) -> str:
    """Format a number of parameters: "1.54 billion"."""
    if parameters >= 1_000_000_000:
        return f"{parameters / 1e9:.2f} billion"
    return f"{parameters / 1e6:.1f} million"
