"""Every key of a GGUF is read, changes nothing, or is refused by its name."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import Keys

from dure.errors import UnsupportedModelError
from dure.formats.checkpoint import Checkpoint
from dure.layers.rope import RopeConfig, magnitude_scale
from dure.models import exaone4, exaone_moe, gemma3, gpt_oss, olmo3
from dure.models.config import GGUF_KEYS, read_config
from dure.models.gguf_keys import check_keys

HEAD_DIM = 64


def checkpoint(architecture: str = "llama", /, **keys: Any) -> Checkpoint:
    """A GGUF of an architecture with these keys; two underscores are a dot."""
    metadata: dict[str, Any] = {"general.architecture": architecture}
    metadata |= {f"{architecture}.{key.replace('__', '.')}": value for key, value in keys.items()}
    return Checkpoint(Path("a.gguf"), "gguf", {}, metadata=metadata)


def rope(**keys: Any) -> RopeConfig:
    values = read_config(checkpoint(context_length=128, **keys)).values
    return RopeConfig.from_hf(values, HEAD_DIM)


def test_a_key_that_is_not_there_means_what_llama_cpp_takes_for_it() -> None:
    sizes = {"embedding_length": 64, "attention__head_count": 4}
    keys = ("rope_theta", "head_dim", "value_head_dim", "rotary_dim")

    def read(**more: Any) -> list[Any]:
        values = read_config(checkpoint(**sizes, **more)).values
        return [values[key] for key in keys]

    assert read() == [10000.0, 16, 16, 16]
    assert read(attention__key_length=24) == [10000.0, 24, 16, 24]
    given = {"attention__value_length": 8, "rope__dimension_count": 6, "rope__freq_base": 5e5}
    assert read(**given) == [5e5, 16, 8, 6]
    nothing = read_config(checkpoint(attention__head_count=4, embedding_length=2)).values
    assert not {"head_dim", "value_head_dim", "rotary_dim"} & {*nothing}


def known_keys() -> list[str]:
    """Every key that the gguf package has for an architecture, without its name."""
    found: list[str] = []

    def look(group: type) -> None:
        for name, value in vars(group).items():
            if isinstance(value, str) and value.startswith("{arch}."):
                found.append(value.removeprefix("{arch}."))
            elif isinstance(value, type) and not name.startswith("__"):
                look(value)

    look(Keys)
    return [key for key in found if "{" not in key]


@pytest.mark.parametrize("key", known_keys())
def test_a_key_that_nobody_asked_for_is_refused_or_known_to_change_nothing(key: str) -> None:
    """An unlikely value of every key, read by no family: a key is listed, or names itself."""
    file = checkpoint(**{key.replace(".", "__"): 0.123})
    try:
        config = read_config(file)
        check_keys(file, config)
    except UnsupportedModelError as error:
        assert f"llama.{key}" in error.message
        return
    from dure.models import gguf_keys  # noqa: PLC0415

    assert key in gguf_keys.IDLE or key.startswith("rope.scaling.")


def test_a_key_that_the_family_asked_for_is_not_refused() -> None:
    file = checkpoint(expert_weights_scale=2.5, attention__scale=0.0)
    config = read_config(file)
    with pytest.raises(UnsupportedModelError, match=r"llama\.expert_weights_scale = 2\.5"):
        check_keys(file, config)
    assert config.positive(GGUF_KEYS["expert_weights_scale"]) == 2.5
    check_keys(file, config)


def test_a_key_of_layers_is_refused_if_one_of_them_differs() -> None:
    fine = checkpoint(swiglu_clamp_exp=np.zeros(4, np.float32))
    check_keys(fine, read_config(fine))
    bad = checkpoint(swiglu_clamp_exp=np.array([0, 0, 7, 0], np.float32))
    with pytest.raises(UnsupportedModelError, match="swiglu_clamp_exp"):
        check_keys(bad, read_config(bad))


@pytest.mark.parametrize(
    ("architecture", "family"),
    [
        *(("gpt-oss", gpt_oss), ("olmo2", olmo3), ("gemma3", gemma3)),
        *(("exaone4", exaone4), ("exaone-moe", exaone_moe)),
    ],
)
def test_a_number_says_which_layers_have_no_window(architecture: str, family: Any) -> None:
    """As in llama.cpp, whose 0 is a window in every layer."""
    drafts = (0,) if family is exaone_moe else ()
    for every, expected in ((3, (8, 8, None, 8, 8, None)), (1, (None,) * 6), (0, (8,) * 6)):
        windows = {"sliding_window": 8, "sliding_window_pattern": every}
        file = checkpoint(architecture, **{f"attention__{key}": n for key, n in windows.items()})
        config = read_config(file)
        found = family._windows(config, 6, *drafts)
        assert (found[0] if family is exaone4 else found) == expected
        check_keys(file, config)


def test_a_number_is_not_taken_for_read_where_only_flags_of_layers_are() -> None:
    for value, is_read in ((3, False), (np.array([True, False]), True)):
        file = checkpoint("mimo2", attention__sliding_window_pattern=value)
        config = read_config(file)
        config.layer_kinds(2, "full_attention", "sliding_attention")
        with (
            nullcontext() if is_read else pytest.raises(UnsupportedModelError, match="pattern = 3")
        ):
            check_keys(file, config)


@pytest.mark.parametrize("key", ["rope__scale_linear", "rope__scaling__factor"])
def test_a_factor_without_a_type_is_linear_scaling(key: str) -> None:
    config = rope(**{key: 4.0})
    assert (config.type, config.factor) == ("linear", 4.0)
    assert rope(**{key: 0.0}).type == "default"


def test_the_newer_of_two_factors_counts_and_a_type_of_none_scales_nothing() -> None:
    both = rope(rope__scale_linear=8.0, rope__scaling__factor=4.0)
    assert (both.type, both.factor) == ("linear", 4.0)
    assert rope(rope__scaling__factor=4.0, rope__scaling__type="none").type == "default"


def test_magnitudes_of_yarn_are_read_from_both_keys() -> None:
    yarn = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}
    assert rope(**yarn).attention_factor is None
    assert rope(**yarn, rope__scaling__yarn_attn_factor=1.5).attention_factor == 1.5
    times = rope(**yarn, rope__scaling__attn_factor=1.5).attention_factor
    assert times == pytest.approx(1.5 * magnitude_scale(4.0))
    with pytest.raises(UnsupportedModelError, match="attn_factor"):
        rope(
            rope__scaling__type="linear", rope__scaling__factor=4.0, rope__scaling__attn_factor=2.0
        )


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (None, 1024),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"type": "yarn", "factor": 4.0}, 4096),
        ({"rope_type": "yarn", "factor": 1.5, "original_max_position_embeddings": 256}, 1024),
        ({"rope_type": "linear", "factor": 8.0, "original_max_position_embeddings": 512}, 4096),
        ({"rope_type": "linear", "factor": 8.0}, 1024),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 512}, 1024),
        ({"rope_type": "yarn", "factor": 1e300, "original_max_position_embeddings": 512}, 1 << 24),
    ],
)
def test_the_context_is_what_the_scaling_stretches_it_to(scaling: Any, expected: int) -> None:
    config = {"model_type": "llama", "max_position_embeddings": 1024, "rope_scaling": scaling}
    read = read_config(Checkpoint(Path("a"), "safetensors", {}, config=config))
    assert read.context_length(2048) == expected
