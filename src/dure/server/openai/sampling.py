"""Converts OpenAI's request bodies to SamplingParams, Format and ToolChoice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dure.chat.request import Format, Thinking, ToolChoice
from dure.engine.params import SamplingParams
from dure.server.errors import invalid
from dure.server.openai.schemas import ChatBody, Sampling
from dure.server.wire.thinking import first, switch_of, thinking_of
from dure.server.wire.validation import check_schema, check_tools, refuse

BACKGROUND = 5
"""The priority of a background request that gives no number (`"service_tier": "flex"`)."""

UNSUPPORTED = {
    "functions": "it is the old form of tools; send tools and tool_choice",
    "function_call": "it is the old form of tool_choice; send tools and tool_choice",
    "audio": "no model here speaks",
    "web_search_options": "the server opens no connections; send what you have found",
    "use_beam_search": "tokens are drawn one after the other; ask for n, and take the best",
    "truncate_prompt_tokens": "a prompt is never cut; send what fits",
    "prompt_logprobs": "ask /v1/completions with echo and logprobs",
    "bad_words": "a logit_bias of -100 all but bans a token",
    "allowed_token_ids": "guided_choice and guided_regex say what an answer may be",
    "logits_processors": "nothing from a request is run",
    "chat_template": "the model's own template is used",
    "documents": "put them into a message",
    "lora": "no adapters are loaded",
}
"""Unsupported fields that would change the output, and what to use instead."""


def sampling_params(
    body: Sampling, *, max_tokens: int | None, logprobs: int | None, **more: Any
) -> SamplingParams:
    """Read the sampling parameters; fields left out take the model's defaults.

    Raises an error for an unsupported field that would change the output.
    """
    refuse(body, UNSUPPORTED)
    max_tokens = first(max_tokens, body.n_predict, body.max_new_tokens, body.num_predict)
    penalty = first(body.repetition_penalty, body.repeat_penalty, 1.0)
    if penalty != 1.0 and body.repeat_last_n not in (None, -1):
        raise invalid(
            "repeat_last_n is not supported: repetition_penalty counts the prompt and the answer. "
            "Leave it out, or at -1.",
            "repeat_last_n",
        )
    seed = first(body.seed, body.random_seed, body.sampling_seed)
    given: dict[str, Any] = {
        "max_tokens": None if max_tokens == -1 else max_tokens,
        "min_tokens": first(body.min_tokens, body.min_new_tokens),
        "logprobs": logprobs,
        "temperature": body.temperature,
        # 0 means "only the likeliest token" to OpenAI; taken literally it would leave no token
        "top_p": body.top_p if body.top_p != 0 else 1e-6,
        "top_k": body.top_k,
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty or body.repeat_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "logit_bias": _bias(body.logit_bias),
        "seed": None if seed == -1 else seed,
        "stop": body.stop,
        "stop_token_ids": body.stop_token_ids,
        "ignore_eos": body.ignore_eos,
        "n": body.n,
        **more,
    }
    return SamplingParams(**{name: value for name, value in given.items() if value is not None})


def priority_of(body: Sampling) -> int:
    """Return the request's priority: 0 is interactive, more is background work."""
    if body.priority is not None:
        return body.priority
    return BACKGROUND if body.service_tier in ("flex", "batch", "background") else 0


def tools_of(body: ChatBody) -> tuple[list[Any], ToolChoice]:
    """Read the tools and the tool choice."""
    tools, choice = list(body.tools or ()), body.tool_choice
    check_tools(tools)
    if choice is None:
        return tools, ToolChoice("auto")
    if isinstance(choice, str):
        return tools, ToolChoice(choice)
    allowed = choice.get("allowed_tools")
    if isinstance(allowed, Mapping):
        listed = allowed.get("tools")
        names = {_name(each) for each in listed} if isinstance(listed, list) else set()
        must = ToolChoice("required" if allowed.get("mode") == "required" else "auto")
        return [tool for tool in tools if _name(tool) in names], must
    name = _name(choice)
    if name is None:
        raise invalid(
            'tool_choice must be "none", "auto", "required", or name a function.', "tool_choice"
        )
    return tools, ToolChoice("named", name)


def prediction_of(body: ChatBody) -> str:
    """Read the text that the answer may be; "" if there is none."""
    if body.prediction is None:
        return ""
    content = body.prediction.content
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _name(tool: Any) -> str | None:
    """Return the name of the function that a tool or a tool choice holds."""
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None


def format_of(body: Sampling) -> Format | None:
    """Read the output format; None if the text is unconstrained."""
    structured = body.structured_outputs or {}
    schema = first(structured.get("json"), body.guided_json, body.json_schema)
    if schema is not None:
        return _schema(schema)
    if structured.get("json_object"):
        return Format("json_object")
    for kind, value in (
        ("regex", first(structured.get("regex"), body.guided_regex, body.regex)),
        (
            "grammar",
            first(structured.get("grammar"), body.guided_grammar, body.grammar, body.ebnf),
        ),
        ("choice", first(structured.get("choice"), body.guided_choice)),
    ):
        if value is not None:
            check_schema(value, kind)
            return Format(kind, value)  # type: ignore[arg-type]
    return _response_format(body.response_format)


def _response_format(wanted: Mapping[str, Any] | None) -> Format | None:
    kind = (wanted or {}).get("type")
    if wanted is None or kind in (None, "text"):
        return None
    if kind == "json_object":
        schema = wanted.get("schema")  # llama-server's
        return Format("json_object") if schema is None else _schema(schema)
    if kind == "json_schema":
        inner = wanted.get("json_schema", wanted)
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if schema is None:
            raise invalid("response_format.json_schema.schema is missing.", "response_format")
        return _schema(schema)
    if kind in ("regex", "grammar", "lark"):
        value = first(wanted.get(kind), wanted.get("value"), wanted.get("grammar"))
        check_schema(value, "response_format")
        return Format("regex" if kind == "regex" else "grammar", value)
    raise invalid(
        'response_format.type must be "text", "json_object", "json_schema", "regex" or "grammar".',
        "response_format",
    )


def _schema(schema: Any) -> Format:
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            raise invalid("The JSON schema is not valid JSON.", "response_format") from None
    if not isinstance(schema, Mapping | bool):
        raise invalid("A JSON schema must be an object.", "response_format")
    check_schema(schema, "response_format")
    return Format("json_schema", schema)


def _bias(bias: Mapping[str, float] | None) -> dict[int, float] | None:
    """Convert logit_bias to token ids: in JSON, keys are always strings."""
    if not bias:
        return None
    for key in bias:
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise invalid(
                f"logit_bias has the key {key[:40]!r}, which is not a token id.", "logit_bias"
            )
    return {int(key): value for key, value in bias.items()}


def chat_thinking(body: ChatBody) -> Thinking:
    """Read a chat's reasoning settings, with DeepSeek's `thinking` and OpenRouter's `reasoning`."""
    wish = body.thinking if isinstance(body.thinking, Mapping) else {}
    reasoning = body.reasoning or {}
    return thinking_of(
        body,
        switch=first(
            body.thinking if isinstance(body.thinking, bool) else None,
            switch_of(wish.get("type")),
            reasoning.get("enabled"),
        ),
        effort=first(reasoning.get("effort"), wish.get("effort")),
        budget=first(wish.get("budget_tokens"), reasoning.get("max_tokens")),
    )
