"""Which dialect a chat template's source and a vocabulary show."""

from __future__ import annotations

from pathlib import Path

import pytest

from dure.chat.dialects import StreamParser, dialect_of
from dure.chat.dialects.thinking import has_switch, template_variables
from dure.chat.grammar_rules import Rules

TEMPLATES = Path(__file__).parent.parent / "templates"


def source(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name, dialect, thinks, switch",
    [
        ("smollm2", "plain", False, False),
        ("qwen2.5", "Hermes", False, False),
        ("qwq", "Hermes", True, True),
        ("qwen3", "Hermes", True, True),
        ("qwen3-coder", "Qwen XML", False, False),
        ("qwen3.5", "Qwen XML", True, True),
        ("mimo-vl", "Hermes", False, False),
        ("deepseek-r1", "DeepSeek R1/V3", True, False),
        ("deepseek-r1-distill", "DeepSeek R1/V3", True, True),
        ("deepseek-v3.1", "DeepSeek V3.1", True, True),
        ("deepseek-v3.2", "DeepSeek V3.2", True, True),
        ("deepseek-v4", "DeepSeek V4", True, True),
        ("hunyuan-3", "Hunyuan 3", True, True),
        ("minimax-m1", "MiniMax M1", True, False),
        ("minimax-m2", "MiniMax M2", True, False),
        ("minimax-m3", "MiniMax M3", True, True),
        ("glm-4.6", "GLM", True, True),
        ("ling-2.0", "Ling 2.0", True, False),
        ("ling-3.0", "Ling 3.0", True, True),
        ("ernie-4.5", "ERNIE 4.5", False, False),
        ("ernie-4.5-thinking", "ERNIE 4.5 Thinking", True, False),
        ("hunyuan-a13b", "Hunyuan", True, True),
        ("hunyuan-7b", "Hunyuan", True, True),
        ("openpangu-embedded", "openPangu", True, False),
        ("llama-3.1", "Llama 3", False, False),
        ("gpt-oss", "Harmony", True, False),
        ("smollm3", "plain", True, True),
        ("granite-3.3", "Granite 3", True, True),
        ("granite-4.1", "Hermes", False, False),
        ("mistral-nemo", "Mistral", False, False),
        ("ministral-3", "Mistral", True, False),
        ("seed-oss", "Seed-OSS", True, True),
        ("gemma-4", "Gemma 4", True, True),
        ("kimi-k2", "Kimi K2", False, False),
        ("lfm2.5", "LFM2", True, False),
        ("glm-z1", "GLM-4", True, False),
        ("olmo-3", "OLMo 3", False, False),
        ("olmo-3-think", "plain", True, False),
        ("glm-4.7-flash", "GLM", True, True),
        ("kimi-k2-thinking", "Kimi K2", True, False),
        ("mistral-small-3.2", "Mistral", False, False),
        ("devstral-small", "Mistral", False, False),
        ("phi-3.5", "plain", False, False),
        ("lfm2", "LFM2", False, False),
    ],
)
def test_the_dialect_of_a_real_template(
    name: str, dialect: str, thinks: bool, switch: bool
) -> None:
    found = dialect_of(source(name), lambda _: False)
    assert (found.name, found.think is not None) == (dialect, thinks)
    assert has_switch(source(name)) == switch


@pytest.mark.parametrize(
    "template, tokens, dialect",
    [
        ("{{ messages[0].content }}", (), "plain"),
        ("<｜hy_User｜>{{ x }}<｜hy_Assistant｜>", (), "Hunyuan"),
        ("<|startoftext|>{{ system }}<|extra_4|>{{ x }}<|extra_0|>", (), "Hunyuan"),
        ("{{ '[unused9]助手：' }}", (), "openPangu"),
        ("{{ '[unused9]助手：' }}", ("<|tool_call_start|>",), "openPangu V2"),
        ("<|turn>user\n{{ x }}<turn|>\n", (), "Gemma 4"),
        ('<|tool_call>call:{{ name }}{<|"|>', (), "Gemma 4"),
        ("<|im_user|>user<|im_middle|>{{ x }}<|im_end|>", (), "Kimi K2"),
        ("<|tool_call_begin|>{{ x }}<|tool_call_argument_begin|>", (), "Kimi K2"),
        ("<|begin_of_sentence|>User: {{ x }}\nAssistant: ", (), "ERNIE 4.5"),
        ("<|im_start|>system\nthink_mode=True", (), "ERNIE 4.5 Thinking"),
        ("[INST]{{ x }}[/INST][TOOL_CALLS][{{ calls }}]", (), "Mistral"),
        ("[TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}", ("[THINK]",), "Mistral"),
        ("<seed:tool_call>\n<function=f>\n<parameter=p>v</parameter>", (), "Seed-OSS"),
        ("<|begin|>assistant<|think|>{{ r }}<|end|><|content|>{{ x }}", (), "Solar-Open"),
        ("<|system|>{{ s }}<|tool|>{{ tools }}<|/tool|><|end|>", (), "Phi-4"),
        ("<|im_start|>system\nList of tools: [", ("<|tool_call_start|>",), "LFM2"),
        ("<|im_start|>system\nList of tools: [", (), "plain"),
    ],
)
def test_the_dialect_of_marks_alone(template: str, tokens: tuple[str, ...], dialect: str) -> None:
    assert dialect_of(template, tokens.__contains__).name == dialect


FORMS = [
    "deepseek-v3.1",
    "deepseek-r1-distill",
    "ernie-4.5",
    "ernie-4.5-thinking",
    "granite-3.3",
    "hunyuan-7b",
    "ling-2.0",
    "openpangu-embedded",
    "qwen3",
    "smollm2",
]


@pytest.mark.parametrize("name", FORMS)
def test_a_call_in_the_form_that_a_model_is_told_is_one(name: str) -> None:
    found = dialect_of(source(name), lambda _: False)
    assert found.call_format is not None
    automaton = StreamParser(found, tools={"now": {}}, make_id=lambda: "id")
    text = found.call_format.text("now", '{"a": 1}')
    events = [*automaton.push(f"{text}\n{text}"), *automaton.finish()]
    said = [event.name or event.text for event in events if event.kind != "call_end"]
    assert "".join(said) == 2 * 'now{"a": 1}'


def test_a_vocabulary_with_the_mark_has_thoughts_that_its_template_does_not_show() -> None:
    assert dialect_of(source("qwen2.5"), {"</think>"}.__contains__).think is not None


def test_efforts_are_said_in_the_templates_own_words() -> None:
    def said(name: str, effort: str | None, on: bool | None = True) -> object:
        return template_variables(source(name), on=on, effort=effort).get("reasoning_effort")

    # Hunyuan 3 refuses every word but its own.
    efforts = ["none", "minimal", "low", "medium", "high", "xhigh", "max"]
    assert {said("hunyuan-3", each) for each in efforts[1:]} == {"low", "high"}
    assert said("hunyuan-3", None) == "high"
    assert said("hunyuan-3", None, None) is None
    assert said("hunyuan-3", "none", False) == "no_think"
    assert [said("deepseek-v4", each) for each in ("low", "medium", "xhigh", "max")] == [
        "low",
        "high",
        "high",
        "max",
    ]
    assert said("qwen3", "high") is None
    # Qwen3.8 refuses every word but its own, and has none between medium and the highest.
    template = (
        """{% if reasoning_effort not in ('xhigh', "medium", 'low') %}{{ oops }}{% endif %}"""
    )
    for quoted in (template, template.replace("'", '"')):
        words = [
            template_variables(quoted, on=True, effort=each).get("reasoning_effort")
            for each in ("minimal", "low", "medium", "high", "xhigh", "max", None)
        ]
        assert words == ["low", "low", "medium", "xhigh", "xhigh", "xhigh", None]
    words = [said("gpt-oss", each) for each in ("minimal", "low", "medium", "high", "max")]
    assert words == ["low", "low", "medium", "high", "high"]


def test_the_switch_is_the_templates_own() -> None:
    def said(name: str, on: bool) -> dict[str, object]:
        return template_variables(source(name), on=on, effort=None)

    assert said("qwen3", False) == {"enable_thinking": False}
    assert said("deepseek-v3.1", True)["thinking"] is True
    assert said("minimax-m2", False) == {}
    assert template_variables("{{ thinking_mode }}", on=True, effort=None) == {
        "thinking_mode": "enabled"
    }


def test_hunyuan_is_asked_for_calls_as_its_template_writes_them() -> None:
    tools = {"now": {"type": "object", "properties": {}}}

    def grammar(name: str) -> str:
        calls = dialect_of(source(name), lambda _: False).calls
        assert calls is not None
        rules = Rules({})
        return rules.text(calls.grammar(tools, rules, several=False))

    assert '"<tool_calls>["' in grammar("hunyuan-a13b")
    assert "<tool_call>now\\n```json\\n" in grammar("hunyuan-7b")
