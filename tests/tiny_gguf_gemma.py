"""What llama.cpp's converters write for Gemma."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np

Arrays = dict[str, np.ndarray]


def with_whole_norms(parameters: Arrays) -> Arrays:
    """Gemma 3's parameters with the 1 that its folders leave out of every norm."""
    return {
        name: values + np.float32(1) if name.endswith("norm.weight") else values
        for name, values in parameters.items()
    }


def add_gemma_keys(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    """The windows, the base of their rotation, and the cap of logits."""
    writer.add_sliding_window(config["sliding_window"])
    kinds = config["layer_types"]
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in kinds])
    writer.add_rope_freq_base_swa(config["rope_parameters"]["sliding_attention"]["rope_theta"])
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
