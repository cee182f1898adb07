"""The files of the pages: read once, named by their content, and sent with strict headers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

STATIC = Path(__file__).parent / "static"
PREFIX = "/page/"
VERSION = b"{version}"  # in an .html file: the folder name that its scripts and styles have

DOCUMENTS = {"/": "index.html", "/status": "status.html", "/docs": "docs.html"}
"""Paths that a person types -> the files shown there."""

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}

# Scripts and styles from this server alone, none of them inline; requests to this server alone.
# With Trusted Types and no policy, the browser refuses every assignment of text as HTML.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True)
class File:
    """One file as it is sent."""

    body: bytes
    media_type: str
    etag: str
    is_immutable: bool  # its address has its content's name: it never changes there

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a response with this file, and of one that says it has not changed."""
        kept = "public, max-age=31536000, immutable" if self.is_immutable else "no-cache"
        return {**HEADERS, "ETag": self.etag, "Cache-Control": kept}


class Page:
    """All files of the pages. Their addresses have a version that changes with any of them."""

    def __init__(self, folder: Path = STATIC) -> None:
        read = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        names = hashlib.sha256()
        for name, body in read.items():
            names.update(b"%d %s %d\n" % (len(name), name.encode(), len(body)) + body)
        self.version = names.hexdigest()[:16]
        self.size = sum(len(body) for body in read.values())
        self._documents = {
            path: _file(name, read[name].replace(VERSION, self.version.encode()))
            for path, name in DOCUMENTS.items()
        }
        self._files = {
            f"{self.version}/{name}": _file(name, body, is_immutable=True)
            for name, body in read.items()
            if not name.endswith(".html")
        }

    def document(self, path: str) -> File:
        """Return what is shown at one of the paths of DOCUMENTS."""
        return self._documents[path]

    def file(self, name: str) -> File | None:
        """Return a script, a style or a picture by the address behind PREFIX; None if unknown."""
        return self._files.get(name)

    def is_public(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> bool:
        """Check whether a request needs no API key.

        The pages hold nothing of anybody's, and ask for the key that their own requests need.
        """
        if method not in ("GET", "HEAD"):
            return False
        if path == "/":
            return wants_html(headers.get(b"accept", b"").decode("latin-1"))
        return path in DOCUMENTS or path.startswith(PREFIX)


def wants_html(accept: str) -> bool:
    """Check whether an Accept header names HTML, as a browser's does; */* is any program's."""
    for part in accept.lower().split(","):
        kind, _, parameters = part.partition(";")
        if kind.strip() == "text/html":
            quality = parameters.replace(" ", "").partition("q=")[2].partition(";")[0]
            return quality.strip("0.") != "" or quality == ""
    return False


def _file(name: str, body: bytes, *, is_immutable: bool = False) -> File:
    digest = hashlib.sha256(body).hexdigest()[:32]
    media_type = MEDIA_TYPES[Path(name).suffix]
    return File(body, media_type, f'"{digest}"', is_immutable)
