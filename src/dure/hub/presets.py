"""Presets: a model under another name, with a system message, parameters and a template of one's
own. Each is a file of JSON in $DURE_HOME/presets (else ~/.cache/dure/presets); no weights are kept.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dure.errors import DureError, InvalidRequestError
from dure.hub.names import ModelName, parse_name
from dure.hub.settings import NO_SETTINGS, SAMPLING_FIELDS, ModelSettings
from dure.hub.store import read_json_file, state_folder

SUFFIX = ".json"
MAX_BYTES = 4 << 20
LATEST = ":latest"
MAX_NAME = 128


@dataclass(frozen=True)
class Preset:
    """A preset: its name, the model it is made of (a name or a path), and what it sets."""

    name: str
    base: str
    settings: ModelSettings = NO_SETTINGS
    license: str = ""
    created_at: str = ""


def find(wanted: ModelName) -> Preset | None:
    """Return the preset of that name; None if there is none."""
    if wanted.kind != "catalogue":
        return None
    try:
        return _read(_file(wanted.text))
    except DureError:  # there is no home folder
        return None


def all_presets() -> list[Preset]:
    """List the presets, by name."""
    try:
        files = sorted(_folder().glob("*" + SUFFIX))
    except (OSError, DureError):
        return []
    return [preset for file in files if (preset := _read(file)) is not None]


def write(preset: Preset) -> None:
    """Write a preset, in place of one of the same name. Raises InvalidRequestError."""
    file, settings = _file(checked(preset.name)), preset.settings
    value = {
        "name": preset.name,
        "base": preset.base,
        "system": settings.system,
        "parameters": dict(settings.sampling),
        "context": settings.context,
        "template": settings.template,
        "fallback_template": settings.fallback_template,
        "template_note": settings.template_note,
        "go_template": settings.go_template,
        "messages": [dict(message) for message in settings.messages],
        "license": preset.license,
        "created_at": preset.created_at,
    }
    text = json.dumps({key: each for key, each in value.items() if each}, indent=1)
    if len(text) > MAX_BYTES:
        raise InvalidRequestError(
            f"The preset takes {len(text):,} bytes; at most {MAX_BYTES:,} are kept."
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=file.parent, prefix=".")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as opened:
                opened.write(text + "\n")
                opened.flush()
                os.fsync(handle)
            Path(scratch).replace(file)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InvalidRequestError(f"{file} cannot be written: {error.strerror}.") from None


def dated(preset: Preset) -> Preset:
    """Return the preset as made now."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
    return replace(preset, created_at=now)


def delete(name: str) -> None:
    """Delete the preset of that name, if there is one."""
    _file(name).unlink(missing_ok=True)


def over(base: ModelSettings, ours: ModelSettings) -> ModelSettings:
    """Return the settings of a preset over those of its base."""
    return replace(
        ours,
        sampling={**base.sampling, **ours.sampling},
        context=ours.context or base.context,
        system=ours.system or base.system,
        template=ours.template or base.template,
        fallback_template=ours.fallback_template or base.fallback_template,
        template_note=ours.template_note or base.template_note,
        go_template=ours.go_template or base.go_template,
        messages=(*base.messages, *ours.messages),
        notes=(*base.notes, *ours.notes),
    )


def checked(name: str) -> str:
    """Return the name; InvalidRequestError for one that a preset cannot have."""
    try:
        kind: str = parse_name(name).kind
    except InvalidRequestError:
        kind = ""
    if kind == "catalogue" and len(name) <= MAX_NAME:
        return name
    if kind == "path":
        raise InvalidRequestError(
            f"{name!r:.100} is a file or folder here, and would be found before the preset.",
            hint="give the preset another name",
        )
    raise InvalidRequestError(
        f"{name!r:.100} is no name for a preset.",
        hint=f"at most {MAX_NAME} letters and digits, as in mario:v2",
    )


def _folder() -> Path:
    return state_folder("presets")


def _file(name: str) -> Path:
    plain = name.casefold().removesuffix(LATEST)
    return _folder() / (plain.replace(":", "@") + SUFFIX)


def _read(file: Path) -> Preset | None:
    """Read a preset; None if the file holds none."""
    try:
        if file.stat().st_size > MAX_BYTES:
            return None
    except OSError:
        return None
    value = read_json_file(file)
    name, base = value.get("name"), value.get("base")
    if not isinstance(name, str) or not isinstance(base, str) or not base:
        return None
    context, parameters = value.get("context"), value.get("parameters", {})
    texts = {
        key: value.get(key, "")
        for key in ("system", "template", "fallback_template", "template_note", "go_template")
    }
    if not all(isinstance(text, str) for text in texts.values()):
        return None
    settings = ModelSettings(
        sampling={
            key: each
            for key, each in (parameters.items() if isinstance(parameters, dict) else ())
            if key in SAMPLING_FIELDS
        },
        context=context if isinstance(context, int) and context > 0 else None,
        messages=_messages(value.get("messages")),
        **texts,
    )
    told = {key: str(value.get(key, "")) for key in ("license", "created_at")}
    return Preset(name, base, settings, **told)


def _messages(value: object) -> tuple[Mapping[str, Any], ...]:
    listed: Sequence[object] = value if isinstance(value, list) else ()
    return tuple(
        {"role": each["role"], "content": each["content"]}
        for each in listed
        if isinstance(each, dict)
        and each.get("role") in ("system", "user", "assistant")
        and isinstance(each.get("content"), str)
    )
