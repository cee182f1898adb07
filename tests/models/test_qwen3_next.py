"""What the files of Qwen3-Next hold in more than one form, or for a draft that is not computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import read_folder, write_folder, write_gguf
from tiny_models import loaded, prefill_logits

from dure.batch import KVCacheSpec, StateSpec
from dure.benchmark import DirectRunner, perplexity
from dure.cli import main
from dure.engine.engine import Engine
from dure.engine.model_runner import ModelRunner
from dure.errors import ModelFileError
from dure.formats.checkpoint import open_checkpoint
from dure.loading.describe import Caches, describe

NAME = "qwen3_next"


def test_draft_layers_of_safetensors_are_left_unread(
    tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    small = tiny(NAME)
    config, parameters = read_folder(small.folder)
    extra = {
        name.replace("model.layers.3", "mtp.layers.0"): values
        for name, values in parameters.items()
        if name.startswith("model.layers.3")
    }
    extra["mtp.fc.weight"] = np.zeros((64, 128), np.float32)
    model = loaded(write_folder(tmp_path, config, {**parameters, **extra}))
    actual = prefill_logits(model, small.sequences[0])
    assert prefill_logits(small.model, small.sequences[0]).tobytes() == actual.tobytes()


@pytest.mark.parametrize("name", [NAME, f"{NAME}-mixed"])
@pytest.mark.parametrize("form", [{"num_nextn_predict_layers": 1}, {"older_form": True}])
def test_ggufs_with_a_draft_layer_and_of_older_form_are_the_same_model(
    tiny: Callable[[str], Any], tmp_path: Path, name: str, form: dict[str, Any]
) -> None:
    small = tiny(name)
    config, parameters = read_folder(small.folder)
    layers = config["num_hidden_layers"]
    if "num_nextn_predict_layers" in form:
        draft = [key for key in parameters if f"layers.{layers - 1}." in key]
        places = f"layers.{layers - 1}.", f"layers.{layers}."
        parameters |= {key.replace(*places): parameters[key] for key in draft}
        form = {**form, "num_hidden_layers": layers + 1}
    path = tmp_path / "model.gguf"
    write_gguf(path, {**config, **form}, parameters)
    model = loaded(path)
    assert len(model.kv_cache_specs) == layers
    expected = prefill_logits(small.model, small.sequences[0])
    assert expected.tobytes() == prefill_logits(model, small.sequences[0]).tobytes()


def test_layers_say_what_they_keep(tiny: Callable[[str], Any]) -> None:
    *recurrent, attention = tiny(NAME).model.kv_cache_specs
    # Three inputs of 2 * 2 * 8 + 4 * 8 channels, and of four heads 8 x 8 numbers in strips of 32.
    assert recurrent == [StateSpec(3 * 64 + 4 * 8 * 32)] * 3
    assert attention == KVCacheSpec("gqa", 2, 16)
    assert [layer.bytes_per_token("f16") for layer in (recurrent[0], attention)] == [0, 128]
    assert [layer.bytes_per_sequence for layer in (recurrent[0], attention)] == [4 * 1216, 0]


def test_show_says_what_a_sequence_takes_and_what_a_token(
    tiny: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny(NAME).folder
    described = describe(open_checkpoint(folder))
    assert described.caches == (
        Caches("state", 3, 0, 3 * 4 * 1216, None),
        Caches("gqa", 1, 128, 0, None),
    )
    assert (described.token_bytes, described.sequence_bytes) == (128, 14592)
    with pytest.raises(SystemExit) as end:
        main(["show", str(folder)])
    assert end.value.code == 0
    caches = "15 kB a sequence in 3 state layers, 128 bytes a token in 1 gqa layers"
    assert caches in capsys.readouterr().out


def test_heads_that_do_not_divide_are_refused(tiny: Callable[[str], Any], tmp_path: Path) -> None:
    config, parameters = read_folder(tiny(NAME).folder)
    folder = write_folder(tmp_path, {**config, "linear_num_value_heads": 5}, parameters)
    with pytest.raises(ModelFileError, match="linear_num_value_heads = 5; it must be a multiple"):
        loaded(folder)


def test_fixed_runs_carry_states_and_start_anew_at_position_0(tiny: Callable[[str], Any]) -> None:
    small = tiny(NAME)
    tokens = small.sequences[0]
    run = DirectRunner(small.model, tokens=len(tokens), sequences=2, cache_dtype="f32")
    expected = prefill_logits(small.model, tokens)
    for _ in range(2):
        run.fill(tokens[:40], 1)
        rows = range(40, len(tokens))
        actual = run.forward(tokens[40:], rows, [1] * len(rows), range(len(rows)))
        assert expected[40:].tobytes() == actual.tobytes()
    scored = perplexity(small.model, [*tokens, *tokens], window=50, cache_dtype="f32")
    again = perplexity(small.model, [*tokens, *tokens], window=50, cache_dtype="f32")
    assert scored == again


def test_the_engine_refuses_no_kind_of_layer(tiny: Callable[[str], Any]) -> None:
    engine = Engine(ModelRunner(tiny(NAME).model, num_blocks=4, num_states=3))
    assert [cache.shape[0] for cache in engine.runner.storage.arrays] == [3, 3, 3, 4]
    assert [cache.dtype for cache in engine.runner.storage.arrays] == [np.float32] * 3 + [
        np.float16
    ]
