"""A Hugging Face, a ModelScope and a package index on 127.0.0.1, that fail as real ones do.

`Fault`s are queued under a file's name (or an API's path) and used up one a request, in order.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import threading
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from dure.hub import Timeouts

# Tests wait for no one, but a machine busy with other work may take seconds to answer itself.
QUICK = Timeouts(answer_s=10, read_s=10, attempts=3, backoff_s=0.01)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAGE = 3  # entries a page of a listing; the real hub has 1,000


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request."""

    cut_after: int | None = None  # close the connection after so many bytes of the body
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    redirect: str = ""
    wrong: bool = False  # the right number of wrong bytes
    ignore_range: bool = False
    endless: bool = False  # more bytes than the file has
    pause_s: float = 0.0  # before each 64 KiB
    gzipped: bool = False


class FakeHub:
    """What the servers hold and what they were asked. `url` is the hub's, `cdn_url` the bytes'."""

    def __init__(self) -> None:
        self.huggingface: dict[str, dict[str, bytes]] = {}
        self.modelscope: dict[str, dict[str, bytes]] = {}
        self.wheels: dict[str, tuple[str, bytes]] = {}
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.sent: dict[str, list[tuple[int, int]]] = defaultdict(list)  # name -> (start, count)
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.token = ""
        self.gated: set[str] = set()
        self.paths: dict[str, str] = {}  # a file's name -> the path its listing gives instead
        self.listed_sha256: dict[str, str] = {}  # a file's name -> the SHA-256 its listing gives
        self.html_index = False
        self.url = ""
        self.cdn_url = ""

    def bytes_sent(self, name: str) -> int:
        """How many bytes of the file went out, over all requests."""
        return sum(count for _, count in self.sent[name])

    def add_wheel(self, name: str, version: str, members: Mapping[str, bytes]) -> None:
        """Put a wheel with these members on the package index."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as wheel:
            for path, data in members.items():
                wheel.writestr(path, data)
            stem = f"{name.replace('-', '_')}-{version}"
            wheel.writestr(f"{stem}.dist-info/METADATA", f"Name: {name}\nVersion: {version}\n")
            wheel.writestr(
                f"{stem}.dist-info/WHEEL",
                "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            )
            wheel.writestr(f"{stem}.dist-info/RECORD", "")
        self.wheels[name] = (f"{stem}-py3-none-any.whl", packed.getvalue())

    def next_fault(self, name: str) -> Fault:
        """The next thing to go wrong with `name`; nothing, if none is queued."""
        return self.faults[name].pop(0) if self.faults[name] else Fault()


@contextmanager
def running() -> Iterator[FakeHub]:
    """A hub that answers, on two ports, until the block ends."""
    hub = FakeHub()
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) for _ in range(2)]
    hub.url, hub.cdn_url = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    threads = [
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        for server in servers
    ]
    for server, thread in zip(servers, threads, strict=True):
        server.daemon_threads = True
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


def sha256(data: bytes) -> str:
    """The SHA-256 of `data`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _is_large(path: str) -> bool:
    return path.endswith((".gguf", ".safetensors", ".bin", "tokenizer.json"))


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def end_headers(self) -> None:
            self.send_header("Connection", "close")  # a client that keeps one would find it gone
            super().end_headers()

        def do_HEAD(self) -> None:
            """What huggingface_hub asks before each file: where it is, and which blob."""
            self.close_connection = True
            parts = unquote(urlsplit(self.path).path).split("/")[1:]
            path = "/".join(parts[4:])
            data = hub.huggingface.get("/".join(parts[:2]), {}).get(path)
            if data is None:
                self.refuse(Fault(status=404, headers={"X-Error-Code": "EntryNotFound"}))
                return
            large = _is_large(path)
            self.send_response(302 if large else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{sha256(data) if large else _git_sha1(data)}"')
            self.send_header("Content-Length", "0" if large else str(len(data)))
            if large:
                self.send_header("X-Linked-Size", str(len(data)))
                self.send_header("X-Linked-Etag", f'"{sha256(data)}"')
                self.send_header("Location", f"{hub.cdn_url}/blob/{sha256(data)}")
            self.end_headers()

        def do_GET(self) -> None:
            hub.asked.append((self.path, dict(self.headers)))
            self.close_connection = True
            address = urlsplit(self.path)
            path = unquote(address.path)
            query = {name: values[0] for name, values in parse_qs(address.query).items()}
            fault = hub.next_fault(path)
            if fault.redirect or fault.status:
                self.refuse(fault)
            elif path.startswith("/blob/"):
                self.blob(path.split("/")[2])
            elif path.startswith("/simple/"):
                self.index(path.split("/")[2])
            elif path.startswith("/files/"):
                name = path.split("/")[2]
                self.body(name, next(data for n, data in hub.wheels.values() if n == name))
            elif path.startswith("/api/v1/models/"):
                self.modelscope(path.split("/")[4:], query)
            elif path == "/api/models":
                words = query["search"].casefold().split()
                found = [r for r in hub.huggingface if all(w in r.casefold() for w in words)]
                listed = [{"id": repo, "downloads": 7} for repo in found]
                self.json([*listed, {"id": "not a name"}, "nonsense"])
            elif path.startswith("/api/models/"):
                self.model_api(path.split("/")[3:], query)
            else:
                self.resolve(path.split("/")[1:])

        def model_api(self, parts: list[str], query: Mapping[str, str]) -> None:
            repo = "/".join(parts[:2])
            files = self.permitted(repo)
            if files is None:
                return
            if parts[2] == "revision" and parts[3] in ("main", COMMIT):
                self.json({"id": repo, "sha": COMMIT})
            elif parts[2] == "tree" and parts[3] == COMMIT:
                start = int(query.get("cursor", 0))
                entries = [self.tree_entry(path, data) for path, data in files.items()]
                more = {}
                if start + PAGE < len(entries):
                    following = f"{hub.url}/api/models/{repo}/tree/{COMMIT}?cursor={start + PAGE}"
                    more = {"Link": f'<{following}>; rel="next"'}
                self.json(entries[start : start + PAGE], more)
            else:
                self.refuse(Fault(status=404, headers={"X-Error-Code": "RevisionNotFound"}))

        def tree_entry(self, path: str, data: bytes) -> dict[str, Any]:
            entry: dict[str, Any] = {
                "type": "file",
                "path": hub.paths.get(path, path),
                "size": len(data),
                "oid": _git_sha1(data),
            }
            if _is_large(path):
                listed = hub.listed_sha256.get(path, sha256(data))
                entry["lfs"] = {"oid": listed, "size": len(data), "pointerSize": 134}
                entry["oid"] = _git_sha1(b"the pointer file")
            return entry

        def permitted(self, repo: str) -> dict[str, bytes] | None:
            allowed = not hub.token or self.headers["Authorization"] == f"Bearer {hub.token}"
            if repo in hub.gated and not allowed:
                self.refuse(Fault(status=403, headers={"X-Error-Code": "GatedRepo"}))
            elif repo not in hub.huggingface or not allowed:
                self.refuse(Fault(status=401, headers={"X-Error-Code": "RepoNotFound"}))
            else:
                return hub.huggingface[repo]
            return None

        def resolve(self, parts: list[str]) -> None:
            files = self.permitted("/".join(parts[:2]))
            if files is None:
                return
            path = "/".join(parts[4:])
            if path not in files:
                self.refuse(Fault(status=404, headers={"X-Error-Code": "EntryNotFound"}))
            elif _is_large(path):
                data = files[path]
                linked = {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{sha256(data)}"'}
                to = f"{hub.cdn_url}/blob/{sha256(data)}"
                self.refuse(Fault(status=302, redirect=to, headers=linked))
            else:
                self.body(path, files[path])

        def modelscope(self, parts: list[str], query: Mapping[str, str]) -> None:
            files = hub.modelscope.get("/".join(parts[:2]))
            if files is None:
                self.json({"Code": 10010205001, "Message": "not found", "Success": False})
            elif parts[3:] == ["files"]:
                listed = [
                    {"Type": "blob", "Path": p, "Size": len(d), "Sha256": sha256(d)}
                    for p, d in files.items()
                ]
                folders = [{"Type": "tree", "Path": "assets", "Size": 0}]
                self.json({"Code": 200, "Success": True, "Data": {"Files": folders + listed}})
            else:
                to = f"{hub.cdn_url}/blob/{sha256(files[query['FilePath']])}"
                self.refuse(Fault(status=302, redirect=to))

        def index(self, name: str) -> None:
            if name not in hub.wheels:
                self.refuse(Fault(status=404))
                return
            filename, data = hub.wheels[name]
            if hub.html_index:
                link = f'<a href="../../files/{filename}#sha256={sha256(data)}">{filename}</a>'
                self.answer(f"<!DOCTYPE html><html>{link}</html>".encode(), "text/html")
                return
            url = f"../../files/{filename}"
            known = {"filename": filename, "url": url, "hashes": {"sha256": sha256(data)}}
            listing = {"name": name, "files": [{**known, "size": len(data)}]}
            self.answer(json.dumps(listing).encode(), "application/vnd.pypi.simple.v1+json")

        def blob(self, digest: str) -> None:
            for repository in [*hub.huggingface.values(), *hub.modelscope.values()]:
                for path, data in repository.items():
                    if sha256(data) == digest:
                        self.body(path, data)
                        return
            self.refuse(Fault(status=404))

        def body(self, name: str, data: bytes) -> None:
            fault = hub.next_fault(name)
            if fault.status or fault.redirect:
                self.refuse(fault)
                return
            start, status, whole = 0, 200, len(data)
            asked = self.headers["Range"]
            if asked and not fault.ignore_range:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start, status = int(first), 206
                if start >= len(data):
                    self.refuse(Fault(status=416))
                    return
                data, whole = data[: int(last) + 1] if last else data, len(data)
            rest = bytes(255 - b for b in data[start:]) if fault.wrong else data[start:]
            self.send_response(status)
            if fault.gzipped:
                rest = gzip.compress(rest)
                self.send_header("Content-Encoding", "gzip")
            if not fault.endless:
                self.send_header("Content-Length", str(len(rest)))
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{whole}")
            self.send_header("ETag", f'"{sha256(data)}"')
            self.end_headers()
            if fault.endless:
                rest = rest * 3
            rest = rest if fault.cut_after is None else rest[: fault.cut_after]
            self.pour(name, start, rest, fault.pause_s)

        def pour(self, name: str, start: int, data: bytes, pause_s: float) -> None:
            count = 0
            try:
                for offset in range(0, len(data), 65536):
                    time.sleep(pause_s)
                    self.wfile.write(data[offset : offset + 65536])
                    count += len(data[offset : offset + 65536])
            except OSError:
                pass  # the client hung up, which is its right
            hub.sent[name].append((start, count))

        def refuse(self, fault: Fault) -> None:
            self.send_response(fault.status or 302)
            for header, value in fault.headers.items():
                self.send_header(header, value)
            if fault.redirect:
                self.send_header("Location", fault.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def json(self, value: object, headers: Mapping[str, str] | None = None) -> None:
            self.answer(json.dumps(value).encode(), "application/json", headers)

        def answer(self, data: bytes, kind: str, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            for header, value in (headers or {}).items():
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(data)

    return Handler
