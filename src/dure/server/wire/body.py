"""A request's body: received in time and size, parsed without surprises, and checked by a shape."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from dure.server import limits
from dure.server.errors import HTTPError, invalid

if TYPE_CHECKING:
    from starlette.requests import Request

M = TypeVar("M", bound=BaseModel)

# What pydantic calls a mistake -> our sentence; {} is the field, and the names are its context's
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


async def read_body(request: Request) -> bytes:
    """All of the body; a 413 for one that is too long, a 408 for one that takes too long."""
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limits.MAX_BODY_BYTES:
        raise _too_large(int(declared))
    try:
        return await asyncio.wait_for(_received(request), limits.BODY_SECONDS)
    except (asyncio.TimeoutError, TimeoutError):
        raise HTTPError(
            408,
            f"The request's body did not come within {limits.BODY_SECONDS:g} s.",
            code="request_timeout",
            headers={"Connection": "close"},
        ) from None


async def read_json(request: Request) -> dict[str, Any]:
    """The body's JSON object; a 400 for anything else."""
    return parse_object(await read_body(request))


async def read_as(request: Request, shape: type[M]) -> M:
    """The body in that shape; a 400 that names the first field which is wrong."""
    return checked(shape, await read_json(request))


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object that `body` is; a 400 for what is none, or is nested too deeply."""
    if len(body) > _LARGE:
        np.empty(8 * len(body), np.uint8)  # a MemoryError here: in Rust it would end the process
    if depth(body) > limits.MAX_JSON_DEPTH:
        raise invalid(f"The JSON is nested more than {limits.MAX_JSON_DEPTH} deep.")
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError:
        raise invalid("The request's body is not valid JSON.") from None
    if not isinstance(value, dict):
        raise invalid("The request's body must be a JSON object.")
    return value


def checked(shape: type[M], value: Mapping[str, Any]) -> M:
    """`value` as `shape`; a 400 that names the first field which is wrong."""
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        raise _first_mistake(error) from None


def depth(body: bytes) -> int:
    """How deeply the brackets of a JSON text are nested, in one pass and without recursion.

    Of text that is not JSON it is some number; a parser refuses that, and has a limit of its own.
    """
    if body.count(b"[") + body.count(b"{") <= limits.MAX_JSON_DEPTH:
        return 0  # less than the limit, whichever way they are nested
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # every quote left is one of the text's
    codes = np.frombuffer(plain, np.uint8)
    outside = np.cumsum(codes == ord('"'), dtype=np.uint8) & 1 == 0
    opens = ((codes == ord("[")) | (codes == ord("{"))) & outside
    closes = ((codes == ord("]")) | (codes == ord("}"))) & outside
    levels = np.cumsum(opens.astype(np.int8) - closes.astype(np.int8), dtype=np.int32)
    return int(levels.max(initial=0))


async def _received(request: Request) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limits.MAX_BODY_BYTES:
            raise _too_large(size)
        parts.append(part)
    return b"".join(parts)


def _too_large(size: int) -> HTTPError:
    return HTTPError(
        413,
        f"The request's body has {size:,} bytes or more; the limit is {limits.MAX_BODY_BYTES:,}.",
        code="request_too_large",
        headers={"Connection": "close"},
    )


def _is_field(part: str) -> bool:
    """Whether a part of a place is a name of the body's, and none of pydantic's for a type."""
    return part.isidentifier() and part not in _TYPES and not part[:1].isupper()


def _first_mistake(error: ValidationError) -> HTTPError:
    """A 400 in our words for the first of pydantic's complaints."""
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
    sentence = _SENTENCES.get(kind, "{field} has a value that is not allowed.")
    try:
        return invalid(sentence.format(field=field, **context), field)
    except (KeyError, IndexError):
        return invalid(f"{field} has a value that is not allowed.", field)
