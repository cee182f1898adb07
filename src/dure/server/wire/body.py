"""Request bodies: received within limits of time and size, parsed as JSON, checked by a schema."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from dure.server import limits
from dure.server.errors import HTTPError, invalid, unavailable

if TYPE_CHECKING:
    from starlette.requests import Request

M = TypeVar("M", bound=BaseModel)

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
_BLOCK = 1 << 18
_TYPES = ("str", "int", "float", "bool", "dict", "list", "none")


class BodyReader:
    """Receives and parses request bodies, within one budget of bytes for the whole server.

    off_loop: runs a function on a thread; large bodies are parsed there.
    """

    def __init__(self, off_loop: Callable[[Callable[[], Any]], Awaitable[Any]]) -> None:
        self._off_loop = off_loop
        self.bytes = 0  # received and not yet parsed, of all requests

    async def read(self, request: Request, shape: type[M]) -> M:
        """Receive, parse and validate the body.

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
            if sum(map(len, parts)) <= limits.INLINE_BODY_BYTES:
                return _parsed(parts, shape)
            parsed: M = await self._off_loop(partial(_parsed, parts, shape))
            return parsed
        finally:
            self.bytes -= sum(map(len, parts))

    async def _receive(self, request: Request, parts: list[bytes]) -> None:
        """Append the body's parts; they count in the budget as they come."""
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > limits.MAX_BODY_BYTES:
                raise _too_large(size)
            if part and self.bytes + len(part) > limits.MAX_UNPARSED_BYTES:
                raise _no_room()
            if part:
                parts.append(part)
                self.bytes += len(part)


async def read_as(request: Request, shape: type[M]) -> M:
    """Read the request's body as `shape`. Raises a 400 that names the first wrong field."""
    reader: BodyReader = request.app.state.bodies
    return await reader.read(request, shape)


def _parsed(parts: list[bytes], shape: type[M]) -> M:
    return checked(shape, parse_object(b"".join(parts)))


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse `body` as a JSON object.

    Raises a 400 if it is not one, is nested too deeply, or has too many values.
    """
    if len(body) > _LARGE:
        np.empty(8 * len(body), np.uint8)  # a MemoryError here: in Rust it would end the process
    levels, values = measure(body)
    if levels > limits.MAX_JSON_DEPTH:
        raise invalid(f"The JSON is nested more than {limits.MAX_JSON_DEPTH} deep.")
    if values > limits.MAX_JSON_VALUES:
        raise invalid(
            f"The JSON has {values:,} values; at most {limits.MAX_JSON_VALUES:,} are allowed."
        )
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


def measure(body: bytes) -> tuple[int, int]:
    """Return the nesting depth of a JSON text, and a bound of its values, without recursion.

    The text is scanned in blocks. For text that is not JSON the numbers mean nothing: the parser
    refuses it, and has a depth limit of its own.
    """
    opened = body.count(b"[") + body.count(b"{")
    if opened <= limits.MAX_JSON_DEPTH and len(body) <= limits.MAX_JSON_VALUES:
        return 0, 0  # below both limits, whatever it holds
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # every quote left is a text's own
    inside, level, deepest, values = 0, 0, 0, 1
    for start in range(0, len(plain), _BLOCK):
        codes = np.frombuffer(plain, np.uint8, min(_BLOCK, len(plain) - start), start)
        quoted = (np.cumsum(codes == ord('"'), dtype=np.uint8) + np.uint8(inside)) & 1
        inside = int(quoted[-1])
        outside = quoted == 0
        opens = ((codes == ord("[")) | (codes == ord("{"))) & outside
        closes = ((codes == ord("]")) | (codes == ord("}"))) & outside
        values += int(np.count_nonzero(opens))
        values += int(np.count_nonzero((codes == ord(",")) & outside))
        levels = np.cumsum(opens.astype(np.int8) - closes.astype(np.int8), dtype=np.int32) + level
        deepest, level = max(deepest, int(levels.max(initial=0))), int(levels[-1])
    return deepest, values


def _no_room() -> HTTPError:
    error = unavailable(
        f"The bodies of all requests that are being received have {limits.MAX_UNPARSED_BYTES:,} "
        "bytes, which is the limit. Try again later.",
        "bodies_too_large",
    )
    error.headers = {**error.headers, "Connection": "close"}
    return error


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
