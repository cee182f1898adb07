"""What a browser is shown: whole, small, public, and of this server alone."""

from __future__ import annotations

import re

import pytest
from fake_model import reply

from dure.server.page.files import DOCUMENTS, STATIC, Page, wants_html

KEY = "a-key-of-this-test"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
MAX_BYTES = 300_000


@pytest.fixture(scope="module")
def server(serve_module):
    return serve_module(reply("ok"), keys=(KEY,))


def shown(server, path: str, method: str = "GET", **headers: str):
    """The answer to a browser that has no key."""
    return server.ask(method, path, headers={"Authorization": "", "Accept": BROWSER, **headers})


@pytest.mark.parametrize(
    ("accept", "is_html"),
    [
        (BROWSER, True),
        ("TEXT/HTML", True),
        ("application/json, text/html;q=0.1", True),
        ("text/html;q=0", False),
        ("text/html; q=0.00", False),
        ("*/*", False),
        ("text/*", False),
        ("", False),
        ("application/json", False),
    ],
)
def test_html_is_for_those_who_name_it(accept: str, is_html: bool) -> None:
    assert is_html == wants_html(accept)


def test_all_files_together_are_under_300_kb() -> None:
    assert 50_000 < Page().size < MAX_BYTES


def test_every_file_is_named_by_another_and_there(server) -> None:
    """What the documents load, and what their modules import, is all that there is."""
    names = {path.name for path in STATIC.iterdir()}
    wanted, found = set(DOCUMENTS.values()), set()
    while wanted:
        name = wanted.pop()
        found.add(name)
        text = (STATIC / name).read_text("utf-8")
        linked = re.findall(r"page/\{version\}/([\w.]+)", text)
        imported = re.findall(r'^import .*?from "\./([\w.]+)";', text, re.M)
        wanted |= {*linked, *imported} - found
    assert names == found


def test_a_browser_without_a_key_gets_the_pages_and_their_files(server) -> None:
    for path in DOCUMENTS:
        answer = shown(server, path)
        assert (200, "text/html; charset=utf-8") == (answer.status, answer.headers["content-type"])
        files = re.findall(r'(?:src|href)="(page/[^"]+)"', answer.body.decode())
        assert len(files) >= 3
        for file in files:
            assert 200 == shown(server, f"/{file}").status


def test_what_is_asked_with_the_pages_needs_the_key(server) -> None:
    for path in ("/v1/models", "/v1/status", "/metrics", "/openapi.json"):
        assert 401 == shown(server, path).status
        assert 200 == server.get(path).status


def test_scripts_and_styles_are_this_servers_files_alone(server) -> None:
    for path in DOCUMENTS:
        answer = shown(server, path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy
        assert "require-trusted-types-for 'script'" in policy and "unsafe" not in policy
        assert "nosniff" == answer.headers["x-content-type-options"]
        assert "no-referrer" == answer.headers["referrer-policy"]
        text = answer.body.decode()
        assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", text)
        assert not re.search(r"(?:src|href)=\"(?:https?:)?//", text)


def test_no_script_makes_html_of_a_text_or_names_another_server() -> None:
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|setHTML|srcdoc"
        r"|createContextualFragment|\beval\(|new Function|import\(|XMLHttpRequest"
        r"|WebSocket|sendBeacon"
    )
    for path in STATIC.glob("*.js"):
        text = path.read_text("utf-8")
        assert not forbidden.search(text), path.name
        code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("//"))
        assert not re.search(r"""["'`]https?://""", code), path.name
        assert code.count("fetch(") == (path.name == "api.js"), path.name


def test_ollamas_clients_still_find_it(server) -> None:
    for headers in ({}, {"Accept": "*/*"}, {"Accept": "application/json"}):
        answer = server.get("/", headers=headers)
        assert b"Ollama is running" == answer.body
        assert "Accept" == answer.headers["vary"]
    assert 200 == server.ask("HEAD", "/").status
    assert 401 == server.get("/", headers={"Authorization": ""}).status


def test_head_of_the_page_has_its_headers_and_no_body(server) -> None:
    answer = shown(server, "/", "HEAD")
    assert 200 == answer.status and b"" == answer.body
    assert "text/html; charset=utf-8" == answer.headers["content-type"]


def test_a_file_is_kept_for_ever_and_a_document_asked_for_again(server) -> None:
    document = shown(server, "/")
    assert "no-cache" == document.headers["cache-control"]
    again = shown(server, "/", **{"If-None-Match": document.headers["etag"]})
    assert (304, b"") == (again.status, again.body)
    assert again.headers["content-security-policy"]
    path = re.search(r'src="(page/[^"]+)"', document.body.decode())
    assert path is not None
    file = shown(server, f"/{path[1]}")
    assert "immutable" in file.headers["cache-control"]
    assert "text/javascript; charset=utf-8" == file.headers["content-type"]


def test_a_file_of_another_version_or_outside_is_not_there(server) -> None:
    version = Page().version
    for name in ("0123456789abcdef/chat.js", f"{version}/files.py", f"{version}/../files.py", ""):
        assert 404 == shown(server, f"/page/{name}").status
    assert 404 == shown(server, f"/page/{version}/..%2f..%2ffiles.py").status


def test_the_version_changes_with_any_file(tmp_path) -> None:
    for path in STATIC.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    same = Page(tmp_path).version
    (tmp_path / "dom.js").write_bytes(b"// other\n")
    assert same == Page().version != Page(tmp_path).version


def test_no_page_switches_all_of_it_off(serve) -> None:
    server = serve(reply("ok"), page=False)
    assert b"Ollama is running" == shown(server, "/").body
    for path in ("/status", "/docs", f"/page/{Page().version}/chat.js"):
        assert 404 == shown(server, path).status
    assert 200 == server.get("/v1/status").status
