"""Ollama's verbs that change what is on this machine: create, copy, delete. Pull changes nothing.

They have the rights of somebody at the server's terminal, less what a client must not do: no path
is read, nothing is downloaded, and a server of certain models, or of several people, refuses them.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from starlette.responses import Response

from dure import hub
from dure.chat.preset_check import check_preset
from dure.errors import InvalidRequestError, ModelNotFoundError
from dure.hub.modelfile import Modelfile
from dure.hub.presets import LATEST, checked, dated
from dure.server import limits
from dure.server.errors import HTTPError
from dure.server.http.sse import json_response
from dure.server.ollama.chat import NDJSON, known_name
from dure.server.ollama.schemas import CopyBody, CreateBody, PullBody, ShowBody
from dure.server.wire.body import converted, read_as
from dure.server.wire.tenant import tenant
from dure.server.wire.validation import refuse

if TYPE_CHECKING:
    from starlette.requests import Request

    from dure.server.serving.service import Service

_WEIGHTS = "dure converts and downloads at its own terminal: `dure convert`, `dure pull`"
_NOT_CREATED = {
    "files": _WEIGHTS,
    "quantize": _WEIGHTS,
    "adapters": "no adapters are loaded",
    "path": "a client names no files of the server",
    "modelfile": 'its instructions are fields: "from", "system", "template", "parameters"',
}
_DONE = {"status": "success"}


async def create(service: Service, request: Request) -> Response:
    """POST /api/create: make a preset of a model that is here."""
    body = await read_as(request, CreateBody)
    _check_allowed(service, request)

    def read() -> Modelfile:
        refuse(body, _NOT_CREATED)
        return _modelfile(body)

    made = await converted(request, body, read)
    name = _new_name(body.model or body.name)
    made.base = service.registry.source(known_name(service, made.base))

    def write() -> list[str]:
        preset = made.preset(name)
        check_preset(preset)
        _write(preset)
        return [*preset.settings.notes, preset.settings.template_note]

    notes = await service.changed(name, write)
    lines = [{"status": note} for note in notes if note] + [_DONE]
    return _progress(lines, stream=body.stream)


async def copy(service: Service, request: Request) -> Response:
    """POST /api/copy: give a model another name, or copy a preset."""
    body = await read_as(request, CopyBody)
    refuse(body, {})
    _check_allowed(service, request)
    source, name = known_name(service, body.source), _new_name(body.destination)

    def write() -> None:
        base = service.registry.source(source)
        _write(replace(hub.preset_of(base) or hub.Preset(name, base), name=name))

    await service.changed(name, write)
    return Response()


async def delete(service: Service, request: Request) -> Response:
    """DELETE /api/delete: delete a preset, or a model that dure pulled."""
    body = await read_as(request, ShowBody)
    refuse(body, {})
    _check_allowed(service, request)
    asked = body.model or body.name or ""
    name = known_name(service, asked)
    if name.casefold() not in (asked.casefold(), asked.removesuffix(LATEST).casefold()):
        raise ModelNotFoundError(f"{asked!r:.80} is an alias of {name}, which is not deleted so.")

    def remove() -> None:
        if hub.preset_of(name) is None:
            owner = hub.resolve(name, allow_download=False).owner
            if owner != "dure":
                raise HTTPError(
                    403, f"{name} is kept by {owner}; dure deletes only what it pulled."
                )
        hub.remove(name)

    await service.changed(name, remove)
    return Response()


async def pull(service: Service, request: Request) -> Response:
    """POST /api/pull: say that a model is here; a client makes the server download nothing."""
    body = await read_as(request, PullBody)
    refuse(body, {})
    asked = body.model or body.name or ""
    try:
        known_name(service, asked)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            error.message, hint=f"on the server's machine: dure pull {asked:.80}"
        ) from None
    return _progress([_DONE], stream=body.stream)


def _modelfile(body: CreateBody) -> Modelfile:
    """Return what the body says, as a Modelfile would."""
    if not body.from_:
        raise InvalidRequestError(
            "It is not said which model the preset is made of.", hint='give "from": "NAME"'
        )
    licences = [body.license] if isinstance(body.license, str) else body.license or []
    made = Modelfile(
        base=body.from_,
        system=body.system or "",
        template=body.template or "",
        license="\n".join(licences),
    )
    for name, value in (body.parameters or {}).items():
        if isinstance(value, list) and name != "stop":
            raise InvalidRequestError(
                f"The parameter {name!r:.60} is a list; only stop has several values."
            )
        for each in value if isinstance(value, list) else [value]:
            if each is not None:
                made.set_parameter(name, each if isinstance(each, str) else json.dumps(each))
    for message in body.messages or ():
        if message.role not in ("system", "user", "assistant") or not message.content:
            raise InvalidRequestError(
                f"A message of a preset is a text of system, user or assistant, "
                f"not of {message.role!r:.40} without content."
            )
        made.messages.append({"role": message.role, "content": message.content})
    return made


def _write(preset: hub.Preset) -> None:
    if hub.preset_of(preset.name) is None and len(hub.all_presets()) >= limits.MAX_PRESETS:
        raise InvalidRequestError(
            f"There are {limits.MAX_PRESETS:,} presets here already.", hint="delete some"
        )
    hub.create(dated(preset))


def _new_name(asked: str | None) -> str:
    """Return the name of a preset to be made; it says nothing of which files there are."""
    name = (asked or "").removesuffix(LATEST)
    try:
        return checked(name)
    except InvalidRequestError:
        raise InvalidRequestError(
            f"{name!r:.100} cannot be a preset's name.", hint="letters and digits, as in mario:v2"
        ) from None


def _check_allowed(service: Service, request: Request) -> None:
    """Raise a 403 where a client may change nothing, or this one may not."""
    why = service.closed
    if not why and not service.accounting.is_admin(tenant(request)):
        why = "this key is no admin's"
    if why:
        raise HTTPError(
            403,
            f"This server's models are not changed by this request, as {why} "
            "(hint: dure create, cp and rm do it on its machine).",
            "permission_error",
            code="models_are_fixed",
        )


def _progress(lines: list[dict[str, str]], *, stream: bool | None) -> Response:
    if stream is False:
        return json_response(_DONE)
    return Response("".join(json.dumps(line) + "\n" for line in lines), media_type=NDJSON)
