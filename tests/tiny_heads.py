"""Draft heads of tiny models: their tensors as makers publish them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tiny_models import drawn

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Form:
    """How a family writes its head; {} is the number of the layer after the last."""

    block: str  # the prefix of the block's tensors
    alike: int  # the layer whose block has tensors of the same kinds
    token_norm: str
    hidden_norm: str
    projection: str
    norm: str  # before the output
    offset: int = 0  # added to a stored norm
    copies: bool = False  # the checkpoint repeats the embedding and the output


def deepseek_form(alike: int, *, copies: bool = False, offset: int = 0) -> Form:
    """The form of DeepSeek's, GLM's and, in GGUF, of all."""
    layer = "model.layers.{}"
    names = (f"{layer}.{part}" for part in ("enorm", "hnorm", "eh_proj", "shared_head.norm"))
    return Form(layer, alike, *names, copies=copies, offset=offset)


_MIMO = "model.mtp_layers.0"
FORMS = {
    "deepseek_v3": deepseek_form(2, copies=True),
    "deepseek_v3-bias": deepseek_form(2),
    "glm4_moe": deepseek_form(1, copies=True),
    "glm4_moe-air": deepseek_form(2),
    "glm4_moe_lite": deepseek_form(2),
    "hy_v3": deepseek_form(2),
    "bailing_moe_v2": replace(deepseek_form(2), norm="model.layers.{}.final_layernorm"),
    **{
        name: Form(
            "mtp.layers.0",
            3,
            "mtp.pre_fc_norm_embedding",
            "mtp.pre_fc_norm_hidden",
            "mtp.fc",
            "mtp.norm",
            offset=1,
        )
        for name in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
    },
    "ernie4_5_moe": Form(
        "model.mtp_block.0",
        0,
        "model.mtp_emb_norm.0",
        "model.mtp_hidden_norm.0",
        "model.mtp_linear_proj.0",
        "model.norm",
    ),
    "mimo": Form(
        _MIMO,
        1,
        f"{_MIMO}.token_layernorm",
        f"{_MIMO}.hidden_layernorm",
        f"{_MIMO}.input_proj",
        f"{_MIMO}.final_layernorm",
    ),
}


def head_parameters(form: Form, config: dict[str, Any], parameters: Arrays) -> Arrays:
    """Drawn tensors of a head for the model that has these parameters."""
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    alike = f"model.layers.{form.alike}."
    shapes: dict[str, tuple[int, ...]] = {
        name.replace(alike, f"{form.block}."): values.shape
        for name, values in parameters.items()
        if name.startswith(alike)
    }
    for norm in (form.token_norm, form.hidden_norm, form.norm):
        if norm != "model.norm":
            shapes[f"{norm}.weight"] = (hidden,)
    shapes[f"{form.projection}.weight"] = (hidden, 2 * hidden)
    made = {}
    if form.copies:
        block = form.block.format(layers)
        made[f"{block}.embed_tokens.weight"] = parameters["model.embed_tokens.weight"].copy()
        made[f"{block}.shared_head.head.weight"] = parameters["lm_head.weight"].copy()
    for name, shape in shapes.items():
        values = drawn(name, shape)
        if "norm" in name and name.endswith((".0.weight", "embedding.weight", "hidden.weight")):
            values = values + np.float32(1 - form.offset)
        made[name.format(layers)] = values
    return made
