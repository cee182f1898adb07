#!/usr/bin/env bash
# AutoRound 0.16.1 writes a zero point of 0 as 1 in its GPTQ layout: such groups come out a step low.
#
# GPTQ's first version stores each zero point minus one. For asymmetric weights a group without
# negative weights has zero point 0. AutoRound clamps 0 - 1 to 0, which every reader takes for 1 (its
# own too), while the codes were computed with 0: all weights of the group are lowered by one step.
# The same model in AutoRound's own layout ("auto_round", zero points as they are) has no such loss.
# (GPTQModel wraps round instead, and borrows from the neighbour, which its reader undoes.)
#
# Expected before it was run: a stored 15 (0 - 1 in four bits), as GPTQModel writes it.
# Exits 0 while this is so, 1 when the behaviour changes. Installs into a temporary folder; CPU only.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "torch==2.13.0" "transformers==5.24.0" "auto-round==0.16.1"

cat > "$work/run.py" <<'PYTHON'
import sys
from pathlib import Path

import auto_round
import torch
from auto_round import AutoRound
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

work = Path(sys.argv[1])
config = LlamaConfig(
    vocab_size=128, hidden_size=128, intermediate_size=256, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128)
words = Tokenizer(models.WordLevel({str(n): n for n in range(128)}, "0"))


def model():
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config).to(torch.float32)
    weight = made.model.layers[0].mlp.up_proj.weight.data
    weight[::2] = weight[::2].abs()  # every other row has no negative weight
    return made


def restored(tensors, name, lowered):
    shifts = torch.arange(0, 32, 4)
    codes = ((tensors[f"{name}.qweight"][:, None] >> shifts[:, None]) & 15).flatten(0, 1)
    zeros = ((tensors[f"{name}.qzeros"][..., None] >> shifts) & 15).flatten(1)
    stored_zero = int((zeros == 0).sum())
    scales = tensors[f"{name}.scales"].float()
    size = codes.shape[0] // scales.shape[0]
    spread = lambda grid: grid.repeat_interleave(size, 0)
    return ((codes - spread(zeros + lowered)) * spread(scales)).T, spread(scales).T, stored_zero


print("auto-round", auto_round.__version__, "torch", torch.__version__)
name = "model.layers.0.mlp.up_proj"
true = model().model.layers[0].mlp.up_proj.weight.data
steps = {}
for form, lowered in (("auto_round:gptqmodel", 0), ("auto_gptq", 1)):
    out = work / form.replace(":", "-")
    tool = AutoRound(
        model(), PreTrainedTokenizerFast(tokenizer_object=words), scheme="W4A16G32", sym=False, iters=0,
        device_map="cpu", disable_opt_rtn=True)
    tool.quantize_and_save(str(out), format=form)
    tensors = {}
    for path in out.rglob("*.safetensors"):
        tensors |= load_file(path)
    weight, scales, stored = restored(tensors, name, lowered)
    steps[form] = [float(((weight - true) / scales)[part::2].mean()) for part in (0, 1)]
    print(f"{form}: rows without negative weights are off by {steps[form][0]:+.2f} steps on average, "
          f"the others by {steps[form][1]:+.2f}; {stored} zero points stored as 0")
right, wrong = steps["auto_round:gptqmodel"], steps["auto_gptq"]
same = max(abs(s) for s in right) < 0.1 and abs(wrong[0] + 1) < 0.1 and abs(wrong[1]) < 0.1
print("as described" if same else "CHANGED: this is no longer so")
sys.exit(not same)
PYTHON

"$work/venv/bin/python" "$work/run.py" "$work" 2> "$work/log" | grep -v "INFO\|WARNING\|it/s" || { tail -20 "$work/log"; exit 1; }
