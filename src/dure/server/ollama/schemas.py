"""The fields of Ollama's request bodies that this server supports."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from dure.engine.params import MAX_ID, MAX_LOGPROBS
from dure.pooling.request import MAX_TEXTS
from dure.server import limits
from dure.server.wire.thinking import Budget, ThinkingFields
from dure.server.wire.validation import PAUSE, Body, Name

Think = bool | Budget | Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""Ollama's switch and levels, and a number: the reasoning budget in tokens."""


class Options(Body):
    """Sampling parameters, and the context length that is needed."""

    num_ctx: int | None = None
    num_predict: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class Function(Body):
    """The function of a call."""

    name: str
    arguments: dict[str, Any] | None = None


class Call(Body):
    """A tool call that the model made."""

    id: str | None = None
    function: Function


class Message(Body):
    """One message."""

    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: Annotated[list[Call], Field(fail_fast=True, max_length=limits.MAX_TOOLS)] | None = (
        None
    )
    tool_name: str | None = None
    tool_call_id: str | None = None


Messages = Annotated[
    list[Annotated[Message, PAUSE]], Field(fail_fast=True, max_length=limits.MAX_MESSAGES)
]
Tools = Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=limits.MAX_TOOLS)]


class Asked(ThinkingFields):
    """The fields that chat and generate share."""

    model: Name
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: Options | None = None
    keep_alive: str | float | None = None
    think: Think | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None


class ChatBody(Asked):
    """POST /api/chat"""

    messages: Messages | None = None
    tools: Tools | None = None


class GenerateBody(Asked):
    """POST /api/generate"""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None


class EmbedBody(Body):
    """POST /api/embed"""

    model: Name
    input: str | Annotated[list[str], Field(fail_fast=True, max_length=MAX_TEXTS)] = ""
    truncate: bool | None = None  # None: cut a text that is too long
    dimensions: Annotated[int, Field(ge=0, le=MAX_ID)] | None = None  # 0: all
    options: Options | None = None
    keep_alive: str | float | None = None


class EmbeddingsBody(Body):
    """POST /api/embeddings: one text, as Ollama had it before /api/embed"""

    model: Name
    prompt: str | None = None
    options: Options | None = None
    keep_alive: str | float | None = None


class ShowBody(Body):
    """POST /api/show"""

    model: Name | None = None
    name: Name | None = None  # the word that older clients use
    verbose: bool | None = None


class CreateBody(Body):
    """POST /api/create"""

    model: Name | None = None
    name: Name | None = None  # the word that older clients use
    from_: Annotated[Name | None, Field(alias="from")] = None
    system: str | None = None
    template: str | None = None
    license: str | Annotated[list[str], Field(fail_fast=True, max_length=64)] | None = None
    parameters: dict[str, Any] | None = None
    messages: Messages | None = None
    stream: bool | None = None


class CopyBody(Body):
    """POST /api/copy"""

    source: Name
    destination: Name


class PullBody(Body):
    """POST /api/pull"""

    model: Name | None = None
    name: Name | None = None
    insecure: bool | None = None
    stream: bool | None = None
