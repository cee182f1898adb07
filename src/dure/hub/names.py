"""Parse model names: a path, a catalogue entry, or a repository on a hub.

Accepted: `./file.gguf`, `folder/`, `qwen3:0.6b`, `qwen3:8b-q8_0`, `org/repo`, `org/repo:Q4_K_M`,
`org/repo@revision`, `org/repo/file.gguf` and its address, `modelscope:org/repo` (`ms:`),
`huggingface:org/repo` (`hf:`), the address of a model's page, and `ollama:name:tag`, a model in
Ollama's store.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dure.errors import InvalidRequestError

MAX_NAME = 512  # characters: longer than any path we would keep it under

_SCHEMES = {
    "huggingface": "huggingface",
    "hf": "huggingface",
    "modelscope": "modelscope",
    "ms": "modelscope",
}
_PAGES = (
    ("https://huggingface.co/", "huggingface"),
    ("https://hf.co/", "huggingface"),
    ("huggingface.co/", "huggingface"),
    ("hf.co/", "huggingface"),
    ("https://www.modelscope.cn/models/", "modelscope"),
    ("https://modelscope.cn/models/", "modelscope"),
)
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_REPO = re.compile(
    rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>{_PART}(?:/{_PART})*))?"
    rf"(?::(?P<quant>[A-Za-z0-9][A-Za-z0-9._-]*))?"
)
_FILE = re.compile(
    rf"(?P<repo>{_PART}/{_PART})/(?:(?P<how>resolve|blob|file/view)/(?P<revision>{_PART})/)?"
    rf"(?P<path>(?:{_PART}/)*{_PART}\.gguf)(?:\?.*)?",
    re.IGNORECASE,
)
_OLLAMA = re.compile(rf"ollama:(?:{_PART}/)*{_PART}(?::{_PART})?", re.IGNORECASE)
_SHORT = re.compile(rf"{_PART}(?::{_PART})?")


@dataclass(frozen=True)
class ModelName:
    """A parsed name. `text` is its normal form; only the fields of its `kind` are set."""

    kind: Literal["path", "catalogue", "huggingface", "modelscope", "ollama"]
    text: str
    path: Path | None = None
    repo: str = ""
    quant: str = ""
    revision: str = ""

    @property
    def folder(self) -> str:
        """The name of its folder in the store: one safe path component, in lower case."""
        if self.kind == "catalogue":
            return "catalogue--" + self.text.casefold().replace(":", "--")
        if self.kind == "ollama":
            return self.text.casefold().replace(":", "--").replace("/", "--")
        parts = [self.kind, *self.repo.split("/")]
        parts += ["@" + self.revision.replace("/", "--")] if self.revision else []
        parts += [self.quant] if self.quant else []
        return "--".join(parts).casefold()


def parse_name(name: str) -> ModelName:
    """Parse a model's name without the network. Raises InvalidRequestError."""
    text = name.strip()
    if not text or len(text) > MAX_NAME or any(ord(c) < 32 for c in text):
        raise InvalidRequestError(
            f"A model's name is 1 to {MAX_NAME} printable characters; this has {len(text)}.",
            hint="`dure list --all` shows the short names",
        )
    file = None if _exists(text) else _file_on_hub(text)
    if file is not None:
        return file
    if _is_written_as_path(text):
        return _path(text)
    if _OLLAMA.fullmatch(text) and ".." not in text:
        return ModelName("ollama", "ollama:" + text[len("ollama:") :])
    hub, rest = _split_scheme(text)
    if hub is None and _SHORT.fullmatch(text) and not (_exists(text) and ":" not in text):
        return ModelName("catalogue", text)
    if hub is None and _exists(text):
        return _path(text)
    return _repository(hub or "huggingface", rest, text)


def _file_on_hub(text: str) -> ModelName | None:
    """Parse `org/repo/file.gguf`, or the address of a file; None for anything else."""
    hub, rest = _split_scheme(text, whole=True)
    match = _FILE.fullmatch(rest)
    if match is None or ".." in rest or (hub is None and text.startswith((".", "/", "~"))):
        return None
    revision = "" if match["revision"] in (None, "main", "master") else f"@{match['revision']}"
    name = match["path"].rpartition("/")[2]
    return _repository(hub or "huggingface", f"{match['repo']}{revision}:{name}", text)


def _repository(hub: str, rest: str, text: str) -> ModelName:
    match = _REPO.fullmatch(rest)
    # `--` and `..` are what no hub allows in a name, and what our folder names are split by
    if match is None or ".." in rest or "--" in rest or rest.casefold().endswith(".git"):
        raise InvalidRequestError(
            f"{text!r} is not an existing path, and not of the form org/repo or name:size.",
            hint="examples: qwen3:0.6b, Qwen/Qwen3-0.6B, modelscope:Qwen/Qwen3-0.6B, ./model.gguf",
        )
    repo, revision, quant = match["repo"], match["revision"] or "", match["quant"] or ""
    written = ("modelscope:" if hub == "modelscope" else "") + rest
    kind: Literal["huggingface", "modelscope"] = (
        "modelscope" if hub == "modelscope" else "huggingface"
    )
    return ModelName(kind, written, repo=repo, revision=revision, quant=quant)


def _split_scheme(text: str, *, whole: bool = False) -> tuple[str | None, str]:
    for page, hub in _PAGES:
        if text.casefold().startswith(page):
            rest = text[len(page) :].rstrip("/")
            return hub, rest if whole else re.sub(r"/(tree|summary|files)(/.*)?$", "", rest)
    scheme, colon, rest = text.partition(":")
    if colon and scheme.casefold() in _SCHEMES and "/" in rest:
        return _SCHEMES[scheme.casefold()], rest
    return None, text


def _is_written_as_path(text: str) -> bool:
    if text.startswith(("/", "./", "../", "~", ".\\", "..\\", "\\")) or text in (".", ".."):
        return True
    if re.match(r"[A-Za-z]:[\\/]", text):
        return True
    if text.casefold().endswith((".gguf", ".safetensors")) and ":" not in text:
        return True
    return text.endswith(("/", "\\"))


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False


def _path(text: str) -> ModelName:
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # ~somebody, who is not known here
        path = Path(text)
    return ModelName("path", text, path=path)
