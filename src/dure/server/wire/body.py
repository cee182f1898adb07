"""Request bodies: received within limits of time and size, parsed as JSON, checked by a schema.

What is not admitted yet has a bound in all: bytes that are being received, and what bodies become
when they are parsed, until the engine has taken the request. A large body waits for its turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from dure.server import limits
from dure.server.errors import HTTPError, invalid
from dure.server.http.sse import cancel_on_disconnect
from dure.server.wire.budget import Budget, HeldBody, no_room
from dure.server.wire.fields import passed_over
from dure.server.wire.json_size import json_size

if TYPE_CHECKING:
    from starlette.requests import Request

M = TypeVar("M", bound=BaseModel)
R = TypeVar("R")

# pydantic's error type -> our sentence, with the names that pydantic's error context has
_SENTENCES: Mapping[str, str] = {
    "missing": "{field} is missing.",
    "extra_forbidden": "{field} is not known.",
    "too_long": "{field} has {actual_length} entries; at most {max_length} are allowed.",
    "too_short": "{field} has {actual_length} entries; at least {min_length} is needed.",
    "string_too_long": "{field} has more than {max_length} characters.",
    "string_too_short": "{field} must not be empty.",
    "greater_than_equal": "{field} must be at least {ge}.",
    "greater_than": "{field} must be over {gt}.",
    "less_than_equal": "{field} must be at most {le}.",
    "less_than": "{field} must be under {lt}.",
    "literal_error": "{field} must be {expected}.",
    "string_type": "{field} must be text.",
    "int_type": "{field} must be a whole number.",
    "int_from_float": "{field} must be a whole number.",
    "int_parsing_size": "{field} is too large a number.",
    "float_type": "{field} must be a number.",
    "finite_number": "{field} must be a finite number.",
    "bool_type": "{field} must be true or false.",
    "list_type": "{field} must be a list.",
    "dict_type": "{field} must be an object.",
    "model_type": "{field} must be an object.",
    "model_attributes_type": "{field} must be an object.",
}


_LARGE = 1 << 20
_TYPES = ("str", "int", "float", "bool", "dict", "list", "none")


class BodyReader:
    """Receives and parses request bodies, within budgets of bytes for the whole server.

    off_loop: runs a function on a thread; large bodies are parsed and converted there.
    """

    def __init__(self, off_loop: Callable[[Callable[[], Any]], Awaitable[Any]]) -> None:
        self._off_loop = off_loop
        self.bytes = 0  # received and not yet parsed, of all requests
        self.large = Budget(limits.MAX_LARGE_BYTES)
        self.small = Budget(limits.MAX_SMALL_BYTES)
        self._turn = asyncio.Lock()

    async def read(self, request: Request, shape: type[M]) -> M:
        """Receive, parse and validate the body; it counts as waiting until `release`.

        Raises a 400 that names the first wrong field, a 408 for a body that takes too long, a 413
        for one that is too long, and a 503 when the common budget is used up.
        """
        declared = request.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > limits.MAX_BODY_BYTES:
            raise _too_large(int(declared))
        parts: list[bytes] = []
        try:
            try:
                await asyncio.wait_for(self._receive(request, parts), limits.BODY_SECONDS)
            except (asyncio.TimeoutError, TimeoutError):
                raise HTTPError(
                    408,
                    f"The request's body did not come within {limits.BODY_SECONDS:g} s.",
                    code="request_timeout",
                    headers={"Connection": "close"},
                ) from None
            is_large = sum(map(len, parts)) > limits.INLINE_BODY_BYTES
            held = HeldBody(self.large if is_large else self.small, is_large=is_large)
            request.state.body = held
            data, cost = await self.run(held, partial(_measured, parts))
            await held.reserve(cost)
            parsed: M = await self.run(held, lambda: checked(shape, _parsed(data)))
            request.state.ignored = _unknown(parsed)
            return parsed
        finally:
            self.bytes -= sum(map(len, parts))

    async def run(self, held: HeldBody, work: Callable[[], R]) -> R:
        """Return what `work` makes of a body, on a thread if the body is large."""
        if not held.is_large:
            return work()
        async with self._turn:  # two threads that take turns at Python's lock leave less of it
            made: R = await self._off_loop(work)
        return made

    async def _receive(self, request: Request, parts: list[bytes]) -> None:
        """Append the body's parts; they count in the budget as they come."""
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > limits.MAX_BODY_BYTES:
                raise _too_large(size)
            if part and self.bytes + len(part) > limits.MAX_UNPARSED_BYTES:
                self.bytes -= sum(map(len, parts))  # now, or others that come at once are refused
                parts.clear()
                raise no_room()
            if part:
                parts.append(part)
                self.bytes += len(part)


async def read_as(request: Request, shape: type[M]) -> M:
    """Read the request's body as `shape`. Raises a 400 that names the first wrong field."""
    reader: BodyReader = request.app.state.bodies
    return await reader.read(request, shape)


async def converted(request: Request, body: BaseModel, make: Callable[[], R]) -> R:
    """Return what `make` makes of the body: on a thread, if the body is large.

    Fields that the body's shape does not know are dropped afterwards: an answer may take minutes.
    """
    reader: BodyReader = request.app.state.bodies
    try:
        return await reader.run(request.state.body, make)
    finally:
        if body.model_extra:
            body.model_extra.clear()


async def admitted(request: Request, begun: Coroutine[Any, Any, R]) -> R:
    """Return what the request became in the engine; its body is not waiting any more.

    ClientGone, and `begun` is cancelled, if the client goes before.
    """
    try:
        made = await cancel_on_disconnect(request.receive, begun)
        request.state.generations = made if isinstance(made, list) else [made]
        return made
    finally:
        release(request)


def release(request: Request) -> None:
    """Note that the request's body, if it has one, is not waiting any more."""
    held: HeldBody | None = getattr(request.state, "body", None)
    if held is not None:
        held.release()


def _unknown(body: BaseModel) -> list[str]:
    """Return the names of the fields that nobody reads: a response's header and the log say them.

    Those of Ollama's `options` are among them.
    """
    names = passed_over(body.model_extra or ())
    options = getattr(body, "options", None)
    if isinstance(options, BaseModel):
        names += [f"options.{name}" for name in passed_over(options.model_extra or ())]
    return names


def _measured(parts: list[bytes]) -> tuple[bytes, int]:
    """Return the whole body, and about how many bytes it takes when it is parsed.

    A value takes up to 500 bytes (a block of Anthropic's, a kilobyte, is two values at least); a
    text with one character outside of Latin-1 up to four bytes a character.
    """
    body = b"".join(parts)
    parts[:] = [body]  # which leaves one copy, and the count as it was
    size = json_size(body)
    size.check()
    is_narrow = body.isascii() and b"\\u" not in body
    return body, len(body) * (1 if is_narrow else 4) + 500 * size.values


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse `body` as a JSON object.

    Raises a 400 if it is not one, is nested too deeply, or has too many values.
    """
    return _parsed(_measured([body])[0])


def _parsed(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a measured body."""
    if len(body) > _LARGE:
        np.empty(8 * len(body), np.uint8)  # a MemoryError here: in Rust it would end the process
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError:
        raise invalid("The request's body is not valid JSON.") from None
    if not isinstance(value, dict):
        raise invalid("The request's body must be a JSON object.")
    return value


def checked(shape: type[M], value: Mapping[str, Any]) -> M:
    """Validate `value` as `shape`. Raises a 400 that names the first wrong field."""
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        raise _first_mistake(error) from None


def _too_large(size: int) -> HTTPError:
    return HTTPError(
        413,
        f"The request's body has {size:,} bytes or more; the limit is {limits.MAX_BODY_BYTES:,}.",
        code="request_too_large",
        headers={"Connection": "close"},
    )


def _is_field(part: str) -> bool:
    """Check whether a part of pydantic's location is a field's name and not the name of a type."""
    return part.isidentifier() and part not in _TYPES and not part[:1].isupper()


def _first_mistake(error: ValidationError) -> HTTPError:
    """Make a 400 for the first error of pydantic's, in our own sentence."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ""
    for part in first["loc"]:
        if isinstance(part, int):
            field += f"[{part}]"
        elif _is_field(part):
            field += f".{part}" if field else part
    field = field[:120] or "The request's body"
    kind, context = first["type"], first.get("ctx", {})
    if kind == "value_error":
        return invalid(f"{field}: {context.get('error', 'not allowed')}", field)
    if kind == "too_long" and context.get("actual_length") is None:
        return invalid(f"{field} has over {context['max_length']} entries.", field)
    sentence = _SENTENCES.get(kind, "{field} has a value that is not allowed.")
    try:
        return invalid(sentence.format(field=field, **context), field)
    except (KeyError, IndexError):
        return invalid(f"{field} has a value that is not allowed.", field)
