"""Complete two texts in one batch, and print how fast that was."""

from __future__ import annotations

import sys

from dure import LLM, SamplingParams

model = sys.argv[1] if len(sys.argv) > 1 else "smollm2:135m"

llm = LLM(model, context=2048)
params = SamplingParams(max_tokens=32, temperature=0)
for completion in llm.generate(["Once upon a time", "The capital of France is"], params):
    print(completion.text)
    print(f"  {completion.timings.decode_tps:.1f} tokens per second")
