"""From a chat request to a prompt, over real templates, and from an answer to its parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_model import ByteTokenizer, ScriptModel, loaded, reply

import dure.llm
from dure import LLM, SamplingParams
from dure.chat.messages import said_thinking
from dure.chat.request import ChatRequest, Format, Thinking, ToolChoice
from dure.errors import InvalidRequestError

TEMPLATES = Path(__file__).parent / "templates"
MakeLLM = Callable[..., LLM]

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}},
]
ASK = ({"role": "user", "content": "How is the weather?"},)
HERMES_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


def template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.fixture
def make_llm(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeLLM]:
    """A function from a template's name, and what the model says, to an LLM; idle at the end."""
    made: list[LLM] = []

    def make(name: str = "qwen3", words: Any = "hm", **options: Any) -> LLM:
        script = reply(words) if isinstance(words, str) else words
        model = ScriptModel(script, context_length=16384)
        given = {"context": 16384, "num_blocks": 600, "template": template(name), **options}
        monkeypatch.setattr(dure.llm, "load", lambda *_, **__: loaded(model, **given))
        made.append(LLM("fake"))
        return made[-1]

    yield make
    for llm in made:
        assert not llm.engine.has_work


def prompt(llm: LLM, request: ChatRequest) -> str:
    return ByteTokenizer().decode(llm.prepare(request).token_ids)


def ask(llm: LLM, request: ChatRequest, **params: Any) -> Any:
    return list(llm.stream(request, SamplingParams(**params)))[-1].completion


# --- answers -------------------------------------------------------------------------------------


def test_an_answer_says_its_thoughts_content_and_calls(make_llm: MakeLLM) -> None:
    words = f"<think>\nOslo, then.\n</think>\n\nLet me see.\n{HERMES_CALL}"
    chunks = list(make_llm(words=words).stream(ChatRequest(ASK, TOOLS)))
    completion = chunks[-1].completion
    assert completion is not None
    assert (completion.reasoning, completion.content) == ("Oslo, then.", "Let me see.")
    [call] = completion.tool_calls
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    assert call["id"].startswith("call_")
    assert completion.text == words
    assert completion.reasoning_tokens == len("\nOslo, then.\n</think")
    events = [event for chunk in chunks for event in chunk.events]
    assert "".join(event.text for event in events if event.kind == "reasoning") == "Oslo, then."
    kinds = [event.kind for event in events if event.kind in ("call", "call_end")]
    assert kinds == ["call", "call_end"]
    # The arguments come with their tokens, and not only at the end.
    assert sum(event.kind == "arguments" for event in events) > 5


def test_a_plain_completion_is_all_content(make_llm: MakeLLM) -> None:
    [completion] = make_llm(
        words=lambda text: "<think>x"[len(text) - 1 : len(text)] or None
    ).generate("a")
    assert completion.text == completion.content == "<think>x"


def test_a_chunk_has_its_tokens_logprobs(make_llm: MakeLLM) -> None:
    chunks = list(make_llm(words="abc").stream(ChatRequest(ASK), SamplingParams(logprobs=1)))
    assert [chunk.logprobs.token_id for chunk in chunks if chunk.logprobs] == [
        chunk.token_id for chunk in chunks
    ]


def test_only_one_call_where_no_more_are_wanted(make_llm: MakeLLM) -> None:
    llm = make_llm(words=f"{HERMES_CALL}\n{HERMES_CALL}")
    assert len(ask(llm, ChatRequest(ASK, TOOLS)).tool_calls) == 2
    one = ask(llm, ChatRequest(ASK, TOOLS, parallel_tool_calls=False))
    assert (len(one.tool_calls), one.finish_reason) == (1, "stop")


def test_no_call_is_read_where_none_may_be(make_llm: MakeLLM) -> None:
    llm = make_llm(words=HERMES_CALL)
    for request in (ChatRequest(ASK), ChatRequest(ASK, TOOLS, ToolChoice("none"))):
        completion = ask(llm, request)
        assert (completion.content, completion.tool_calls) == (HERMES_CALL, ())


def test_a_broken_call_is_content_and_counted(make_llm: MakeLLM) -> None:
    completion = ask(make_llm(words="<tool_call>weather</tool_call>"), ChatRequest(ASK, TOOLS))
    assert completion.content == "<tool_call>weather</tool_call>"
    assert (completion.tool_calls, completion.unparsed_calls) == ((), 1)


BLOCK = '```json\n{"name": "now", "arguments": {}}\n```'


def test_a_call_in_a_block_of_code_is_one_unless_its_schema_must_be_kept_to(
    make_llm: MakeLLM,
) -> None:
    llm = make_llm("qwen2.5", words=BLOCK)
    completion = ask(llm, ChatRequest(ASK, TOOLS))
    [call] = completion.tool_calls
    assert (call["function"], completion.content) == ({"name": "now", "arguments": "{}"}, "")
    for request in (ChatRequest(ASK), ChatRequest(ASK, TOOLS, ToolChoice("none"))):
        assert ask(llm, request).content == BLOCK
    function = {"name": "now", "strict": True, "parameters": {"type": "object"}}
    strict = [{"type": "function", "function": function}]
    assert (
        make_llm("qwen2.5").prepare(ChatRequest(ASK, strict)).reading.dialect.fallback_parser
        is None
    )


def test_only_one_call_in_blocks_where_no_more_are_wanted(make_llm: MakeLLM) -> None:
    llm = make_llm("qwen2.5", words=f"{BLOCK}\n{BLOCK}")
    assert len(ask(llm, ChatRequest(ASK, TOOLS)).tool_calls) == 2
    one = ask(llm, ChatRequest(ASK, TOOLS, parallel_tool_calls=False))
    assert (len(one.tool_calls), one.content) == (1, "")


# --- thinking ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, thinking, ending",
    [
        ("qwen3", Thinking(), "assistant\n"),
        ("qwen3", Thinking("on"), "assistant\n"),
        ("qwen3", Thinking("off"), "assistant\n<think>\n\n</think>\n\n"),
        ("qwen3", Thinking(effort="none"), "assistant\n<think>\n\n</think>\n\n"),
        ("qwen3.5", Thinking(), "assistant\n<think>\n"),
        ("deepseek-v3.1", Thinking(), "<｜Assistant｜><think></think>"),
        ("deepseek-v3.1", Thinking(effort="low"), "<｜Assistant｜><think>"),
        ("deepseek-v4", Thinking("off"), "<｜Assistant｜></think>"),
        ("deepseek-v4", Thinking(budget=9), "<｜Assistant｜><think>"),
        ("minimax-m2", Thinking(), "]~b]ai\n<think>\n"),
        # No switch: the thoughts end before they begin.
        ("minimax-m2", Thinking("off"), "]~b]ai\n<think>\n</think>\n\n"),
        ("deepseek-r1", Thinking(budget=0), "<｜Assistant｜><think>\n</think>\n\n"),
        (
            "hunyuan-3",
            Thinking(),
            "<｜hy_Assistant:opensource｜><think:opensource></think:opensource>",
        ),
        ("hunyuan-3", Thinking(effort="medium"), "<｜hy_Assistant:opensource｜><think:opensource>"),
        ("minimax-m3", Thinking(), "]~b]ai\n"),
        ("minimax-m3", Thinking("on"), "]~b]ai\n<mm:think>"),
        ("minimax-m3", Thinking("off"), "]~b]ai\n</mm:think>"),
        ("hunyuan-7b", Thinking("off"), "<|extra_0|><think>\n\n</think>\n"),
        ("ernie-4.5-thinking", Thinking("off"), "<think>\n</think>\n\n\n"),
        ("qwen2.5", Thinking("on", "high", 50), "assistant\n"),
    ],
)
def test_a_wish_about_thinking_reaches_the_template(
    make_llm: MakeLLM, name: str, thinking: Thinking, ending: str
) -> None:
    assert prompt(make_llm(name), ChatRequest(ASK, thinking=thinking)).endswith(ending)


def test_template_variables_of_the_request_come_last(make_llm: MakeLLM) -> None:
    request = ChatRequest(
        ASK, thinking=Thinking("on"), template_variables={"enable_thinking": False}
    )
    assert prompt(make_llm(), request).endswith("</think>\n\n")


def ponder(text: str) -> str | None:
    """Thinks for ever; once made to stop, answers 42."""
    said = text.rpartition("assistant\n")[2]
    if "</think>" in said:
        return {"": "4", "4": "2"}.get(said.rpartition("</think>\n\n")[2])
    opening = "<think>"
    return opening[len(said)] if len(said) < len(opening) else "h"


@pytest.mark.parametrize("max_tokens", [30, 60])
def test_a_cap_leaves_tokens_for_the_answer(make_llm: MakeLLM, max_tokens: int) -> None:
    request = ChatRequest(ASK, thinking=Thinking(budget=1000))
    completion = ask(make_llm(words=ponder), request, max_tokens=max_tokens)
    assert (completion.content, completion.finish_reason) == ("42", "stop")
    assert len(completion.token_ids) <= max_tokens


def test_thoughts_can_be_ended_while_they_are_thought(make_llm: MakeLLM) -> None:
    llm = make_llm(words=ponder)
    stream = llm.stream(ChatRequest(ASK))
    for _ in range(20):
        next(stream)
    [answer] = llm.driver._answers.values()
    written = len(answer.request.output_ids)  # a step may have brought more than were read
    answer.end_thinking()
    completion = list(stream)[-1].completion
    assert completion is not None
    thoughts = "h" * (written - len("<think>"))
    assert (completion.content, completion.reasoning) == ("42", thoughts)


def test_thoughts_that_a_client_dropped_come_back_by_the_calls_id(make_llm: MakeLLM) -> None:
    words = f"<think>\nOslo, then.\n</think>\n\n{HERMES_CALL}"
    llm = make_llm(words=words)
    first = llm.prepare(ChatRequest(ASK, TOOLS), cache_salt="a")
    completion = llm.driver.answer([first])[0]
    history = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": list(completion.tool_calls)},
        {"role": "tool", "tool_call_id": completion.tool_calls[0]["id"], "content": "cold"},
    ]
    later = llm.prepare(ChatRequest(history, TOOLS), cache_salt="a")
    text = ByteTokenizer().decode(later.token_ids)
    assert "<think>\nOslo, then.\n</think>\n\n" + HERMES_CALL in text
    # The whole of what was said comes from the cache again.
    assert llm.driver.answer([later])[0].cached_tokens >= len(first.token_ids) + len(words)
    other = llm.prepare(ChatRequest(history, TOOLS), cache_salt="b")
    assert "Oslo, then." not in ByteTokenizer().decode(other.token_ids)


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_thoughts_are_accepted_under_either_name(make_llm: MakeLLM, name: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    history = [
        *ASK,
        {"role": "assistant", "content": "", name: "What time?", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
    ]
    assert "<think>\nWhat time?\n</think>" in prompt(make_llm(), ChatRequest(history, TOOLS))


@pytest.mark.parametrize(
    "content, ending",
    [
        ("How? /no_think", "<think>\n\n</think>\n\n"),
        ("/no_think How?", "<think>\n\n</think>\n\n"),
        ([{"type": "text", "text": "How? /no_think"}], "<think>\n\n</think>\n\n"),
        ("How? /think", "assistant\n"),
        ("What does /no_think do?", "assistant\n"),
    ],
)
def test_a_word_in_a_message_turns_thinking_off(
    make_llm: MakeLLM, content: Any, ending: str
) -> None:
    messages = [{"role": "user", "content": content}]
    assert prompt(make_llm(), ChatRequest(messages)).endswith(ending)


def test_the_newest_word_about_thinking_counts_and_the_requests_own_above_it(
    make_llm: MakeLLM,
) -> None:
    llm = make_llm("deepseek-v3.1")
    messages = [
        {"role": "system", "content": "Be brief. /no_think"},
        {"role": "user", "content": "Hi /think"},
        {"role": "assistant", "content": "Hi. /no_think"},
        *ASK,
    ]
    assert prompt(llm, ChatRequest(messages)).endswith("<｜Assistant｜><think>")
    off = ChatRequest(messages, thinking=Thinking("off"))
    assert prompt(llm, off).endswith("</think>")


def test_thoughts_that_were_not_wanted_end_as_they_begin(make_llm: MakeLLM) -> None:
    # Nothing in openPangu's template stops a model that does not heed its word.
    words = "[unused16]Hm.[unused17]42"
    llm = make_llm("openpangu-embedded", words=words)
    request = ChatRequest(ASK, thinking=Thinking("off"))
    assert prompt(llm, request).endswith("weather? /no_think[unused10][unused9]助手：")
    assert llm.prepare(request).reading.budget == 0


def test_a_developer_is_the_system_where_the_template_knows_none(make_llm: MakeLLM) -> None:
    messages = [{"role": "developer", "content": "Be brief."}, *ASK]
    assert "<|im_start|>system\nBe brief.<|im_end|>" in prompt(make_llm(), ChatRequest(messages))
    assert "]~b]developer\nBe brief." in prompt(make_llm("minimax-m3"), ChatRequest(messages))


# --- stop strings --------------------------------------------------------------------------------


def test_a_stop_string_is_looked_for_in_the_content_only(make_llm: MakeLLM) -> None:
    words = f"<think>\nOne. Two STOP three.\n</think>\n\nLet me STOP here.\n{HERMES_CALL}"
    completion = ask(make_llm(words=words), ChatRequest(ASK, TOOLS), stop=["STOP"])
    assert completion.reasoning == "One. Two STOP three."
    assert (completion.content, completion.tool_calls) == ("Let me ", ())
    assert (completion.finish_reason, completion.stopped) == ("stop", "STOP")
    assert completion.text == words[: words.rindex("STOP")]


@pytest.mark.parametrize("stop", ["Oslo", '"', "}", "city", "get_", "</think>", "\n"])
def test_a_stop_string_within_reasoning_or_a_call_ends_nothing(
    make_llm: MakeLLM, stop: str
) -> None:
    words = f"<think>\nOslo, then.\n</think>\n\n{HERMES_CALL}"
    completion = ask(make_llm(words=words), ChatRequest(ASK, TOOLS), stop=[stop])
    [call] = completion.tool_calls
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    assert (completion.reasoning, completion.stopped) == ("Oslo, then.", None)
    assert completion.text == words


def test_a_stop_string_does_not_go_on_behind_a_call(make_llm: MakeLLM) -> None:
    words = f"I see EN{HERMES_CALL}D now"
    completion = ask(make_llm(words=words), ChatRequest(ASK, TOOLS), stop=["END"])
    assert (completion.content, completion.stopped) == ("I see END now", None)
    assert len(completion.tool_calls) == 1


@pytest.mark.parametrize("tools", [(), TOOLS])
def test_streamed_text_never_shows_what_a_stop_string_cuts_off(
    make_llm: MakeLLM, tools: Any
) -> None:
    words = "<think>\nEND\n</think>\n\nIt is EN route, at the END of it"
    chunks = list(
        make_llm(words=words).stream(ChatRequest(ASK, tools), SamplingParams(stop=["END"]))
    )
    completion = chunks[-1].completion
    assert completion is not None
    assert completion.content == "It is EN route, at the "
    events = [event for chunk in chunks for event in chunk.events]
    assert "".join(event.text for event in events if event.kind == "content") == completion.content
    assert "".join(chunk.text for chunk in chunks) == completion.text
    assert completion.text == words[: words.rindex("END")]


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


@pytest.mark.parametrize("text", ["/no_think Hi", "Hi /no_think", "/no_think", "  Hi\n/no_think  "])
@pytest.mark.parametrize("pad", ["", "x" * 1000])
def test_a_switch_is_found_at_either_end_of_a_text_of_any_length(text: str, pad: str) -> None:
    assert said_thinking([{"role": "user", "content": text.replace("Hi", f"Hi{pad}i")}]) is False


def test_a_switch_in_the_midst_of_a_text_is_none() -> None:
    for text in ("x" * 50 + " /no_think y" * 9, "x" * 18 + "/no_think" + "y" * 18, "a/no_think"):
        assert said_thinking([{"role": "user", "content": text}]) is None
