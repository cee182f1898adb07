"""Files of packed experts are read by later versions, so the packed bytes have a number."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from dure import kernels
from dure.formats.blocks import BLOCKS, SUPPORTED

# Of layout 1: the record of one expert of each type, whose source blocks are drawn bytes. A type
# that is new takes a line here; one whose digest differs takes the next kernels.LAYOUT, and then
# all of them anew.
DIGESTS: dict[str, str] = {
    "F32": "5dcda2cf27e508f2",
    "F16": "c1434417fa375dd9",
    "Q4_0": "b09771e70fb2c8b5",
    "Q4_1": "7564b5931a4c206d",
    "Q5_0": "07b75fff81ff7d95",
    "Q5_1": "e5f0f2a40f85ad5a",
    "Q8_0": "8d8ab6f3d8a13764",
    "Q2_K": "ddc4b4a94da7e4b1",
    "Q3_K": "c0ca83f420d2edd7",
    "Q4_K": "6a13b0f399f8e2ab",
    "Q5_K": "d8309430e15f28f2",
    "Q6_K": "ca57256c879690f5",
    "IQ4_NL": "b09771e70fb2c8b5",
    "IQ4_XS": "77ff326d88a562c2",
    "BF16": "c1434417fa375dd9",
    "MXFP4": "d2401027bd9b9259",
    "I4G32": "9ac22a66ad912cce",
    "I4G64": "972a07044ba93b73",
    "I4G128": "7dc64101b8c4ff0f",
    "F8G32": "3fa078acca950d9a",
    "F8G128": "7e26b0c880362850",
    "I8G32": "33e02887cdff4c6f",
    "I8G128": "06cdb5a18d9251b6",
    "U8G32": "f92de9be05fce35f",
    "U8G128": "ad10a6f347679f68",
    "A4G32": "808677f792c3024a",
    "A4G64": "ef788081778acbc8",
    "A8G32": "1bf845151eb192a3",
    "A8G64": "cfb447c6a5267329",
    "A2G64": "1e3c018c343bb256",
    "A6G32": "47342eb5a0c31642",
    "A6G64": "32a55f065edd9baf",
    "A4G16": "39e5929dcf1d93d9",
    "A8G16": "71994ee5cf4c053b",
    "NV4G32": "694bc44d4063dca0",
    "NV4G128": "c6de2e237005288b",
    "E8G32": "618d694fa038018e",
    "E8G128": "de3259551ec867ae",
    "B16G64": "f80f0af3878a374f",
    "H16G64": "8382626f9439f475",
}


def digest(dtype: str) -> str:
    """BLAKE2b of the packed record of an expert of 512 x 256."""
    experts = kernels.Experts(1, 512, 256, dtype, dtype, dtype)
    rng = np.random.default_rng(7)
    block = BLOCKS[dtype]
    for part, rows, cols in (("gate", 256, 512), ("up", 256, 512), ("down", 512, 256)):
        raw = rng.integers(0, 256, (rows, cols // block.block_size * block.block_bytes), np.uint8)
        experts.fill(part, 0, raw)  # type: ignore[arg-type]
    return hashlib.blake2b(experts.record(0).tobytes(), digest_size=8).hexdigest()


@pytest.mark.parametrize("dtype", SUPPORTED)
def test_packed_bytes_change_only_with_the_number_of_the_layout(dtype: str) -> None:
    assert kernels.LAYOUT == 1
    assert digest(dtype) == DIGESTS[dtype]
