"""Readers of what `dure convert` writes: folders of packed experts."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuzz_files import Files, FolderReader, folder_of, side_files
from mutations import damaged_bytes, damaged_json, json_bytes
from reader import Reader

from dure.convert.folder import pack_folder
from dure.formats.expert_file import FILE_NAME, PAGE, file_facts

_PREFIX = struct.Struct("<8sII32s")  # magic, version, length and digest of the header


class Packed(FolderReader):
    """experts.dure and the file beside it, damaged; digests are made anew, so that more is read."""

    name = "packed"
    weight = 3

    def __init__(self, folder: Path, *, small: bool = False) -> None:
        super().__init__(folder, small=small)
        import packed_mixtures  # noqa: PLC0415

        side, size = side_files(folder)
        self.bases = []
        layouts = ("gptq desc_act",) if small else ("bfloat16", "fp8", "gptq desc_act", "mlx")
        made = [
            packed_mixtures.mixture(folder / f"{n}", layout, vocab_size=size)
            for n, layout in enumerate(layouts)
        ]
        made.append(packed_mixtures.gguf_mixture(folder / "in.gguf", "Q4_0", vocab_size=size))
        for number, source in enumerate(made):
            out = folder / f"{number}.dure"
            pack_folder(source, out)
            self.bases.append(folder_of(out) | (side if source.is_dir() else {}))

    def draw(self, rng: random.Random) -> Files:
        files = dict(rng.choice(self.bases))
        kind = rng.random()
        whole = files[FILE_NAME]
        if kind < 0.15:
            files[FILE_NAME] = damaged_bytes(rng, whole, head=rng.choice((8, 16, 48, 4096)))
            return files
        header, records = _parts(whole)
        if kind < 0.3:
            self._replace_weights(rng, files, header)
        elif kind < 0.4:
            records = damaged_bytes(rng, records)
        else:
            header = damaged_json(rng, header, header["layers"])
        files[FILE_NAME] = _sealed(json_bytes(rng, header), records)
        return files

    def _replace_weights(self, rng: random.Random, files: Files, header: Any) -> None:
        """Damage the other tensors' file, and let the header say that this is the right one."""
        name = header["weights"]["name"]
        files[name] = damaged_bytes(rng, files[name], head=rng.choice((64, 4096)))
        path = self.folder / name
        path.write_bytes(files[name])
        header["weights"] = vars(file_facts(path))
        path.unlink()


def _parts(whole: bytes) -> tuple[Any, bytes]:
    """The header of a sound file, and its records."""
    size = _PREFIX.unpack_from(whole)[2]
    end = _PREFIX.size + size
    return json.loads(whole[_PREFIX.size : end]), whole[-(-end // PAGE) * PAGE :]


def _sealed(text: bytes, records: bytes) -> bytes:
    """A file with that header, whose digest is right."""
    digest = hashlib.blake2b(text, digest_size=32).digest()
    head = _PREFIX.pack(b"DURE\r\n\x1a\n", 1, len(text), digest) + text
    return head + bytes(-len(head) % PAGE) + records


PACKED_READERS: Mapping[str, type[Reader]] = {Packed.name: Packed}
