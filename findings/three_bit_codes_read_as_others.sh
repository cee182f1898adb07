#!/usr/bin/env bash
# compressed-tensors 0.19.0 reads 3-bit weights that 0.12.2 packed as other weights, without an error.
#
# Both versions write `format: pack-quantized`, `num_bits: 3`. 0.12.2 puts ten codes into each int32
# and leaves two bits unused; 0.19.0 writes one dense stream, in which codes cross words. The newer
# reader takes the first words of the older tensor as its own stream: of the 256 codes of a row only
# the first ten are right, and about seven in eight of the rest are others. 2, 4 and 8 bits agree,
# as there no bits were unused. Only the width of weight_packed (26 words, not 24) tells them apart.
#
# Expected before it was run: an error about the shape, as the stored tensor is wider than it can be.
# Exits 0 while this is so, 1 when the behaviour changes. Installs into a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "torch==2.13.0" "transformers==5.17.0" "compressed-tensors==0.19.0"
"$work/venv/bin/pip" install -q --no-deps --target "$work/older" "compressed-tensors==0.12.2"

cat > "$work/write.py" <<'PYTHON'
import sys

import compressed_tensors
import torch
from compressed_tensors.compressors.quantized_compressors.pack_quantized import (
    pack_to_int32, unpack_from_int32)

stored = {}
for bits in (2, 3, 4, 8):
    low, high = -(1 << (bits - 1)), 1 << (bits - 1)
    codes = torch.randint(low, high, (64, 256), generator=torch.Generator().manual_seed(1)).to(torch.int8)
    packed = pack_to_int32(codes, bits)
    assert torch.equal(unpack_from_int32(packed, bits, codes.shape), codes)
    stored[bits] = (codes, packed)
print("written and read back by compressed-tensors", compressed_tensors.__version__)
torch.save(stored, sys.argv[1])
PYTHON

cat > "$work/read.py" <<'PYTHON'
import sys

import compressed_tensors
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

print("read by compressed-tensors", compressed_tensors.__version__)
wrong = {}
for bits, (codes, packed) in torch.load(sys.argv[1]).items():
    scheme = QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(num_bits=bits, strategy="channel", symmetric=True))
    state = {"weight_packed": packed, "weight_scale": torch.ones(64, 1), "weight_shape": torch.tensor([64, 256])}
    read = BaseCompressor.get_value_from_registry("pack-quantized").decompress(state, scheme)["weight"]
    wrong[bits] = float((read != codes).float().mean())
    print(f"{bits} bits: weight_packed {tuple(packed.shape)}, {100 * wrong[bits]:.1f} % of the weights differ")
same = wrong[2] == wrong[4] == wrong[8] == 0 and wrong[3] > 0.7
print("as described" if same else "CHANGED: this is no longer so")
sys.exit(not same)
PYTHON

PYTHONPATH="$work/older" "$work/venv/bin/python" "$work/write.py" "$work/codes.pt"
"$work/venv/bin/python" "$work/read.py" "$work/codes.pt"
