"""openai 1.x against a running server: `openai_1.py URL KEY MODEL` fails unless all is well."""

from __future__ import annotations

import sys
from typing import Any

import openai
from openai import OpenAI


def strictly(value: Any) -> None:
    """Nothing, or an error: what came is of the SDK's own type, field by field."""
    type(value).model_validate_json(value.model_dump_json(by_alias=True, warnings="error"))


def main(url: str, key: str, model: str) -> None:
    """Nothing; prints the SDK's version when everything it asked was answered well."""
    client = OpenAI(base_url=url, api_key=key, max_retries=0)
    asked: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": "Name a colour."}],
        "temperature": 0,
        "max_tokens": 16,
    }
    whole = client.chat.completions.create(**asked)
    strictly(whole)
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options=options))
    for chunk in chunks:
        strictly(chunk)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage or chunks[-1].usage.completion_tokens > 0
    completion = client.completions.create(model=model, prompt="One, two,", max_tokens=4)
    strictly(completion)
    response = client.responses.create(model=model, input="Name a colour.", max_output_tokens=16)
    strictly(response)
    for event in client.responses.create(
        model=model, input="Name a colour.", max_output_tokens=16, stream=True
    ):
        strictly(event)
    assert model in [each.id for each in client.models.list()]
    print(f"openai {openai.__version__}")


if __name__ == "__main__":
    main(*sys.argv[1:])
