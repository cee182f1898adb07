"""The fields of Anthropic's request bodies that this server supports."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from dure.server import limits
from dure.server.wire.thinking import ThinkingFields
from dure.server.wire.validation import PAUSE, Body, Name, Stops, Tokens


class Source(Body):
    """The source of a document; only inline text is read."""

    type: str
    data: str | None = None


class Block(Body):
    """A content block: text, thinking, tool_use or tool_result."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | Blocks | None = None
    source: Source | None = None
    title: str | None = None
    is_error: bool | None = None


Blocks = Annotated[
    list[Annotated[Block, PAUSE]], Field(fail_fast=True, max_length=limits.MAX_PARTS)
]


class Message(Body):
    """One message of the chat."""

    role: str
    content: str | Blocks


class Tool(Body):
    """A function that the client runs."""

    name: Name
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class Choice(Body):
    """tool_choice: auto, any, tool or none."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingConfig(Body):
    """Thinking: enabled (with a budget), adaptive or disabled."""

    type: str
    budget_tokens: Tokens | None = None


class OutputFormat(Body):
    """The format of the output: `json_schema` and the schema."""

    type: str
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class OutputConfig(Body):
    """The effort and the format of the output."""

    effort: str | None = None
    format: OutputFormat | None = None


class CountBody(ThinkingFields):
    """POST /v1/messages/count_tokens"""

    model: Name
    messages: Annotated[list[Annotated[Message, PAUSE]], Field(fail_fast=True)] = Field(
        min_length=1, max_length=limits.MAX_MESSAGES
    )
    system: str | Blocks | None = None
    tools: Annotated[list[Annotated[Tool, PAUSE]], Field(fail_fast=True)] | None = Field(
        None, max_length=limits.MAX_TOOLS
    )
    tool_choice: Choice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None


class MessagesBody(CountBody):
    """POST /v1/messages"""

    max_tokens: Tokens
    stream: bool | None = None
    stop_sequences: Stops | None = None
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
