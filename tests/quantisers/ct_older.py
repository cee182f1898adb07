"""Repack a 3-bit folder as an older compressed-tensors does.

ct_older.py codes|pack FOLDER OUT CODES

`codes` runs with today's version (dense bit stream), `pack` with 0.12.2 (ten codes in an int32, two
bits unused). config.json's version is set to the older one; values, scales and oracle are the same.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

mode, folder, out, codes = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
tensors = load_file(folder / "model.safetensors")
packed = [k for k in tensors if k.endswith("weight_packed")]
if mode == "codes":
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    torch.save(
        {
            k: unpack_from_int32(tensors[k], 3, tuple(tensors[k[:-6] + "shape"].tolist()))
            for k in packed
        },
        codes,
    )
else:
    from compressed_tensors.compressors.quantized_compressors.pack_quantized import pack_to_int32

    for key, value in torch.load(codes).items():
        tensors[key] = pack_to_int32(value, 3)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"]["version"] = "0.12.2"
    (out / "config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
