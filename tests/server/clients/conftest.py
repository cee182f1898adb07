"""A server on a port of its own, with a model that says what a test wants or with a real one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dure import LLM
from dure.server.run import Server, Settings

KEY = "a-key-of-this-test"

TEMPLATE = """
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Call one as <tool_call>{"name": ..., "arguments": ...}</tool_call>.<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""

THOUGHTS = "<think>\nThey want a number.\n</think>\n\n"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zurich"}}\n</tool_call>'
SAYS = {
    "Hello": "Hello, you. Fine day.",
    "Think": THOUGHTS + "It is 4.",
    "Weather": CALL,
    "Weather twice": CALL + "\n" + CALL.replace("Zurich", "Bern"),
    "A person": '{"name": "Ada", "age": 36}',
}
"""What the model says, by the first line of what it was asked last."""

WITHOUT_THINKING = "<think>\n\n</think>\n\n"


def script(text: str) -> str | None:
    """The next character of what SAYS has for the question."""
    _, _, turn = text.rpartition("<|im_start|>assistant\n")
    turn = turn.removeprefix(WITHOUT_THINKING)
    if "<|im_start|>tool\n" in text:
        words = "It is 3 degrees."
    else:
        asked = text.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
        words = SAYS.get(asked.strip(), "Hello, you. Fine day.")
        if text.endswith(WITHOUT_THINKING + turn):
            words = words.removeprefix(THOUGHTS)
    return words[len(turn)] if len(turn) < len(words) else None


@dataclass(frozen=True)
class Served:
    """Where a server is, and what it calls its model."""

    url: str
    model: str
    key: str = KEY

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"


@pytest.fixture(scope="module")
def scripted(serve_module: Any) -> Served:
    """A server whose model says what SAYS has."""
    running = serve_module(
        script,
        model_options={"context": 1024, "num_blocks": 512, "template": TEMPLATE},
        keys=(KEY,),
        aliases=(("claude-*", ""), ("gpt-*", "")),
    )
    return Served(f"http://127.0.0.1:{running.port}", "fake")


@pytest.fixture(scope="session")
def real(smollm2: Path) -> Iterator[Served]:
    """A server of SmolLM2-135M."""
    settings = Settings(models=(str(smollm2),), port=0, keys=(KEY,))
    server = Server(settings, lambda name: LLM(name, threads=2, context=2048))
    ready = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        ready.set()
        await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert ready.wait(30)
    try:
        yield Served(f"http://127.0.0.1:{server.address[1]}", smollm2.stem)
    finally:
        loops[0].call_soon_threadsafe(server.stop)
        thread.join(60)
