"""With guesses and without, an answer is the same, bit for bit: tokens, log-probabilities, texts.

Real kernels over tiny random models of every kind. Without guesses each request is alone; with
them sixteen share a step and a small cache, so that prefixes are found and requests preempted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_model import ByteTokenizer
from test_same_bits_quantised import FILES
from tiny_gguf import parameters_of, write_folder, write_gguf
from tiny_models import drawn, loaded

import dure.llm
from dure import LLM, Format, SamplingParams
from dure.chat.output import Completion
from dure.chat.prompt import PreparedRequest
from dure.chat.request import ChatRequest, Thinking, ToolChoice
from dure.engine.request import Request
from dure.engine.spec_decode.cost import StepCost
from dure.engine.spec_decode.draft import StepResult
from dure.formats.checkpoint import Checkpoint, open_checkpoint
from dure.loading.load import LoadedModel
from dure.loading.memory import MemoryUse
from dure.metering.cost import NOTHING
from dure.models import Model, load_model

TEMPLATE = (Path(__file__).parent / "chat" / "templates" / "qwen3.5.jinja").read_text("utf-8")
ROWS = 272  # of logits: 13 more than the tokenizer has tokens
BLOCKS = 45  # the longest request alone takes 44
TEXT = "one two three one two three one two three one two "
SCHEMA = {
    "type": "object",
    "properties": {
        "numbers": {"type": "array", "items": {"enum": [1, 20]}, "minItems": 3, "maxItems": 5},
        "word": {"enum": ["red", "green", "blue"]},
    },
    "required": ["numbers", "word"],
    "additionalProperties": False,
}
JSON = Format("json_schema", SCHEMA)
TOOL = {
    "type": "function",
    "function": {"name": "paint", "parameters": SCHEMA, "description": "Paint numbers."},
}

PLAIN: Sequence[Mapping[str, Any]] = (
    {"temperature": 0},
    {"temperature": 0, "logprobs": 3},
    {"temperature": 1, "seed": 1},
    {"temperature": 1, "seed": 2, "logprobs": 2, "top_k": 40, "top_p": 0.9},
    {"temperature": 1, "seed": 3, "min_p": 0.2},
    {"temperature": 0, "repetition_penalty": 1.3},
    {"temperature": 1, "seed": 4, "presence_penalty": 0.6, "frequency_penalty": 0.4},
    {"temperature": 0, "stop": ["e", "o", "\x01"]},
    {"temperature": 1, "seed": 5, "stop_token_ids": tuple(range(60)), "min_tokens": 6},
    {"temperature": 1, "seed": 6, "n": 2, "logprobs": 0},
    {"temperature": 0, "logit_bias": {101: 5.0, 102: -100.0}},
    {"temperature": 0.5, "seed": 7, "prompt_logprobs": 1, "logprobs": 1},
)
"""Parameters of texts that are gone on with."""

CHATS: Sequence[tuple[Mapping[str, Any], Mapping[str, Any], Format | None]] = (
    ({"temperature": 0}, {}, None),
    ({"temperature": 1, "seed": 8}, {"thinking": Thinking("off")}, None),
    ({"temperature": 0}, {"thinking": Thinking("off")}, JSON),
    ({"temperature": 1, "seed": 9, "logprobs": 2}, {"thinking": Thinking("off")}, JSON),
    ({"temperature": 1, "seed": 10, "n": 2}, {"thinking": Thinking("off")}, JSON),
    ({"temperature": 0}, {"thinking": Thinking("off")}, Format("regex", "(ab|cd){4,9}e")),
    ({"temperature": 1, "seed": 11}, {"thinking": Thinking(budget=7)}, None),
    ({"temperature": 0, "logprobs": 1}, {"thinking": Thinking(budget=9)}, JSON),
    ({"temperature": 1, "seed": 12, "n": 2}, {"thinking": Thinking(budget=5)}, JSON),
    (
        {"temperature": 0},
        {"tools": (TOOL,), "tool_choice": ToolChoice("required"), "thinking": Thinking("off")},
        None,
    ),
    (
        {"temperature": 1, "seed": 13, "stop": ["\n"]},
        {"tools": (TOOL,), "tool_choice": ToolChoice("named", "paint"), "thinking": Thinking("on")},
        None,
    ),
    ({"temperature": 1, "seed": 14}, {"tools": (TOOL,), "thinking": Thinking(budget=3)}, None),
)
"""Parameters, what the chat asks for, and the answer's format."""


class Cheap(StepCost):
    """A machine where rows are nearly free: whatever is guessed is tried."""

    def add(self, rows: int, seconds: float) -> None:
        """Learn nothing."""

    def __call__(self, rows: int) -> float:
        return 1.0 + 1e-4 * rows


class Oracle:
    """Guesses the known answers, with three in ten tokens wrong."""

    max_drafts = 9

    def __init__(self, answers: Mapping[str, Sequence[int]]) -> None:
        self.answers = answers
        self.rng = np.random.default_rng(4)

    def propose(
        self, requests: Sequence[Request], limits: Sequence[int], rows: int
    ) -> list[list[int]]:
        return [self.guess(each, limit) for each, limit in zip(requests, limits, strict=True)]

    def guess(self, request: Request, limit: int) -> list[int]:
        done = len(request.output_ids)
        known = self.answers[request.id][done : done + limit]
        wrong = self.rng.random(len(known)) < 0.3
        return [(token + int(bad)) % ROWS for token, bad in zip(known, wrong, strict=True)]

    def observe(self, step: StepResult) -> None:
        pass

    def forget(self, request: Request) -> None:
        pass


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """A model for each kind of layer."""
    folder = tmp_path_factory.mktemp("speculation")
    found = {}
    for name, (config, types) in FILES.items():
        wide = {**config, "vocab_size": ROWS, "max_position_embeddings": 4096}
        write_gguf(folder / f"{name}.gguf", wide, parameters_of(wide), types)
        found[name] = loaded(folder / f"{name}.gguf", exact=False)
    return found


@pytest.fixture(scope="module")
def headed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """Models with a draft head, of drawn weights, which is as good as never right."""
    found = {}
    for name, block in (("latent", "model.layers.3"), ("recurrent", "mtp.layers.0")):
        config = {**FILES[name][0], "vocab_size": ROWS, "max_position_embeddings": 4096}
        layers, hidden = config["num_hidden_layers"], config["hidden_size"]
        parameters = parameters_of(config)
        last = f"model.layers.{layers - 1}."
        shapes: dict[str, tuple[int, ...]] = {
            key.replace(last, f"{block}."): values.shape
            for key, values in parameters.items()
            if key.startswith(last)
        }
        around = (
            ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "norm")
            if name == "recurrent"
            else ("enorm", "hnorm", "eh_proj", "shared_head.norm")
        )
        inside = "mtp" if name == "recurrent" else block
        sizes = ((hidden,), (hidden,), (hidden, 2 * hidden), (hidden,))
        shapes |= {
            f"{inside}.{part}.weight": size for part, size in zip(around, sizes, strict=True)
        }
        if name == "latent":
            config["num_nextn_predict_layers"] = 1
        parameters |= {key: drawn(f"drafts.{key}", shape) for key, shape in shapes.items()}
        folder = write_folder(tmp_path_factory.mktemp(name), config, parameters)
        found[name] = load_model(open_checkpoint(folder), draft_heads=True)
    return found


def make_llm(speculate: str, *, num_blocks: int, **of_loaded: Any) -> LLM:
    """An LLM over a model that is loaded already, with a token a byte."""
    path = Path("tiny.gguf")
    made = LoadedModel(
        name="tiny",
        path=path,
        checkpoint=Checkpoint(path, "gguf", {}, chat_template=TEMPLATE),
        text=ByteTokenizer(),  # type: ignore[arg-type]
        threads=1,
        context=2048,
        num_blocks=num_blocks,
        cache_dtype="f16",
        sampling={"temperature": 0},
        memory=MemoryUse(None, 0, 0, 0, 0, 0, 0, streamed=False, prefill_rows=512),
        num_states=200,
        **of_loaded,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dure.llm, "load", lambda *_, **__: made)
        return LLM("tiny", speculate=speculate, max_sequences=16)


def asked(llm: LLM) -> list[PreparedRequest]:
    """All requests: texts and chats."""
    found = [
        llm.prepare(TEXT + "three"[: number % 5], SamplingParams(max_tokens=40, **params))
        for number, params in enumerate(PLAIN)
    ]
    messages = [{"role": "user", "content": TEXT}]
    for params, options, form in CHATS:
        chat = ChatRequest(messages, **options)
        found.append(llm.prepare(chat, SamplingParams(max_tokens=90, **params), format=form))
    return found


def together(llm: LLM, prepared: Sequence[PreparedRequest]) -> list[Completion]:
    """Answer all requests, the chats after a few steps and in the place of the texts."""
    with llm.driver.lock:
        groups = [llm.driver.begin(each) for each in prepared[: len(PLAIN)]]
        for _ in range(5):
            llm.driver.step()
        groups += [llm.driver.begin(replace(each, priority=-1)) for each in prepared[len(PLAIN) :]]
        while llm.engine.has_work:
            llm.driver.step()
    choices = [tuple(each.result() for each in group) for group in groups]
    return [replace(each[0], choices=each) if len(each) > 1 else each[0] for each in choices]


def shown(completion: Completion) -> Completion:
    """All that a caller sees of an answer but counts, seconds and the random names of calls."""
    return replace(
        completion,
        usage=replace(
            completion.usage,
            cached_tokens=0,
            drafted_tokens=0,
            accepted_tokens=0,
            prefill_s=0.0,
            decode_s=0.0,
            cost=NOTHING,
        ),
        choices=tuple(shown(each) for each in completion.choices if completion.choices),
        tool_calls=tuple({**each, "id": ""} for each in completion.tool_calls),
    )


def answers_by_id(completions: Sequence[Completion]) -> dict[str, Sequence[int]]:
    """The tokens of every choice, by the name that the engine gives its request."""
    found: dict[str, Sequence[int]] = {}
    for number, completion in enumerate(completions, start=1):
        for choice, one in enumerate(completion.choices or (completion,)):
            found[f"request-{number}:{choice}" if choice else f"request-{number}"] = one.token_ids
    return found


# Where guesses come from is one thing, what takes them back of a cache or a state is another: each
# source is tried, and over each kind of layer one that is often right, then wrong.
SOURCES = {
    "dense": ("text", "oracle", "model"),
    "floats": ("oracle",),
    "sparse": ("oracle",),
    "recurrent": ("oracle",),
    "latent": ("oracle",),
    "channels": ("oracle", "model"),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[] if name in ("dense", "recurrent", "latent") else [pytest.mark.long]
        )
        for name in FILES
    ],
)
def test_an_answer_is_the_same_with_any_guesses(models: dict[str, Model], name: str) -> None:
    plain = make_llm("off", num_blocks=400, model=models[name])
    expected = [plain.driver.answer([each])[0] for each in asked(plain)]
    known = answers_by_id(expected)
    _is_a_grid(expected)
    for kind in SOURCES[name]:
        draft = {"draft_model": models["dense"]} if kind == "model" else {}
        speculate = "text" if kind == "oracle" else kind
        llm = make_llm(speculate, num_blocks=BLOCKS, model=models[name], **draft)
        _try_all(llm, Oracle(known) if kind == "oracle" else None)
        actual = together(llm, asked(llm))
        for number, (before, after) in enumerate(zip(expected, actual, strict=True)):
            assert shown(after) == shown(before), (kind, number)
        stats = llm.engine.stats
        assert 0 < stats.accepted_tokens < stats.drafted_tokens
        assert stats.steps < plain.engine.stats.steps / 3
        assert stats.preemptions > 0
        assert stats.cached_tokens > 0
        _nothing_failed(llm, kind)
        llm.engine.check_idle()


@pytest.mark.parametrize("name", ["latent", "recurrent"])
def test_an_answer_is_the_same_with_draft_heads(headed: dict[str, Model], name: str) -> None:
    plain = make_llm("off", num_blocks=400, model=headed[name])
    expected = [plain.driver.answer([each])[0] for each in asked(plain)]
    llm = make_llm("auto", num_blocks=BLOCKS, model=headed[name], has_draft_heads=True)
    _try_all(llm, None)
    actual = together(llm, asked(llm))
    for number, (before, after) in enumerate(zip(expected, actual, strict=True)):
        assert shown(after) == shown(before), number
    _nothing_failed(llm, "heads")
    assert 0 < llm.engine.stats.accepted_tokens < llm.engine.stats.drafted_tokens
    llm.engine.check_idle()


def _nothing_failed(llm: LLM, kind: str) -> None:
    """Check that these guesses were made to the end: a source that raises is turned off."""
    drafter: Any = llm.engine.scheduler._drafter
    if kind == "oracle":
        return
    assert drafter._texts
    assert kind in drafter._rates._counts
    if kind != "text":
        assert drafter._model.kind == kind


def _try_all(llm: LLM, oracle: Oracle | None) -> None:
    """Have guesses tried whatever they cost on this machine, or those of the oracle."""
    engine: Any = llm.engine
    if oracle is not None:
        engine._drafter = engine.scheduler._drafter = oracle
        return
    engine._drafter.step_cost = Cheap()
    if engine._drafter._model is not None:
        engine._drafter._model.cost = Cheap()


def _is_a_grid(completions: Sequence[Completion]) -> None:
    """Check that the requests did not quietly become easy ones."""
    every = [one for each in completions for one in (each.choices or (each,))]
    assert {each.finish_reason for each in every} == {"stop", "length"}
    assert any(each.stopped is not None for each in every)
    assert sum(bool(each.reasoning) for each in every) >= 4
    assert sum(bool(each.tool_calls) for each in every) >= 1
    assert sum(each.content.startswith('{"numbers"') for each in every) >= 3
