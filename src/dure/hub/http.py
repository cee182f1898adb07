"""Requests that leave this machine: http and https only, redirects watched, answers bounded.

Everything from outside is hostile: a redirect may lead to a file, to this machine or its network,
or carry a token to another host; an answer may never end. Nothing here trusts either.
"""

from __future__ import annotations

import ipaddress
import json
import os
import ssl
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib import error, request
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit, urlunsplit

from dure.errors import DownloadError

MAX_REDIRECTS = 8
MAX_DOCUMENT_BYTES = 64 * 2**20  # the listing of a repository of 100,000 files is 30 MB
_SECRETS = frozenset({"authorization", "cookie"})


class UnreachableError(DownloadError):
    """No answer: no route, no name, refused, timed out, or a broken connection."""


class RefusedError(DownloadError):
    """An HTTP error. `status` is the HTTP status, `reason` the hub's own error code."""

    def __init__(self, message: str, *, status: int, reason: str = "", retry_after_s: float = 0.0):
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s

    @property
    def worth_retrying(self) -> bool:
        """Whether the same request may succeed later: the server is busy or broken."""
        return self.status in (408, 425, 429) or self.status >= 500


def open_url(url: str, *, headers: Mapping[str, str] | None = None, timeout_s: float) -> Any:
    """Send a GET and return the response, with .status, .headers and .read(n); close it when done.

    Raises UnreachableError without an answer, RefusedError for an HTTP error.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise UnreachableError(f"{url[:80]!r} is no address.") from None
    _check_address(parts, url)
    asked = request.Request(_without_password(url), headers={"User-Agent": "dure"})
    for name, value in _credentials(url).items():
        asked.add_header(name, value)
    for name, value in (headers or {}).items():
        asked.add_header(name, value)
    try:
        response = _opener().open(asked, timeout=timeout_s)
    except error.HTTPError as answer:
        with answer:
            raise _refusal(url, answer) from None
    except DownloadError:
        raise
    except (OSError, HTTPException, ValueError) as failure:
        raise unreachable(url, failure) from None
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding not in ("", "identity"):  # we asked for none; a 1 kB answer may unpack to 1 GB
        response.close()
        raise DownloadError(f"{host_of(url)} sent its answer packed ({encoding}), unasked.")
    return response


@dataclass(frozen=True)
class Document:
    """A whole answer. `url` is where it came from after redirects: the base of its links."""

    body: bytes
    headers: Message
    url: str


def read_document(
    url: str, *, headers: Mapping[str, str] | None = None, timeout_s: float
) -> Document:
    """Read the whole answer at `url`. Raises DownloadError past MAX_DOCUMENT_BYTES."""
    try:
        with open_url(url, headers=headers, timeout_s=timeout_s) as response:
            body: bytes = response.read(MAX_DOCUMENT_BYTES + 1)
            document = Document(body, response.headers, _address(url, response.url))
    except (OSError, HTTPException) as failure:
        raise unreachable(url, failure) from None
    if len(body) > MAX_DOCUMENT_BYTES:
        raise DownloadError(f"{host_of(url)} answered with more than {MAX_DOCUMENT_BYTES} bytes.")
    return document


def read_json(
    url: str, *, headers: Mapping[str, str] | None = None, timeout_s: float
) -> tuple[Any, Document]:
    """Read and parse the JSON at `url`; return it with the answer. Raises DownloadError."""
    document = read_document(url, headers=headers, timeout_s=timeout_s)
    try:
        return json.loads(document.body), document
    except (ValueError, RecursionError):
        raise DownloadError(f"{host_of(url)} answered with something that is not JSON.") from None


def unreachable(url: str, failure: BaseException) -> UnreachableError:
    """Build the error for a failed connection to the host of `url`."""
    reason = getattr(failure, "reason", None) or failure
    if isinstance(reason, TimeoutError):
        said = "no answer in time"
    elif isinstance(reason, OSError) and reason.strerror:
        said = reason.strerror
    else:
        said = str(reason) or type(reason).__name__
    return UnreachableError(f"{host_of(url)} cannot be reached ({said}).")


def host_of(url: str) -> str:
    """Return the `scheme://host[:port]` of `url`, without user and password."""
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets that hold no address
        return url.rpartition("@")[2]
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def join_path(endpoint: str, *parts: str) -> str:
    """Join `parts` to `endpoint`, each quoted except for slashes."""
    return "/".join([endpoint.rstrip("/"), *(quote(part, safe="/") for part in parts)])


def _address(asked: str, answered: str) -> str:
    """Return the address that answered, with `asked`'s user and password on the same host."""
    if host_of(asked) != host_of(answered):
        return answered
    return urlunsplit(urlsplit(answered)._replace(netloc=urlsplit(asked).netloc))


def without_secrets(headers: Mapping[str, str]) -> dict[str, str]:
    """Return `headers` without those that hold a secret, for another host than theirs."""
    return {name: value for name, value in headers.items() if name.casefold() not in _SECRETS}


def _credentials(url: str) -> dict[str, str]:
    """Return the Authorization header of a `https://user:password@host` address."""
    parts = urlsplit(url)
    if not parts.username:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Authorization": "Basic " + b64encode(pair.encode()).decode()}


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _refusal(url: str, answer: error.HTTPError) -> RefusedError:
    reason = answer.headers.get("X-Error-Code", "") if answer.headers else ""
    after = answer.headers.get("Retry-After", "") if answer.headers else ""
    said = f"{host_of(url)} answered {answer.code}" + (f" ({reason})" if reason else "")
    return RefusedError(
        said + ".",
        status=answer.code,
        reason=reason,
        retry_after_s=float(after) if after.isdigit() else 0.0,
    )


@lru_cache(maxsize=1)
def _opener() -> request.OpenerDirector:
    """Build an opener without urllib's default handlers for file:, ftp: and data:."""
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(context=_tls()),
        request.HTTPDefaultErrorHandler(),
        _Redirects(),
        request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _tls() -> ssl.SSLContext:
    """Trust the system's certificates, and those set for the user's other tools."""
    context = ssl.create_default_context()
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT"):
        bundle = os.environ.get(variable)
        if bundle and Path(bundle).is_file():
            context.load_verify_locations(cafile=bundle)
    if not os.environ.get("SSL_CERT_FILE"):
        try:  # python.org's Python on macOS comes without the system's
            import certifi  # noqa: PLC0415 - not a dependency, only used where it is

            context.load_verify_locations(cafile=certifi.where())
        except ImportError:
            pass
    return context


class _Redirects(request.HTTPRedirectHandler):
    """Follow redirects to public http(s) hosts; keep secrets with their host."""

    max_redirections = MAX_REDIRECTS
    http_error_308 = request.HTTPRedirectHandler.http_error_302

    def redirect_request(
        self,
        req: request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> request.Request:
        del code, msg, headers
        target = urljoin(req.full_url, newurl)
        old, new = urlsplit(req.full_url), urlsplit(target)
        try:
            _check_redirect(old, new)
        except DownloadError:
            fp.close()
            raise
        same = (old.scheme, old.hostname, old.port) == (new.scheme, new.hostname, new.port)
        kept = {k: v for k, v in req.header_items() if same or k.casefold() not in _SECRETS}
        kept.pop("Host", None)
        return request.Request(target, headers=kept, method="GET")


def _check_redirect(old: SplitResult, new: SplitResult) -> None:
    _check_address(new, f"a redirect from {old.hostname}")
    if old.scheme == "https" and new.scheme != "https":
        raise DownloadError(f"{old.hostname} redirected from https to {new.scheme}: refused.")
    if _is_local(new.hostname or "") and not _is_local(old.hostname or ""):
        raise DownloadError(
            f"{old.hostname} redirected to an address of this network ({new.hostname}): refused."
        )


def _check_address(parts: SplitResult, where: str) -> None:
    if parts.scheme not in ("http", "https") or not parts.hostname or "\\" in parts.netloc:
        raise DownloadError(f"{where}: only http and https addresses are fetched.")


def _is_local(host: str) -> bool:
    if host.casefold() == "localhost" or host.casefold().endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_link_local or address.is_private
