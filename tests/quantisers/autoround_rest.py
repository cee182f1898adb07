"""Oracles for AutoRound folders that its own loader takes as plain floats on a CPU ("fake").

autoround_rest.py FOLDER…: each quantised layer is rebuilt by hand from AutoRound's own torch layer
(auto_round_extension.torch.qlinear_torch_zp for GPTQ packing) and fed the identity matrix.
"""

import json
import sys
from pathlib import Path

import torch
from auto_round_extension.torch.qlinear_torch_zp import QuantLinear
from safetensors.torch import load_file, save_file

for folder in map(Path, sys.argv[1:]):
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    tensors = load_file(folder / "model.safetensors")
    weights = {}
    for name in [k.removesuffix(".qweight") for k in tensors if k.endswith(".qweight")]:
        scales = tensors[f"{name}.scales"]
        bits = config["bits"]
        width, height = tensors[f"{name}.qweight"].shape[0] * 32 // bits, scales.shape[1]
        layer = QuantLinear(bits, width // scales.shape[0], width, height, False)
        layer.qweight = tensors[f"{name}.qweight"]
        layer.qzeros = tensors[f"{name}.qzeros"]
        layer.scales = scales.float()
        layer.post_init()
        with torch.no_grad():
            weights[f"{name}.weight"] = layer(torch.eye(width)).float().T.contiguous()
    (folder / "oracle").mkdir(exist_ok=True)
    save_file(weights, folder / "oracle" / "weights.safetensors")
