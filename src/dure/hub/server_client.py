"""Ask a server of dure's (or Ollama's) which models it has in memory, and to unload one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib import error, request
from urllib.parse import urlsplit

from dure.errors import DownloadError, InvalidRequestError, ModelNotFoundError
from dure.hub.http import host_of

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 8 << 20


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

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        asked = request.Request(self.url + path, data, {"Content-Type": "application/json"})
        if self.key:
            asked.add_header("Authorization", f"Bearer {self.key}")
        # No proxy: the server is this machine's, or one that the user names himself. No redirects:
        # the key is for this server alone.
        opener = request.build_opener(request.ProxyHandler({}), _NoRedirects)
        try:
            with opener.open(asked, timeout=TIMEOUT_S) as response:
                answer = json.loads(response.read(MAX_ANSWER_BYTES))
        except error.HTTPError as refusal:
            with refusal:
                raise self._refused(refusal.code) from None
        except (OSError, HTTPException, ValueError, RecursionError) as failure:
            reason = getattr(failure, "reason", failure)
            said = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
            raise DownloadError(
                f"No server of dure's answers at {host_of(self.url)} ({said}).",
                hint="`dure serve` starts one; --url or $DURE_URL names another",
            ) from None
        return answer if isinstance(answer, dict) else {}

    def _refused(self, status: int) -> DownloadError:
        hint = "set DURE_API_KEY to one of its keys" if status in (401, 403) else ""
        if 300 <= status < 400:
            hint = "it sends elsewhere, which is not followed: --url names the server itself"
        return DownloadError(f"The server at {host_of(self.url)} answered {status}.", hint=hint)


class _NoRedirects(request.HTTPRedirectHandler):
    """Take a redirect for an error."""

    def redirect_request(self, *_: Any) -> None:
        """Return no request to go on with."""


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0
