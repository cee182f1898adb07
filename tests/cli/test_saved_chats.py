"""Conversations that are saved to a file and taken up again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from outcome import Talk

from dure.cli.conversation import Conversation


def test_half_a_surrogate_pair_in_a_conversation_can_be_saved(tmp_path: Path) -> None:
    conversation = Conversation(messages=[{"role": "user", "content": "\ud800 안녕"}])
    conversation.save(tmp_path / "chat.json", model="fake")
    assert conversation == Conversation.load(tmp_path / "chat.json")


def test_a_conversation_is_saved_and_taken_up_again(talk: Talk, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    talk("안녕", f"/save {path}", system="Be kind.")
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "model": "fake",
        "system": "Be kind.",
        "messages": [
            {"role": "user", "content": "안녕"},
            {"role": "assistant", "content": "안녕"},
        ],
    }
    assert list(tmp_path.iterdir()) == [path]
    llm = talk(f"/load {path}", "more")
    assert [m["content"] for m in llm.asked[0]] == ["Be kind.", "안녕", "안녕", "more"]


def test_saving_that_fails_leaves_the_old_file_and_nothing_else(
    talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "talk.json"
    path.write_text("old")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    talk("one", f"/save {path}")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[" * 100_000,
        "[]",
        '{"messages": {}}',
        '{"messages": [{"role": "user"}]}',
        '{"messages": [{"role": "system", "content": "x"}]}',
        '{"messages": [], "system": 3}',
    ],
)
def test_a_file_that_holds_no_conversation_changes_nothing(
    talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = tmp_path / "talk.json"
    path.write_text(text)
    llm = talk("one", f"/load {path}", "two")
    assert f"{path} holds no conversation" in capsys.readouterr().err
    assert len(llm.asked[1]) == 3


def test_a_chat_is_saved_by_a_name_listed_and_found(
    talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DURE_HOME", str(tmp_path))
    talk("/load", "about pandas", "/save my pandas", "more", "/save")
    assert (tmp_path / "chats" / "my pandas.json").stat().st_mode & 0o077 == 0
    talk("/load")
    said = capsys.readouterr().err
    assert "No chat is saved." in said
    assert said.count("Saved 2 messages") == said.count("Saved 4 messages") == 1
    name, begins = said.splitlines()[-1][:9], said.splitlines()[-1][-12:]
    assert (name, begins) == ("my pandas", "about pandas")
    (tmp_path / "my pandas").write_text("a file of the same name here")
    monkeypatch.chdir(tmp_path)
    assert len(talk("/load my pandas", "next").asked[0]) == 5
