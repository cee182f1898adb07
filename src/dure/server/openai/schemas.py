"""Schemas of OpenAI's request bodies: the routes validate by them, /openapi.json publishes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dure.engine.params import (
    MAX_CHOICES,
    MAX_ID,
    MAX_LOGIT_BIAS,
    MAX_LOGIT_BIASES,
    MAX_LOGPROBS,
    MAX_STOP_TOKENS,
    MAX_TEMPERATURE,
)
from dure.server import limits
from dure.server.wire.thinking import ThinkingFields
from dure.server.wire.validation import PAUSE, Body, Name, Stops, StopText, at_most

Object = dict[str, Any]
Objects = Annotated[list[Object], Field(fail_fast=True)]
TokenId = Annotated[int, Field(ge=0, le=MAX_ID)]
Tokens = Annotated[int, Field(ge=-1, le=MAX_ID)]  # -1: as many as fit
Bias = Annotated[float, Field(ge=-MAX_LOGIT_BIAS, le=MAX_LOGIT_BIAS)]


class StreamOptions(Body):
    """What a stream contains besides its choices."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # vLLM: with every event, too


class Sampling(Body):
    """The sampling fields that all of OpenAI's bodies share."""

    model: Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    max_tokens: Tokens | None = None
    n_predict: Tokens | None = None  # llama-server's name for max_tokens
    num_predict: Tokens | None = None  # Ollama's
    max_new_tokens: Tokens | None = None  # TGI's and SGLang's
    min_new_tokens: int | None = Field(None, ge=0, le=MAX_ID)
    random_seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)  # Mistral's
    sampling_seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)  # SGLang's
    repeat_last_n: int | None = None
    min_tokens: int | None = Field(None, ge=0, le=MAX_ID)
    temperature: float | None = Field(None, ge=0, le=MAX_TEMPERATURE)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MAX_ID)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    repeat_penalty: float | None = Field(None, ge=0.01, le=100)  # llama-server's name for it
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[str, Bias], at_most(MAX_LOGIT_BIASES)] | None = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: StopText | Stops | None = None
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True)] | None = Field(
        None, max_length=MAX_STOP_TOKENS
    )
    ignore_eos: bool | None = None
    priority: int | None = Field(None, ge=0, le=limits.MAX_PRIORITY)
    service_tier: str | None = Field(None, max_length=32)
    timings_per_token: bool | None = None
    return_progress: bool | None = None
    return_token_ids: bool | None = None
    # Structured output, by the fields of OpenAI, vLLM and llama-server
    response_format: Object | None = None
    structured_outputs: Object | None = None
    guided_json: Object | str | None = None
    guided_regex: str | None = None
    guided_grammar: str | None = None
    guided_choice: Annotated[list[str], Field(fail_fast=True)] | None = None
    json_schema: Object | None = None
    grammar: str | None = None
    regex: str | None = None  # SGLang's
    ebnf: str | None = None


class ChatMessage(BaseModel):
    """One message. Which further fields a role may have depends on the model's chat template."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: str = Field(min_length=1, max_length=64)
    content: (
        str
        | Annotated[list[Object | str], Field(fail_fast=True, max_length=limits.MAX_PARTS)]
        | None
    ) = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: Objects | None = Field(None, max_length=limits.MAX_TOOLS)
    reasoning_content: str | None = None
    reasoning: str | None = None


Messages = Annotated[list[Annotated[ChatMessage, PAUSE]], Field(fail_fast=True)]


class PredictionPart(Body):
    """A part of a predicted text."""

    type: Literal["text"]
    text: str


class Prediction(Body):
    """What the answer may be: where it is right the answer comes sooner; it changes no token."""

    type: Literal["content"]
    content: (
        str | Annotated[list[PredictionPart], Field(fail_fast=True, max_length=limits.MAX_PARTS)]
    )


class ChatBody(Sampling, ThinkingFields):
    """POST /v1/chat/completions"""

    messages: Messages = Field(min_length=1, max_length=limits.MAX_MESSAGES)
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tools: Objects | None = Field(None, max_length=limits.MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | Object | None = None
    parallel_tool_calls: bool | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    prediction: Prediction | None = None
    # Reasoning settings, besides those that every API takes
    reasoning: Object | None = None
    thinking: Object | bool | None = None


TokenIds = Annotated[list[TokenId], Field(fail_fast=True, max_length=1 << 20)]


class CompletionBody(Sampling):
    """POST /v1/completions"""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(fail_fast=True, max_length=limits.MAX_PROMPTS)]
        | Annotated[list[TokenIds], Field(fail_fast=True, max_length=limits.MAX_PROMPTS)]
        | None
    ) = None
    suffix: str | None = None
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    best_of: int | None = None
    add_special_tokens: bool | None = None


class TokenizeBody(Body):
    """POST /tokenize: a text, or a chat."""

    model: Name | None = None
    prompt: str | None = None
    content: str | None = None  # llama-server's name for it
    messages: Messages | None = Field(None, max_length=limits.MAX_MESSAGES)
    tools: Objects | None = Field(None, max_length=limits.MAX_TOOLS)
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    """POST /detokenize"""

    model: Name | None = None
    tokens: TokenIds


class ControlBody(Body):
    """POST /v1/chat/completions/control: control a running completion."""

    id: str = Field(max_length=limits.MAX_NAME_CHARACTERS)
    action: Literal["reasoning_end"]
