"""The clients against a real model of 94 MB: every answer is of the SDK's own types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.model

HERE = Path(__file__).parent
QUESTION = [{"role": "user", "content": "Name a colour."}]
COLOUR = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


def strictly(value: Any) -> None:
    """Nothing, or an error: what came is of the SDK's own type, field by field."""
    type(value).model_validate_json(value.model_dump_json(by_alias=True, warnings="error"))


def test_openai_streams_what_it_answers_whole(real: Any) -> None:
    openai = pytest.importorskip("openai", minversion="1")
    with openai.OpenAI(base_url=real.v1, api_key=real.key) as client:
        asked: dict[str, Any] = {
            "model": real.model,
            "messages": QUESTION,
            "temperature": 0,
            "max_tokens": 24,
        }
        whole = client.chat.completions.create(**asked)
        strictly(whole)
        chunks = list(client.chat.completions.create(**asked, stream=True))
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert said == whole.choices[0].message.content != ""
        wanted = {"type": "json_schema", "json_schema": {"name": "c", "schema": COLOUR}}
        shaped = client.chat.completions.create(**asked, response_format=wanted)
        assert json.loads(shaped.choices[0].message.content)["colour"] in ("red", "green", "blue")
        response = client.responses.create(
            model=real.model, input="Name a colour.", temperature=0, max_output_tokens=24
        )
        strictly(response)
        assert response.output_text == said


def test_anthropic_streams_what_it_answers_whole(real: Any) -> None:
    anthropic = pytest.importorskip("anthropic", minversion="0")
    with anthropic.Anthropic(base_url=real.url, api_key=real.key) as client:
        asked: dict[str, Any] = {
            "model": real.model,
            "messages": QUESTION,
            "max_tokens": 24,
            "extra_body": {"temperature": 0},  # the API has it, the newest SDK does not
        }
        whole = client.messages.create(**asked)
        strictly(whole)
        with client.messages.stream(**asked) as stream:
            streamed = stream.get_final_message()
        assert streamed.content[0].text == whole.content[0].text != ""
        counted = client.messages.count_tokens(model=real.model, messages=QUESTION)
        used = whole.usage.input_tokens + whole.usage.cache_read_input_tokens
        assert counted.input_tokens == used


def test_ollama_streams_what_it_answers_whole(real: Any) -> None:
    pytest.importorskip("ollama._client")  # tests/server/ollama is no such package
    import ollama  # noqa: PLC0415

    with ollama.Client(real.url, headers={"Authorization": f"Bearer {real.key}"}) as client:
        options = {"temperature": 0, "num_predict": 24}
        whole = client.chat(real.model, QUESTION, options=options)
        parts = list(client.chat(real.model, QUESTION, options=options, stream=True))
        assert "".join(part.message.content for part in parts) == whole.message.content != ""
        shown = client.show(real.model)
        assert shown.details.family == "llama"
        assert shown.template
        assert "completion" in shown.capabilities


def test_an_openai_client_of_1_x(real: Any) -> None:
    """Needs $DURE_OPENAI_1: the python of an environment that has openai 1.x."""
    python = os.environ.get("DURE_OPENAI_1")
    if not python:
        pytest.skip("DURE_OPENAI_1 names no python that has openai 1.x")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, str(HERE / "openai_1.py"), real.v1, real.key, real.model],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("openai 1.")


@pytest.mark.parametrize(
    ("model", "path", "more", "metric", "least"),
    [
        # Chance is a third; what a model of 135 million knows is most of them.
        ("local-completions", "completions", ["--tasks", "dure_facts"], "acc,none", 0.75),
        # Written freely, there is no chance: some are right.
        (
            "local-chat-completions",
            "chat/completions",
            ["--tasks", "dure_facts_written", "--apply_chat_template"],
            "exact_match,last-word",
            0.15,
        ),
    ],
)
def test_lm_eval_scores_a_task_of_ours(
    real: Any, tmp_path: Path, model: str, path: str, more: list[str], metric: str, least: float
) -> None:
    pytest.importorskip("lm_eval")
    folder = HERE / "lm_eval_task"
    settings = ",".join(
        [
            f"model={real.model}",
            f"base_url={real.v1}/{path}",
            f"tokenizer_backend={'None' if 'chat' in model else 'remote'}",
            f"auth_token={real.key}",
            "num_concurrent=1",
            "max_retries=1",
        ]
    )
    environment = {
        **os.environ,
        "OPENAI_API_KEY": real.key,
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "run"),
            *("--model", model, "--model_args", settings, *more),
            *("--include_path", str(folder), "--output_path", str(tmp_path / "out")),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (result,) = (tmp_path / "out").rglob("results_*.json")
    (scored,) = json.loads(result.read_text())["results"].values()
    assert scored[metric] >= least
