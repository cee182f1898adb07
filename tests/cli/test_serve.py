"""dure serve before it serves: what it refuses to start with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from outcome import Dure

import dure.llm
from dure.errors import InvalidRequestError
from dure.server.run import Server


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"# nobody yet\n\n", "keys holds no key."),
        (b"\xff\xfe\n", "keys is not UTF-8 text: byte 0 is not."),
        (None, "keys cannot be read: No such file or directory."),
    ],
)
def test_a_file_without_keys_opens_no_server(
    dure_command: Dure, tmp_path: Path, content: bytes | None, said: str
) -> None:
    keys = tmp_path / "keys"
    if content is not None:
        keys.write_bytes(content)
    done = dure_command("serve", "any", "--port", "0", "--api-key-file", str(keys))
    assert done.code == 1
    assert said in done.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--alias", "gpt-4=nobody"], "The alias 'gpt-4=nobody' names no model that is served."),
        (["--alias", "=any"], "The alias '=any' names no model that is served."),
        (["--alias", "any=tiny"], "The alias 'any=tiny' is the name of another model here."),
        (["./b/tiny.gguf"], "./a/tiny.gguf and ./b/tiny.gguf would both be served as 'tiny'."),
        (["--keep-alive", "nan"], "--keep-alive is a number of seconds; -1 is for ever."),
        (["--metrics-prefix", "a b"], "Prometheus takes no metrics that begin with 'a b'."),
    ],
)
def test_what_could_never_work_is_said_at_the_start(
    dure_command: Dure, options: list[str], said: str
) -> None:
    done = dure_command("serve", "any", "./a/tiny.gguf", "--port", "0", *options)
    assert done.code == 1
    assert f"error: {said}" in done.err


@pytest.mark.parametrize(
    ("options", "budget"), [([], 8 * 10**9), (["--max-models", "4"], 2 * 10**9)]
)
def test_models_share_the_budget_equally(
    dure_command: Dure, monkeypatch: pytest.MonkeyPatch, options: list[str], budget: int
) -> None:
    def load_only(server: Server) -> None:
        server.socket.close()
        server._load("any")

    def refuse(_: str, **options: Any) -> None:
        raise InvalidRequestError(f"budget {options['memory']}")

    monkeypatch.setattr(Server, "run", load_only)
    monkeypatch.setattr(dure.llm, "LLM", refuse)
    done = dure_command("serve", "any", "--port", "0", "--memory", "8GB", *options)
    assert done.err == f"error: budget {budget}\n"


@pytest.mark.parametrize(("options", "exact"), [([], False), (["--exact"], True)])
def test_a_server_computes_the_files_own_weights_if_asked(
    dure_command: Dure, monkeypatch: pytest.MonkeyPatch, options: list[str], exact: bool
) -> None:
    def load_only(server: Server) -> None:
        server.socket.close()
        server._load("any")

    def refuse(_: str, **options: Any) -> None:
        raise InvalidRequestError(f"exact {options['exact']}")

    monkeypatch.setattr(Server, "run", load_only)
    monkeypatch.setattr(dure.llm, "LLM", refuse)
    done = dure_command("serve", "any", "--port", "0", *options)
    assert done.err == f"error: exact {exact}\n"
