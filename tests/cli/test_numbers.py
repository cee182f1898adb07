"""Whatever number an option is given, the answer is a sentence and never a traceback."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from test_plan import SMALL
from tiny_gguf import config_of, float32, parameters_of, write_gguf

from dure.cli import VERBS, main
from dure.planning import measure
from dure.server.run import Server

VALUES = (
    *("nan", "inf", "-inf", "1e300", "-1e300", "1e-320", "0", "-1", "1.5"),
    *("9" * 12, "9" * 30, "-" + "9" * 30, "9" * 5000),
)


def options() -> Iterator[tuple[str, str]]:
    """(verb, option) of every option whose value is a number, or a size of memory."""
    for verb in VERBS:
        command = import_module(f"dure.cli.{verb}").command
        for name, hint in get_type_hints(command).items():
            if {int, float} & {hint, *get_args(hint)} or name == "memory":
                yield verb, "--" + name.replace("_", "-")


def test_every_verb_with_numbers_is_tried() -> None:
    computing = {"run", "serve", "bench", "perplexity", "convert", "embed", "imatrix"}
    assert {verb for verb, _ in options()} == {*computing, "plan", "search", "show"}
    assert {("serve", "--cache-gb"), ("bench", "--memory")} <= {*options()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of noise, without a vocabulary: it is refused after its memory was planned."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    config = config_of("qwen2")
    write_gguf(path, config, parameters_of(config), float32)
    return path


@pytest.mark.parametrize(("verb", "option"), [*options()])
def test_any_number_for_an_option_is_taken_or_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    model: Path,
    verb: str,
    option: str,
) -> None:
    def load_only(server: Any) -> None:
        server.socket.close()
        server._load(str(model))

    monkeypatch.setattr(Server, "run", load_only)
    monkeypatch.setattr(measure, "this_machine", lambda **_: SMALL)  # else 20 s of measuring
    text = tmp_path / "text.txt"
    text.write_text("one two three")
    rest = {
        "perplexity": [str(text)],
        "convert": [str(tmp_path / "out.gguf")],
        "imatrix": [str(text), str(tmp_path / "out.gguf")],
        "run": ["hello"],
    }
    quick = {"bench": ["--repeat", "1", "--prompt", "8", "--decode", "1"], "serve": ["--port", "0"]}
    for value in VALUES:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        arguments = [
            verb,
            str(model),
            *rest.get(verb, []),
            *quick.get(verb, []),
            f"{option}={value}",
        ]
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        said = capsys.readouterr().err
        assert ended.value.code in (0, 1, 2), value
        if ended.value.code:
            assert "error: " in said.lower(), value
            assert "Traceback" not in said
            assert len(said) < 8000


@pytest.mark.parametrize("value", ["nan", "inf", "1e300", "0", "-1"])
def test_a_cache_of_no_sensible_size_is_refused_before_the_server_starts(
    capsys: pytest.CaptureFixture[str], value: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "any", "--port", "0", f"--cache-gb={value}"])
    assert ended.value.code == 1
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("error: --cache-gb must be from 0.001 to 1,000,000, but is ")
