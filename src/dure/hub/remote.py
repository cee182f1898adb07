"""List repositories on Hugging Face and ModelScope: their files and addresses.

Settings are those of the hubs' own tools: HF_ENDPOINT, HF_TOKEN (or the
token file that `hf auth login` writes), HF_HUB_OFFLINE; MODELSCOPE_ENDPOINT, MODELSCOPE_API_TOKEN.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin

from dure.errors import DownloadError, ModelNotFoundError
from dure.hub.http import RefusedError, host_of, join_path, read_json, without_secrets
from dure.hub.repository import MAX_FILES, RemoteFile
from dure.hub.stores.huggingface import huggingface_home
from dure.hub.types import Check, Timeouts

_HEX_40 = re.compile(r"[0-9a-f]{40}")
_HEX_64 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class Listing:
    """A repository at one revision: its files, and the address of each."""

    source: str
    revision: str
    files: list[RemoteFile]
    headers: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""
    by_query: bool = False

    def url(self, file: RemoteFile) -> str:
        """Return the address of a file's bytes."""
        if self.by_query:
            return self.prefix + "&" + urlencode({"FilePath": file.path})
        return join_path(self.prefix, file.path)


def check_online(what: str) -> None:
    """Raise DownloadError if HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) says to ask nobody."""
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if _is_on(variable):
            raise DownloadError(
                f"{what} is not on this machine, and nobody was asked: {variable} is set.",
                hint=f"unset {variable} to download it",
            )


def huggingface_access() -> tuple[str, dict[str, str]]:
    """Return the hub's address, or that of the mirror of HF_ENDPOINT, and the token's header."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    return endpoint, _bearer(_huggingface_token())


def list_huggingface(repo: str, revision: str, patience: Timeouts) -> Listing:
    """List the files of `repo` on Hugging Face, or on the mirror that HF_ENDPOINT names.

    Raises DownloadError or ModelNotFoundError.
    """
    endpoint, headers = huggingface_access()
    model = join_path(endpoint, "api", "models", repo)
    try:
        info, _ = read_json(
            join_path(model, "revision", revision or "main"),
            headers=headers,
            timeout_s=patience.answer_s,
        )
        commit = str(_field(info, "sha", endpoint))
        if not _HEX_40.fullmatch(commit):
            raise DownloadError(f"{host_of(endpoint)} gave no commit for {repo}.")
        entries = _tree(join_path(model, "tree", commit) + "?recursive=true", headers, patience)
    except RefusedError as refusal:
        raise _explain(refusal, "Hugging Face", repo, join_path(endpoint, repo)) from None
    files = [_huggingface_file(entry) for entry in entries if entry.get("type") == "file"]
    prefix = join_path(endpoint, repo, "resolve", commit)
    return Listing(host_of(endpoint), commit, files, headers, prefix)


def list_modelscope(repo: str, revision: str, patience: Timeouts) -> Listing:
    """List the files of `repo` on ModelScope, or on the server that MODELSCOPE_ENDPOINT names.

    Raises DownloadError or ModelNotFoundError.
    """
    endpoint = os.environ.get("MODELSCOPE_ENDPOINT", "").rstrip("/") or "https://www.modelscope.cn"
    headers = _bearer(os.environ.get("MODELSCOPE_API_TOKEN", ""))
    model = join_path(endpoint, "api", "v1", "models", repo, "repo")
    query = {"Revision": revision or "master"}
    try:
        answer, _ = read_json(
            model + "/files?" + urlencode({**query, "Recursive": "true"}),
            headers=headers,
            timeout_s=patience.answer_s,
        )
    except RefusedError as refusal:
        raise _explain(refusal, "ModelScope", repo, join_path(endpoint, "models", repo)) from None
    data = answer.get("Data") if isinstance(answer, dict) else None
    entries = data.get("Files") if isinstance(data, dict) else None
    if not isinstance(entries, list):  # it answers 200 with Code 10010205001 for what is not there
        raise ModelNotFoundError(f"ModelScope has no repository {repo}.")
    if not all(isinstance(entry, dict) for entry in entries):
        raise DownloadError(
            f"{host_of(endpoint)} answered with something that is not a list of files."
        )
    files = [_modelscope_file(entry) for entry in entries if entry.get("Type") != "tree"]
    prefix = model + "?" + urlencode(query)
    return Listing(host_of(endpoint), query["Revision"], files, headers, prefix, by_query=True)


def _huggingface_token() -> str:
    """Return the token set for Hugging Face's own tools; "" if none."""
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(variable, "").strip():
            return os.environ[variable].strip()
    if _is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return ""
    home = huggingface_home()
    file = os.environ.get("HF_TOKEN_PATH") or (home / "token" if home else None)
    try:
        return Path(file).expanduser().read_text(encoding="utf-8").strip() if file else ""
    except (OSError, ValueError):
        return ""


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").strip().upper() in ("1", "ON", "YES", "TRUE")


def _tree(url: str, headers: Mapping[str, str], patience: Timeouts) -> list[dict[str, Any]]:
    """Read all entries of a paged listing; each page names the next in its Link header.

    A mirror may redirect to another host, whose next page is then on that host. The token is sent
    to the first host alone.
    """
    entries: list[dict[str, Any]] = []
    start = host_of(url)
    while url and len(entries) <= MAX_FILES:
        sent = headers if host_of(url) == start else without_secrets(headers)
        page, answered = read_json(url, headers=sent, timeout_s=patience.answer_s)
        if not isinstance(page, list) or not all(isinstance(entry, dict) for entry in page):
            raise DownloadError(f"{start} answered with something that is not a list of files.")
        entries += page
        following = re.search(r'<([^>]+)>;\s*rel="next"', answered.headers.get("Link", ""))
        try:
            url = urljoin(answered.url, following[1]) if following and page else ""
        except ValueError:
            raise DownloadError(f"{start} sent us to an address that is none.") from None
        if url and host_of(url) not in (start, host_of(answered.url)):
            raise DownloadError(f"{start} sent us to {host_of(url)} for the rest of its files.")
    return entries


def _huggingface_file(entry: Mapping[str, Any]) -> RemoteFile:
    large = entry.get("lfs")
    if isinstance(large, dict):
        return _remote(entry.get("path"), large.get("size"), sha256=large.get("oid"))
    return _remote(entry.get("path"), entry.get("size"), git_sha1=entry.get("oid"))


def _modelscope_file(entry: Mapping[str, Any]) -> RemoteFile:
    return _remote(entry.get("Path"), entry.get("Size"), sha256=entry.get("Sha256"))


def _remote(
    path: object, size: object, *, sha256: object = "", git_sha1: object = ""
) -> RemoteFile:
    if not isinstance(path, str) or not isinstance(size, int) or size < 0:
        raise DownloadError("The hub lists a file without a path or a size.")
    if any("\ud800" <= character <= "\udfff" for character in path):
        raise DownloadError(f"The hub lists a file whose path is not Unicode: {path!r:.80}.")
    checked = str(sha256).casefold() if sha256 else ""
    if checked and not _HEX_64.fullmatch(checked):
        raise DownloadError(f"The hub gives {path!r} a SHA-256 that is none.")
    blob = str(git_sha1) if git_sha1 and _HEX_40.fullmatch(str(git_sha1)) else ""
    return RemoteFile(path, Check(size, sha256=checked, git_sha1=blob))


def _field(answer: object, name: str, endpoint: str) -> Any:
    if isinstance(answer, dict) and name in answer:
        return answer[name]
    raise DownloadError(f"{host_of(endpoint)} answered, but not as a model hub does.")


def _explain(
    refusal: RefusedError, hub: str, repo: str, page: str
) -> DownloadError | ModelNotFoundError:
    """Turn a hub's HTTP error into one that says what to do."""
    if refusal.reason == "GatedRepo" or (refusal.status == 403 and not refusal.reason):
        return DownloadError(
            f"{hub} gives {repo} only to those who accepted its terms.",
            hint=f"accept them at {page}, then set HF_TOKEN to a token of that account",
        )
    if refusal.reason == "RevisionNotFound":
        return ModelNotFoundError(f"{hub} has {repo}, but not the revision asked for.")
    if refusal.status in (401, 404):  # Hugging Face answers 401 for what is not there, too
        return ModelNotFoundError(
            f"{hub} has no repository {repo}, or shows it only to its members.",
            hint="check the spelling; for a private one set HF_TOKEN",
        )
    return refusal
