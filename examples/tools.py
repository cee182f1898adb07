"""Let the model call a function, and answer with its result.

The call is enforced here, so that a small model makes one: its arguments follow the schema.
"""

from __future__ import annotations

import json
import sys

from dure import LLM, ChatRequest, SamplingParams, ToolChoice

model = sys.argv[1] if len(sys.argv) > 1 else "qwen2.5-coder:0.5b"


def weather(city: str, unit: str = "celsius") -> dict[str, object]:
    """Look up the weather: here, it is always the same."""
    return {"city": city, "unit": unit, "temperature": 21, "sky": "clear"}


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Look up the weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 40},
                "unit": {"enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}

llm = LLM(model, context=2048)
params = SamplingParams(max_tokens=200, temperature=0)
messages: list[dict[str, object]] = [{"role": "user", "content": "What is the weather in Seoul?"}]
reply = llm.chat(ChatRequest(messages, tools=[TOOL], tool_choice=ToolChoice("required")), params)

messages.append({"role": "assistant", "content": reply.content, "tool_calls": reply.tool_calls})
for call in reply.tool_calls:
    arguments = json.loads(call["function"]["arguments"])
    result = weather(**arguments)
    print(f"{call['function']['name']}({arguments}) -> {result}")
    messages.append({"role": "tool", "tool_call_id": call["id"], "content": json.dumps(result)})
print(llm.chat(messages, params, tools=[TOOL]).content)
