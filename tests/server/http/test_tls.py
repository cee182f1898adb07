"""TLS: a server with a certificate, and what is said of files that are none."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from http.client import HTTPConnection, HTTPSConnection, RemoteDisconnected
from pathlib import Path

import pytest

from dure.errors import DownloadError, InvalidRequestError
from dure.hub.server_client import ServerClient
from dure.server.http.tls import Tls
from dure.server.run import Server, Settings

# Of localhost, signed by itself with openssl for these tests.
CERTIFICATE = """-----BEGIN CERTIFICATE-----
MIIBmjCCAUGgAwIBAgIUWoSuLfNTgmmwnKU0QQF8bbOo2rUwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEzMDA3MjExOVoYDzIxMjYxMTA2
MDcyMTE5WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAR4nx+3yBU7eOfU+7iUCdW51YC5hRewgHGELNLfhCr+RGuDR/1yxJdR
GlpdsfQLvn+6F59PaZj4y5zH0nejEw5fo28wbTAdBgNVHQ4EFgQUrtet4sJWLeCq
5T1ADOL4D2+g+e0wHwYDVR0jBBgwFoAUrtet4sJWLeCq5T1ADOL4D2+g+e0wDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDRwAwRAIgBjpOyQRoMCBmQnUJ25XZ+Li0yZXfhI8p3oZyrzrQrr4CIH2e
WpKd5yibwIVVhnb6KGRsIThSnAbsehyKvrpa6q2L
-----END CERTIFICATE-----
"""
KEY = """-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIIJWlHCbUauImDob+64BtUxWrT0aUPdzJXDYHdtmP9XUoAoGCCqGSM49
AwEHoUQDQgAEeJ8ft8gVO3jn1Pu4lAnVudWAuYUXsIBxhCzS34Qq/kRrg0f9csSX
URpaXbH0C75/uhefT2mY+Mucx9J3oxMOXw==
-----END EC PRIVATE KEY-----
"""
OTHER_KEY = """-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIPNeIF5mr5MHDqQ54GKyS1PafV4aqRYClZZI9f++8BmfoAoGCCqGSM49
AwEHoUQDQgAEnLk642gfUl449QJyzDVM2W1aZGjS+pILsj2McPZuV1HsnGogmkme
cOspC90fAs90Be4sPZroLMccBOUY+fLrZg==
-----END EC PRIVATE KEY-----
"""
ENCRYPTED_KEY = """-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAiG9dRd7yJOGgICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEAQIEEJ3u7cBe/XtSF/zr3157aKUEgZC6
v8absRQcIg97KVHuszryZoO5ZomoG7EpampFyQm5v7WLsvwUmNYY9NTSwjL2Sq1T
2ATKu0Q2s6GOeHD7Qc0yaE1VEzFUgt7zSe0YfYuikQtd4cu4xLAlIUEG6UrV+ke5
CUcsUaVDkJ61c3+yBUmdaO3uBtYIH6thKb5nPM0LDvByosEpmldLNMa0GrhHODc=
-----END ENCRYPTED PRIVATE KEY-----
"""


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    """A folder with cert.pem, key.pem, both.pem, other.pem, locked.pem and none.pem."""
    texts = {"cert": CERTIFICATE, "key": KEY, "both": CERTIFICATE + KEY, "other": OTHER_KEY}
    for name, text in {**texts, "locked": ENCRYPTED_KEY, "none": "no PEM\n"}.items():
        (tmp_path / f"{name}.pem").write_text(text)
    return tmp_path


@pytest.mark.parametrize("files", [("cert.pem", "key.pem"), ("both.pem", None)])
def test_requests_come_encrypted(pem: Path, files: tuple[str, str | None]) -> None:
    key = files[1] and pem / files[1]
    server = Server(
        Settings(port=0, tls=Tls.of(pem / files[0], key or None)), lambda _: pytest.fail()
    )
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    # The certificate is compared, as the clock of a machine may be wrong.
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    try:
        asked = HTTPSConnection("127.0.0.1", server.address[1], context=trusting, timeout=60)
        asked.request("GET", "/health")
        assert asked.getresponse().read() == b'{"status":"ok"}'
        shown = asked.sock.getpeercert(binary_form=True)
        assert shown == ssl.PEM_cert_to_DER_cert(CERTIFICATE)
        asked.close()
        with pytest.raises(DownloadError, match="is not trusted") as refused:
            ServerClient(f"https://127.0.0.1:{server.address[1]}").running()
        assert "SSL_CERT_FILE" in refused.value.hint
        plain = HTTPConnection("127.0.0.1", server.address[1], timeout=60)
        plain.request("GET", "/health")
        with pytest.raises((RemoteDisconnected, ConnectionError, socket.timeout)):
            plain.getresponse()
        plain.close()
    finally:
        loops[0].call_soon_threadsafe(server.stop)
        thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("certificate", "key", "said"),
    [
        ("cert.pem", "other.pem", "is not that of the certificate"),
        ("cert.pem", "locked.pem", "is encrypted"),
        ("cert.pem", "none.pem", "hold no certificate and key"),
        ("cert.pem", None, "hold no certificate and key"),
        ("missing.pem", "key.pem", "missing.pem cannot be read"),
        ("cert.pem", "missing.pem", "missing.pem cannot be read"),
        (None, "key.pem", "--tls-key was given without --tls-cert"),
    ],
)
def test_files_that_are_none_are_refused_before_the_server_listens(
    pem: Path, certificate: str | None, key: str | None, said: str
) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        Tls.of((certificate and pem / certificate) or None, (key and pem / key) or None)
