"""dure serve --config and variables: every option by its name, and each model's own."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from outcome import Dure

import dure.llm
from dure.errors import InvalidRequestError
from dure.server.logs import FIELDS, handlers
from dure.server.run import Server, Settings

Start = Callable[..., tuple[Settings, dict[str, dict[str, Any]]]]

CONFIG = """
port = 0
parallel = 3
cors = ["https://a.example", "https://b.example"]
page = false
context = 4096
quantize = "q8"
keep-alive = 60.5
models = ["first"]

[[model]]
name = "second"
alias = ["gpt-4"]
context = 512
cache = "q8"
memory = "2GB"
draft = "small"
keep_alive = -1
"""


@pytest.fixture
def start(dure_command: Dure, monkeypatch: pytest.MonkeyPatch) -> Start:
    """A function of arguments to a server's settings, and each model's arguments of LLM."""
    seen: list[Any] = []

    def load_all(server: Server) -> None:
        server.socket.close()
        made = {}
        for name in server.settings.models:
            with pytest.raises(InvalidRequestError, match="enough"):
                server._load(name)
            made[name] = options.pop()
        seen.append((server.settings, made))

    options: list[dict[str, Any]] = []

    def refuse(_: str, **given: Any) -> None:
        options.append(given)
        raise InvalidRequestError("enough")

    monkeypatch.setattr(Server, "run", load_all)
    monkeypatch.setattr(dure.llm, "LLM", refuse)

    def run(*arguments: str) -> Any:
        done = dure_command("serve", *arguments)
        assert (done.code, done.out) == (0, ""), done.err
        return seen.pop()

    return run


def test_options_and_each_models_own_come_from_the_file(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "dure.toml"
    file.write_text(CONFIG, encoding="utf-8")
    settings, loaded = start("--config", str(file))
    assert settings.models == ("first", "second")
    assert (settings.port, settings.parallel, settings.page) == (0, 3, False)
    assert settings.cors == ("https://a.example", "https://b.example")
    assert settings.aliases == (("gpt-4", "second"),)
    assert (settings.keep_alive, settings.keep_alives) == (60.5, (("second", -1),))
    names = ("context", "quantize", "cache_dtype", "memory", "speculate")
    assert [loaded["first"][name] for name in names] == [4096, "q8", "f16", None, "auto"]
    assert [loaded["second"][name] for name in names] == [512, "q8", "q8", 2 * 10**9, "small"]


def test_the_command_line_wins_over_variables_and_these_over_the_file(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "dure.toml"
    file.write_text(CONFIG, encoding="utf-8")
    monkeypatch.setenv("DURE_SERVE_CONFIG", str(file))
    monkeypatch.setenv("DURE_SERVE_PARALLEL", "4")
    monkeypatch.setenv("DURE_SERVE_CONTEXT", "1024")
    monkeypatch.setenv("DURE_SERVE_CORS", "https://c.example https://d.example")
    settings, loaded = start("second", "--context", "2048", "--alias", "gpt-4")
    assert settings.models == ("second",)
    assert settings.parallel == 4
    assert settings.cors == ("https://c.example", "https://d.example")
    assert dict(settings.aliases) == {"gpt-4": ""}
    assert loaded["second"]["context"] == 512  # its own
    settings, _ = start("second", "--alias", "other")
    assert settings.aliases == (("gpt-4", "second"), ("other", ""))
    assert start("first")[0].aliases == ()  # of a table whose model is not served
    monkeypatch.setenv("DURE_SERVE_MODELS", "first third")
    assert start("--alias", "x")[0].models == ("first", "third")


def test_what_may_be_repeated_may_be_one_text(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "dure.toml"
    file.write_text(
        'port = 0\nhost = "0.0.0.0"\napi-key = "one"\ncors = "https://a.example"\n'
        'models = "first"\nalias = "x=first"\n',
        encoding="utf-8",
    )
    settings, _ = start("--config", str(file))
    assert (settings.keys, settings.cors) == (("one",), ("https://a.example",))
    assert (settings.models, settings.aliases) == (("first",), (("x", "first"),))


def test_an_option_of_any_verb_has_a_variable(
    dure_command: Dure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DURE_RUN_TEMPERATURE", "0.25")
    monkeypatch.setenv("DURE_RUN_JSON", "1")
    monkeypatch.setenv("DURE_VERSION", "of something else")
    done = dure_command("run", "fake", "hello")
    assert json.loads(done.out)["text"] == "hello"
    assert done.llms[0].params[0].temperature == 0.25


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port = ", "no TOML"),
        ("prot = 1", "'prot' is no option of dure serve"),
        ("prot = 1", "did you mean port?"),
        ("config = 'x'", "'config' is no option"),
        ("parallel = 'many'", "Invalid value for '--parallel'"),
        ("[page]\nx = 1", "page is a value, not a table"),
        ("model = 'x'", "a model is a table"),
        ("[[model]]\ncontext = 1", "a model has no name"),
        ("[[model]]\nname = 'x'\ncontxt = 1", "did you mean context?"),
        ("[[model]]\nname = 'x'\ncontext = '1'", "context is a number, not '1'"),
        ("[[model]]\nname = 'x'\ncache = 'f8'", "cache is f16 or q8, not 'f8'"),
        ("[[model]]\nname = 'x'\nquantize = 'q9'", "q9"),
        ("[[model]]\nname = 'x'\ncontext = -5", "context is 1 or more, not -5"),
        ("[[model]]\nname = 'x'\nthreads = 0", "threads is 1 or more, not 0"),
        ("[[model]]\nname = 'x'\nkeep_alive = nan", "keep_alive is -1 or more, not nan"),
        ("[[model]]\nname = 'x'\n[[model]]\nname = 'x'", "'x' has two tables"),
        ("keep-alive = 1\nkeep_alive = 2", "keep-alive is there twice"),
        ("parallel = true", "parallel is no switch, not True"),
        ("page = 'no'", "page is true or false, not 'no'"),
        ("host = ['a', 'b']", "host is one text or number"),
        ("api-key = [1]", "api-key is a text, or a list of texts"),
    ],
)
def test_what_is_wrong_in_the_file_is_said(
    dure_command: Dure, tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "dure.toml"
    file.write_text(text, encoding="utf-8")
    done = dure_command("serve", "--port", "0", "--config", str(file))
    assert done.code in (1, 2)
    assert said in " ".join(done.err.split())
    assert "Traceback" not in done.err


def test_the_log_in_a_file_has_a_json_object_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "log"
    log = logging.Logger("dure.server", logging.INFO)
    log.handlers = handlers(verbose=False, file=file)
    log.info("%s %d", "one", 200, extra={FIELDS: {"status": 200}})
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("it failed")
    file.rename(tmp_path / "log.1")  # as logrotate does
    log.info("after")
    for handler in log.handlers:
        handler.close()
    lines = (tmp_path / "log.1").read_text(encoding="utf-8").splitlines()
    first, second = map(json.loads, lines)
    assert first.pop("time").endswith("Z")
    assert first == {"level": "info", "logger": "dure.server", "message": "one 200", "status": 200}
    assert (second["level"], second["message"]) == ("error", "it failed")
    assert "ValueError: two\nlines" in second["error"]
    assert json.loads(file.read_text(encoding="utf-8"))["message"] == "after"
    shown = capsys.readouterr().err
    assert "one 200" not in shown  # a line per request is for --verbose
    assert "it failed" in shown


def test_a_log_whose_folder_is_gone_fails_no_request_and_goes_on_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = logging.Logger("dure.server", logging.INFO)
    log.handlers = handlers(verbose=False, file=folder / "log")
    log.info("first")
    folder.rename(tmp_path / "moved")
    for _ in range(3):
        log.info("lost")
    assert capsys.readouterr().err.count("cannot be written: No such file") == 1
    folder.mkdir()
    for text in ("second", "third"):
        log.info(text)
    for handler in log.handlers:
        handler.close()
    lines = (folder / "log").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["message"] for line in lines] == ["second", "third"]


def test_a_log_that_cannot_be_written_is_said(tmp_path: Path, dure_command: Dure) -> None:
    done = dure_command("serve", "--port", "0", "--log-file", str(tmp_path / "no" / "log"))
    assert done.code == 1
    assert "cannot be written: No such file or directory." in done.err
