"""Who may ask: the key on every route, hosts, origins, and nothing shared between keys."""

from __future__ import annotations

import re

import pytest
import starlette.routing
from apis import APIS
from fake_model import reply

from dure.errors import InvalidRequestError
from dure.server.app import make_app
from dure.server.http.auth import PUBLIC, Keys
from dure.server.run import Settings

ALICE, BOB = "alices-own-key", "bobs-other-key"


def paths() -> list[tuple[str, str]]:
    """Every method and path that the application routes, and some that it does not.

    Not those of the pages for a browser, which are public: tests/server/http/test_page.py.
    """
    found = [("GET", "/nothing"), ("DELETE", "/v1/models")]
    for route in make_app(None).routes:
        assert isinstance(route, starlette.routing.Route)
        path = re.sub(r"{\w+(:path)?}", "resp_1", route.path)
        found += [(method, path) for method in route.methods or ()]
    return found


def test_every_route_but_health_needs_the_key(serve) -> None:
    server = serve(reply("ok"), keys=(ALICE, BOB))
    open_ones = []
    for method, path in paths():
        body = b"{}" if method == "POST" else None
        for headers in ({"Authorization": ""}, {"Authorization": "Bearer wrong-key-here"}):
            status = server.ask(method, path, body, headers=headers).status
            if status != 401:
                open_ones.append(path)
    assert set(PUBLIC) == set(open_ones)


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {BOB}"},
        {"Authorization": f"bearer  {BOB} "},
        {"Authorization": "", "x-api-key": BOB},
        {"Authorization": "", "api-key": BOB},
    ],
)
def test_a_key_is_taken_by_each_name_that_clients_send_it_by(serve, headers) -> None:
    server = serve(reply("ok"), keys=(ALICE, BOB))
    assert 200 == server.get("/v1/models", headers=headers).status


def test_a_401_says_so_in_openais_form(serve) -> None:
    server = serve(reply("ok"), keys=(ALICE,))
    error = server.get("/v1/models", headers={"Authorization": ""}).json["error"]
    assert ("authentication_error", "invalid_api_key") == (error["type"], error["code"])


@pytest.mark.parametrize("path", APIS)
def test_a_prefix_of_one_key_never_speeds_another_up(serve, path) -> None:
    server = serve(reply("ok"), keys=(ALICE, BOB))

    def computed(key: str) -> int:
        """The tokens that the model had to compute for one answer."""
        batches = server.llm.model.batches
        batches.clear()
        asked = APIS[path]("the same long story " * 5, stream=False, max_tokens=2)
        answer = server.post(path, asked, headers={"Authorization": f"Bearer {key}"})
        assert 200 == answer.status
        return sum(len(batch.tokens) for batch in batches)

    cold = computed(ALICE)
    warm = computed(ALICE)
    assert warm < cold / 5
    assert cold == computed(BOB)
    assert warm == computed(BOB)


def test_only_its_own_key_may_end_an_answers_thoughts(serve) -> None:
    server = serve(reply("a long answer " * 10), keys=(ALICE, BOB))
    with server.send(
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "hi"}], "stream": True},
    ) as connection:
        text = connection.recv(65536).decode()
        while '"id":"' not in text:
            text += connection.recv(65536).decode()
        name = text.split('"id":"')[1].split('"')[0]
        body = {"id": name, "action": "reasoning_end"}
        path = "/v1/chat/completions/control"
        other = server.post(path, body, headers={"Authorization": f"Bearer {BOB}"})
        assert 400 == other.status


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("192.168.1.5", 200),
        ("host.docker.internal:8000", 403),
        ("other.local", 403),
        ("metadata.internal", 403),
        ("page.localhost", 200),
        ("my.name", 200),
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
    ],
)
def test_a_host_that_is_not_ours_is_turned_away(serve, host, status) -> None:
    server = serve(reply("ok"), allowed_hosts=("my.name",))
    assert status == server.get("/v1/models", headers={"Host": host}).status


def test_no_origin_is_allowed_unless_it_was_named(serve) -> None:
    asks = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    closed = serve(reply("ok"))
    answer = closed.ask("OPTIONS", "/v1/chat/completions", headers=asks)
    assert "access-control-allow-origin" not in answer.headers
    opened = serve(reply("ok"), cors=("https://page.example",), keys=(ALICE,))
    answer = opened.ask("OPTIONS", "/v1/chat/completions", headers={**asks, "Authorization": ""})
    assert 200 == answer.status
    assert "https://page.example" == answer.headers["access-control-allow-origin"]
    other = opened.ask("OPTIONS", "/v1/models", headers={**asks, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://evil.example", 403),
        ("null", 403),
        ("http://192.168.1.77", 403),
        ("http://localhost.evil.example", 403),
        ("http://localhost:3000", 200),
        ("http://127.0.0.1:5173", 200),
        ("vscode-webview://abc", 200),
        ("https://page.example", 200),
    ],
)
def test_a_foreign_page_may_not_use_a_server_without_a_key(serve_module, origin, status) -> None:
    server = serve_module(reply("ok"), cors=("https://page.example",))
    headers = {"Origin": origin, "Content-Type": "text/plain"}
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/api/generate", {"model": "fake", "prompt": "hi"}),
    ):
        assert status == server.post(path, body, headers=headers).status


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "my.name"])
def test_a_public_address_needs_a_key_or_the_word_insecure(host) -> None:
    with pytest.raises(InvalidRequestError, match="no API key"):
        Settings(host=host)
    assert host == Settings(host=host, keys=(ALICE,)).host
    assert host == Settings(host=host, insecure=True).host


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_an_address_of_this_machine_alone_needs_none(host) -> None:
    assert host == Settings(host=host).host


@pytest.mark.parametrize("key", ["", "short", "schlüssel-mit-umlaut", "with\nline-break"])
def test_a_key_that_is_no_secret_is_refused(key) -> None:
    with pytest.raises(InvalidRequestError, match="API key"):
        Keys([key])


def test_no_key_can_be_read_from_the_keys() -> None:
    keys = Keys([ALICE])
    assert ALICE.encode() not in repr(vars(keys)).encode()
