"""Answers that keep to a grammar, over a model that would rather say something else."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_model import END, ByteTokenizer, ScriptModel, loaded

import dure.llm
from dure import LLM, SamplingParams
from dure.batch import Batch
from dure.chat.dialects import (
    deepseek,
    dsml,
    gemma,
    hermes,
    hunyuan,
    hy3,
    kimi,
    llama3,
    minimax,
    qwenxml,
)
from dure.chat.dialects.dialect import Dialect
from dure.chat.dialects.stream_parser import StreamParser
from dure.chat.grammar_rules import Rules, complete
from dure.chat.output import OutputParserOptions
from dure.chat.request import ChatRequest, Format, Thinking, ToolChoice
from dure.chat.structured_output import GrammarBuilder
from dure.engine.grammar import GrammarCompiler
from dure.engine.grammar_numbers import check_numbers
from dure.errors import InvalidRequestError

TEMPLATES = Path(__file__).parent.parent / "chat" / "templates"
ASK = ({"role": "user", "content": "?"},)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add_pet",
            "parameters": {**SCHEMA, "properties": {**SCHEMA["properties"]}},
        },
    },
    {
        "type": "function",
        "function": {"name": "now", "parameters": {"type": "object", "properties": {}}},
    },
]
MakeLLM = Callable[..., LLM]


class NoiseModel(ScriptModel):
    """Wants anything at all: its logits are noise, the same for the same text; ends are likely."""

    def forward(self, batch: Batch, cache: Any) -> np.ndarray:
        logits = super().forward(batch, cache)
        for out, row in zip(logits, batch.logit_rows, strict=True):
            seed = int(batch.positions[row]) * 7919 + int(batch.tokens[row])
            out[:] = np.random.default_rng(seed).normal(size=self.vocab_size)
            out[END] = 3.0
        return logits


@pytest.fixture
def make_llm(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeLLM]:
    """A function from a template's name to an LLM of noise; idle at the end."""
    made: list[LLM] = []

    def make(name: str | None = "qwen2.5", **options: Any) -> LLM:
        model = NoiseModel(lambda _: "x", context_length=8192)
        source = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8") if name else None
        given = {"context": 8192, "num_blocks": 400, "template": source, **options}
        monkeypatch.setattr(dure.llm, "load", lambda *_, **__: loaded(model, **given))
        made.append(LLM("fake"))
        return made[-1]

    yield make
    for llm in made:
        assert not llm.engine.has_work


def ask(llm: LLM, form: Format, **params: Any) -> Any:
    return llm.driver.answer([llm.prepare("?", SamplingParams(**params), format=form)])[0]


def valid(text: str) -> bool:
    value = json.loads(text)
    return set(value) == {"name", "age", "kind"} and value["kind"] in ("cat", "dog")


@pytest.mark.parametrize("seed", range(5))
def test_an_answer_keeps_to_its_schema_whatever_the_model_wants(
    make_llm: MakeLLM, seed: int
) -> None:
    form = Format("json_schema", SCHEMA)
    completion = ask(make_llm(), form, temperature=1.0, seed=seed, max_tokens=200)
    assert valid(completion.text)
    assert completion.finish_reason == "stop"


def test_every_kind_of_format_is_kept_to(make_llm: MakeLLM) -> None:
    llm = make_llm()
    assert ask(llm, Format("choice", ["yes", 'n"o\n'])).text in ("yes", 'n"o\n')
    assert re.fullmatch(r"[a-c]{3}/\d+x", ask(llm, Format("regex", r"[a-c]{3}/\d{1,3}x")).text)
    lark = 'start: "a" b+ "c"\nb: /[xy]/'
    assert re.fullmatch("a[xy]+c", ask(llm, Format("grammar", lark), max_tokens=500).text)
    text = ask(llm, Format("json_object"), temperature=0.3, seed=2, max_tokens=2000).text
    assert text.startswith("{")


def test_the_other_requests_of_a_batch_are_not_touched(make_llm: MakeLLM) -> None:
    llm = make_llm()
    params = SamplingParams(temperature=1.0, seed=4, max_tokens=40, logprobs=2, ignore_eos=True)
    free = llm.prepare("?", params)
    bound = llm.prepare("?", params, format=Format("json_schema", SCHEMA))
    alone = [llm.driver.answer([each])[0] for each in (free, bound)]
    together = llm.driver.answer([free, bound, free, bound])
    assert [each.token_ids for each in together] == [each.token_ids for each in alone * 2]
    assert [each.logprobs for each in together] == [each.logprobs for each in alone * 2]


def test_penalties_bias_and_several_choices_keep_to_it_too(make_llm: MakeLLM) -> None:
    completion = ask(
        make_llm(),
        Format("json_schema", SCHEMA),
        n=3,
        temperature=1.5,
        seed=1,
        presence_penalty=1.0,
        repetition_penalty=1.2,
        logit_bias={ord("}"): -100.0, ord("x"): 100.0},
        max_tokens=200,
    )
    assert all(valid(choice.text) for choice in completion.choices)
    assert len({choice.text for choice in completion.choices}) == 3


def test_an_answer_that_was_preempted_goes_on_in_its_grammar(make_llm: MakeLLM) -> None:
    llm = make_llm(num_blocks=10, context=256)
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=160)
    prepared = [
        llm.prepare("?" * 60 + str(i), params, format=Format("json_schema", SCHEMA))
        for i in range(6)
    ]
    assert all(valid(each.text) for each in llm.driver.answer(prepared))


@pytest.mark.parametrize(
    "form",
    [
        Format("json_schema", {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}),
        Format("json_schema", 7),
        Format("json_schema", {"not": [1]}),
        Format("regex", "(("),
        Format("regex", ""),
        Format("grammar", 'begin: "a"'),
        Format("grammar", "start: missing"),
        Format("choice", []),
        Format("choice", [7]),
        Format("choice", ["x"] * 5000),
        Format("json_schema", {"enum": ["x" * 300_000]}),
        Format("json_schema", {"const": float("nan")}),
        Format("json_schema", {"properties": {f"p{i}": {"type": "string"} for i in range(600)}}),
    ],
)
def test_a_format_that_cannot_be_kept_to_is_refused_in_our_words(
    make_llm: MakeLLM, form: Format
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make_llm().prepare("?", format=form)
    assert caught.value.message.startswith(("The ", "A choice"))
    assert "start:" not in caught.value.message
    assert "\n" not in caught.value.message


def test_a_schema_of_any_depth_is_refused_at_once(make_llm: MakeLLM) -> None:
    schema: dict[str, Any] = {}
    for _ in range(10_000):
        schema = {"items": schema}
    with pytest.raises(InvalidRequestError, match="deeper than 64"):
        make_llm().prepare("?", format=Format("json_schema", schema))


def test_thoughts_come_before_the_format(make_llm: MakeLLM) -> None:
    request = ChatRequest(ASK, thinking=Thinking(budget=20), format=Format("json_schema", SCHEMA))
    for name in ("qwen3.5", "qwen3", "minimax-m2"):
        llm = make_llm(name)
        params = SamplingParams(temperature=1.0, seed=5, max_tokens=300)
        completion = list(llm.stream(request, params))[-1].completion
        assert completion is not None
        assert valid(completion.content), (name, completion.text)
        if name != "qwen3":
            assert completion.reasoning_tokens >= 20


@pytest.mark.parametrize(
    "name",
    [
        *(
            "qwen2.5",
            "qwen3",
            "qwen3-coder",
            "deepseek-r1-distill",
            "deepseek-v3.1",
            "deepseek-v3.2",
        ),
        *("deepseek-v4", "minimax-m1", "minimax-m2", "hunyuan-3", "ling-3.0", "llama-3.1"),
    ],
)
@pytest.mark.parametrize(
    ("choice", "seed"), [(ToolChoice("required"), 0), (ToolChoice("named", "add_pet"), 1)]
)
def test_a_call_that_is_required_comes_and_keeps_to_its_schema(
    make_llm: MakeLLM, name: str, choice: ToolChoice, seed: int
) -> None:
    llm = make_llm(name)
    request = ChatRequest(ASK, TOOLS, choice, parallel_tool_calls=False, thinking=Thinking("off"))
    params = SamplingParams(temperature=1.0, seed=seed, max_tokens=1500)
    completion = list(llm.stream(request, params))[-1].completion
    assert completion is not None
    assert completion.finish_reason == "stop"
    assert completion.unparsed_calls == 0
    assert not completion.content
    for call in completion.tool_calls:
        function = call["function"]
        assert valid(function["arguments"]) or function == {"name": "now", "arguments": "{}"}
    names = {call["function"]["name"] for call in completion.tool_calls}
    assert names
    assert choice.mode == "required" or names == {"add_pet"}


def test_a_model_whose_form_of_calls_is_unknown_is_not_required_to_call(make_llm: MakeLLM) -> None:
    llm = make_llm(template="{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(InvalidRequestError, match="no form for tool calls"):
        llm.prepare(ChatRequest(ASK, TOOLS, ToolChoice("required")))


def test_a_model_whose_template_has_no_place_for_tools_can_be_required_to_call(
    make_llm: MakeLLM,
) -> None:
    prepared = make_llm("smollm2").prepare(ChatRequest(ASK, TOOLS, ToolChoice("required")))
    assert prepared.grammar is not None


class MarkTokenizer(ByteTokenizer):
    """The bytes, and a token for each mark of a dialect."""

    def __init__(self, marks: frozenset[str]) -> None:
        self.marks = {mark: 259 + i for i, mark in enumerate(sorted(marks))}
        self.added_ids = self.special_ids | set(self.marks.values())
        self.vocab_size = 259 + len(marks)

    def token_id(self, text: str) -> int | None:
        return self.marks.get(text, super().token_id(text))

    def token_bytes(self, token_id: int) -> bytes:
        texts = {token: mark for mark, token in self.marks.items()}
        return texts[token_id].encode() if token_id in texts else super().token_bytes(token_id)


DIALECTS = [
    Dialect("Hermes", calls=hermes.HermesCalls()),
    Dialect("Qwen XML", calls=qwenxml.XmlCalls()),
    Dialect("MiMo XML", calls=qwenxml.XmlCalls(escaped=True)),
    Dialect("DeepSeek R1", calls=deepseek.DeepSeekCalls(fenced=True)),
    Dialect("DeepSeek V3.1", calls=deepseek.DeepSeekCalls(fenced=False)),
    Dialect("Kimi K2", calls=kimi.KimiCalls()),
    Dialect("Gemma 4", calls=gemma.GemmaCalls()),
    dsml.V32,
    dsml.V4,
    minimax.M1,
    minimax.M2,
    hunyuan.HUNYUAN,
    hy3.dialect(":opensource"),
    llama3.LLAMA3,
]


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("seed", range(2))
def test_a_walk_through_a_grammar_with_marks_as_tokens_is_read_as_calls(
    dialect: Dialect, seed: int
) -> None:
    tokenizer = MarkTokenizer(dialect.marks)
    rules = Rules(tokenizer.marks)
    assert dialect.calls is not None
    schemas = {each["function"]["name"]: each["function"]["parameters"] for each in TOOLS}
    text = rules.text(dialect.calls.grammar(schemas, rules, several=True))
    grammars = GrammarCompiler(tokenizer, tokenizer.vocab_size)  # type: ignore[arg-type]
    constraint = grammars.compile(complete(text)).start()
    random = np.random.default_rng(seed)
    written: list[int] = []
    while len(written) < 3000:
        allowed = np.setdiff1d(np.arange(tokenizer.vocab_size), constraint.forbidden())
        if END in allowed and (random.random() < 0.8 or len(allowed) == 1):
            break
        # Marks and their like are taken when they may be: letters alone would go on for long.
        marks = allowed[(allowed >= 259) | (allowed == ord("<")) | (allowed == ord('"'))]
        token = int(random.choice(marks if len(marks) and random.random() < 0.3 else allowed))
        written.append(token)
        if constraint.accept(token):
            break
    automaton = StreamParser(dialect, tools=schemas)
    events = automaton.push(tokenizer.decode(written)) + automaton.finish()
    assert automaton.unparsed == 0
    calls = [event for event in events if event.kind == "call"]
    assert {call.name for call in calls} <= {"add_pet", "now"}
    assert calls
    for call in calls:
        arguments = "".join(
            event.text
            for event in events
            if event.kind == "arguments" and event.index == call.index
        )
        assert valid(arguments) if call.name == "add_pet" else json.loads(arguments) == {}


STRICT = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]  # type: ignore[dict-item]


def test_strict_tools_are_kept_to_where_the_model_may_choose() -> None:
    dialect = DIALECTS[0]
    tokenizer = MarkTokenizer(dialect.marks)
    constraints = GrammarBuilder(tokenizer, dialect, tokenizer.vocab_size)  # type: ignore[arg-type]
    schemas = {each["function"]["name"]: each["function"]["parameters"] for each in TOOLS}
    reading = OutputParserOptions(dialect, schemas)
    grammar = constraints.of_chat(ChatRequest(ASK, STRICT), "", reading)
    assert grammar is not None
    constraint = grammar.start()

    def allowed() -> set[int]:
        return set(range(tokenizer.vocab_size)) - set(constraint.forbidden().tolist())

    for letter in b"Well, <tool":
        assert {letter, END, tokenizer.marks["<tool_call>"]} <= allowed()
        constraint.accept(letter)
    constraint.accept(tokenizer.marks["<tool_call>"])
    for letter in b'\n{"name": "':
        assert allowed() == {letter}
        constraint.accept(letter)
    assert allowed() == {ord("a"), ord("n")}


def test_strict_tools_are_free_where_a_call_begins_as_a_text_may(make_llm: MakeLLM) -> None:
    llm = make_llm()
    assert llm.prepare(ChatRequest(ASK, TOOLS)).grammar is None
    # In a vocabulary of bytes the mark is no token: nothing tells a call's begin from a text.
    assert llm.prepare(ChatRequest(ASK, STRICT)).grammar is None


def test_a_grammar_that_becomes_too_complex_ends_its_own_answer_only(make_llm: MakeLLM) -> None:
    llm = make_llm()
    params = SamplingParams(temperature=0, max_tokens=60, logit_bias={END: -100.0})
    bomb = llm.prepare("?", params, format=Format("regex", "(?:(?:(?:a?){100}){100}){100}"))
    with llm.driver.lock:
        answers = [llm.driver.begin(llm.prepare("?", params))[0], llm.driver.begin(bomb)[0]]
        while not all(answer.is_over for answer in answers):
            llm.driver.step()
    assert len(answers[0].result().token_ids) == 60
    with pytest.raises(InvalidRequestError, match="too complex"):
        answers[1].result()


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ('start: %json {"type": "array", "items": [{"x": -1e19}]}', True),
        ('start: a\na: %json\n{"x": -9223372036854775808}', True),
        ('start: %json {"x": -9223372036854775807}', True),  # which is the one above as a float
        ('start: %json {"x": -1' + "0" * 400 + "}", True),
        ('start: %json {"x": -1e19, "x": 1}', True),
        ('start: %json {"x": [-9223372036854770000, 1e300, true, null, "-1e300"]}', False),
        ('start: "-1e300" | %json {"type": "string"}', False),
        ("start: %json [", False),
    ],
)
def test_numbers_too_low_for_the_library_never_reach_it(text: str, refused: bool) -> None:
    expected = (
        pytest.raises(InvalidRequestError, match="The form has a number of")
        if refused
        else contextlib.nullcontext()
    )
    with expected:
        check_numbers(text, "The form")
