"""Search Hugging Face for repositories of GGUF files."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlencode

from dure.errors import DownloadError, InvalidRequestError
from dure.hub.http import host_of, join_path, read_json
from dure.hub.names import parse_name
from dure.hub.remote import check_online, huggingface_access
from dure.hub.types import Timeouts

MAX_WORDS = 200  # characters


@dataclass(frozen=True)
class FoundRepository:
    """A repository on the hub, and how often it was downloaded in 30 days."""

    repo: str
    downloads: int


def search_huggingface(
    words: str, limit: int, patience: Timeouts | None = None
) -> list[FoundRepository]:
    """List repositories with GGUF files in whose names the words are, the most used first.

    Raises DownloadError. What is not a repository's name in the answer is left out.
    """
    if len(words) > MAX_WORDS:
        raise InvalidRequestError(f"At most {MAX_WORDS} characters are searched for.")
    check_online(f"What Hugging Face has of {words!r}")
    endpoint, headers = huggingface_access()
    query = {"search": words, "filter": "gguf", "sort": "downloads", "limit": str(limit)}
    answer, _ = read_json(
        join_path(endpoint, "api", "models") + "?" + urlencode(query),
        headers=headers,
        timeout_s=(patience or Timeouts()).answer_s,
    )
    if not isinstance(answer, list):
        raise DownloadError(f"{host_of(endpoint)} answered, but not as a model hub does.")
    found = []
    for each in answer[:limit]:
        name = each.get("id") if isinstance(each, dict) else None
        downloads = each.get("downloads") if isinstance(each, dict) else None
        if isinstance(name, str) and _is_repository(name):
            found.append(FoundRepository(name, downloads if isinstance(downloads, int) else 0))
    return found


def _is_repository(name: str) -> bool:
    try:
        return parse_name("hf:" + name).repo == name
    except InvalidRequestError:
        return False
