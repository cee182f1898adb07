"""dure run: what is asked, what goes to stdout and what to stderr, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from outcome import Dure

import dure.llm
from dure.engine.params import SamplingParams
from dure.errors import ModelNotFoundError


def test_the_answer_goes_to_stdout_and_nothing_else(dure_command: Dure) -> None:
    done = dure_command("run", "fake", "hello there")
    assert (done.code, done.out, done.err) == (0, "hello there\n", "")
    assert done.llms[0].asked == [[{"role": "user", "content": "hello there"}]]


def test_piped_input_is_the_prompt(dure_command: Dure) -> None:
    assert dure_command("run", "fake", stdin="안녕 👋\n".encode()).out == "안녕 👋\n"


def test_piped_input_follows_the_prompt_after_a_blank_line(dure_command: Dure) -> None:
    done = dure_command("run", "fake", "Summarise:", stdin=b"line one\nline two\n")
    assert done.llms[0].asked[0][0]["content"] == "Summarise:\n\nline one\nline two"


def test_without_a_model_the_default_answers(dure_command: Dure) -> None:
    assert dure_command("run", stdin=b"hi").llms[0].name == "the-default"


def test_a_lone_argument_with_a_space_is_the_prompt(dure_command: Dure) -> None:
    done = dure_command("run", "Why is the sky blue?")
    assert done.llms[0].name == "the-default"
    assert done.out == "Why is the sky blue?\n"


def test_a_file_with_a_space_in_its_name_is_the_model(dure_command: Dure, tmp_path: Path) -> None:
    path = tmp_path / "my model.gguf"
    path.touch()
    assert dure_command("run", str(path), stdin=b"hi").llms[0].name == str(path)


def test_nothing_to_ask_is_an_error_with_a_hint(dure_command: Dure) -> None:
    done = dure_command("run", "qwen3:0.6b")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: No PROMPT was given")
    assert "\nhint: dure run MODEL" in done.err
    assert done.llms == []  # known before a model is loaded


def test_an_unknown_model_is_one_sentence_and_a_hint(dure_command: Dure) -> None:
    done = dure_command("run", "missing", "hi")
    assert done.code == 1
    assert done.err == "error: No model is called 'missing'.\nhint: did you mean this?\n"


def test_options_reach_the_model(dure_command: Dure) -> None:
    done = dure_command(
        *("run", "fake", "a b c d", "--max-tokens", "3", "--temperature", "0.3", "--top-k", "5"),
        *("--top-p", "0.9", "--min-p", "0.1", "--seed", "7", "--stop", "x", "--stop", "y"),
        *("--context", "512", "--threads", "1", "--exact", "--system", "Be brief."),
        *("--cache", "q8", "--quantize", "q4", "--memory", "1.5GB"),
    )
    llm = done.llms[0]
    expected = SamplingParams(
        max_tokens=3, temperature=0.3, top_k=5, top_p=0.9, min_p=0.1, seed=7, stop=("x", "y")
    )
    assert llm.params == [expected]
    assert done.out == "a b c\n"
    assert done.err == ""  # the limit was the user's own: no remark
    assert llm.asked[0][0] == {"role": "system", "content": "Be brief."}
    names = ("context", "threads", "exact", "cache_dtype", "quantize", "memory")
    assert {name: llm.options[name] for name in names} == {
        "context": 512,
        "threads": 1,
        "exact": True,
        "cache_dtype": "q8",
        "quantize": "q4",
        "memory": 1_500_000_000,
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "auto"),
        (("--speculate", "off"), "off"),
        (("--speculate", "qwen2.5-coder:0.5b"), "qwen2.5-coder:0.5b"),
        (("--draft", "qwen2.5-coder:0.5b"), "qwen2.5-coder:0.5b"),
    ],
)
def test_what_guesses_tokens_is_chosen(
    dure_command: Dure, options: tuple[str, ...], expected: str
) -> None:
    done = dure_command("run", "fake", "hi", *options)
    assert done.llms[0].options["speculate"] == expected
    assert (done.out, done.err) == ("hi\n", "")


@pytest.mark.parametrize("verb", ["run", "serve"])
def test_a_budget_that_is_no_size_is_refused_before_a_model_is_loaded(
    dure_command: Dure, verb: str
) -> None:
    done = dure_command(verb, "fake", *(["hi"] if verb == "run" else []), "--memory", "a lot")
    assert (done.code, done.out, done.llms) == (1, "", [])
    assert done.err == (
        "error: 'a lot' is no size of memory.\nhint: 8GB, 512MB, 6GiB, 1.5G, or plain bytes\n"
    )


@pytest.mark.parametrize("verb", ["run", "serve"])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--speculate", "text", "--draft", "small"), "both given"),
        (("--speculate", ""), "need a value"),
        (("--draft", ""), "need a value"),
    ],
)
def test_two_ways_to_guess_are_refused_before_a_model_is_loaded(
    dure_command: Dure, verb: str, options: tuple[str, ...], sentence: str
) -> None:
    done = dure_command(verb, "fake", *(["hi"] if verb == "run" else []), *options)
    assert (done.code, done.out, done.llms) == (1, "", [])
    assert done.err.startswith("error: --speculate and --draft ")
    assert sentence in done.err.splitlines()[0]


def test_raw_text_meets_no_template(dure_command: Dure) -> None:
    assert dure_command("run", "fake", "def f(", "--raw").llms[0].asked == ["def f("]


def test_a_base_model_completes_and_says_so_if_asked(dure_command: Dure) -> None:
    quiet = dure_command("run", "base", "once upon")
    assert (quiet.out, quiet.err) == ("once upon\n", "")
    assert quiet.llms[0].asked == ["once upon"]
    assert "base has no chat template" in dure_command("run", "base", "once", "--verbose").err


@pytest.mark.parametrize("extra", [["--system", "Be kind."], ["--think", "on"]])
def test_what_needs_a_template_is_refused_without_one(dure_command: Dure, extra: list[str]) -> None:
    done = dure_command("run", "base", "hi", *extra)
    assert (done.code, done.out) == (1, "")
    assert "need a chat template" in done.err


@pytest.mark.parametrize(("text", "value"), [("on", True), ("off", False), ("20", 20)])
def test_think_is_on_off_or_a_number(dure_command: Dure, text: str, value: bool | int) -> None:
    [given] = dure_command("run", "thinker", "hi", "--think", text).llms[0].thinks
    assert (type(given), given) == (type(value), value)


def test_think_is_not_dropped_where_the_template_has_no_switch(dure_command: Dure) -> None:
    done = dure_command("run", "fake", "hi", "--think", "on")
    assert (done.code, done.out) == (1, "")
    assert "no switch for thinking" in done.err


@pytest.mark.parametrize("value", ["maybe", "-3", "1.5", "99999999999"])
def test_a_wrong_think_is_wrong_usage(dure_command: Dure, value: str) -> None:
    done = dure_command("run", "thinker", "hi", f"--think={value}")
    assert done.code == 2
    assert "--think" in done.err


def test_a_schema_is_read_from_its_file(dure_command: Dure, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text('{"type": "object"}', encoding="utf-8")
    [form] = dure_command("run", "fake", "hi", "--json-schema", str(path)).llms[0].formats
    assert (form.kind, form.value) == ("json_schema", {"type": "object"})
    path.write_text("{", encoding="utf-8")
    done = dure_command("run", "fake", "hi", "--json-schema", str(path))
    assert done.code == 1
    assert "holds no JSON" in done.err
    done = dure_command("run", "fake", "hi", "--json-schema", str(tmp_path / "none"))
    assert "cannot be read" in done.err


def test_a_schema_is_given_as_json(dure_command: Dure) -> None:
    done = dure_command("run", "fake", "hi", "--json-schema", ' {"type": "object"}')
    [form] = done.llms[0].formats
    assert (form.kind, form.value) == ("json_schema", {"type": "object"})
    assert done.err == ""


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ('{"type": "object"', "--json-schema holds no JSON: "),
        ("{type: object}", "--json-schema holds no JSON: "),
        ("[1]", "The JSON schema must be a JSON object."),
        ('{"type": "any"}', "\"type\" at the top is 'any'"),
        ('{"properties": {"a": {"not": {}}}}', '"not" at a is not supported'),
        ("a\0b", "null character"),
        ("none.json", "none.json cannot be read"),
    ],
)
def test_a_wrong_schema_is_refused_before_the_model_is_loaded(
    dure_command: Dure, schema: str, words: str
) -> None:
    done = dure_command("run", "fake", "hi", "--json-schema", schema)
    assert (done.code, done.out, done.llms) == (1, "", [])
    assert words in done.err


def test_what_a_schema_leaves_to_the_model_is_said(dure_command: Dure) -> None:
    schema = '{"properties": {"tags": {"type": "array", "uniqueItems": true}}}'
    done = dure_command("run", "fake", "hi", "--json-schema", schema)
    assert done.code == 0
    assert '"uniqueItems" at tags is not enforced' in done.err


def test_json_is_one_object_on_stdout(dure_command: Dure) -> None:
    done = dure_command("run", "fake", "hello there", "--json")
    value = json.loads(done.out)
    assert done.out.count("\n") == 1
    assert value["timings"].pop("load_s") >= 0
    assert value == {
        "model": "fake",
        "text": "hello there",
        "reasoning": "",
        "finish_reason": "stop",
        "tokens": {"prompt": 10, "cached": 4, "completion": 2, "drafted": 0, "accepted": 0},
        "timings": {"prefill_s": 0.5, "decode_s": 2.0, "prefill_tps": 12.0, "decode_tps": 0.5},
        "cost": {"processor_seconds": 0.0, "joules": None, "energy": "unknown"},
    }


def test_thoughts_are_no_part_of_the_answer(dure_command: Dure) -> None:
    asked = ("run", "thinker", "let me see </think> four")
    assert dure_command(*asked).out == " four\n"
    value = json.loads(dure_command(*asked, "--json").out)
    assert (value["reasoning"], value["text"]) == ("let me see", " four")


def test_verbose_figures_go_to_stderr(dure_command: Dure) -> None:
    done = dure_command("run", "fake", "hello there", "--verbose")
    assert done.out == "hello there\n"
    assert "fake: context of 1,000 tokens, 2 threads" in done.err
    assert "prompt 10 tokens (4 cached)" in done.err
    assert "answer 2 tokens in 2.00 s, 0.5 tok/s" in done.err


def test_verbose_counts_drafts_where_there_were_any(dure_command: Dure) -> None:
    done = dure_command("run", "fake", "guessed words", "--verbose")
    assert done.err.endswith("\ndrafted 120 tokens, 96 accepted (80 %)\n")
    assert "drafted" not in dure_command("run", "fake", "hello there", "--verbose").err


def test_experts_read_from_disk_are_counted_where_there_are_any(dure_command: Dure) -> None:
    done = dure_command("run", "fake", "read words", "--verbose")
    assert done.err.endswith(
        "\nexperts 90 hits, 10 misses (90 % hits), 5 MB read, waited 0.25 s; "
        "guessed 6 right, 2 wrong\n"
    )
    assert "experts" not in dure_command("run", "fake", "hello there", "--verbose").err
    value = json.loads(dure_command("run", "fake", "read words", "--json").out)
    assert value["experts"] == {
        "hits": 90,
        "misses": 10,
        "read_bytes": 5_000_000,
        "wait_s": 0.25,
        "guessed_right": 6,
        "guessed_wrong": 2,
    }


def test_a_model_that_does_not_fit_says_so_in_one_sentence(dure_command: Dure) -> None:
    done = dure_command("run", "giant", "hi")
    assert done.err == (
        "giant is larger than 8.00 GB: 2.00 GB that every token needs, 1.00 GB of cache and 25 % "
        "of the experts (4.00 GB of 16.00 GB) stay in memory, and the others are read from disk "
        "as they are needed; expect about 3.1 tokens per second.\n"
    )
    assert dure_command("run", "fake", "hi").err == ""


def test_a_full_context_is_said(dure_command: Dure) -> None:
    done = dure_command("run", "fake", "endless story")
    assert (done.code, done.err) == (0, "(the context of 1,000 tokens is full)\n")


def test_a_prompt_that_does_not_fit_is_an_error(dure_command: Dure) -> None:
    done = dure_command("run", "fake", "too long by far")
    assert (done.code, done.out) == (1, "")
    assert "2,000 tokens" in done.err
    assert "1,000" in done.err


def test_input_that_is_not_text_is_refused(dure_command: Dure) -> None:
    done = dure_command("run", "fake", stdin=b"abc\xff")
    assert done.code == 1
    assert "not UTF-8 text: byte 3" in done.err


def test_a_bad_parameter_is_refused_before_a_model_is_loaded(dure_command: Dure) -> None:
    done = dure_command("run", "fake", "hi", "--temperature", "-1")
    assert done.code == 1
    assert "temperature must be from 0 to 100, but is -1.0" in done.err
    assert done.llms == []


def test_the_answer_ends_with_one_newline(dure_command: Dure) -> None:
    assert dure_command("run", "fake", "line\n", "--raw").out == "line\n"


def test_json_without_a_question_is_refused_on_a_terminal(dure_command: Dure) -> None:
    done = dure_command("run", "qwen3:0.6b", "--json", stdin=None)
    assert done.code == 1
    assert "needs a PROMPT" in done.err


@pytest.mark.parametrize("arguments", [["Hello"], ["--json", "2+2?"], ["--json", "Hello"]])
@pytest.mark.parametrize("stdin", [b"", None])
def test_one_word_that_is_no_model_says_how_to_ask(
    dure_command, monkeypatch: pytest.MonkeyPatch, arguments: list[str], stdin: bytes | None
) -> None:
    def load(model: str | None = None, **_: object) -> None:
        raise ModelNotFoundError(f"No model is called {model!r}.")

    monkeypatch.setattr(dure.llm, "LLM", load)
    done = dure_command("run", *arguments, stdin=stdin)
    assert done.code == 1
    assert f"{arguments[-1]!r} is not a model" in done.err
    assert f'dure run qwen2.5-coder:0.5b "{arguments[-1]}"' in done.err
