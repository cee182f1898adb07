from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from fake_hub import QUICK, FakeHub, Fault

from dure import hub
from dure.errors import DownloadError
from dure.hub import http


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1/x",
        "https://localhost/x",
        "https://169.254.169.254/latest/meta-data",
        "https://10.0.0.1/x",
        "https://[::1]/x",
        "https://192.168.1.1:8080/x",
        "http://cdn.example/x",  # https to http
        "file:///etc/passwd",
    ],
)
def test_a_public_hub_cannot_send_us_to_this_machine_its_network_or_off_https(target: str) -> None:
    with pytest.raises(DownloadError):
        http._check_redirect(urlsplit("https://hub.example/file"), urlsplit(target))


def test_a_public_hub_may_send_us_to_its_cdn() -> None:
    http._check_redirect(urlsplit("https://hub.example/f"), urlsplit("https://cdn.example/f"))


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "data:,x", "http:///x"])
def test_no_address_but_http_is_opened(url: str) -> None:
    with pytest.raises(DownloadError, match="only http and https"):
        http.open_url(url, timeout_s=1)


@pytest.mark.parametrize("status", [307, 308])
def test_a_repository_that_was_renamed_is_followed(
    server: FakeHub, noise: Callable[[int], bytes], status: int
) -> None:
    data = noise(1000)
    server.huggingface["New/Name"] = {"m-Q4_0.gguf": data}
    to = server.url + "/api/models/New/Name/revision/main"
    tree = "/api/models/New/Name/tree"
    commit = "0123456789abcdef0123456789abcdef01234567"
    old = "/api/models/old/name"
    server.faults[old + "/revision/main"] = [Fault(status=status, redirect=to)]
    server.faults[f"{old}/tree/{commit}"] = [
        Fault(status=status, redirect=f"{server.url}{tree}/{commit}?recursive=true")
    ]
    server.faults[f"/old/name/resolve/{commit}/m-Q4_0.gguf"] = [
        Fault(status=status, redirect=f"{server.url}/New/Name/resolve/{commit}/m-Q4_0.gguf")
    ]
    assert hub.pull("old/name", patience=QUICK).path.read_bytes() == data


def test_a_document_without_end_is_cut_off(
    server: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_DOCUMENT_BYTES", 100)
    server.huggingface["a/b"] = {f"file{n}-Q4_0.gguf": b"x" for n in range(9)}
    with pytest.raises(DownloadError, match="more than 100 bytes"):
        hub.pull("a/b", patience=QUICK)
