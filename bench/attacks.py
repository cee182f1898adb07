"""A part of server_attack.py: the bodies that are sent, and the routes that they fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

FULL = (8 << 20) - 4096

CHAT, PLAIN, CLAUDE = "/v1/chat/completions", "/v1/completions", "/v1/messages"
RESPONSES, OLLAMA, GENERATE = "/v1/responses", "/api/chat", "/api/generate"
CHATS = (CHAT, CLAUDE, RESPONSES, OLLAMA)


def said(path: str, text: Any, /, **more: Any) -> dict[str, Any]:
    """A body of that route which says `text`."""
    name = path.rsplit("/", 1)[-1]
    if path == PLAIN:
        return {"model": "tiny", "prompt": text, "max_tokens": 1, **more}
    if path in (OLLAMA, GENERATE):
        asked = {"messages": [{"role": "user", "content": text}]}
        asked = {"prompt": text} if path == GENERATE else asked
        return {"model": "tiny", "options": {"num_predict": 1}, **asked, **more}
    if path == "/detokenize":
        return {"tokens": [5, 6, 7] if isinstance(text, str) else text, **more}
    if path == "/tokenize":
        return {"prompt": text, **more}
    if path.startswith(RESPONSES):
        return {"input": text, "max_output_tokens": 16, **more}
    limit = {} if name == "count_tokens" else {"max_tokens": 1}
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], **limit, **more}


def tool(path: str, number: int, properties: int) -> dict[str, Any]:
    """A tool in the words of that route."""
    schema = {
        "type": "object",
        "properties": {f"p{i}": {"type": "string"} for i in range(properties)},
    }
    name = f"tool{number}"
    if path.startswith(CLAUDE):
        return {"name": name, "input_schema": schema}
    if path.startswith(RESPONSES):
        return {"type": "function", "name": name, "parameters": schema}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def deep(depth: int) -> Any:
    """Lists in lists."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def words(size: int) -> str:
    """English of so many bytes."""
    text = "The river runs past the old stone bridge and the garden in the morning. "
    return (text * (size // len(text) + 1))[:size]


def random_text(size: int) -> str:
    """Letters drawn at random, in words."""
    drawn = np.random.default_rng(0).integers(97, 123, size, np.uint8)
    drawn[::7] = 32
    return drawn.tobytes().decode()


def messages(count: int, **more: Any) -> dict[str, Any]:
    """A chat of that many short messages."""
    roles = ("user", "assistant")
    listed = [{"role": roles[i % 2], "content": f"m{i}"} for i in range(count)]
    options = {"num_predict": 1}
    return {"model": "tiny", "messages": listed, "max_tokens": 1, "options": options, **more}


def schema(names: int) -> dict[str, Any]:
    """A schema of that many required properties."""
    inner = {f"property_{i}": {"type": "string", "maxLength": 50} for i in range(names)}
    return {"type": "object", "properties": inner, "required": list(inner)}


def answer_as(path: str, form: Any) -> dict[str, Any]:
    """A body that asks for an answer of that schema."""
    wanted: dict[str, Any] = {
        CHAT: {"response_format": {"type": "json_schema", "json_schema": {"schema": form}}},
        PLAIN: {"guided_json": form},
        CLAUDE: {"output_format": {"type": "json_schema", "schema": form}},
        RESPONSES: {"text": {"format": {"type": "json_schema", "name": "a", "schema": form}}},
        OLLAMA: {"format": form},
        GENERATE: {"format": form},
    }[path]
    return said(path, "hi", **wanted)


POSTS = (
    *(CHAT, PLAIN, CLAUDE, f"{CLAUDE}/count_tokens", RESPONSES, f"{RESPONSES}/input_tokens"),
    *(OLLAMA, GENERATE, "/tokenize", "/detokenize", "/apply-template"),
)
TEXTS = tuple(path for path in POSTS if path != "/detokenize")
ASKS = (CHAT, PLAIN, CLAUDE, RESPONSES, OLLAMA, GENERATE)

Make = Callable[[str], Any]
ATTACKS: dict[str, tuple[tuple[str, ...], Make]] = {
    "an ordinary question": (ASKS, lambda path: said(path, "hello")),
    "a text of 7.5 MB": (TEXTS, lambda path: said(path, words(7_500_000))),
    "a text of 7.5 MB, random": (TEXTS, lambda path: said(path, random_text(7_500_000))),
    "one word of 7.5 MB": ((CHAT, PLAIN, "/tokenize"), lambda path: said(path, "a" * 7_500_000)),
    "7.5 MB of spaces": ((CHAT, PLAIN, "/tokenize"), lambda path: said(path, " " * 7_500_000)),
    "7.5 MB of signs": ((CHAT, PLAIN), lambda path: said(path, "!\n" * 3_750_000)),
    "7.5 MB of 4-byte characters": (
        (CHAT, PLAIN, CLAUDE, OLLAMA),
        lambda path: said(path, "\U0001f600" * 1_870_000),
    ),
    "7.5 MB of line ends": ((CHAT, PLAIN), lambda path: said(path, "\n" * 3_750_000)),
    "4 MB of line ends": ((CHAT, PLAIN), lambda path: said(path, "a\n" * 2_000_000)),
    "7.5 MB of escapes": ((CHAT, PLAIN), lambda path: said(path, "\x01" * 1_250_000)),
    "a text of 300 KB, twice the context": (ASKS, lambda path: said(path, words(300_000))),
    "2.6 million empty lists": (POSTS, lambda path: said(path, "hi", x=[[]] * 2_600_000)),
    "65,000 empty lists": (POSTS, lambda path: said(path, "hi", x=[[]] * 65_000)),
    "130,000 unknown fields": (
        POSTS,
        lambda path: said(path, "hi", **{f"f{i}": 1 for i in range(130_000)}),
    ),
    "32,000 unknown fields": (
        POSTS,
        lambda path: said(path, "hi", **{f"f{i}": 1 for i in range(32_000)}),
    ),
    "128 near-misses of 38 letters": (
        ASKS,
        lambda path: said(path, "hi", **{f"temperatur_of_a_model_{i:016}": 1 for i in range(128)}),
    ),
    "700,000 keys of logit_bias": (
        (CHAT, PLAIN),
        lambda path: said(path, "hi", logit_bias={str(i): 1 for i in range(700_000)}),
    ),
    "130,000 wrong keys of logit_bias": (
        (CHAT, PLAIN),
        lambda path: said(path, "hi", logit_bias={str(i): "x" for i in range(130_000)}),
    ),
    "32,000 wrong keys of logit_bias": (
        (CHAT, PLAIN),
        lambda path: said(path, "hi", logit_bias={str(i): "x" for i in range(32_000)}),
    ),
    "nested 60 deep": (POSTS, lambda path: said(path, "hi", metadata=deep(58))),
    "nested 100,000 deep": (POSTS, lambda _: b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "nested 4 million deep": (
        (CHAT, OLLAMA),
        lambda _: b'{"x":' + b"[" * 4_000_000 + b"]" * 4_000_000 + b"}",
    ),
    "8 MB of no JSON": (POSTS, lambda _: b"[" + b'"\\' * (FULL // 2)),
    "100,000 messages": ((CHAT, CLAUDE, OLLAMA, "/tokenize"), lambda _: messages(100_000)),
    "32,000 messages": ((CHAT, CLAUDE, OLLAMA, "/tokenize"), lambda _: messages(32_000)),
    "4,096 messages": ((CHAT, CLAUDE, OLLAMA, "/apply-template"), lambda _: messages(4096)),
    "65,000 wrong messages": (
        (CHAT, CLAUDE, OLLAMA),
        lambda _: {"model": "tiny", "messages": [{"a": 1}] * 65_000, "max_tokens": 1},
    ),
    "30,000 blocks": (
        (CHAT, CLAUDE, RESPONSES),
        lambda path: (
            said(path, [], **{})
            | {
                "input" if path == RESPONSES else "messages": [
                    {"role": "user", "content": [{"type": "text"}] * 3700} for _ in range(8)
                ]
            }
        ),
    ),
    "30,000 wrong blocks": (
        (CHAT, CLAUDE, RESPONSES),
        lambda path: (
            said(path, [], **{})
            | {
                "input" if path == RESPONSES else "messages": [
                    {"role": "user", "content": [{"type": 1}] * 3700} for _ in range(8)
                ]
            }
        ),
    ),
    "128 tools of 120 properties": (
        CHATS,
        lambda path: said(path, "hi", tools=[tool(path, i, 120) for i in range(128)]),
    ),
    "128 tools of 450 properties": (
        CHATS,
        lambda path: said(path, "hi", tools=[tool(path, i, 450) for i in range(128)]),
    ),
    "128 tools of 100 properties": (
        CHATS,
        lambda path: said(path, "hi", tools=[tool(path, i, 100) for i in range(128)]),
    ),
    "128 tools of 8 properties, one must be called": (
        (CHAT,),
        lambda path: said(
            path, "hi", tools=[tool(path, i, 8) for i in range(128)], tool_choice="required"
        ),
    ),
    "40,000 tools": (CHATS, lambda path: said(path, "hi", tools=[{}] * 40_000)),
    "130,000 stop strings": (
        (CHAT, PLAIN, CLAUDE, GENERATE),
        lambda path: said(
            path,
            "hi",
            **{
                CLAUDE: {"stop_sequences": ["x"] * 130_000},
                GENERATE: {"options": {"num_predict": 1, "stop": ["x"] * 130_000}},
            }.get(path, {"stop": ["x"] * 130_000}),
        ),
    ),
    "130,000 token ids": ((PLAIN, "/detokenize"), lambda path: said(path, [5] * 130_000)),
    "130,000 wrong token ids": (
        (PLAIN, "/detokenize"),
        lambda path: said(path, [5] * 60_000 + ["x"] * 60_000),
    ),
    "128 prompts of 64 KB": ((PLAIN,), lambda path: said(path, [words(64_000)] * 120)),
    "an image of 6 MB": (
        (CHAT, CLAUDE, OLLAMA),
        lambda path: {
            "model": "tiny",
            "max_tokens": 1,
            "messages": [
                {"role": "user", "content": "hi", "images": ["A" * 6_000_000]}
                if path == OLLAMA
                else {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "data:" + "A" * 6_000_000}}
                        if path == CHAT
                        else {
                            "type": "image",
                            "source": {"type": "base64", "data": "A" * 6_000_000},
                        }
                    ],
                }
            ],
        },
    ),
    "metadata of 8 MB": (
        (CHAT, CLAUDE, RESPONSES),
        lambda path: said(path, "hi", metadata={"a": "x" * (FULL - 500)}),
    ),
    "a schema of 20,000 properties": (ASKS, lambda path: answer_as(path, schema(20_000))),
    "a schema of 900 properties": (ASKS, lambda path: answer_as(path, schema(900))),
    "a schema with an enum of 7,000 texts": (
        ASKS,
        lambda path: answer_as(path, {"enum": [f"t{i:04}" for i in range(7000)]}),
    ),
    "a regular expression of 60 KB": (
        (CHAT, PLAIN),
        lambda path: said(path, "hi", guided_regex="(a|b)*c" * 9000),
    ),
    "a choice of 1,000 texts": (
        (CHAT, PLAIN),
        lambda path: said(path, "hi", guided_choice=["x" * 60 + str(i) for i in range(1000)]),
    ),
    "64 KB of values, parsed on the loop": (
        ASKS,
        lambda path: said(path, "hi", metadata=[[]] * 21_000),
    ),
}
