"""From a chat request to a prompt, over real templates."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chat_requests import ASK, HERMES_CALL, TOOLS, MakeLLM, ask, prompt

from dure.chat.request import ChatRequest, Format, Thinking, ToolChoice
from dure.errors import InvalidRequestError

# --- beginnings of an answer ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "message, ending",
    [
        ({"content": "<think>\nHm, Os"}, "<think>\nHm, Os"),
        ({"content": "<think>Hm, Os"}, "<think>\nHm, Os"),
        ({"content": "", "reasoning_content": "Hm, Os"}, "<think>\nHm, Os"),
        ({"content": None, "reasoning": "Hm, Os"}, "<think>\nHm, Os"),
    ],
)
@pytest.mark.parametrize("name", ["qwen3", "qwen3.5", "glm-4.6", "minimax-m2", "qwq"])
def test_reasoning_that_was_begun_is_gone_on_with(
    make_llm: MakeLLM, name: str, message: dict[str, Any], ending: str
) -> None:
    def goes_on(text: str) -> str | None:
        begun = text.rpartition("Hm, Os")[2]
        words = "lo.\n</think>\n\nCold."
        return words[len(begun)] if len(begun) < len(words) else None

    llm = make_llm(name, words=goes_on)
    request = ChatRequest([*ASK, {"role": "assistant", **message}], continue_final=True)
    assert prompt(llm, request).endswith(ending)
    completion = ask(llm, request)
    assert (completion.reasoning, completion.content) == ("lo.", "Cold.")


SWITCHED = ["qwen3", "qwen3.5", "glm-4.6", "deepseek-v3.1", "deepseek-v3.2", "deepseek-v4", "qwq"]


@pytest.mark.parametrize("name", [*SWITCHED, "ling-3.0", "minimax-m2", "hunyuan-3", "minimax-m3"])
@pytest.mark.parametrize("mode", ["on", "off"])
@pytest.mark.parametrize("content", ["It is", "{open}\n\n{close}\n\nIt is", "{close}It is"])
def test_an_empty_block_of_reasoning_is_written_once(
    make_llm: MakeLLM, name: str, mode: Any, content: str
) -> None:
    llm = make_llm(name)
    think = llm.prepare(ChatRequest(ASK)).reading.dialect.think
    assert think is not None
    text = content.format(open=think.open, close=think.close)
    begun = {"role": "assistant", "content": text}
    request = ChatRequest([*ASK, begun], continue_final=True, thinking=Thinking(mode))
    turn = prompt(llm, request).rpartition("weather?")[2]
    assert turn.endswith("It is")
    assert turn.count(think.close) <= 1
    assert turn.count(think.open) <= 1
    assert not llm.prepare(request).reading.starts_in_reasoning


def test_reasoning_and_content_are_both_gone_on_from(make_llm: MakeLLM) -> None:
    begun = {"role": "assistant", "content": "It is", "reasoning_content": "Hm."}
    for mode in ("on", "off"):
        request = ChatRequest([*ASK, begun], continue_final=True, thinking=Thinking(mode))
        for name in ("qwen3", "qwen3.5"):
            turn = prompt(make_llm(name), request).rpartition("assistant\n")[2]
            assert turn == "<think>\nHm.\n</think>\n\nIt is"
        assert prompt(make_llm("deepseek-v3.1"), request).endswith("Hm.\n</think>\n\nIt is")


def test_parts_of_a_beginning_are_one_text(make_llm: MakeLLM) -> None:
    parts = [{"type": "text", "text": "It is un"}, {"type": "text", "text": "usual"}]
    request = ChatRequest([*ASK, {"role": "assistant", "content": parts}], continue_final=True)
    assert prompt(make_llm("qwen2.5"), request).endswith("assistant\nIt is unusual")


# --- messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, shown",
    [
        ("qwen2.5", '{"name": "get_weather", "arguments": {"city": "Oslo"}}'),
        ("qwen3-coder", "<function=get_weather>\n<parameter=city>\nOslo\n</parameter>"),
        ("deepseek-r1-distill", 'get_weather\n```json\n{"city": "Oslo"}\n```'),
        ("deepseek-v3.1", 'get_weather<｜tool▁sep｜>{"city": "Oslo"}'),
        ("deepseek-v3.2", 'parameter name="city" string="true">Oslo</'),
        ("minimax-m2", '<parameter name="city">Oslo</parameter>'),
        ("hunyuan-3", "<arg_value:opensource>Oslo</arg_value:opensource>"),
        ("minimax-m3", "]<]minimax[>[<city>Oslo]<]minimax[>[</city>"),
        ("glm-4.6", "<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>"),
        ("ling-2.0", '{"name": "get_weather", "arguments": {"city": "Oslo"}}'),
        ("ling-3.0", "<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>"),
        ("hunyuan-7b", '<tool_call>get_weather\n```json\n{"city": "Oslo"}\n```'),
        ("hunyuan-a13b", '<tool_calls>[{"name": "get_weather", "arguments": {"city": "Oslo"}}]'),
        ("llama-3.1", '{"name": "get_weather", "parameters": {"city": "Oslo"}}'),
    ],
)
@pytest.mark.parametrize("content", [None, ""])
def test_a_call_in_the_history_is_written_as_the_model_would(
    make_llm: MakeLLM, name: str, shown: str, content: Any
) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
    }
    history = [
        *ASK,
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "cold"},
    ]
    text = prompt(make_llm(name), ChatRequest(history, TOOLS))
    assert shown in text
    assert "cold" in text
    assert "None" not in text


def test_a_template_that_joins_texts_gets_arguments_as_text(make_llm: MakeLLM) -> None:
    source = (
        "{% for m in messages %}{{ m.role + ':' + (m.content or '') }}{% for c in m.tool_calls %}"
        "{{ c.function.name + c.function.arguments }}{% endfor %}{% endfor %}"
    )
    call = {"id": "1", "function": {"name": "now", "arguments": '{"a": 1}'}}
    history = [*ASK, {"role": "assistant", "tool_calls": [call]}]
    assert 'now{"a": 1}' in prompt(make_llm(template=source), ChatRequest(history, TOOLS))


def test_parts_of_a_content_are_joined(make_llm: MakeLLM) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert "user\none\ntwo<|im_end|>" in prompt(
        make_llm(), ChatRequest([{"role": "user", "content": parts}])
    )


def test_a_developer_is_the_system_where_the_template_knows_none(make_llm: MakeLLM) -> None:
    messages = [{"role": "developer", "content": "Be brief."}, *ASK]
    assert "<|im_start|>system\nBe brief.<|im_end|>" in prompt(make_llm(), ChatRequest(messages))
    assert "]~b]developer\nBe brief." in prompt(make_llm("minimax-m3"), ChatRequest(messages))


@pytest.mark.parametrize(
    "message",
    [
        {"content": "no role"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "user", "content": 7},
        {"role": "assistant", "tool_calls": [{"id": "1"}]},
        {"role": "assistant", "tool_calls": "call"},
    ],
)
def test_a_message_that_is_none_is_refused(make_llm: MakeLLM, message: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        make_llm().prepare(ChatRequest([*ASK, message]))


def test_a_beginning_of_the_answer_is_gone_on_from(make_llm: MakeLLM) -> None:
    begun = {"role": "assistant", "content": "It is"}
    request = ChatRequest([*ASK, begun], continue_final=True)
    assert prompt(make_llm("qwen2.5"), request).endswith("assistant\nIt is")
    assert prompt(make_llm("qwen3.5"), request).endswith("<think>\n\n</think>\n\nIt is")
    with pytest.raises(InvalidRequestError):
        ChatRequest(ASK, continue_final=True)


@pytest.mark.parametrize(
    "name, form",
    [
        ("deepseek-v3.1", "<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{ARGUMENTS}<｜tool▁call▁end｜>"),
        ("deepseek-r1-distill", "function<｜tool▁sep｜>NAME\n```json\n{ARGUMENTS}\n```"),
        ("ernie-4.5", '<tool_call>\n{"name": "NAME", "arguments": {ARGUMENTS}}\n</tool_call>'),
        ("openpangu-embedded", '[unused11][{"name": "NAME", "arguments": {ARGUMENTS}}][unused12]'),
        ("smollm2", '<tool_call>\n{"name": "NAME", "arguments": {ARGUMENTS}}\n</tool_call>'),
    ],
)
def test_tools_are_told_in_words_where_the_template_has_no_place_for_them(
    make_llm: MakeLLM, name: str, form: str
) -> None:
    llm = make_llm(name)
    text = prompt(llm, ChatRequest(ASK, TOOLS))
    assert form in text
    assert json.dumps(TOOLS[0]["function"]) in text
    system = {"role": "system", "content": "Be brief."}
    assert "Be brief.\n\n# Tools" in prompt(llm, ChatRequest([system, *ASK], TOOLS))
    none = prompt(llm, ChatRequest(ASK, TOOLS, ToolChoice("none")))
    assert none == prompt(llm, ChatRequest(ASK))


@pytest.mark.parametrize("name", ["qwen3", "qwen3-coder", "hunyuan-7b", "minimax-m3", "llama-3.1"])
def test_a_template_with_a_place_for_tools_is_left_alone(make_llm: MakeLLM, name: str) -> None:
    text = prompt(make_llm(name), ChatRequest(ASK, TOOLS))
    assert "get_weather" in text
    assert "ARGUMENTS" not in text


@pytest.mark.parametrize(
    "name, call, result",
    [
        (
            "ernie-4.5",
            HERMES_CALL,
            "User: <tool_response>\ncold\n</tool_response>\n<tool_response>",
        ),
        ("smollm2", HERMES_CALL, "<|im_start|>tool\ncold<|im_end|>"),
        (
            "openpangu-embedded",
            '[unused11][{"name": "get_weather", "arguments": {"city": "Oslo"}}][unused12]',
            "[unused9]工具：cold[unused10]",
        ),
    ],
)
def test_calls_and_results_are_told_in_words_where_the_template_has_no_place_for_them(
    make_llm: MakeLLM, name: str, call: str, result: str
) -> None:
    function = {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    calls = [{"id": each, "type": "function", "function": function} for each in ("1", "2")]
    history = [
        *ASK,
        {"role": "assistant", "content": "I look.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "cold"},
        {"role": "tool", "tool_call_id": "2", "content": "cold"},
    ]
    text = prompt(make_llm(name), ChatRequest(history, TOOLS))
    assert f"I look.\n{call}\n{call}" in text
    assert result in text


# --- what is asked for ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"tool_choice": ToolChoice("required")},
        {"tools": TOOLS, "tool_choice": ToolChoice("named", "later")},
        {"tools": [{"type": "function", "function": {"name": ""}}]},
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": 7}}]},
        {"tools": ["now"]},
        {"messages": []},
        {"tools": TOOLS * 300},
    ],
)
def test_tools_that_are_none_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        ChatRequest(**{"messages": ASK, **given})


def test_words_that_are_none_of_the_allowed_are_refused() -> None:
    for make in (
        lambda: Thinking("often"),  # type: ignore[arg-type]
        lambda: Thinking(effort="extreme"),
        lambda: Thinking(budget=-1),
        lambda: ToolChoice("maybe"),  # type: ignore[arg-type]
        lambda: Format("poem"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidRequestError):
            make()


def test_tools_are_still_shown_where_none_may_be_called(make_llm: MakeLLM) -> None:
    request = ChatRequest(ASK, TOOLS, ToolChoice("none"))
    assert json.dumps(TOOLS[0]) in prompt(make_llm(), request)


def test_a_call_that_is_begun_as_text_is_refused(make_llm: MakeLLM) -> None:
    llm = make_llm("qwen2.5")
    begun = {"role": "assistant", "content": 'I look.\n<tool_call>\n{"name": '}
    with pytest.raises(InvalidRequestError, match="begins a call"):
        llm.prepare(ChatRequest([*ASK, begun], tools=TOOLS, continue_final=True))
    llm.prepare(ChatRequest([*ASK, begun], continue_final=True))


def test_a_call_that_is_demanded_may_follow_a_beginning(make_llm: MakeLLM) -> None:
    begun = {"role": "assistant", "content": "I look."}
    request = ChatRequest(
        [*ASK, begun], tools=TOOLS, tool_choice=ToolChoice("required"), continue_final=True
    )
    prepared = make_llm("qwen2.5").prepare(request)
    assert prepared.grammar is not None
