"""The store of pulled models on this machine. A model appears complete or not at all.

$DURE_HOME (else $XDG_CACHE_HOME/dure, else ~/.cache/dure)
  models/
    catalogue--qwen2.5-coder--0.5b/     one folder a model; appears by one rename, complete
      dure.json                         what it is and where it came from
      qwen2.5-coder-0.5b-instruct-q4_k_m.gguf
    .partial/<the same name>/           a download under way, or broken off and to be continued
    .locks/<the same name>              held by the process that is at work on it
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dure.errors import DownloadError
from dure.hub.settings import NO_SETTINGS, ModelSettings

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

RECORD = "dure.json"


@dataclass(frozen=True)
class Record:
    """The content of dure.json: a model's name, origin, and file sizes in bytes."""

    name: str
    source: str
    revision: str = ""
    license: str = ""
    lineage: str = ""
    pulled_at: str = ""
    files: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class LocalModel:
    """A complete model on this machine. `path` is what to open: a GGUF file or a folder.

    `owner` is the program that keeps it; `settings` are what that program says of its use.
    """

    name: str
    path: Path
    size_bytes: int
    source: str
    revision: str
    license: str
    pulled_at: str
    owner: str = "dure"
    settings: ModelSettings = NO_SETTINGS


def models_folder() -> Path:
    """Return the folder of this user's models; it may not exist. Raises DownloadError."""
    home = os.environ.get("DURE_HOME")
    if home:
        return Path(home).expanduser() / "models"
    cache = os.environ.get("XDG_CACHE_HOME")
    if cache:
        return Path(cache).expanduser() / "dure" / "models"
    try:
        return Path.home() / ".cache" / "dure" / "models"
    except RuntimeError:
        raise DownloadError(
            "There is no home folder to keep models in.",
            hint="set DURE_HOME to a folder for them, or name a model file by its path",
        ) from None


def state_folder(name: str) -> Path:
    """Return the folder beside the models' for what dure remembers; it may not exist.

    Raises DownloadError as `models_folder` does.
    """
    return models_folder().parent / name


def read_local(folder: Path) -> LocalModel | None:
    """Read the model in `folder`; None if there is none, or a file is missing or short."""
    try:
        data = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        record = Record(**{key: data[key] for key in Record.__dataclass_fields__ if key in data})
        texts = [value for key, value in vars(record).items() if key != "files"]
        if not all(isinstance(text, str) for text in texts) or not isinstance(record.files, dict):
            return None
        sizes = {name: (folder / name).stat().st_size for name in record.files}
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    if not sizes or sizes != dict(record.files):
        return None
    return LocalModel(
        name=record.name,
        path=opening_path(folder, list(sizes)),
        size_bytes=sum(sizes.values()),
        source=record.source,
        revision=record.revision,
        license=record.license,
        pulled_at=record.pulled_at,
    )


def opening_path(folder: Path, files: list[str]) -> Path:
    """Return what to open in `folder`: its first GGUF file, else the folder itself."""
    ggufs = sorted(name for name in files if name.casefold().endswith(".gguf"))
    return folder / ggufs[0] if ggufs else folder


def all_local() -> list[LocalModel]:
    """List the complete models in the store, by name."""
    try:
        folders = [f for f in models_folder().iterdir() if not f.name.startswith(".")]
    except OSError:
        return []
    models = [model for folder in folders if (model := read_local(folder))]
    return sorted(models, key=lambda model: model.name.casefold())


def land(partial: Path, target: Path, record: Record) -> None:
    """Move the complete, checked folder `partial` to `target` in one step."""
    text = json.dumps(asdict(record), indent=1, ensure_ascii=False)
    with (partial / RECORD).open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    if (
        target.exists()
    ):  # an older or damaged copy: out of the way first, a rename cannot replace it
        discard(target)
    partial.rename(target)
    sync_folder(target.parent)


def discard(folder: Path) -> int:
    """Delete `folder`: rename it first, so that it is gone at once. Returns the bytes freed."""
    if not folder.is_dir():
        return 0
    freed = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and not f.is_symlink())
    trash = folder.with_name(f".trash-{os.getpid()}-{folder.name}")
    folder.rename(trash)
    shutil.rmtree(trash)
    return freed


def bytes_at(path: Path) -> int:
    """Return the bytes of a file, or of the files in a folder; 0 if they cannot be read."""
    try:
        files = [path] if path.is_file() else [each for each in path.iterdir() if each.is_file()]
        return sum(each.stat().st_size for each in files)
    except OSError:
        return 0


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut, where the system can."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network file systems cannot; the rename itself is done
    finally:
        os.close(handle)


def make_folder(folder: Path) -> Path:
    """Create `folder` if needed and return it. Raises DownloadError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise DownloadError(
            f"Cannot make the folder {folder} ({failure.strerror}).",
            hint="set DURE_HOME to a folder you may write to",
        ) from None
    return folder


@contextmanager
def locked(folder_name: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock on one model; while another process holds it, call `on_wait` and wait."""
    locks = make_folder(models_folder() / ".locks")
    with (locks / folder_name).open("a+b") as file:
        told = False
        while not _try_lock(file.fileno()):
            if not told:
                on_wait()
                told = True
            time.sleep(0.1)
        yield  # closing the file releases the lock; so does the end of the process


def _try_lock(handle: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as failure:
        # any other error is a file system without locks: go on as if alone
        return failure.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
    return True


def read_json_file(path: Path) -> dict[str, Any]:
    """Read the JSON object in the file at `path`; empty if it cannot be read."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
