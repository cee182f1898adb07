"""Compute the logits of oracle weights: finish.py FOLDER BASE [FOLDER BASE…].

FOLDER/oracle/weights.safetensors has the dequantised weights by transformers' names; what the
folder keeps as floats under its own name replaces the base model's. Writes
FOLDER/oracle/logits.safetensors (ids, logits: float32, by transformers in float32), and prints how
far the weights and logits are from the base model's.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def logits(base: Path, tensors: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """Return the float32 logits of the base's architecture with these tensors."""
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copy(base / "config.json", scratch)
        save_file(
            {k: v.float().contiguous() for k, v in tensors.items()},
            Path(scratch) / "model.safetensors",
            metadata={"format": "pt"},
        )
        model, notes = AutoModelForCausalLM.from_pretrained(
            scratch, dtype=torch.float32, output_loading_info=True
        )
        assert not notes["missing_keys"] and not notes["unexpected_keys"], notes
        with torch.no_grad():
            return model(ids).logits


def main(folder: Path, base: Path) -> None:
    """Write the logits beside the weights."""
    start = load_file(base / "model.safetensors")
    tensors = dict(start)
    for path in folder.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            if name in tensors and tensor.dtype in FLOATS and tensor.shape == tensors[name].shape:
                tensors[name] = tensor
    oracle = load_file(folder / "oracle" / "weights.safetensors")
    assert set(oracle) <= set(start), sorted(set(oracle) - set(start))[:5]
    tensors.update(oracle)
    ids = torch.arange(3, 43)[None] * 11 % 500
    got, want = logits(base, tensors, ids), logits(base, start, ids)
    save_file({"ids": ids, "logits": got}, folder / "oracle" / "logits.safetensors")
    error = max(
        float((oracle[k] - start[k].float()).norm() / start[k].float().norm()) for k in oracle
    )
    kl = float(
        (want.log_softmax(-1).exp() * (want.log_softmax(-1) - got.log_softmax(-1))).sum(-1).mean()
    )
    print(f"{folder.name}: {len(oracle)} weights, worst relative error {error:.3f}, KL {kl:.4f}")


if __name__ == "__main__":
    for folder, base in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        main(Path(folder), Path(base))
