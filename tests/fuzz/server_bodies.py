"""Sound requests of every route, whose parts the readers of requests damage."""

from __future__ import annotations

from typing import Any

from fuzz_texts import CHAT_TOOLS, LARKS, MESSAGES, REGEXES, SCHEMAS

HI = [{"role": "user", "content": "hi"}]
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMAS[0]}}
OPENAI = {
    "model": "plain",
    "messages": MESSAGES[1],
    "max_tokens": 6,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "seed": 3,
    "n": 2,
    "stop": ["x", "\n\n"],
    "logit_bias": {"5": -100, "7": 3.5},
    "logprobs": True,
    "top_logprobs": 2,
    "stream": True,
    "stream_options": {"include_usage": True},
    "tools": list(CHAT_TOOLS),
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "presence_penalty": 0.1,
    "min_tokens": 1,
    "return_progress": True,
    "timings_per_token": True,
}
ITEMS = [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
    {"type": "function_call", "call_id": "a", "name": "now", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "a", "output": "noon"},
    {"role": "user", "content": "and?"},
]
BLOCKS = [
    {"role": "user", "content": "hi"},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "text", "text": "well"},
            {"type": "tool_use", "id": "a", "name": "now", "input": {}},
        ],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "noon"}]},
]
CLAUDE_TOOLS = [{"name": "now", "description": "it", "input_schema": {"type": "object"}}]
OLLAMA_OPTIONS = {"num_ctx": 128, "num_predict": 5, "temperature": 0, "stop": ["x"], "seed": 1}
BODIES: tuple[tuple[str, Any], ...] = (
    ("/v1/chat/completions", OPENAI),
    ("/v1/chat/completions", {"messages": HI, "max_tokens": 8, "response_format": FORMAT}),
    ("/v1/chat/completions", {"messages": HI, "max_tokens": 9, "tools": list(CHAT_TOOLS)}),
    (
        "/v1/chat/completions",
        {
            "model": "hermes",
            "messages": MESSAGES[1],
            "max_tokens": 30,
            "tools": list(CHAT_TOOLS),
            "tool_choice": "required",
            "stream": True,
        },
    ),
    (
        "/v1/chat/completions",
        {
            "model": "hermes",
            "messages": [*HI, {"role": "assistant", "content": "<think>a"}],
            "continue_final_message": True,
            "add_generation_prompt": False,
            "max_tokens": 5,
            "chat_template_kwargs": {"enable_thinking": True},
            "reasoning_effort": "low",
            "thinking_budget": 3,
        },
    ),
    ("/v1/chat/completions", {"messages": HI, "guided_regex": REGEXES[0], "max_tokens": 6}),
    ("/v1/chat/completions", {"messages": HI, "guided_choice": ["a", "b"], "n_predict": 6}),
    (
        "/v1/chat/completions",
        {
            "messages": HI,
            "prediction": {"type": "content", "content": [{"type": "text", "text": "ab"}]},
            "n_predict": 6,
        },
    ),
    ("/v1/chat/completions", {"messages": HI, "grammar": LARKS[0], "max_new_tokens": 6}),
    ("/v1/chat/completions/control", {"id": "chatcmpl-1", "action": "reasoning_end"}),
    (
        "/v1/completions",
        {
            "model": "plain",
            "prompt": ["abc", "de"],
            "max_tokens": 4,
            "echo": True,
            "logprobs": 1,
            "n": 2,
            "stop": "q",
            "suffix": None,
            "stream": True,
            "priority": 3,
            "ignore_eos": True,
        },
    ),
    ("/v1/completions", {"prompt": [[1, 2, 3]], "max_tokens": 3, "stop_token_ids": [5], "echo": 1}),
    ("/tokenize", {"prompt": "abc", "add_special_tokens": True, "with_pieces": True}),
    ("/tokenize", {"messages": MESSAGES[1], "tools": list(CHAT_TOOLS), "model": "hermes"}),
    ("/detokenize", {"tokens": [1, 2, 256, 258]}),
    ("/apply-template", {"messages": MESSAGES[1], "tools": list(CHAT_TOOLS), "model": "hermes"}),
    (
        "/v1/messages",
        {
            "model": "hermes",
            "max_tokens": 6,
            "system": [{"type": "text", "text": "be brief"}],
            "messages": BLOCKS,
            "tools": CLAUDE_TOOLS,
            "tool_choice": {"type": "auto"},
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "stop_sequences": ["x"],
            "stream": True,
            "temperature": 0.5,
            "metadata": {"user_id": "a"},
        },
    ),
    ("/v1/messages", {"model": "plain", "max_tokens": 5, "messages": HI}),
    ("/v1/messages/count_tokens", {"model": "plain", "messages": BLOCKS, "tools": CLAUDE_TOOLS}),
    (
        "/v1/responses",
        {
            "model": "hermes",
            "input": ITEMS,
            "instructions": "be brief",
            "max_output_tokens": 6,
            "tools": [{"type": "function", "name": "now", "parameters": {"type": "object"}}],
            "tool_choice": "auto",
            "stream": True,
            "store": True,
            "include": ["reasoning.encrypted_content"],
            "reasoning": {"effort": "low"},
            "metadata": {"a": "b"},
        },
    ),
    (
        "/v1/responses",
        {
            "input": "hi",
            "max_output_tokens": 9,
            "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMAS[0]}},
            "previous_response_id": None,
        },
    ),
    ("/v1/responses/input_tokens", {"input": ITEMS, "instructions": "x"}),
    ("/v1/responses/resp_1/cancel", {}),
    ("/api/show", {"model": "plain", "verbose": True}),
    (
        "/api/chat",
        {
            "model": "hermes",
            "messages": [
                *HI,
                {
                    "role": "assistant",
                    "content": "",
                    "thinking": "hm",
                    "tool_calls": [{"function": {"name": "now", "arguments": {}}}],
                },
                {"role": "tool", "tool_name": "now", "content": "noon"},
            ],
            "tools": list(CHAT_TOOLS),
            "options": OLLAMA_OPTIONS,
            "format": SCHEMAS[0],
            "keep_alive": "5m",
            "think": "low",
            "stream": True,
        },
    ),
    ("/api/chat", {"model": "plain", "messages": HI, "options": OLLAMA_OPTIONS, "stream": False}),
    (
        "/api/generate",
        {
            "model": "plain",
            "prompt": "abc",
            "system": "x",
            "raw": False,
            "format": "json",
            "options": OLLAMA_OPTIONS,
            "logprobs": True,
            "top_logprobs": 1,
            "keep_alive": -1,
        },
    ),
)
GETS = (
    *("/v1/models", "/v1/models/plain", "/v1/models/no", "/tokenizer_info", "/health", "/metrics"),
    *("/props", "/v1/responses/resp_1", "/v1/responses/resp_1/input_items", "/", "/api/version"),
    *("/api/tags", "/api/ps", "/v1/status", "/openapi.json", "/v1/chat/completions", "/nowhere"),
)
FIELDS = (
    *dict.fromkeys(field for _, body in BODIES for field in body),
    *("format", "json_schema", "structured_outputs", "samplers", "best_of", "images", "options"),
    *("functions", "function_call", "user", "truncation", "service_tier", "n_probs", "prefix"),
)
HEADERS = (
    *("host", "origin", "authorization", "x-api-key", "content-type", "content-length", "expect"),
    *(
        "transfer-encoding",
        "accept",
        "connection",
        "anthropic-version",
        "x-\x01",
        "content-encoding",
    ),
)
HEADER_VALUES = (
    *("localhost", "evil.example", "http://evil.example", "null", "", " ", "Bearer x", "Basic !!"),
    *(
        "application/json",
        "text/plain",
        "chunked",
        "gzip",
        "0",
        "-1",
        "9" * 30,
        "close",
        "\xff\xfe",
    ),
    *("[::1]:80", "127.0.0.1:x", "a" * 3000, "100-continue", "localhost:99999", "*/*"),
)
