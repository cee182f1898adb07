"""Get an answer as a pydantic model: the tokens are held to its JSON schema."""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dure import LLM, Format, SamplingParams

model = sys.argv[1] if len(sys.argv) > 1 else "smollm2:135m"


class Animal(BaseModel):
    """What the answer must be; nothing else, which keeps a small model short."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=20)
    legs: int = Field(ge=0, le=100)
    home: Literal["land", "water", "air"]


llm = LLM(model, context=2048)
reply = llm.chat(
    [{"role": "user", "content": "Describe a dog as JSON with name, legs and home."}],
    SamplingParams(max_tokens=200, temperature=0),
    format=Format("json_schema", Animal.model_json_schema()),
)
print(Animal.model_validate_json(reply.content))
