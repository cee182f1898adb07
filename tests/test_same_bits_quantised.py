"""A request's log-probabilities over quantised weights are the same bits, alone or in any company:
whatever else runs, however its prompt is cut, from whatever it is continued, on any threads."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from tiny_gguf import config_of, is_plain, parameters_of, write_gguf
from tiny_models import VOCAB_SIZE, loaded

from dure import kernels
from dure.batch import CacheDtype
from dure.engine.engine import Engine
from dure.engine.model_runner import ModelRunner
from dure.engine.request import Request, SamplingParams
from dure.models import Model

TOKENS = 32
PARAMS = SamplingParams(max_tokens=TOKENS, temperature=0.8, top_k=50, seed=7, logprobs=8)
PROMPT = np.random.default_rng(9).integers(0, VOCAB_SIZE, 77).tolist()
# Seeds: some are like many others of the first fifty; in the last four the request is preempted.
COMPOSITIONS = (*range(5), 10, 30, 36, 38, 41)


def dense_types(name: str) -> Kind:
    """Q4_0 with a Q8_0 embedding and head."""
    if is_plain(name):
        return Kind.F32
    return Kind.Q8_0 if "layers" not in name else Kind.Q4_0


def float_types(name: str) -> Kind:
    """BF16 and F16, which are multiplied as integers."""
    if is_plain(name):
        return Kind.F32
    return Kind.F16 if "_proj" in name and ".1." in name else Kind.BF16


def latent_types(name: str) -> Kind:
    """As sparse_types, with Q8_0 for the heads' keys, whose rows are short."""
    return Kind.Q8_0 if "k_b_proj" in name else sparse_types(name)


def delta_types(name: str) -> Kind:
    """As latent_types, with Q8_0 for what decays and gates are made of, whose rows are short."""
    return Kind.Q8_0 if "self_attn.f_b" in name or "self_attn.g_b" in name else latent_types(name)


def sparse_types(name: str) -> Kind:
    """Q4_K with Q6_K for what reads or writes most."""
    if is_plain(name):
        return Kind.F32
    return Kind.Q6_K if name.startswith("lm_head") or "down_proj" in name else Kind.Q4_K


WIDE = {"hidden_size": 256, "moe_intermediate_size": 256, "head_dim": 64, "num_experts": 16}
DELTA = {"linear_key_head_dim": 32, "linear_value_head_dim": 64}
LATENT = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "moe_intermediate_size": 256,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "q_lora_rank": 256,
    "kv_lora_rank": 256,
    "v_head_dim": 64,
}
CHANNELS = {
    "num_hidden_layers": 3,
    "num_experts": 16,
    "first_k_dense_replace": 1,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "mlp_layer_types": ["dense", "sparse", "sparse"],
    "linear_num_heads": 4,
    "linear_head_dim": 64,
    "linear_conv_kernel_dim": 4,
    "n_group": None,
}
FILES = {
    "dense": (config_of("llama"), dense_types),
    "floats": (config_of("llama"), float_types),
    "sparse": (config_of("qwen3_moe", **WIDE), sparse_types),
    "recurrent": (
        config_of("qwen3_next", **WIDE, **DELTA, shared_expert_intermediate_size=256),
        sparse_types,
    ),
    "latent": (config_of("deepseek_v3", **LATENT), latent_types),
    "channels": (config_of("kimi_linear", **LATENT, **CHANNELS), delta_types),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model for each kind of layer, as GGUF files."""
    folder = tmp_path_factory.mktemp("quantised")
    for name, (config, types) in FILES.items():
        write_gguf(folder / f"{name}.gguf", config, parameters_of(config), types)
    return {name: folder / f"{name}.gguf" for name in FILES}


def result(request: Request) -> bytes:
    """All that a caller sees of the request, every log-probability as its four bytes."""
    assert request.finish_reason == "length"
    assert len(request.logprobs) == len(request.output_ids) == TOKENS
    parts = [np.array(request.output_ids, np.int32).tobytes()]
    for at in request.logprobs:
        ids, values = zip(*at.top, strict=True)
        parts.append(np.array([at.token_id, *ids], np.int32).tobytes())
        parts.append(np.array([at.logprob, *values], np.float32).tobytes())
    return b"".join(parts)


def alone(model: Model, cache_dtype: CacheDtype = "f16") -> bytes:
    """What the request gets from an engine of its own, its prompt in one piece."""
    engine = Engine(ModelRunner(model, num_blocks=16, num_states=16, cache_dtype=cache_dtype))
    request = engine.add(PROMPT, PARAMS)
    while engine.has_work:
        engine.step()
    assert (request.num_cached_tokens, engine.stats.preemptions, engine.stats.steps) == (
        0,
        0,
        TOKENS,
    )
    return result(request)


def add_stranger(engine: Engine, rng: np.random.Generator) -> Request:
    """A batch mate whose prompt shares some of its beginning with the request's, or nothing."""
    shared = int(rng.integers(0, len(PROMPT) + 1)) if rng.random() < 0.6 else 0
    rest = rng.integers(0, VOCAB_SIZE, int(rng.integers(1, 20))).tolist()
    params = SamplingParams(max_tokens=int(rng.integers(1, 90)), seed=int(rng.integers(1000)))
    return engine.add([*PROMPT[:shared], *rest], params)


def composition(
    model: Model, cache_dtype: CacheDtype, rng: np.random.Generator, met: Counter[str]
) -> set[bytes]:
    """What one or two copies of the request get in random company; `met` counts what it met."""
    engine = Engine(
        ModelRunner(
            model,
            num_blocks=int(rng.choice([5, 6, 7, 12])),
            num_states=16,
            cache_dtype=cache_dtype,
        ),
        max_batch_tokens=int(rng.choice([3, 7, 16, 32, 33, 64, 512])),
        max_sequences=int(rng.integers(1, 7)),
    )
    strangers = [add_stranger(engine, rng) for _ in range(rng.integers(0, 5))]
    for _ in range(rng.integers(0, 30)):
        engine.step()
    requests = [engine.add(PROMPT, PARAMS) for _ in range(rng.integers(1, 3))]
    while not all(request.is_finished for request in requests):
        outputs = engine.step()
        met["company"] += len(outputs) > 1
        if strangers and rng.random() < 0.02:
            engine.abort(strangers[int(rng.integers(len(strangers)))].id)
        if len(strangers) < 6 and rng.random() < 0.1:
            strangers.append(add_stranger(engine, rng))
    for stranger in strangers:
        engine.abort(stranger.id)
    assert not engine.has_work
    engine.check_idle()
    met["prefix hit"] += sum(request.num_cached_tokens > 0 for request in requests)
    met["preemption"] += sum(request.num_preemptions > 0 for request in requests)
    met["cut prompt"] += engine.scheduler.max_batch_tokens < len(PROMPT)
    assert engine.stats.cached_tokens >= sum(request.num_cached_tokens for request in requests)
    assert engine.stats.preemptions >= sum(request.num_preemptions for request in requests)
    return {result(request) for request in requests}


@pytest.mark.parametrize(
    ("name", "cache_dtype"),
    [
        *((name, "f16") for name in FILES if name not in ("channels", "floats", "latent")),
        *(("dense", "q8"), ("latent", "q8")),
        *(
            pytest.param(name, "f16", marks=pytest.mark.long)
            for name in ("channels", "floats", "latent")
        ),
    ],
)
def test_no_company_changes_a_bit(
    files: dict[str, Path], name: str, cache_dtype: CacheDtype
) -> None:
    models = {threads: loaded(files[name], threads=threads, exact=False) for threads in (1, 2)}
    expected = alone(models[1], cache_dtype)
    assert expected == alone(models[2], cache_dtype)
    assert (expected == alone(models[1])) == (cache_dtype == "f16")
    met: Counter[str] = Counter()
    different = []
    for number in COMPOSITIONS:
        threads = 2 if number % 5 == 0 else 1  # where cores are busy, two are the slower
        if composition(models[threads], cache_dtype, np.random.default_rng(number), met) != {
            expected
        }:
            different.append(number)
    assert different == []
    # They must not quietly become easy ones.
    kinds = ("company", "prefix hit", "preemption", "cut prompt")
    assert min(met[what] for what in kinds) >= 3


def test_the_int8_path_is_what_was_tested(files: dict[str, Path]) -> None:
    """Exact arithmetic on the same file gives other bits, so the compositions did not run it."""
    for path in files.values():
        fast, exact = (alone(loaded(path, exact=exact)) for exact in (False, True))
        assert fast != exact


def digest(path: str | Path) -> str:
    """The SHA-256 of what the request gets from a file, on the instruction set in use."""
    return hashlib.sha256(alone(loaded(Path(path), exact=False))).hexdigest()


@pytest.mark.parametrize("isa", kernels.available_isas())
def test_every_instruction_set_gives_the_same_bits(files: dict[str, Path], isa: str) -> None:
    code = (
        "import sys, test_same_bits_quantised as t; from dure import kernels; "
        "print(kernels.isa(), *(t.digest(path) for path in sys.argv[1:]))"
    )
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(Path(__file__).parent)])
    environment = {**os.environ, "DURE_ISA": isa, "PYTHONPATH": path}
    command = [sys.executable, "-c", code, *map(str, files.values())]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [isa, *map(digest, files.values())]
