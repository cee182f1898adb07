"""Chat templates: transformers' output for real ones, and a quick end for hostile ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from dure.chat import template as template_module
from dure.chat.template import CHATML, ChatTemplate, default_template
from dure.errors import InvalidRequestError, TemplateError
from dure.hub.stores.ollama_template import template_for

OWN_RENDERERS = True
FOLDER = Path(__file__).with_name("templates")
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))

CALL = {
    "type": "function",
    "id": "call_1",
    "function": {"name": "get_weather", "arguments": {"city": "서울", "days": 1}},
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'What <b>the</b> weather & "sky" is, 날씨',
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"enum": [1, 2]}},
                "required": ["city"],
            },
        },
    }
]


def _said(role: str, content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CONVERSATIONS: dict[str, dict[str, Any]] = {
    "one question": {"messages": [_said("user", "hi <b>&\"'")]},
    "a history": {
        "messages": [
            _said("system", "be good"),
            _said("user", "hi"),
            _said("assistant", "yo"),
            _said("user", "더?\n"),
        ]
    },
    "tools": {
        "messages": [
            _said("system", "s"),
            _said("user", "weather?"),
            _said("assistant", "", tool_calls=[CALL]),
            _said("tool", '{"t": 3}', name="get_weather", tool_call_id="call_1"),
            _said("user", "and?"),
        ],
        "tools": TOOLS,
    },
    "tools without a system text": {"messages": [_said("user", "weather?")], "tools": TOOLS},
    "a call without content": {
        "messages": [
            _said("user", "weather?"),
            _said("assistant", None, tool_calls=[CALL]),
            _said("tool", "cold", tool_call_id="call_1"),
        ],
        "tools": TOOLS,
    },
    "thinking off": {"messages": [_said("user", "a")], "enable_thinking": False},
    "thoughts in the history": {
        "messages": [
            _said("user", "a"),
            _said("assistant", "<think>\nhm\n</think>\n\nanswer"),
            _said("user", "b"),
        ],
        "enable_thinking": True,
    },
    "reasoning apart": {
        "messages": [
            _said("user", "a"),
            _said("assistant", "answer", reasoning="hm"),
            _said("user", "b"),
        ]
    },
    "no reply asked for": {
        "messages": [_said("user", "a"), _said("assistant", "b")],
        "add_generation_prompt": False,
    },
}


@pytest.fixture(scope="module", params=NAMES)
def real(request: pytest.FixtureRequest) -> Iterator[ChatTemplate]:
    source = (FOLDER / f"{request.param}.jinja").read_text(encoding="utf-8")
    # Two clocks need not show the same second.
    source = source.replace("strftime_now('%Y-%m-%d %H:%M:%S')", "'2026-01-02 03:04:05'")
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    yield template
    template.close()


def _theirs(source: str, options: dict[str, Any]) -> str | None:
    """What transformers makes of it, None where it fails."""
    given = {"add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>", **options}
    # A filter that llama.cpp has and transformers has not; no argument here is a text.
    source = source.replace("| from_json", "")
    # R1 hands what `map` gives to transformers' tojson, which takes lists alone; ours takes both.
    mapped = "map(attribute='function') |"
    source = source.replace(f"{mapped} tojson", f"{mapped} list | tojson")
    try:
        messages = [_named(message) for message in given.pop("messages")]
        return str(render_jinja_template([messages], chat_template=source, **given)[0][0])
    except Exception:
        return None


def _named(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its reasoning under the names that transformers gives it since 5.21; the
    last one for Python 3.10 is older."""
    reasoning = message.get("reasoning")
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_real_templates_render_as_in_transformers(real: ChatTemplate, name: str) -> None:
    options = dict(CONVERSATIONS[name])
    expected = _theirs(real.source, options)
    messages = options.pop("messages")
    if expected is None:
        with pytest.raises(TemplateError):
            real.render(messages, **options)
    else:
        assert expected == real.render(messages, **options)


@pytest.fixture(scope="module")
def shared() -> Iterator[ChatTemplate]:
    template = ChatTemplate("", bos_token="<s>", eos_token="</s>")
    yield template
    template.close()


@pytest.fixture
def render(shared: ChatTemplate) -> Callable[..., str]:
    """Renders any source, in one process for all tests that leave it alive."""

    def call(source: str, messages: Any = ({"role": "user", "content": "hi"},), **more: Any) -> str:
        shared.source = source
        return shared.render(messages, **more)

    return call


@pytest.mark.parametrize(
    "source",
    [
        "{{ {'a': '<가>', 'b': [1, none, true]} | tojson }}",
        "{{ {'b': 1, 'a': 2} | tojson(indent=2, sort_keys=true) }}",
        "{{ [1, 2] | tojson(separators=(',', ':')) }}{{ '가' | tojson(ensure_ascii=true) }}",
        "{% for m in messages %}\n  {% if loop.first %}\n{{ m.content }}\n"
        "  {% endif %}\n{% endfor %}",
        "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}"
        "{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
        "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
        "{% set n = namespace(a=1) %}{% for i in range(3) %}{% set n.a = n.a + i %}{% endfor %}"
        "{{ n.a }}",
        "{{ bos_token }}{{ eos_token }}{{ tools is none }}{{ documents is none }}{{ nothing }}",
        "{{ dict(a=1, b=2) | dictsort }}{{ messages[0]['content'][::-1] }}{{ 'a b'.split() }}",
        "{{ messages[0].get('x', 'y') }}{{ messages | map(attribute='role') | join(',') }}",
        "{{ '%05.1f|%s' % (2.5, 'x') }}{{ '{0:>5}'.format('a') }}{{ 'a' ~ 1 ~ none }}",
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    ],
)
def test_the_language_is_the_one_transformers_gives_templates(
    render: Callable[..., str], source: str
) -> None:
    options = {"messages": [_said("user", "hi")], "tools": None, "documents": None}
    expected = _theirs(source, options)
    assert expected is not None
    assert expected == render(source)


def test_every_filter_works_where_no_file_can_be_opened(render: Callable[..., str]) -> None:
    # Some parts of Jinja import a module when they are first used.
    source = (
        "{{ 'a <b>'|urlize }}{{ 'a b c'|wordwrap(2) }}{{ messages|pprint }}{{ 'a'|urlencode }}"
        "{{ '<b>'|striptags }}{{ [2,1]|sort }}{{ [1,2]|random }}{{ 'a'|center(9) }}{{ 'é'|e }}"
        "{{ '\\u00e9\\N{DIGIT ONE}' }}{{ {'a':1}|xmlattr }}{{ 3|filesizeformat }}{{ 'ab'|title }}"
        "{{ 'a b'|truncate(9) }}{{ [1,1]|unique|list }}{{ [1,2]|batch(1)|list }}{{ 2.5|round }}"
        "{{ [{'a':1}]|groupby('a') }}{{ 'x'|indent }}{{ strftime_now('%Y-%m-%d %Z') }}"
    )
    assert "DIGIT" not in render(source)


FORBIDDEN = [
    "{{ ''.__class__ }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ [1]|map(attribute='__class__')|list }}",
    "{{ messages.__class__.__mro__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ self.__init__ }}",
    "{{ namespace(__x=1) }}",
    "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='x') }}",
]
ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 10**(10**8) }}",
]
HUGE = [
    "{% for i in range(10**12) %}x{% endfor %}",
    "{{ 'x' * 10**9 }}",
    "{{ [1] * 10**9 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ 'a'.zfill(10**9) }}",
    "{{ 'a'|center(10**9) }}",
    "{{ ('a\n' * 1000000)|indent(10**6) }}",
    "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
    "{{ range(99999)|join('x' * 99999) }}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ 'x' * (5 * 2**20) }}",
]
BROKEN = [
    "{{ bogus( }}",
    "{% include 'x' %}",
    "{% import 'os' as os %}",
    "{{ undefined.x }}",
    "{{ 1/0 }}",
    "{% bogus %}",
    "{{ messages|bogus }}",
    "{% generation %}",
]


@pytest.mark.parametrize("source", FORBIDDEN)
def test_reaching_for_python_is_stopped(render: Callable[..., str], source: str) -> None:
    with pytest.raises(TemplateError, match="was stopped"):
        render(source)


@pytest.mark.parametrize("source", [*HUGE, *BROKEN])
def test_huge_and_broken_templates_are_an_error(render: Callable[..., str], source: str) -> None:
    with pytest.raises(TemplateError) as caught:
        render(source)
    assert caught.value.hint


@pytest.mark.parametrize("source", ENDLESS)
def test_a_template_without_end_is_stopped(
    render: Callable[..., str], source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_module, "MAX_CPU_SECONDS", 0.2)
    with pytest.raises(TemplateError, match=r"more than 0\.2 s of CPU time"):
        render(source)


def test_a_template_that_refuses_the_messages_says_why(render: Callable[..., str]) -> None:
    with pytest.raises(TemplateError, match="refuses these messages: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_an_endless_message_of_refusal_is_cut(render: Callable[..., str]) -> None:
    with pytest.raises(TemplateError) as caught:
        render("{{ raise_exception('x' * 10**6) }}")
    assert len(str(caught.value)) < 1000


def test_a_template_works_again_after_it_was_stopped() -> None:
    source = "{% if stop %}{{ 'x' * stop }}{% endif %}ok"
    template = ChatTemplate(source, bos_token="", eos_token="")
    assert template.render([]) == "ok"
    with pytest.raises(TemplateError, match="memory"):
        template.render([], stop=10**9)
    assert template.render([]) == "ok"
    template.close()
    assert template.render([]) == "ok"
    template.close()


def test_a_renderer_that_was_killed_is_replaced() -> None:
    template = ChatTemplate("ok", bos_token="", eos_token="")
    assert template.render([]) == "ok"
    process = template._worker._process
    process.kill()
    process.wait()
    assert template.render([]) == "ok"
    template.close()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs a signal that stops a process")
def test_a_renderer_that_gets_no_cpu_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate("ok", bos_token="", eos_token="")
    assert template.render([]) == "ok"
    monkeypatch.setattr(template_module, "MAX_WALL_SECONDS", 0.3)
    os.kill(template._worker._process.pid, signal.SIGSTOP)
    with pytest.raises(TemplateError, match="CPU time"):
        template.render([])
    monkeypatch.setattr(template_module, "MAX_WALL_SECONDS", 10.0)
    assert template.render([]) == "ok"
    template.close()


def test_the_renderer_ends_with_its_template() -> None:
    template = ChatTemplate("ok", bos_token="", eos_token="")
    template.render([])
    process = template._worker._process
    del template
    assert process.returncode is not None


def test_threads_share_a_template() -> None:
    template = ChatTemplate("{{ messages[0].content }}", bos_token="", eos_token="")
    wrong = []

    def work(number: int) -> None:
        for turn in range(20):
            text = f"{number} {turn}"
            if template.render([_said("user", text)]) != text:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    template.close()
    assert wrong == []


def test_it_renders_in_a_script_without_a_terminal_and_leaves_no_process() -> None:
    script = """
        from dure.chat.template import ChatTemplate
        template = ChatTemplate("{{ messages[0].content }}", bos_token="", eos_token="")
        print(template.render([{"role": "user", "content": "hi"}]), template._worker._process.pid)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        input="not for the renderer",
        capture_output=True,
        text=True,
        check=True,
    )
    text, pid = done.stdout.split()
    assert (text, done.stderr) == ("hi", "")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_the_renderer_sees_no_secrets_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    template = ChatTemplate("ok", bos_token="", eos_token="")
    template.render([])
    environment = Path(f"/proc/{template._worker._process.pid}/environ")
    if not environment.exists():
        pytest.skip("needs /proc")
    assert b"secret" not in environment.read_bytes()
    template.close()


def test_messages_may_be_any_mappings_and_letters(render: Callable[..., str]) -> None:
    message = UserDict(role="user", content="\ud800 \x00 \u2028 한 😀")
    assert render("{{ messages[0].content }}", (message,)) == message["content"]


def test_messages_that_are_not_plain_data_are_refused(render: Callable[..., str]) -> None:
    with pytest.raises(InvalidRequestError, match="not plain data"):
        render("ok", [{"role": "user", "content": object()}])


def test_messages_too_long_to_render_are_refused_with_the_limit(render: Callable[..., str]) -> None:
    with pytest.raises(InvalidRequestError, match="the limit is 16,777,216"):
        render("ok", [{"role": "user", "content": "x" * (17 << 20)}])


def test_a_prompt_as_long_as_its_messages_is_never_too_long(render: Callable[..., str]) -> None:
    long = "x" * (6 << 20)
    assert long == render("{{ messages[0].content }}", [_said("user", long)])


def test_a_source_beyond_the_limit_is_refused() -> None:
    with pytest.raises(TemplateError, match="the limit is 262,144"):
        ChatTemplate("x" * (1 << 20), bos_token="", eos_token="")


HELLO = (
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U"},
    {"role": "assistant", "content": "A"},
    {"role": "user", "content": "V"},
)


@pytest.mark.parametrize(
    ("go", "name", "text"),
    [
        (
            "<|im_start|>{{ .Role }}<|im_end|>",
            "ChatML",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant"
            "\nA<|im_end|>\n<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "<|start_header_id|>user<|end_header_id|> {{ .Prompt }}<|eot_id|>",
            "Llama 3",
            "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user"
            "<|end_header_id|>\n\nU<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA"
            "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|><|start_header_id|>"
            "assistant<|end_header_id|>\n\n",
        ),
        (
            "<start_of_turn>user {{ .Prompt }}<end_of_turn>",
            "Gemma",
            "<s><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
            "<start_of_turn>user\nV<end_of_turn>\n<start_of_turn>model\n",
        ),
        (
            "[INST] {{ .Prompt }} [/INST]",
            "Mistral",
            "<s>[INST] S\n\nU [/INST] A</s>[INST] V [/INST]",
        ),
        (
            "{{ .System }}<｜User｜>{{ .Prompt }}<｜Assistant｜>",
            "DeepSeek",
            "<s><｜User｜>S\n\nU<｜Assistant｜>A<｜end▁of▁sentence｜><｜User｜>V<｜Assistant｜>",
        ),
        (
            "<|user|>{{ .Prompt }}<|end|><|assistant|>",
            "Phi",
            "<|system|>\nS<|end|>\n<|user|>\nU<|end|>\n<|assistant|>\nA<|end|>\n<|user|>\nV<|end|>"
            "\n<|assistant|>\n",
        ),
    ],
)
def test_ollamas_templates_are_told_by_their_marks_and_written_by_ours(
    render: Callable[..., str], go: str, name: str, text: str
) -> None:
    template, note = template_for(go)
    assert name in note
    assert render(template, HELLO, add_generation_prompt=True) == text


def test_a_template_of_ollamas_that_is_of_no_known_form_is_said_to_be_left_out() -> None:
    assert template_for("{{ .Prompt }} =>")[0] == ""
    assert "does not know" in template_for("{{ .Prompt }} =>")[1]
    assert template_for("") == ("", "")


def test_models_without_a_template_get_chatml_if_they_know_its_tokens(
    render: Callable[..., str],
) -> None:
    class Vocabulary:
        def __init__(self, *known: str) -> None:
            self.known = known

        def token_id(self, text: str) -> int | None:
            return 1 if text in self.known else None

    assert default_template(Vocabulary("<|im_start|>")) is None  # type: ignore[arg-type]
    both = Vocabulary("<|im_start|>", "<|im_end|>")
    assert default_template(both) == CHATML  # type: ignore[arg-type]
    expected = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert expected == render(CHATML)
