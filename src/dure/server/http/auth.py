"""Access control: API keys and their tenants, allowed Host names, allowed Origins."""

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
"""Paths that need no API key, besides the pages' own files (Page.is_public): the health checks."""

LOCAL_SUFFIXES = (".localhost",)  # RFC 6761: never another machine
MIN_KEY_CHARACTERS = 8


class Keys:
    """The server's API keys. Without any, every request is allowed, and all share one tenant."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """Take the keys.

        Raises InvalidRequestError if a key is too short to be a secret, or is not printable ASCII.
        """
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
        """Return the tenant of a request: the same text for the same key while this server runs.

        Raises a 401 if the key is unknown, or missing where one is needed.
        """
        if not self._hashes:
            return ""
        given = _given(headers)
        asked = self._hash(given)
        found = ""
        for known in self._hashes:  # compare with every key, so that the time reveals nothing
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

    def tenant_of(self, key: str) -> str:
        """Return the tenant whose requests carry this key."""
        return self._hash(key.encode()).hex()

    def _hash(self, key: bytes) -> bytes:
        return hashlib.blake2b(key, key=self._secret, digest_size=32).digest()


class Hosts:
    """The Host names that this server answers to.

    This stops DNS rebinding: a web page whose own name points here sends that name as Host.
    """

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        own = socket.gethostname()
        names = {"localhost", own, f"{own}.local", socket.getfqdn(), *allowed}
        self._names = {name.casefold() for name in names if name}

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Raise a 403 if the Host header is not one of the allowed names."""
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
    """The web pages that may use a server without API keys.

    A browser sends a simple request (text/plain) for any page without a CORS preflight, and names
    the page in `Origin`. Programs that are not browsers send none.
    """

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._allowed = {origin.casefold().rstrip("/") for origin in allowed}

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Raise a 403 for the origin of another machine that is not in the allowed list."""
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
    """Check whether other machines can reach a server that is bound to `address`."""
    if address == "localhost":
        return False
    try:
        return not ipaddress.ip_address(address).is_loopback
    except ValueError:
        return True


def _given(headers: Mapping[bytes, bytes]) -> bytes:
    """Return the API key that the request carries, or b""."""
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
