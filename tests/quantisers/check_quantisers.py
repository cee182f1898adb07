"""What the real quantisers wrote computes what their own dequantised values compute.

Run by name, after build.py: DURE_QUANTISERS=FOLDER pytest tests/quantisers/check_quantisers.py.
pytest does not collect this file by itself.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from dure import LLM
from dure.errors import DureError

FOLDER = Path(os.environ.get("DURE_QUANTISERS", "quantisers-are-not-built"))
MODELS = sorted(path.parent.parent for path in FOLDER.glob("*/oracle/logits.safetensors"))
# What dure refuses by name, and the word its error has to say.
REFUSED = {"autoround-mxint4": "mx_int", "autoround-nvfp4-e5m3": "nvfp4_v2"}


def test_the_folders_are_there() -> None:
    assert MODELS, f"build them first: python tests/quantisers/build.py {FOLDER}"


@pytest.mark.parametrize("folder", MODELS, ids=lambda path: path.name)
def test_a_quantisers_folder_computes_what_its_own_values_compute(folder: Path) -> None:
    wanted = load_file(folder / "oracle" / "logits.safetensors")
    if folder.name in REFUSED:
        with pytest.raises(DureError, match=REFUSED[folder.name]):
            LLM(folder, exact=True)
        return
    got = LLM(folder, exact=True).logits(wanted["ids"][0].tolist())
    reference = wanted["logits"][0]
    assert np.abs(got - reference).max() <= 1e-4 * np.abs(reference).max()
