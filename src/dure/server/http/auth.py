"""Who may ask: keys, tenants, and the Host that a browser was told to ask."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import socket
from collections.abc import Iterable, Mapping, Sequence

from dure.errors import InvalidRequestError
from dure.server.errors import HTTPError

PUBLIC = frozenset({"/health", "/v1/health"})
"""What answers without a key: whether the server lives, and nothing else."""

LOCAL_SUFFIXES = (".localhost",)  # RFC 6761: never another machine
MIN_KEY_CHARACTERS = 8


class Keys:
    """The keys that open the server; without any, everybody may ask, and all are one tenant."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """InvalidRequestError for a key that is too short to be a secret, or cannot be sent."""
        listed = list(keys)
        for key in listed:
            if len(key) < MIN_KEY_CHARACTERS or not key.isascii() or not key.isprintable():
                raise InvalidRequestError(
                    f"An API key has {len(key)} characters; it needs {MIN_KEY_CHARACTERS} or more, "
                    "all of them printable ASCII.",
                    hint='python -c "import secrets; print(secrets.token_urlsafe())" makes one',
                )
        # Hashed, so that comparing tells nobody how long a key is, and no dump shows one.
        self._secret = secrets.token_bytes(32)
        self._hashes = [self._hash(key.encode()) for key in listed]

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def tenant(self, headers: Mapping[bytes, bytes]) -> str:
        """Who asks: a name that is the same for the same key while this server runs.

        A 401 for a key that is not known, or none where one is needed.
        """
        if not self._hashes:
            return ""
        given = _given(headers)
        asked = self._hash(given)
        found = ""
        for known in self._hashes:  # all of them, so that the time says nothing
            if hmac.compare_digest(asked, known):
                found = known.hex()
        if found:
            return found
        wrong = "The API key is not one of this server's." if given else "An API key is needed."
        raise HTTPError(
            401,
            f"{wrong} Send it as `Authorization: Bearer KEY` or as `x-api-key: KEY`.",
            "authentication_error",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _hash(self, key: bytes) -> bytes:
        return hashlib.blake2b(key, key=self._secret, digest_size=32).digest()


class Hosts:
    """The names this server answers to. A web page that had its own name point here is turned
    away: its reader's browser sends that name."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        own = socket.gethostname()
        names = {"localhost", own, f"{own}.local", socket.getfqdn(), *allowed}
        self._names = {name.casefold() for name in names if name}

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Raise a 403 for a name that is not ours."""
        host = headers.get(b"host", b"").decode("latin-1").strip().casefold()
        name = _without_port(host)
        if not name or name in self._names or name.endswith(LOCAL_SUFFIXES) or _is_address(name):
            return
        raise HTTPError(
            403,
            f"This server does not answer to the name {name[:80]!r} (hint: --allowed-host NAME).",
            "permission_error",
            code="host_not_allowed",
        )


class Origins:
    """The web pages that may ask a server without a key.

    A browser sends a simple request (text/plain) of any page without asking first, and names the
    page in `Origin`. Programs that are not browsers send none.
    """

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._allowed = {origin.casefold().rstrip("/") for origin in allowed}

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Raise a 403 for a page of another machine that is not allowed by name."""
        origin = headers.get(b"origin", b"").decode("latin-1").strip().casefold()
        if not origin or "*" in self._allowed or origin in self._allowed:
            return
        scheme, separator, host = origin.partition("://")
        if separator and scheme not in ("http", "https"):
            return  # a program's own page: app://, tauri://, vscode-webview://
        name = _without_port(host)
        own = headers.get(b"host", b"").decode("latin-1").strip().casefold()
        if separator and (host == own or name == "localhost" or name.endswith(LOCAL_SUFFIXES)):
            return
        if separator and _is_address(name) and ipaddress.ip_address(name).is_loopback:
            return
        raise HTTPError(
            403,
            f"The web page {origin[:80]!r} may not use this server (hint: --cors ORIGIN).",
            "permission_error",
            code="origin_not_allowed",
        )


def is_public(address: str) -> bool:
    """Whether others than this machine's own programs reach a server bound to `address`."""
    if address == "localhost":
        return False
    try:
        return not ipaddress.ip_address(address).is_loopback
    except ValueError:
        return True


def _given(headers: Mapping[bytes, bytes]) -> bytes:
    """The key a request came with, or nothing."""
    scheme, _, value = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and value.strip():
        return value.strip()
    return headers.get(b"x-api-key", b"").strip() or headers.get(b"api-key", b"").strip()


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
