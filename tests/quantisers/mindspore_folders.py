"""Write the base models as MindSpore keeps them: mindspore_folders.py BASE OUT.

`mindspore.save_checkpoint` of a parameter dict, as .ckpt (protobuf), as one .safetensors, in
bfloat16, float16 and float32. Nothing is quantised: the oracle is the base (or its rounding).
Names are transformers', as MindSpore's converted folders of Hugging Face models have them.
"""

import shutil
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from safetensors.numpy import save_file


def load(path: Path) -> dict[str, np.ndarray]:
    """Read a bfloat16 safetensors file as float32."""
    import json
    import struct

    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    head = json.loads(data[8 : 8 + size])
    head.pop("__metadata__", None)
    found = {}
    for name, entry in head.items():
        a, b = entry["data_offsets"]
        raw = np.frombuffer(data[8 + size + a : 8 + size + b], "<u2").astype("<u4") << 16
        found[name] = raw.view("<f4").reshape(entry["shape"])
    return found


def main(bases: Path, out: Path) -> None:
    """Write one folder a form."""
    for base in ("qwen2", "qwen3_moe"):
        tensors = load(bases / base / "model.safetensors")
        for form, dtype in (
            ("ckpt", ms.bfloat16),
            ("ckpt", ms.float16),
            ("ckpt", ms.float32),
            ("safetensors", ms.bfloat16),
        ):
            short = {ms.bfloat16: "bf16", ms.float16: "f16", ms.float32: "f32"}[dtype]
            if base == "qwen3_moe" and short != "bf16":
                continue
            folder = out / f"mindspore-{form}-{short}{'-moe' if 'moe' in base else ''}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            items = [
                {"name": n, "data": ms.Parameter(ms.Tensor(t, dtype), name=n)}
                for n, t in tensors.items()
            ]
            ms.save_checkpoint(items, str(folder / f"model.{form}"), format=form)
            for extra in ("config.json", "tokenizer.json", "tokenizer_config.json"):
                shutil.copy(bases / base / extra, folder)
            weights = {
                n: (t.astype(np.float16) if short == "f16" else t).astype(np.float32)
                for n, t in tensors.items()
                if t.ndim == 2
            }
            (folder / "oracle").mkdir()
            save_file(weights, folder / "oracle" / "weights.safetensors")
            print(folder, [p.name for p in folder.iterdir()])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
