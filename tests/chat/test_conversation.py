"""Every message's text is in the prompt, in its place, whatever the template leaves out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_model import ByteTokenizer

from dure.chat.prompt import RequestBuilder
from dure.chat.request import ChatRequest
from dure.errors import InvalidRequestError

ONE_CALL = ("llama-3.1", "gpt-oss")
SYSTEM_IN_LAST_TURN = ("mistral-nemo",)  # where the template itself writes it
TEMPLATES = sorted(path.stem for path in (Path(__file__).parent / "templates").glob("*.jinja"))
Message = dict[str, Any]

ALTERNATING = (
    "{% for m in messages %}{% if m.role not in ('user', 'assistant') %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}"
)
"""As Gemma's and Mistral's: strict turns, and no system."""


def builder(source: str) -> RequestBuilder:
    return RequestBuilder(
        ByteTokenizer(),  # type: ignore[arg-type]
        template=source,
        name="fake",
        context=1 << 20,
        longest=1 << 20,
        vocab_size=259,
        sampling_defaults={},
    )


def template(name: str) -> str:
    return (Path(__file__).parent / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


def said(role: str, content: Any, **more: Any) -> Message:
    return {"role": role, "content": content, **more}


def call(number: int, **arguments: Any) -> Message:
    function = {"name": f"tool_{number}", "arguments": "{}"}
    if arguments:
        function["arguments"] = json.dumps({"place": f"Oslo{number}"})
    return {"id": f"call0000{number}", "type": "function", "function": function}


def result(number: int) -> Message:
    return said("tool", f"result {number}", tool_call_id=f"call0000{number}")


USER, ANSWER, SYSTEM = said("user", "ask 1"), said("assistant", "say 1"), said("system", "rule 1")
MORE = said("user", "ask 2")
ONE, TWO = [call(1, place=1)], [call(1, place=1), call(2, place=2)]

CONVERSATIONS: dict[str, list[Message]] = {
    "a system": [SYSTEM, USER, ANSWER, MORE],
    "two systems": [SYSTEM, said("system", "rule 2"), USER],
    "a system, then a developer": [SYSTEM, said("developer", "rule 2"), USER],
    "a developer": [said("developer", "rule 2"), USER, ANSWER, MORE],
    "a later system": [SYSTEM, USER, ANSWER, said("system", "rule 2"), MORE],
    "a later system without a first": [USER, ANSWER, said("system", "rule 2"), MORE],
    "a later developer": [SYSTEM, USER, ANSWER, said("developer", "rule 2"), MORE],
    "two later systems": [USER, ANSWER, said("system", "rule 2"), said("system", "rule 3"), MORE],
    "a last system": [SYSTEM, USER, said("system", "rule 2")],
    "a last system after an answer": [SYSTEM, USER, ANSWER, said("system", "rule 2")],
    "a system after a result": [
        USER,
        said("assistant", "", tool_calls=ONE),
        result(1),
        said("system", "rule 2"),
    ],
    "parts": [said("user", [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}])],
    "two users": [USER, MORE],
    "two answers": [USER, ANSWER, said("assistant", "say 2"), MORE],
    "a refusal": [USER, {"role": "assistant", "content": None, "refusal": "I won't."}, MORE],
    "a call": [USER, said("assistant", None, tool_calls=ONE), result(1)],
    "a call and content": [USER, said("assistant", "say 1", tool_calls=ONE), result(1), MORE],
    "two calls": [USER, said("assistant", None, tool_calls=TWO), result(1), result(2)],
    "two calls and content": [
        USER,
        said("assistant", "say 1", tool_calls=TWO),
        result(1),
        result(2),
        said("assistant", "say 2"),
        MORE,
    ],
    "a call without arguments": [USER, said("assistant", "", tool_calls=[call(1)]), result(1)],
    "a call of the older form": [
        USER,
        {
            "role": "assistant",
            "content": None,
            "function_call": {"name": "tool_1", "arguments": '{"place": "Oslo1"}'},
        },
        said("function", "result 1", name="tool_1"),
    ],
}


def texts(messages: list[Message]) -> list[str]:
    """The texts that a prompt must have, in their order."""
    found: list[str] = []
    for message in messages:
        content = message["content"] or message.get("refusal") or ""
        found += [content] if isinstance(content, str) else [part["text"] for part in content]
        calls = message.get("tool_calls", ())
        if "function_call" in message:
            calls = [{"function": message["function_call"]}]
        for each in calls:
            function = each["function"]
            found += [function["name"], *(["Oslo"] if "Oslo" in function["arguments"] else [])]
    return [text for text in found if text]


def tools_of(messages: list[Message]) -> list[Message]:
    text = str(messages)
    names = [name for name in ("tool_1", "tool_2") if name in text]
    parameters = {"type": "object", "properties": {"place": {"type": "string"}}}
    return [
        {"type": "function", "function": {"name": name, "parameters": parameters}} for name in names
    ]


def in_order(prompt: str, wanted: list[str]) -> bool:
    at = 0
    for text in wanted:
        at = prompt.find(text, at)
        if at < 0:
            return False
    return True


@pytest.fixture(scope="module")
def builders() -> dict[str, RequestBuilder]:
    return {name: builder(template(name)) for name in TEMPLATES}


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_message_is_in_the_prompt_in_its_place(
    builders: dict[str, RequestBuilder], name: str
) -> None:
    lost = {}
    for kind, messages in CONVERSATIONS.items():
        prompt = builders[name].render(ChatRequest(messages, tools_of(messages)))
        wanted = texts(messages)
        if kind.startswith("two calls") and name in ONE_CALL:  # a message
            first, second = wanted.index("tool_2"), wanted.index("result 1")
            wanted[first : second + 1] = ["result 1", *wanted[first:second]]
        if name in SYSTEM_IN_LAST_TURN:
            if not all(text in prompt for text in wanted):
                lost[kind] = prompt
            wanted = [text for text in wanted if not text.startswith("rule")]
        # A tool is described before the conversation begins.
        if not in_order(prompt[max(0, prompt.find(wanted[0])) :], wanted):
            lost[kind] = prompt
        if "None" in prompt:
            lost[f"{kind}: None"] = prompt
    assert not lost


def test_a_later_system_stands_in_the_users_turn_where_a_template_has_no_place_for_it(
    builders: dict[str, RequestBuilder],
) -> None:
    messages = CONVERSATIONS["a later system"]
    prompt = builders["minimax-m2"].render(ChatRequest(messages))
    assert "]~b]user\n<system>\nrule 2\n</system>\n\nask 2[e~[" in prompt
    last = builders["deepseek-v3.1"].render(ChatRequest(CONVERSATIONS["a last system"]))
    assert "<｜User｜>ask 1\n\n<system>\nrule 2\n</system><｜Assistant｜>" in last
    # Where there is a place, it is kept.
    prompt = builders["qwen3"].render(ChatRequest(messages))
    assert "<|im_start|>system\nrule 2<|im_end|>\n<|im_start|>user\nask 2" in prompt


def test_what_came_before_a_later_system_is_written_as_it_was(
    builders: dict[str, RequestBuilder],
) -> None:
    """So that the cache has it: a system that comes later must not change the beginning."""
    for name in set(TEMPLATES) - set(SYSTEM_IN_LAST_TURN):
        before = builders[name].render(ChatRequest([SYSTEM, USER]))
        after = builders[name].render(ChatRequest(CONVERSATIONS["a last system"]))
        assert after.startswith(before[: before.index("ask 1") + 5]), name


def test_roles_that_must_alternate_do_and_the_system_begins_the_first_turn() -> None:
    made = builder(ALTERNATING)
    prompt = made.render(ChatRequest([SYSTEM, USER, MORE, ANSWER, said("system", "rule 2"), MORE]))
    assert prompt == (
        "[user]rule 1\n\nask 1\n\nask 2[assistant]say 1[user]<system>\nrule 2\n</system>\n\nask 2"
    )


@pytest.mark.parametrize(
    "source, index, role",
    [
        ("{{ messages[-1].content }}", 1, "user"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", 2, "assistant"),
        ("{% for m in messages if m.role != 'critic' %}{{ m.content }}{% endfor %}", 4, "critic"),
        ("{% for m in messages[::-1] %}{{ m.content }}{% endfor %}", 2, "assistant"),
    ],
)
def test_a_message_that_a_template_cannot_show_is_refused_by_name(
    source: str, index: int, role: str
) -> None:
    messages = [USER, ANSWER, MORE, said("critic", "bad")]
    with pytest.raises(InvalidRequestError, match=rf"message {index} of 4 \(role '{role}'\)"):
        builder(source).render(ChatRequest(messages))


def test_results_stand_in_the_order_of_their_calls(builders: dict[str, RequestBuilder]) -> None:
    messages = [USER, said("assistant", "", tool_calls=TWO), result(2), result(1)]
    for name in TEMPLATES:
        prompt = builders[name].render(ChatRequest(messages, tools_of(messages)))
        assert prompt.index("result 1") < prompt.index("result 2"), name


def test_speakers_of_one_role_are_named_where_the_template_names_none(
    builders: dict[str, RequestBuilder],
) -> None:
    ann, bob = said("user", "hello", name="Ann"), said("user", "good day", name="Bob")
    prompt = builders["qwen3"].render(ChatRequest([ann, bob]))
    assert "user\nAnn: hello<|im_end|>" in prompt
    assert "user\nBob: good day<|im_end|>" in prompt
    # A single name tells nobody apart, and the model would take to writing it.
    assert "Ann" not in builders["qwen3"].render(ChatRequest([ann]))
    named = "{% for m in messages %}{{ m.name }}>{{ m.content }}{% endfor %}"
    assert builder(named).render(ChatRequest([ann, bob])) == "Ann>helloBob>good day"


def test_an_empty_turn_stands_after_a_result_where_turns_must_alternate(
    builders: dict[str, RequestBuilder],
) -> None:
    called = [USER, said("assistant", None, tool_calls=ONE), result(1)]
    messages = [*called, said("user", "ask 2")]
    prompt = builders["ministral-3"].render(ChatRequest(messages, tools_of(messages)))
    assert "result 1[/TOOL_RESULTS] <|im_end|>[INST]ask 2[/INST]" in prompt
    # What the assistant says after the result is its own turn: none is needed.
    messages = [*called, said("assistant", "say 1"), MORE]
    prompt = builders["ministral-3"].render(ChatRequest(messages, tools_of(messages)))
    assert "result 1[/TOOL_RESULTS]say 1" in prompt


def test_calls_and_results_are_turns_of_their_own_where_glm_4_has_them(
    builders: dict[str, RequestBuilder],
) -> None:
    messages = [USER, said("assistant", "say 1", tool_calls=ONE), result(1)]
    prompt = builders["glm-z1"].render(ChatRequest(messages, tools_of(messages)))
    call = '<|assistant|>\nsay 1<|assistant|>tool_1\n{"place": "Oslo1"}'
    assert f"{call}<|observation|>\nresult 1<|assistant|>" in prompt.replace("\n<|", "<|")


NINE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{% if c.id|length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}"
    "call {{ c.id }} {{ c.function | tojson }}{% endfor %}"
    "{% if m.role == 'tool' %}{% if m.tool_call_id|length != 9 %}"
    "{{ raise_exception('ids have nine characters') }}{% endif %}of {{ m.tool_call_id }}{% endif %}"
    "{% endfor %}{% for t in tools or [] %}{{ t.function.name }}{% endfor %}"
)
"""As Mistral Nemo's, which takes no ids but its own."""


@pytest.mark.parametrize(
    "given",
    ["call_7Xb2mQ0pLr9sTu4vWx6yZa1c", "toolu_01A09q90qw90lq917835lq9", "call_1", "Abc-45678"],
)
def test_a_template_that_takes_short_ids_alone_gets_the_same_one_for_call_and_result(
    given: str,
) -> None:
    def conversation(call_id: str) -> list[Message]:
        function = {"name": "look", "arguments": '{"at": 1}'}
        call = {"id": call_id, "type": "function", "function": function}
        return [
            {"role": "user", "content": "there?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call_id, "content": "yes"},
        ]

    def shown(call_id: str) -> str:
        tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
        request = ChatRequest(messages=conversation(call_id), tools=[tool])
        return builder(NINE).render(request)

    assert "call a1B2c3D4e " in shown("a1B2c3D4e")
    assert "of a1B2c3D4e" in shown("a1B2c3D4e")
    text = shown(given)
    short = text.split("call ")[1].split(" ")[0]
    assert len(short) == 9 and short.isalnum() and short != given
    assert f"of {short}" in text


def test_a_models_own_system_message_opens_a_chat_that_has_none() -> None:
    source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    made = builder(source)
    made.system = "Be brief."
    assert made.render(ChatRequest([said("user", "hi")])) == "[system]Be brief.[user]hi"
    own = ChatRequest([said("system", "Be long."), said("user", "hi")])
    assert made.render(own) == "[system]Be long.[user]hi"
