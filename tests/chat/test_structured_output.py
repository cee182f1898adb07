"""Formats and tools together: what is enforced of each, and whose fault a refusal is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fake_model import END, VOCAB_SIZE, ByteTokenizer

from dure.chat.dialects import Dialect, harmony, hermes, qwenxml
from dure.chat.output import OutputParserOptions
from dure.chat.prefill import begin_answer
from dure.chat.request import ChatRequest, Format, ToolChoice, tool_schemas
from dure.chat.schema.depth import MAX_RULES
from dure.chat.structured_output import GrammarBuilder, check_format
from dure.engine.grammar import Grammar
from dure.errors import InvalidRequestError

ASK = ({"role": "user", "content": "?"},)
FORM = Format("json_schema", {"type": "object", "properties": {"a": {"type": "integer"}}})
DIALECTS = [
    Dialect("JSON", calls=hermes.HermesCalls()),
    Dialect("without quotes", calls=qwenxml.XmlCalls()),
]


def tool(name: str, *, strict: bool = False, **properties: Any) -> dict[str, Any]:
    function = {"name": name, "parameters": {"type": "object", "properties": properties}}
    return {"type": "function", "function": {**function, "strict": strict}}


GOOD = tool("good", x={"type": "integer"})
BAD = tool("bad", y={"type": "string", "not": {"const": "z"}}, n={"type": "integer"})


@pytest.fixture(params=DIALECTS, ids=lambda dialect: dialect.name)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    made = request.param
    assert isinstance(made, Dialect)
    return made


def grammar_of(dialect: Dialect, request: ChatRequest) -> Grammar | None:
    builder = GrammarBuilder(ByteTokenizer(), dialect, VOCAB_SIZE)  # type: ignore[arg-type]
    return builder.of_chat(request, "", OutputParserOptions(dialect, tool_schemas(request.tools)))


def allows(grammar: Grammar | None, text: str) -> bool:
    assert grammar is not None
    state = grammar.start()
    for i, byte in enumerate(text.encode()):
        if byte in state.forbidden():
            return False
        if state.accept(byte):
            return i + 1 == len(text.encode())
    return END not in state.forbidden()


def call(dialect: Dialect, name: str, **arguments: Any) -> str:
    if dialect.name == "JSON":
        body = json.dumps({"name": name, "arguments": arguments})
        return f"<tool_call>\n{body}\n</tool_call>"
    said = "".join(
        f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items()
    )
    return f"<tool_call>\n<function={name}>\n{said}</function>\n</tool_call>"


def test_a_bad_tool_that_need_not_be_called_spoils_no_format(dialect: Dialect) -> None:
    request = ChatRequest(ASK, [GOOD, BAD], format=FORM)
    grammar = grammar_of(dialect, request)
    assert allows(grammar, '{"a": 1}')
    assert not allows(grammar, '{"a": "x"}')
    assert allows(grammar, call(dialect, "good", x=1))
    assert not allows(grammar, call(dialect, "good", x="y"))
    # What cannot be enforced of the bad one is free; what can be is kept to.
    assert allows(grammar, call(dialect, "bad", y="z", n=1))
    assert not allows(grammar, call(dialect, "bad", y="z", n="x"))


@pytest.mark.parametrize("mode", ["required", "named"])
def test_a_bad_tool_that_must_be_called_is_named(dialect: Dialect, mode: Any) -> None:
    choice = ToolChoice(mode, "bad" if mode == "named" else "")
    with pytest.raises(InvalidRequestError) as caught:
        grammar_of(dialect, ChatRequest(ASK, [GOOD, BAD], choice))
    assert caught.value.message == (
        "The parameters of the tool 'bad' cannot be enforced: \"not\" at y is not supported."
    )


def test_another_tool_can_be_named_beside_a_bad_one(dialect: Dialect) -> None:
    grammar = grammar_of(dialect, ChatRequest(ASK, [GOOD, BAD], ToolChoice("named", "good")))
    assert allows(grammar, call(dialect, "good", x=1))


def test_a_strict_tool_is_refused_by_name_beside_a_format(dialect: Dialect) -> None:
    bad = tool("strict_one", strict=True, y={"if": {}, "then": {}})
    for _ in range(2):  # the second time from what is kept
        with pytest.raises(InvalidRequestError, match=r"'strict_one' .*\"if\" and \"then\" at y"):
            grammar_of(dialect, ChatRequest(ASK, [GOOD, bad], format=FORM))


def test_a_bad_format_is_named_whatever_the_tools_are(dialect: Dialect) -> None:
    form = Format("json_schema", {"type": "object", "properties": {"a": {"not": {}}}})
    with pytest.raises(InvalidRequestError, match=r'^The JSON schema .*: "not" at a is not'):
        grammar_of(dialect, ChatRequest(ASK, [GOOD, BAD], format=form))


@pytest.mark.parametrize(
    "parameter",
    [
        {"type": "string", "format": "path"},
        {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        {"type": "string", "enum": ["a"], "oneOf": [{"const": "a", "title": "A"}]},
        {"type": "object", "propertyNames": {"enum": ["k"]}, "additionalProperties": {}},
        {"$ref": "#/properties/other"},
    ],
)
def test_parameters_that_pydantic_writes_can_be_required(dialect: Dialect, parameter: Any) -> None:
    other = {"type": "array", "items": {"type": "integer"}}
    request = ChatRequest(ASK, [tool("f", p=parameter, other=other)], ToolChoice("required"))
    assert allows(grammar_of(dialect, request), call(dialect, "f", other=[1]))


def test_what_a_tool_requires_is_one_of_its_properties(dialect: Dialect) -> None:
    made = tool("f", x={"type": "integer"})
    made["function"]["parameters"]["required"] = ["x", "forgotten"]
    grammar = grammar_of(dialect, ChatRequest(ASK, [made], ToolChoice("required")))
    if dialect.name == "JSON":
        assert allows(grammar, call(dialect, "f", x=1, forgotten="y"))
        assert not allows(grammar, call(dialect, "f", x=1))


def test_a_format_is_checked_without_a_model() -> None:
    tags = {"type": "object", "properties": {"t": {"type": "array", "uniqueItems": True}}}
    assert check_format(Format("json_schema", tags)) == ('"uniqueItems" at t',)
    assert check_format(Format("json_object")) == ()
    with pytest.raises(InvalidRequestError, match='"not" at the top'):
        check_format(Format("json_schema", {"not": {}}))
    with pytest.raises(InvalidRequestError, match="no rule `start`"):
        check_format(Format("grammar", 'begin: "a"'))


@pytest.mark.parametrize("text", ["start", "start %", "start = 'a'"])
def test_a_grammar_without_any_rule_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        grammar_of(DIALECTS[0], ChatRequest(ASK, format=Format("grammar", text)))


def test_rules_of_a_grammar_may_lead_into_each_other_only_so_deep() -> None:
    def chain(count: int) -> Format:
        rules = [f'r{i}: "x" r{i + 1} | "y" (r{i + 1})?' for i in range(count)]
        return Format("grammar", "\n".join(["start: r0", *rules, f'r{count}: "z"']))

    check_format(chain(MAX_RULES // 2 - 2))
    with pytest.raises(InvalidRequestError, match=r"within each other; the limit is 1,000"):
        check_format(chain(MAX_RULES // 2))


def test_a_schema_within_a_grammar_is_checked() -> None:
    with pytest.raises(InvalidRequestError, match=r"A schema of the grammar .* not in the schema"):
        check_format(Format("grammar", 'start: %json {"$ref": "#/$defs/a"}'))
    check_format(Format("grammar", 'start: a "," a\na: %json {"type": "integer"}'))


@pytest.mark.parametrize(
    ("parameter", "right", "wrong"),
    [
        (
            {"enum": [0, "a"], "oneOf": [{"const": "a"}, {"const": {"k": 1}}]},
            ["a"],
            ['{"k": 1}', 0],
        ),
        ({"allOf": [{"enum": ["a", 1]}, {"enum": [1.0, "b"]}]}, [1], ["a", "b"]),
        (
            {
                "anyOf": [
                    {"type": "string", "maxLength": 2},
                    {"type": "integer", "minimum": 2, "maximum": 1},
                    {"type": "boolean"},
                ]
            },
            ["ab", "true"],
            ["abc"],
        ),
        ({"type": "string", "format": "uuid4"}, ["12345678-1234-4234-9234-123456789abc"], ["a"]),
        ({"type": "string", "oneOf": [{"enum": ["a", "b"]}, {"const": "b"}]}, ["a"], ["b"]),
    ],
)
def test_values_without_quotes_keep_to_rewritten_schemas(
    parameter: Any, right: list[Any], wrong: list[Any]
) -> None:
    request = ChatRequest(ASK, [tool("f", p=parameter)], ToolChoice("required"))
    grammar = grammar_of(DIALECTS[1], request)
    assert [value for value in right if not allows(grammar, call(DIALECTS[1], "f", p=value))] == []
    assert [value for value in wrong if allows(grammar, call(DIALECTS[1], "f", p=value))] == []


FINAL = "<|channel|>final<|message|>"
THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"


def test_gpt_oss_answers_in_messages_whose_heads_are_part_of_the_grammar() -> None:
    grammar = grammar_of(harmony.HARMONY, ChatRequest(ASK, format=FORM))
    for before in ("", THOUGHT):
        assert allows(grammar, before + FINAL + '{"a": 1}')
        assert not allows(grammar, before + FINAL + '{"a": "x"}')
    assert not allows(grammar, '{"a": 1}')
    assert not allows(grammar, FINAL + THOUGHT)


def test_gpt_oss_calls_a_tool_that_it_must_call() -> None:
    request = ChatRequest(ASK, [GOOD], tool_choice=ToolChoice("required"))
    grammar = grammar_of(harmony.HARMONY, request)
    head = "<|channel|>commentary to=functions.good <|constrain|>json<|message|>"
    for before in ("", THOUGHT):
        assert allows(grammar, before + head + '{"x": 1}')
        assert not allows(grammar, before + head + '{"x": "y"}')
    assert not allows(grammar, FINAL + "no")
    both = grammar_of(harmony.HARMONY, ChatRequest(ASK, [GOOD], format=FORM))
    assert allows(both, head + '{"x": 1}')
    assert allows(both, FINAL + '{"a": 1}')


def test_gpt_oss_goes_on_with_a_begun_answer() -> None:
    begun = ({"role": "user", "content": "?"}, {"role": "assistant", "content": '{"a"'})
    request = ChatRequest(begun, format=FORM, continue_final=True)
    grammar = grammar_of(harmony.HARMONY, request)
    assert allows(grammar, ": 1}")
    text, reasons = begin_answer("<|start|>assistant", begun[1], harmony.HARMONY)
    assert (text, reasons) == ("<|start|>assistant" + FINAL + '{"a"', False)
    thought = {**begun[1], "reasoning_content": "Hm."}
    text, reasons = begin_answer("<|start|>assistant", thought, harmony.HARMONY)
    assert (text, reasons) == ("<|start|>assistant" + THOUGHT + FINAL + '{"a"', False)
