"""What transformers does not have, in float64 numpy, from the formulas of the papers and of the
makers' own code: one sequence, all at once, no cache."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

Parameters = Mapping[str, np.ndarray]


def normed(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """RMSNorm of the rows of x."""
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def gated(x: np.ndarray, p: Parameters, name: str) -> np.ndarray:
    """down(silu(gate x) * up x)."""
    gate, up, down = (
        p[f"{name}.{part}_proj.weight"].astype(float) for part in ("gate", "up", "down")
    )
    z = x @ gate.T
    return (z / (1 + np.exp(-z)) * (x @ up.T)) @ down.T


def turned(x: np.ndarray, theta: float, first: int) -> np.ndarray:
    """x (tokens, heads, d) rotated by halves, from position `first` on."""
    tokens, _, size = x.shape
    frequencies = theta ** (-np.arange(0, size, 2) / size)
    angles = (first + np.arange(tokens))[:, None, None] * frequencies
    low, high = x[..., : size // 2], x[..., size // 2 :]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def attention(
    x: np.ndarray, p: Parameters, name: str, config: Mapping[str, Any], *, first: int = 0
) -> np.ndarray:
    """Causal attention over the rows of x, which stand at positions from `first` on."""

    def projected(part: str, rows: np.ndarray) -> np.ndarray:
        out = rows @ p[f"{name}.{part}_proj.weight"].astype(float).T
        return out + p.get(f"{name}.{part}_proj.bias", 0.0)

    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config["hidden_size"] // heads
    q = turned(projected("q", x).reshape(-1, heads, size), config["rope_theta"], first)
    k = turned(projected("k", x).reshape(-1, kv_heads, size), config["rope_theta"], first)
    v = projected("v", x).reshape(-1, kv_heads, size)
    out = np.empty_like(q)
    for head in range(heads):
        shared = head // (heads // kv_heads)
        for row in range(len(x)):
            scores = k[: row + 1, shared] @ q[row, head] / np.sqrt(size)
            weights = np.exp(scores - scores.max())
            out[row, head] = weights / weights.sum() @ v[: row + 1, shared]
    return projected("o", out.reshape(len(x), -1))


class PanguProMoE:
    """Pangu Pro MoE: 64 experts in 8 groups at home, any here; one of each group is taken."""

    def __init__(self, config: Mapping[str, Any], draw: Any) -> None:
        self.config = {**config, "model_type": "PanguProMoE"}
        self.parameters = {name: draw(name, shape) for name, shape in self._shapes().items()}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        c = self.config
        hidden, vocabulary = c["hidden_size"], c["vocab_size"]
        kv = hidden // c["num_attention_heads"] * c["num_key_value_heads"]
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (vocabulary, hidden),
            "model.norm.weight": (hidden,),
            "lm_head.weight": (vocabulary, hidden),
        }
        widths = {f"experts.{i}": c["moe_intermediate_size"] for i in range(c["num_experts"])}
        widths["shared_expert"] = c["shared_expert_intermediate_size"]
        for index in range(c["num_hidden_layers"]):
            name = f"model.layers.{index}"
            shapes[f"{name}.input_layernorm.weight"] = (hidden,)
            shapes[f"{name}.post_attention_layernorm.weight"] = (hidden,)
            for part, rows in {"q": hidden, "k": kv, "v": kv, "o": hidden}.items():
                shapes[f"{name}.self_attn.{part}_proj.weight"] = (rows, hidden)
                shapes[f"{name}.self_attn.{part}_proj.bias"] = (rows,)
            shapes[f"{name}.mlp.gate.weight"] = (c["num_experts"], hidden)
            shapes[f"{name}.mlp.router_scale"] = (1, c["num_experts"])
            for expert, width in widths.items():
                for part in ("gate", "up"):
                    shapes[f"{name}.mlp.{expert}.{part}_proj.weight"] = (width, hidden)
                shapes[f"{name}.mlp.{expert}.down_proj.weight"] = (hidden, width)
        return shapes

    def save_pretrained(self, folder: Path) -> None:
        """The folder's config.json and model.safetensors."""
        (folder / "config.json").write_text(json.dumps(self.config))
        save_file(dict(self.parameters), folder / "model.safetensors", metadata={"format": "pt"})

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """(tokens, vocabulary), float32."""
        p, eps = self.parameters, self.config["rms_norm_eps"]
        x = p["model.embed_tokens.weight"][list(tokens)].astype(float)
        for index in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{index}"
            h = normed(x, p[f"{name}.input_layernorm.weight"], eps)
            x = x + attention(h, p, f"{name}.self_attn", self.config)
            h = normed(x, p[f"{name}.post_attention_layernorm.weight"], eps)
            x = x + self._mixture(h, f"{name}.mlp") + gated(h, p, f"{name}.mlp.shared_expert")
        x = normed(x, p["model.norm.weight"], eps)
        return (x @ p["lm_head.weight"].T.astype(float)).astype(np.float32)

    def _mixture(self, x: np.ndarray, name: str) -> np.ndarray:
        scores = x @ self.parameters[f"{name}.gate.weight"].T.astype(float)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        size = self.config["num_experts"] // self.config["num_experts_per_tok"]
        scale = self.parameters[f"{name}.router_scale"][0]
        out = np.zeros_like(x)
        for row in range(len(x)):
            for start in range(0, scores.shape[1], size):
                best = start + int(scores[row, start : start + size].argmax())
                share = scores[row, best] * scale[best]
                out[row] += share * gated(x[row], self.parameters, f"{name}.experts.{best}")
        return out
