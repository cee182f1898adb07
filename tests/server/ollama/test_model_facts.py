"""tags, ps and show say the same of a model, and what its files are."""

from __future__ import annotations

import os
import shutil
from datetime import datetime
from pathlib import Path

import pytest
from fake_model import reply
from tiny_gguf import config_of, parameters_of, write_gguf

from dure.hub.facts import read_facts
from dure.hub.identity import files_identity

WRITTEN = 1_600_000_000


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    config = config_of("llama")
    write_gguf(path, config, parameters_of(config))
    os.utime(path, (WRITTEN, WRITTEN))
    return path


def test_tags_ps_and_show_agree(serve, file) -> None:
    server = serve(reply("ok"), models=(str(file),))
    [listed] = server.get("/api/tags").json["models"]
    [loaded] = server.get("/api/ps").json["models"]
    shown = server.post("/api/show", {"model": listed["name"]}).json
    for word in ("details", "size", "digest"):
        assert listed[word] == loaded[word] == shown[word]
    assert listed["modified_at"] == shown["modified_at"]
    assert listed["size"] == file.stat().st_size
    assert datetime.fromisoformat(listed["modified_at"].replace("Z", "+00:00")).timestamp() == (
        WRITTEN
    )
    assert listed["details"]["quantization_level"] == next(iter(read_facts(file).quantisation))
    assert len(bytes.fromhex(listed["digest"])) == 32
    assert server.get("/v1/models").json["data"][0]["created"] == WRITTEN


def test_the_digest_is_of_the_files_and_not_of_their_place(file, tmp_path) -> None:
    copy = Path(shutil.copy(file, tmp_path / file.name))
    digest = files_identity(read_facts(file)).digest
    assert files_identity(read_facts(copy)).digest == digest
    with copy.open("r+b") as written:
        written.seek(-1, os.SEEK_END)
        last = written.read(1)
        written.seek(-1, os.SEEK_END)
        written.write(bytes([last[0] ^ 1]))
    assert files_identity(read_facts(copy)).digest != digest
