"""Run as a script: a line with a digest for every output of the kernels and of tiny models.

What two machines print is compared, so that one may be of another architecture: .ci/aarch64 does.
Arguments: a folder of the models' files, which are written if they are not there; then, if not all
is wanted, `kernels` or `models`.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
from test_same_bits_quantised import FILES, alone
from tiny_gguf import parameters_of, write_gguf
from tiny_models import loaded

from dure import kernels
from dure.batch import CacheDtype

# Of each kind of layer and of each type of a cache at least one.
CACHES: dict[str, tuple[CacheDtype, ...]] = {
    "dense": ("f16", "q8", "f32"),
    "floats": ("f16",),
    "sparse": ("f16",),
    "recurrent": ("f16",),
    "latent": ("f16", "q8"),
    "channels": ("f16",),
}


def digest(array: np.ndarray) -> str:
    """SHA-256 of an array's bits; which NaN a NaN is does not count."""
    if array.dtype == np.float32:
        array = np.where(np.isnan(array), np.float32(np.nan), array)
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def write_models(folder: Path) -> dict[str, Path]:
    """The files of the models, which are made only once."""
    files = {name: folder / f"{name}.gguf" for name in FILES}
    for name, path in files.items():
        if not path.exists():
            config, types = FILES[name]
            write_gguf(path, config, parameters_of(config), types)
    return files


def main(folder: Path, *parts: str) -> None:
    """Print the digests."""
    files = write_models(folder)
    if not parts or "models" in parts:
        for name, caches in CACHES.items():
            for cache in caches:
                bits = alone(loaded(files[name], exact=False), cache)
                print(f"model {name}, cache {cache}:", hashlib.sha256(bits).hexdigest())
        exact = alone(loaded(files["dense"]), "f32")
        print("model dense, in floats:", hashlib.sha256(exact).hexdigest())
    if not parts or "kernels" in parts:
        sys.path.insert(0, str(Path(__file__).parent / "kernels"))
        import isa_outputs  # noqa: PLC0415  # its folder was not there before

        for name, array in isa_outputs.all_outputs().items():
            print(f"{name}:", digest(array))
    print(kernels.isa(), file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
