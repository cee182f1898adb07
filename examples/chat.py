"""Chat in two turns, and print each answer as it is written."""

from __future__ import annotations

import sys

from dure import LLM, SamplingParams

model = sys.argv[1] if len(sys.argv) > 1 else "smollm2:135m"

llm = LLM(model, context=2048)
params = SamplingParams(max_tokens=48, temperature=0.7, seed=1)
messages = [{"role": "system", "content": "You are brief."}]
for question in ("Name three colours.", "And three animals?"):
    messages.append({"role": "user", "content": question})
    print(f"> {question}")
    for chunk in llm.stream(messages, params):
        print(chunk.text, end="", flush=True)
        if chunk.completion is not None:
            messages.append({"role": "assistant", "content": chunk.completion.content})
    print()
