"""Validation that all request bodies share: unsupported fields, types and sizes are refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from dure.engine.params import MAX_ID, MAX_STOP_CHARACTERS, MAX_STOP_STRINGS
from dure.errors import InvalidRequestError
from dure.server import limits
from dure.server.wire.fields import refuse_foreign, refuse_misspelt


def _same(value: Any) -> Any:
    return value


PAUSE = BeforeValidator(_same)
"""Of a list's entries that take long to validate: it calls a function in Python, which lets other
threads run. pydantic itself holds Python's lock until the whole body is validated."""


def at_most(entries: int) -> BeforeValidator:
    """Refuse a larger object before its entries are validated, each with an error of its own."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > entries:
            raise PydanticCustomError(
                "too_long", "too long", {"actual_length": len(value), "max_length": entries}
            )
        return value

    return BeforeValidator(check)


Name = Annotated[str, Field(max_length=limits.MAX_NAME_CHARACTERS)]
Tokens = Annotated[int, Field(ge=1, le=MAX_ID)]
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stops = Annotated[list[StopText], Field(fail_fast=True, max_length=MAX_STOP_STRINGS)]


Form = TypeVar("Form")

_ELSEWHERE = "/v1/chat/completions takes it"
CHAT_ONLY = dict.fromkeys(
    (
        *("seed", "min_p", "min_tokens", "logit_bias", "stop_token_ids", "ignore_eos"),
        *("frequency_penalty", "presence_penalty", "repetition_penalty", "repeat_penalty"),
        *("structured_outputs", "guided_json", "guided_regex", "guided_grammar", "guided_choice"),
        *("json_schema", "grammar", "logprobs"),
    ),
    _ELSEWHERE,
)
"""Fields that only OpenAI's chat and completions accept; the other APIs have no such field."""


class Body(BaseModel):
    """A request body or a part of one. Unknown fields are kept, so that `refuse` can check them."""

    model_config = ConfigDict(strict=True, extra="allow")


def refuse(body: Body, unsupported: Mapping[str, str]) -> None:
    """Raise InvalidRequestError for an unsupported field that would change the output.

    unsupported: the reasons, by field. A field that is null, false or empty is accepted.
    """
    extra = body.model_extra or {}
    if len(extra) > limits.MAX_UNKNOWN_FIELDS:
        raise InvalidRequestError(
            f"The request has {len(extra):,} fields that are not known; "
            f"at most {limits.MAX_UNKNOWN_FIELDS} are passed over."
        )
    for name, value in extra.items():
        if name in unsupported and value not in (None, False, "", [], {}):
            raise InvalidRequestError(
                f'"{name}" is not supported: {unsupported[name]}.', hint="leave it out"
            )
    refuse_foreign(
        {name: value for name, value in extra.items() if name not in unsupported},
        choices=getattr(body, "n", None),
    )
    refuse_misspelt((name for name in extra if name not in unsupported), type(body).model_fields)


def unsupported_type(what: str, kind: object, allowed: str) -> InvalidRequestError:
    """Make the error for a block, item or tool of an unsupported type."""
    return InvalidRequestError(f"{what} of type {str(kind)[:60]!r} is not supported.", hint=allowed)


def missing(what: str, field: str) -> InvalidRequestError:
    """Make the error for a block that lacks a required field."""
    return InvalidRequestError(f'{what} has no "{field}".')


def given(**values: Any) -> dict[str, Any]:
    """Return the values that are not None: a field left out takes the model's default."""
    return {name: value for name, value in values.items() if value is not None}


def check_schema(schema: Form, where: str) -> Form:
    """Return the schema or grammar unchanged. Raises InvalidRequestError if it is too large."""
    size = len(schema) if isinstance(schema, str) else _least_size(schema)
    if size <= limits.MAX_SCHEMA_BYTES and not isinstance(schema, str):
        size = len(json.dumps(schema))
    if size > limits.MAX_SCHEMA_BYTES:
        raise InvalidRequestError(
            f"The schema of {where} takes {size:,} characters or more; "
            f"at most {limits.MAX_SCHEMA_BYTES:,} are allowed.",
            hint="ask for less at once, or describe a part of it in words",
        )
    return schema


def check_tools(tools: Iterable[Any]) -> None:
    """Raise InvalidRequestError if the parameters of one of OpenAI's tools are too large."""
    for tool in tools:
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if isinstance(function, Mapping):
            name = str(function.get("name"))[:60]
            check_schema(function.get("parameters") or {}, f"the tool {name!r}")


def _least_size(value: object) -> int:
    """Return a lower bound of the JSON text's length; counting stops beyond the limit."""
    size, waiting = 0, [value]
    while waiting and size <= limits.MAX_SCHEMA_BYTES:
        each = waiting.pop()
        size += 1
        if isinstance(each, str):
            size += len(each)
        elif isinstance(each, Mapping | list | tuple):
            size += 2 * len(each)  # each entry, and a comma or a bracket
            if size <= limits.MAX_SCHEMA_BYTES:
                waiting += each.values() if isinstance(each, Mapping) else each
    return size
