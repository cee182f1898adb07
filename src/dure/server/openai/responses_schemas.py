"""The fields of the Responses API's request bodies that this server supports."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from dure.server import limits
from dure.server.wire.thinking import Budget, ThinkingFields
from dure.server.wire.validation import PAUSE, Body, Name, Tokens, at_most

MetaKey = Annotated[str, Field(max_length=64)]
MetaText = Annotated[str, Field(max_length=512)]


class Part(Body):
    """A part of a message, of a tool's output, or of reasoning; only text is read."""

    type: str
    text: str | None = None
    refusal: str | None = None


Parts = Annotated[list[Annotated[Part, PAUSE]], Field(fail_fast=True, max_length=limits.MAX_PARTS)]


class Item(Body):
    """One input item: a message, a call, a call's output, or reasoning."""

    type: str | None = None  # none: a message
    role: str | None = None
    content: str | Parts | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    input: str | None = None  # of a custom tool's call
    output: str | Parts | None = None
    summary: Parts | None = None
    encrypted_content: str | None = None


class Tool(Body):
    """A function that the client runs."""

    type: str
    name: Name | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Choice(Body):
    """tool_choice: one function to call, or the tools that are allowed."""

    type: str
    name: str | None = None
    mode: str | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=limits.MAX_TOOLS)] | None = None


class Reasoning(Body):
    """Reasoning settings: switch, effort and budget."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    enabled: bool | None = None
    max_tokens: Budget | None = None


class TextFormat(Body):
    """The format of the text: text, json_object or json_schema."""

    type: str
    name: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class Text(Body):
    """The text's format."""

    format: TextFormat | None = None


Items = Annotated[
    list[Annotated[Item, PAUSE]], Field(fail_fast=True, max_length=limits.MAX_MESSAGES)
]


class InputBody(ThinkingFields):
    """POST /v1/responses/input_tokens"""

    model: Name | None = None
    input: str | Items | None = None
    instructions: str | None = None
    previous_response_id: Name | None = None
    tools: Annotated[list[Annotated[Tool, PAUSE]], Field(fail_fast=True)] | None = Field(
        None, max_length=limits.MAX_TOOLS
    )
    tool_choice: Literal["none", "auto", "required"] | Choice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: Text | None = None
    truncation: Literal["auto", "disabled"] | None = None


class ResponsesBody(InputBody):
    """POST /v1/responses"""

    stream: bool | None = None
    store: bool | None = None
    max_output_tokens: Tokens | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    metadata: Annotated[dict[MetaKey, MetaText], at_most(16)] | None = None
    include: list[str] | None = Field(None, max_length=16)
    user: Name | None = None
