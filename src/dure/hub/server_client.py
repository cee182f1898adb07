"""Ask a server of dure's (or Ollama's) which models it has in memory, and to unload one."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib import error, request
from urllib.parse import urlencode, urlsplit

from dure.errors import DownloadError, InvalidRequestError, ModelNotFoundError
from dure.hub.http import host_of

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 10.0
STREAM_TIMEOUT_S = 60.0  # between two bytes: a server comments on a long prompt every few seconds
MAX_ANSWER_BYTES = 8 << 20


class ServerRefusedError(DownloadError):
    """A server is there and does not serve: it answered `status`, or (0) is not trusted."""

    status = 0


@dataclass(frozen=True)
class RunningModel:
    """A model in a server's memory. `expires_at` is ISO 8601; `context` in tokens, 0 if untold."""

    name: str
    size_bytes: int
    context: int
    expires_at: str


@dataclass(frozen=True)
class ServerClient:
    """A server at an address, with the API key that it is asked with."""

    url: str
    key: str = ""
    timeout_s: float = TIMEOUT_S

    @classmethod
    def from_environment(cls, url: str | None = None) -> ServerClient:
        """Return the server at `url`, else that of $DURE_URL, with the key of $DURE_API_KEY."""
        chosen = (url or os.environ.get("DURE_URL") or DEFAULT_URL).rstrip("/")
        try:
            parts = urlsplit(chosen if "://" in chosen else f"http://{chosen}")
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidRequestError(
                f"{chosen[:80]!r} is not a server's address.", hint=f"such as {DEFAULT_URL}"
            )
        return cls(parts.geturl(), os.environ.get("DURE_API_KEY", "").strip())

    def running(self) -> list[RunningModel]:
        """List the models in memory. Raises DownloadError if no server answers."""
        models = self._ask("/api/ps").get("models")
        models = models if isinstance(models, list) else []
        listed = [each for each in models if isinstance(each, dict)]
        return [
            RunningModel(
                str(each.get("name", "")),
                _whole(each.get("size")),
                _whole(each.get("context_length")),
                str(each.get("expires_at", "")),
            )
            for each in listed
        ]

    def unload(self, name: str) -> str:
        """Unload a model after its running requests, and return its name.

        Raises ModelNotFoundError if the server has none of that name in memory.
        """
        here = [model.name for model in self.running()]
        wanted = name.casefold()
        found = next((each for each in here if each.casefold() == wanted), None)
        if found is None:
            raise ModelNotFoundError(
                f"{name} is not in memory of the server at {host_of(self.url)}.",
                hint=f"in memory: {', '.join(here)}" if here else "no model is",
            )
        self._ask("/api/generate", {"model": found, "keep_alive": 0, "stream": False})
        return found

    def props(self, model: str) -> dict[str, Any]:
        """Return what llama-server's /props says of a model. Raises DownloadError."""
        return self._ask("/props?" + urlencode({"model": model}))

    def stream(self, path: str, body: Mapping[str, Any]) -> ServerStream:
        """Post `body` and return the events of the answer. Raises as `ServerStream` does."""
        return ServerStream(self, path, body)

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        asked = request.Request(self.url + path, data, {"Content-Type": "application/json"})
        if self.key:
            asked.add_header("Authorization", f"Bearer {self.key}")
        # No proxy: the server is this machine's, or one that the user names himself. No redirects:
        # the key is for this server alone.
        opener = request.build_opener(request.ProxyHandler({}), _NoRedirects)
        try:
            with opener.open(asked, timeout=self.timeout_s) as response:
                answer = json.loads(response.read(MAX_ANSWER_BYTES))
        except error.HTTPError as refusal:
            with refusal:
                raise self._refused(refusal.code) from None
        except (OSError, HTTPException, ValueError, RecursionError) as failure:
            raise self.silent(failure) from None
        return answer if isinstance(answer, dict) else {}

    def silent(self, failure: Exception) -> DownloadError:
        """Make the error of a server that does not answer."""
        reason = getattr(failure, "reason", failure)
        said = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        if isinstance(reason, ssl.SSLCertVerificationError):
            return ServerRefusedError(
                f"The certificate of {host_of(self.url)} is not trusted: {reason.verify_message}.",
                hint="SSL_CERT_FILE names the file of a certificate that is",
            )
        return DownloadError(
            f"No server of dure's answers at {host_of(self.url)} ({said}).",
            hint="`dure serve` starts one; --url or $DURE_URL names another",
        )

    def _refused(self, status: int) -> ServerRefusedError:
        hint = "set DURE_API_KEY to one of its keys" if status in (401, 403) else ""
        if 300 <= status < 400:
            hint = "it sends elsewhere, which is not followed: --url names the server itself"
        refused = ServerRefusedError(
            f"The server at {host_of(self.url)} answered {status}.", hint=hint
        )
        refused.status = status
        return refused


class ServerStream:
    """The server-sent events of one answer. Iterate over it; `close` may come from any thread."""

    def __init__(self, client: ServerClient, path: str, body: Mapping[str, Any]) -> None:
        """Post the body. Raises DownloadError, or InvalidRequestError with what is wrong in it."""
        self._client = client
        parts = urlsplit(client.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=STREAM_TIMEOUT_S)
        headers = {"Content-Type": "application/json"}
        if client.key:
            headers["Authorization"] = f"Bearer {client.key}"
        self._socket: socket.socket | None = None
        try:
            self._connection.request("POST", parts.path + path, json.dumps(body).encode(), headers)
            self._socket = self._connection.sock
            self._response = self._connection.getresponse()
            if self._response.status != 200:
                raise self._refused(self._response.status, self._response.read(MAX_ANSWER_BYTES))
        except (OSError, HTTPException) as failure:
            self.close()
            raise client.silent(failure) from None
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield each event's JSON object. Raises DownloadError if the server breaks off."""
        try:
            for line in self._response:
                if not line.startswith(b"data:"):
                    continue
                text = line[5:].strip()
                if text == b"[DONE]":
                    return
                event = json.loads(text)
                if isinstance(event, dict):
                    if isinstance(event.get("error"), dict):
                        raise InvalidRequestError(str(event["error"].get("message", "")))
                    yield event
        except (OSError, HTTPException, ValueError, RecursionError) as failure:
            raise self._client.silent(failure) from None
        finally:
            self.close()

    def close(self) -> None:
        """Leave: the server ends the answer. Whoever waits for an event gets no more."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _refused(self, status: int, data: bytes) -> DownloadError | InvalidRequestError:
        try:
            said = json.loads(data)["error"]["message"]
        except (ValueError, TypeError, KeyError, RecursionError):
            said = ""
        if status == 400 and said:
            sentence, _, hint = str(said).partition(" (hint: ")
            return InvalidRequestError(sentence, hint=hint.removesuffix(")"))
        host = host_of(self._client.url)
        return DownloadError(f"The server at {host} answered {status}: {said or 'no reason'}")


class _NoRedirects(request.HTTPRedirectHandler):
    """Take a redirect for an error."""

    def redirect_request(self, *_: Any) -> None:
        """Return no request to go on with."""


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0
