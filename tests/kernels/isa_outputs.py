"""Run as a script: every kernel once on fixed inputs, its outputs saved to the .npz file named."""

from __future__ import annotations

import sys

import numpy as np
from kernel_inputs import (
    columns,
    constant_raw,
    packed,
    paged_latents,
    paged_sequences,
    random_activations,
)
from kernel_inputs import random_raw as blocks

from dure import kernels
from dure.kernels.dequantize import LAYOUTS, QUANTIZED_TYPES, block_size
from dure.kernels.quantize_reference import TYPES as QUANTIZER_TYPES


def products(outputs: dict[str, np.ndarray]) -> None:
    """Matrix products of every type, for tiles of every width, and of extreme codes."""
    rng = np.random.default_rng(1)
    for dtype in LAYOUTS:
        for cols in (columns(dtype)[0], columns(dtype)[-1]):
            w, x = (
                packed(dtype, blocks(rng, dtype, 17, cols), cols),
                random_activations(rng, 13, cols),
            )
            for n in (1, 2, 3, 5, 6, 7, 8, 9, 11, 13):
                outputs[f"matmul {dtype} {cols} {n}"] = kernels.matmul(x[:n], w)
            outputs[f"exact {dtype} {cols}"] = kernels.matmul(x, w, exact=True)
    for dtype in ("F32", "BF16", "F8G128"):  # seven panels: of floats, some are multiplied together
        cols = columns(dtype)[-1]
        w, x = packed(dtype, blocks(rng, dtype, 100, cols), cols), random_activations(rng, 13, cols)
        for n in (1, 2, 3, 6, 13):
            outputs[f"panels {dtype} {n}"] = kernels.matmul(x[:n], w)
    for dtype in QUANTIZED_TYPES:
        cols = 2 * block_size(dtype)
        for byte in (0x00, 0xFF, 0x80, 0x7F, 0x88, 0x77):
            w = packed(dtype, constant_raw(dtype, 17, cols, byte, 65504.0), cols)
            x = np.full((9, cols), 127, np.float32)
            x[::2, ::2] *= -1
            outputs[f"extreme {dtype} {byte}"] = kernels.matmul(x, w)
    x = random_activations(rng, 9, 96) * np.float32(2.0) ** rng.integers(-140, 120, (9, 1))
    floats = random_activations(rng, 5, 768)
    for dtype in QUANTIZER_TYPES:
        outputs[f"blocks {dtype}"] = kernels.quantize_blocks(dtype, floats)
    outputs["values"], outputs["scales"] = kernels.quantize_rows(x.astype(np.float32))


def rows(outputs: dict[str, np.ndarray]) -> None:
    """The operations that work on each row by itself."""
    rng = np.random.default_rng(2)
    for width in (7, 64, 100):
        x, up = rng.normal(0, 3, (2, 9, width)).astype(np.float32)
        outputs[f"norm {width}"] = kernels.rms_norm(x, up[0], 1e-6)
        if width % 32 == 0:
            w = packed("Q8_0", blocks(rng, "Q8_0", 17, width), width)
            outputs[f"normed {width}"] = kernels.matmul(kernels.Activations(x, up[0], 1e-6), w)
        outputs[f"silu {width}"] = kernels.silu_mul(x, up)
    gate = np.concatenate([np.linspace(-120, 120, 4001), [0.0, -0.0, 1e30, -1e30, np.inf, np.nan]])
    gate = gate.astype(np.float32)[None]
    outputs["silu range"] = kernels.silu_mul(gate, np.ones_like(gate))
    angles = rng.uniform(-99, 99, (9, 20))
    for interleaved in (False, True):
        x = rng.normal(0, 1, (9, 3, 48)).astype(np.float32)
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        kernels.rope(x, cos, sin, interleaved=interleaved)
        outputs[f"rope {interleaved}"] = x
    logits = rng.normal(0, 2, (9, 60)).astype(np.float32)
    for score in ("softmax", "sigmoid"):
        outputs[f"ids {score}"], outputs[f"weights {score}"] = kernels.route(
            logits, top_k=6, normalize=True, score=score
        )


def sampling(outputs: dict[str, np.ndarray]) -> None:
    """Draws and log-probabilities of a vocabulary that fills no register evenly."""
    logits = np.random.default_rng(5).normal(0, 3, 5003).astype(np.float32)
    plain = {"temperature": 1.3, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    for name, setting in {"all": {}, "top_k": {"top_k": 90}, "top_p": {"top_p": 0.7}}.items():
        drawn = [kernels.sample(logits, **{**plain, **setting}, uniform=u / 99) for u in range(99)]
        outputs[f"draws {name}"] = np.array(drawn)
    outputs["top ids"], outputs["top logprobs"] = kernels.top_logprobs(logits, 40)


def attention(outputs: dict[str, np.ndarray]) -> None:
    """Mixed rows over float16, float32 and int8 caches."""
    for dtype in (np.float16, np.float32, np.uint8):
        for heads, kv_heads, d in ((4, 2, 24), (7, 1, 64), (16, 2, 80)):
            for window in (None, 40):
                rng = np.random.default_rng(3)
                paged = paged_sequences(
                    rng, [(0, 70), (100, 1), (40, 5), (600, 9)], kv_heads, d, dtype
                )
                q = rng.normal(0, 2, (len(paged.positions), heads, d)).astype(np.float32)
                outputs[f"attention {np.dtype(dtype)} {heads} {d} {window}"] = (
                    kernels.paged_attention(
                        q, *paged.arguments, scale=0.3, window=window, threads=2
                    )
                )


def sinks(outputs: dict[str, np.ndarray]) -> None:
    """Mixed rows with sinks, and values of another width than keys."""
    rng = np.random.default_rng(7)
    for dtype in (np.float16, np.float32, np.uint8):
        for heads, kv_heads, d, e in ((4, 2, 24, 16), (16, 2, 192, 128)):
            spans = [(0, 70), (100, 1), (600, 9)]
            paged = paged_sequences(rng, spans, kv_heads, d, dtype, values=e)
            q = rng.normal(0, 2, (len(paged.positions), heads, d)).astype(np.float32)
            scores = rng.normal(0, 2, heads).astype(np.float32)
            more = {"scale": 0.1, "window": 128, "sinks": scores, "values": e, "value_scale": 0.7}
            outputs[f"sinks {np.dtype(dtype)} {d}"] = kernels.paged_attention(
                q, *paged.arguments, **more, threads=2
            )


def latent(outputs: dict[str, np.ndarray]) -> None:
    """Mixed rows over latent caches of every kind."""
    rng = np.random.default_rng(5)
    for dtype in (np.float16, np.float32, np.uint8):
        for heads, size, rotated in ((7, 64, 20), (16, 512, 64)):
            paged = paged_latents(rng, [(0, 70), (300, 1), (40, 5)], size, rotated, dtype)
            q = rng.normal(0, 2, (len(paged.positions), heads, size + rotated)).astype(np.float32)
            outputs[f"latent {np.dtype(dtype)} {heads}"] = kernels.latent_attention(
                q, *paged.only(slice(None)), latent=size, scale=0.2, threads=2
            )


def experts(outputs: dict[str, np.ndarray]) -> None:
    """A mixture in int8 and in floats."""
    rng = np.random.default_rng(4)
    mixture = kernels.Experts(4, 256, 96, "Q4_K", "Q5_K", "Q5_0")
    for expert in range(4):
        mixture.fill("gate", expert, blocks(rng, "Q4_K", 96, 256))
        mixture.fill("up", expert, blocks(rng, "Q5_K", 96, 256))
        mixture.fill("down", expert, blocks(rng, "Q5_0", 256, 96))
    x = random_activations(rng, 30, 256)
    ids = np.array([rng.permutation(4)[:2] for _ in range(30)], np.int32)
    weights = rng.uniform(0, 1, (30, 2)).astype(np.float32)
    for exact in (False, True):
        outputs[f"experts {exact}"] = kernels.experts_mlp(x, ids, weights, mixture, exact=exact)
    mixture.use_gelu()
    for exact in (False, True):
        outputs[f"gelu {exact}"] = kernels.experts_mlp(x, ids, weights, mixture, exact=exact)
    biases = (rng.normal(0, 1, (4, width)).astype(np.float32) for width in (96, 96, 256))
    mixture.add_biases(*biases)
    mixture.clamp(1.702, 3.0)
    for exact in (False, True):
        outputs[f"clamped {exact}"] = kernels.experts_mlp(x, ids, weights, mixture, exact=exact)
    mixture.limit(3.0)
    for exact in (False, True):
        outputs[f"limited {exact}"] = kernels.experts_mlp(x, ids, weights, mixture, exact=exact)


def recurrent(outputs: dict[str, np.ndarray]) -> None:
    """Convolution, delta rule, gated norm and gate, over states that go on and one that starts."""
    rng = np.random.default_rng(6)
    positions = np.array([*range(30), *range(7, 12)], np.int32)
    sequences = np.array([0] * 30 + [1] * 5, np.int32)
    slots, saves = np.array([1, 0], np.int32), np.array([[12, 2]], np.int32)
    for key_heads, heads, key_dim, value_dim in ((2, 4, 8, 8), (1, 2, 33, 40), (2, 2, 128, 128)):
        width = 2 * key_heads * key_dim + heads * value_dim
        columns = rng.permutation(width + 5)[:width].astype(np.int32)
        weight = rng.normal(0, 0.5, (4, width)).astype(np.float32)
        inputs, gates = (rng.normal(0, 2, (35, width + 5)).astype(np.float32) for _ in range(2))
        kept = 3 * width
        size = kept + kernels.delta_size(heads, key_dim, value_dim)
        states = rng.normal(0, 0.1, (3, size)).astype(np.float32)
        where = (states, positions, sequences, slots, saves)
        qkv = kernels.short_conv(inputs, weight, *where, columns=columns, threads=2)
        a, b = (rng.normal(0, 2, (35, heads)).astype(np.float32) for _ in range(2))
        rate, bias = (
            -rng.uniform(0, 4, heads).astype(np.float32),
            np.float32(rng.normal(0, 1, heads)),
        )
        sizes = {"key_heads": key_heads, "key_dim": key_dim, "offset": kept}
        read = kernels.delta_rule(qkv, a, b, rate, bias, *where, **sizes, threads=2)
        name = f"{heads} {value_dim}"
        outputs |= {f"conv {name}": qkv, f"delta {name}": read, f"states {name}": states.copy()}
        a = rng.normal(0, 9, (35, heads * key_dim)).astype(np.float32)
        bias = rng.normal(0, 1, heads * key_dim).astype(np.float32)
        for bound in (0.0, -5.0):
            here = {"bound": bound, "threads": 2}
            faded = kernels.delta_rule(qkv, a, b, rate, bias, *where, **sizes, **here)
            outputs |= {f"fade {name} {bound}": faded, f"f {name} {bound}": states.copy()}
        norm = rng.normal(1, 0.2, value_dim).astype(np.float32)
        which = columns[: heads * value_dim]
        outputs[f"gated norm {name}"] = kernels.gated_norm(read, norm, 1e-6, gates, columns=which)
        outputs[f"sigmoid norm {name}"] = kernels.gated_norm(
            read, norm, 1e-6, gates, columns=which, with_silu=False
        )
        outputs[f"gate {name}"] = kernels.sigmoid_mul(read, gates)


def all_outputs() -> dict[str, np.ndarray]:
    """The outputs of this process's instruction set."""
    outputs: dict[str, np.ndarray] = {}
    products(outputs)
    rows(outputs)
    sampling(outputs)
    attention(outputs)
    sinks(outputs)
    latent(outputs)
    experts(outputs)
    recurrent(outputs)
    return outputs


def main(path: str) -> None:
    """Save them, and its name."""
    np.savez(path, isa=np.array(kernels.isa()), **all_outputs())


if __name__ == "__main__":
    main(sys.argv[1])
