"""Fetch the headers of a model's files and its config, by range requests, and nothing else.

They are put into files of the right names and sizes, with a hole where the weights would be: so
whatever opens a model opens these. Nothing reads the weights of such a file.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from threading import Lock

from dure.errors import DownloadError, DureError, UnsupportedModelError
from dure.formats.gguf import header_end
from dure.formats.safetensors import INDEX_NAME, read_safetensors
from dure.hub.catalogue import Source
from dure.hub.http import RefusedError, UnreachableError, host_of, open_url, unreachable
from dure.hub.names import ModelName
from dure.hub.remote import Listing, check_online, list_huggingface, list_modelscope
from dure.hub.repository import RemoteFile, check_paths, choose_files
from dure.hub.types import Progress, Timeouts, human_bytes

MOST_BYTES = 30_000_000
"""Fetched of one model at most. The tokenizer in a GGUF's header has 6 MB; a mixture of a trillion
weights in safetensors has headers of 20 MB."""

_FIRST_BYTES = 256 << 10  # of a GGUF file
_STEP_BYTES = 64 << 10  # more of it, at least
_SAFETENSORS_BYTES = 64 << 10  # at first, of each file: one layer's tensors are a few kB
_AT_ONCE = 8
_MOST_JSON_BYTES = 8 << 20
_CONFIGS = ("config.json", "generation_config.json", "hf_quant_config.json")
_ASCEND = "quant_model_description"


@dataclass
class RemoteHeaders:
    """What was fetched: the `path` to open, and how many bytes of how many."""

    name: str
    path: Path
    source: str  # the hub's address
    model_bytes: int  # of all files that a pull would fetch
    fetched_bytes: int = 0


@contextmanager
def remote_headers(
    name: ModelName,
    sources: Sequence[Source],
    *,
    patience: Timeouts | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Iterator[RemoteHeaders]:
    """Fetch the headers of a model on a hub into a folder that is removed at the end.

    sources: hubs to try in turn; others than hubs are passed over. Raises DownloadError,
    ModelNotFoundError or UnsupportedModelError if none of them has it or can send it in parts.
    """
    check_online(name.text)
    hubs = [source for source in sources if source.kind != "pypi"]
    if not hubs:
        raise DownloadError(
            f"{name.text} comes from a package index, which sends no parts of a model.",
            hint=f"dure pull {name.text}",
        )
    failures: list[DureError] = []
    with _temporary_folder() as folder:
        found = None
        for number, source in enumerate(hubs):
            target = folder / str(number)
            fetch = _Fetch(name, target, patience or Timeouts(), progress or (lambda _: None))
            try:
                target.mkdir()
                found = fetch.run(source)
                break
            except DureError as error:
                failures.append(error)
            except OSError as error:  # of the folder: requests raise DownloadError
                failures.append(_not_kept(folder, error))
        if found is None:
            raise failures[0]
        yield found


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Make a folder that is removed at the end. Raises DownloadError."""
    try:
        made = tempfile.TemporaryDirectory(prefix="dure-headers-")
    except OSError as error:
        raise _not_kept(Path(os.environ.get("TMPDIR", "")), error) from None
    with made as folder:
        yield Path(folder)


def _not_kept(folder: Path, error: OSError) -> DownloadError:
    """Build the error for headers that cannot be written."""
    return DownloadError(
        f"The headers cannot be kept in {folder} ({error.strerror or error}).",
        hint="set TMPDIR to a folder whose disk takes large files with holes",
    )


@dataclass
class _Fetch:
    """The headers of one model from one hub."""

    name: ModelName
    folder: Path
    patience: Timeouts
    progress: Callable[[Progress], None]
    fetched: int = 0
    _lock: Lock = field(default_factory=Lock)

    def run(self, source: Source) -> RemoteHeaders:
        """Fetch them. Raises the errors of the hub."""
        ask = list_modelscope if source.kind == "modelscope" else list_huggingface
        listing = ask(source.repo, self.name.revision, self.patience)
        chosen = choose_files(listing.files, source.quant, source.repo)
        configs = [each for each in listing.files if _is_config(each.path)]
        check_paths([*chosen, *configs])
        folded = (".gguf", ".safetensors")
        weights = [each for each in chosen if each.path.casefold().endswith(folded)]
        if weights[0].path.casefold().endswith(".gguf"):
            for file in weights:
                self._gguf(listing, file)
            path = self.folder / weights[0].name
        else:
            self._folder(listing, weights, configs)
            path = self.folder
        size = sum(file.check.size_bytes for file in chosen)
        return RemoteHeaders(self.name.text, path, listing.source, size, self.fetched)

    def _gguf(self, listing: Listing, file: RemoteFile) -> None:
        """Fetch the beginning of a GGUF file until its header is complete."""
        path, size = self.folder / file.name, file.check.size_bytes
        have, wanted = 0, min(size, _FIRST_BYTES)
        with path.open("wb") as out:
            while True:
                out.write(self._range(listing, file, have, wanted))
                out.flush()
                have = wanted
                end, complete = header_end(path)
                if complete or have == size:
                    break
                wanted = min(size, max(end, have + _STEP_BYTES))
            out.truncate(size)

    def _folder(
        self, listing: Listing, weights: Sequence[RemoteFile], configs: Sequence[RemoteFile]
    ) -> None:
        """Fetch the config and the headers of all files of a folder; write the index anew.

        The hub's own index says nothing that the headers do not, and is as large as they are.
        """
        for file in configs:
            if file.check.size_bytes > _MOST_JSON_BYTES:
                raise DownloadError(
                    f"{file.path} of {self.name.text} has {human_bytes(file.check.size_bytes)}, "
                    f"and a plan fetches at most {human_bytes(_MOST_JSON_BYTES)} of such a file.",
                    hint=f"dure pull {self.name.text}, then plan it",
                )
            data = self._range(listing, file, 0, file.check.size_bytes)
            (self.folder / file.name).write_bytes(data)
        self._check_method()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda file: self._safetensors(listing, file), weights))
        if len(weights) > 1 and not (self.folder / "model.safetensors").exists():
            where = {
                tensor: file.name
                for file in weights
                for tensor in read_safetensors(self.folder / file.name)
            }
            (self.folder / INDEX_NAME).write_text(json.dumps({"weight_map": where}))

    def _check_method(self) -> None:
        """Raise UnsupportedModelError for folders whose headers do not say how they are stored."""
        try:
            config = json.loads((self.folder / "config.json").read_bytes())
            method = config["quantization_config"]["quant_method"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return
        if method == "bitsandbytes":
            raise UnsupportedModelError(
                f"{self.name.text} is stored by bitsandbytes, which writes the shapes of its "
                "matrices among the weights, so its headers alone are no plan.",
                hint=f"dure pull {self.name.text}",
            )

    def _safetensors(self, listing: Listing, file: RemoteFile) -> None:
        path, size = self.folder / file.name, file.check.size_bytes
        data = self._range(listing, file, 0, min(size, _SAFETENSORS_BYTES))
        end = min(size, 8 + int.from_bytes(data[:8], "little"))
        if end > len(data):
            data += self._range(listing, file, len(data), end)
        with path.open("wb") as out:
            out.write(data[:end])
            out.truncate(size)

    def _range(self, listing: Listing, file: RemoteFile, start: int, stop: int) -> bytes:
        """Fetch bytes `start` to `stop` (excluded) of a file; try again as a download does."""
        if stop <= start:
            return b""
        with self._lock:
            self.fetched += stop - start
            if self.fetched > MOST_BYTES:
                raise DownloadError(
                    f"The headers of {self.name.text} are larger than {human_bytes(MOST_BYTES)}.",
                    hint=f"dure pull {self.name.text}",
                )
            done = self.fetched
        for failures in range(self.patience.attempts):
            try:
                data = _read_range(listing, file, start, stop, self.patience)
                break
            except (UnreachableError, RefusedError) as failure:
                if isinstance(failure, RefusedError) and not failure.worth_retrying:
                    raise
                if failures + 1 == self.patience.attempts:
                    raise
                time.sleep(self.patience.backoff_s * 2**failures)
        self.progress(Progress(self.name.text, "asking", done, 0, listing.source))
        return data


def _is_config(path: str) -> bool:
    return path in _CONFIGS or (path.startswith(_ASCEND) and path.endswith(".json"))


def _read_range(
    listing: Listing, file: RemoteFile, start: int, stop: int, patience: Timeouts
) -> bytes:
    """Request a range once. Raises DownloadError if the server sends anything else."""
    url, size = listing.url(file), file.check.size_bytes
    headers = {**listing.headers, "Range": f"bytes={start}-{stop - 1}"}
    with open_url(url, headers=headers, timeout_s=patience.read_s) as response:
        whole = response.status == 200 and (start, stop) == (0, size)
        if response.status != 206 and not whole:
            raise DownloadError(
                f"{host_of(url)} sends {file.name} only whole ({human_bytes(size)}), so it cannot "
                "be planned before it is here.",
                hint="download it (dure pull), then plan it",
            )
        said = response.headers.get("Content-Range", "")
        if not whole and said != f"bytes {start}-{stop - 1}/{size}":
            raise DownloadError(
                f"{host_of(url)} was asked for bytes {start}-{stop - 1} of {size} of {file.name}, "
                f"and sent {said[:80]!r}.",
                hint="the repository may have changed: try again",
            )
        try:
            data: bytes = response.read(stop - start)
        except (OSError, HTTPException) as failure:
            raise unreachable(url, failure) from None
    if len(data) != stop - start:
        raise UnreachableError(f"{host_of(url)} broke off while it sent {file.name}.")
    return data
