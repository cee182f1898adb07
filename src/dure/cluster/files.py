"""Are these the same files as on another node? A fingerprint that costs no full read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from dure import hub
from dure.errors import DureError, ModelFileError
from dure.formats.checkpoint import open_checkpoint

if TYPE_CHECKING:
    from dure.formats.checkpoint import Checkpoint

_SAMPLES, _SAMPLE_BYTES = 256, 16384


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return 32 hexadecimal digits of a checkpoint's files, wherever they lie.

    These are BLAKE2b over each file's size and 256 pieces of 16 KiB from its first byte to its
    last, and what the checkpoint says of itself: other weights, sizes or types give other digits.
    A few changed bytes between two pieces of a large file do not: that is the disk's business.
    """
    sources = {tensor.source for tensor in checkpoint.tensors.values()}
    if checkpoint.experts is not None and checkpoint.experts.source is not None:
        sources.add(checkpoint.experts.source)
    digests = sorted(_of_file(source.path) for source in sources)
    said = json.dumps(checkpoint.config, sort_keys=True, default=str)
    tensors = sorted((name, t.dtype, t.shape, t.offset) for name, t in checkpoint.tensors.items())
    whole = hashlib.blake2b(digest_size=16)
    whole.update("\n".join([*digests, said, repr(tensors)]).encode())
    return whole.hexdigest()


def find(path: str, name: str, expected: str) -> Checkpoint:
    """Open the same checkpoint on this node: at `path`, or by its name, which may download it.

    Raises ModelFileError if neither is here, or what is here is another.
    """
    tried = []
    if Path(path).exists():
        found = open_checkpoint(path)
        if fingerprint(found) == expected:
            return found
        tried.append(f"{path} holds other bytes")
    else:
        tried.append(f"{path} is not there")
    if hub.parse_name(name).path is None:
        try:
            found = open_checkpoint(hub.resolve(name).path)
        except DureError as error:
            tried.append(error.message.rstrip("."))
        else:
            if fingerprint(found) == expected:
                return found
            tried.append(f"what {name} means here is another")
    raise ModelFileError(
        f"A node has not the server's files of {name}: {'; '.join(tried)}.",
        hint="copy the model to the same path on every node, or share the folder",
    )


def _of_file(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    size = path.stat().st_size
    digest.update(size.to_bytes(8, "little"))
    step = max(_SAMPLE_BYTES, (size - _SAMPLE_BYTES) // (_SAMPLES - 1) + 1)
    with path.open("rb") as file:
        for offset in [*range(0, size, step), max(0, size - _SAMPLE_BYTES)]:
            file.seek(offset)
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
