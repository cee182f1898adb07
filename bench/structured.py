"""How many answers are what was demanded: required tool calls, and JSON of a schema.

    python bench/structured.py MODEL [--requests 200] [--temperature 1.0] [--kind required|schema]

Half of the requests must call a tool (tool_choice "required", one call each), half must answer in
JSON of a schema; all of one kind are asked at once. An answer counts if it ended by itself, its
JSON parses, and every value is of the type, the range and the choice that its schema says. Prints
a line of JSON a kind.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from typing import Any

from dure import LLM, SamplingParams
from dure.chat.output import Completion
from dure.chat.request import ChatRequest, Format, ToolChoice

PLACES = ("Oslo", "Seoul", "Lima", "Cairo", "Quito", "Hanoi", "Accra", "Riga", "Perth", "Izmir")
QUESTIONS = (
    "How will the weather be in {} for the next {} days?",
    "Book a table for {1} people in {0}.",
    "Tell me about {} in {} words.",
    "What time is it in {}? I ask for the {}th time.",
    "Write a haiku on {} with {} leaves.",
)
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 40},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "units": {"enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TABLE = {
    "type": "object",
    "properties": {
        "place": {"type": "string", "maxLength": 40},
        "people": {"type": "integer", "minimum": 1, "maximum": 99},
        "smoking": {"type": "boolean"},
        "wishes": {"type": "array", "items": {"type": "string", "maxLength": 30}, "maxItems": 3},
    },
    "required": ["place", "people", "wishes"],
    "additionalProperties": False,
}
SCHEMAS = {"get_weather": WEATHER, "book_table": TABLE}
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": name.replace("_", " "), "parameters": schema},
    }
    for name, schema in SCHEMAS.items()
]
KINDS = ("required", "schema")
TYPES = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict}


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether `value` is what `schema` says, as far as the schemas above go."""
    if "enum" in schema:
        return value in schema["enum"]
    kind = schema["type"]
    if not isinstance(value, TYPES[kind]) or isinstance(value, bool) != (kind == "boolean"):
        return False
    if isinstance(value, dict):
        properties = schema["properties"]
        return set(schema["required"]) <= set(value) <= set(properties) and all(
            fits(each, properties[name]) for name, each in value.items()
        )
    if isinstance(value, list):
        items = schema["items"]
        return len(value) <= schema["maxItems"] and all(fits(each, items) for each in value)
    if isinstance(value, str):
        return len(value) <= schema["maxLength"]
    return kind == "boolean" or schema["minimum"] <= value <= schema["maximum"]


def called(completion: Completion) -> bool:
    """Whether the answer is calls of the tools, each with arguments of its schema, and no more."""
    calls = [call["function"] for call in completion.tool_calls]
    return (
        completion.finish_reason == "stop"
        and not completion.content
        and bool(calls)
        and all(fits(json.loads(call["arguments"]), SCHEMAS[call["name"]]) for call in calls)
    )


def answered(completion: Completion) -> bool:
    """Whether the answer is JSON of the schema."""
    try:
        value = json.loads(completion.content)
    except ValueError:
        return False
    return completion.finish_reason == "stop" and fits(value, TABLE)


def requests(count: int, kind: str) -> list[ChatRequest]:
    """So many different chats that demand a call, or JSON."""
    made = []
    for index in range(count):
        words = QUESTIONS[index % len(QUESTIONS)]
        prepared = words.format(PLACES[index // len(QUESTIONS) % len(PLACES)], index % 9 + 1)
        messages = [{"role": "user", "content": prepared}]
        if kind == "required":
            choice = ToolChoice("required")
            made.append(ChatRequest(messages, TOOLS, choice, parallel_tool_calls=False))
        else:
            made.append(ChatRequest(messages, format=Format("json_schema", TABLE)))
    return made


def run(llm: LLM, count: int, kind: str, *, temperature: float) -> dict[str, Any]:
    """How many of `count` answers are valid, one that is not, and how fast they came."""
    began = time.perf_counter()
    prepared = [
        llm.prepare(request, SamplingParams(temperature=temperature, seed=i, max_tokens=400))
        for i, request in enumerate(requests(count, kind))
    ]
    completions = llm.driver.answer(prepared)
    seconds = time.perf_counter() - began
    judge = called if kind == "required" else answered
    wrong = [each.text for each in completions if not judge(each)]
    tokens = sum(len(each.token_ids) for each in completions)
    return {
        "kind": kind,
        "requests": count,
        "valid": count - len(wrong),
        "tokens_per_s": round(tokens / seconds, 1),
        "wrong": wrong[:1],
    }


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--kind", choices=KINDS, help="one half alone")
    options = parser.parse_args()
    llm = LLM(options.model, context=2048)
    for kind in KINDS if options.kind is None else (options.kind,):
        result = run(llm, options.requests, kind, temperature=options.temperature)
        print(json.dumps({"model": llm.name, **result}, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
