"""Draft heads that are quantised, incomplete, several or in company; see test_mtp.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import packings
import pytest
from gguf import GGMLQuantizationType as Kind
from tiny_gguf import matrices_as, read_folder, write_folder, write_gguf
from tiny_heads import FORMS, Form, head_parameters
from tiny_models import furthest, loaded, prefill_logits

from dure.batch import Batch, PassInterruptedError, States, StateSpec
from dure.cli import main
from dure.errors import UnsupportedModelError
from dure.formats.checkpoint import open_checkpoint
from dure.loading.describe import describe
from dure.models import load_model

FAMILIES = list(FORMS)
IN_GGUF = ["deepseek_v3", "glm4_moe", "glm4_moe-air", "qwen3_next", "qwen3_5_text"]
DEPTH = 2
BLOCKS = np.array([[2, 0, 1], [5, 3, 4]], np.int32)


def with_head(path: Path, **options: Any) -> Any:
    options = {"exact": True, **options}
    return load_model(open_checkpoint(path), draft_heads=True, **options)


def batch(tokens: Any, start: int, stop: int) -> Batch:
    """Rows [start, stop) of one sequence."""
    count = stop - start
    return Batch(
        tokens=np.array(tokens[start:stop], np.int32),
        positions=np.arange(start, stop, dtype=np.int32),
        sequences=np.zeros(count, np.int32),
        block_tables=BLOCKS[:1],
        logit_rows=np.arange(count, dtype=np.int32),
        states=States(np.zeros(1, np.int32), np.empty((0, 2), np.int32)),
    )


def caches(specs: tuple[Any, ...]) -> tuple[np.ndarray, ...]:
    return tuple(
        np.full((2, spec.size), np.nan, np.float32)
        if isinstance(spec, StateSpec)
        else np.full((6, *spec.block_shape()), np.nan, np.float32)
        for spec in specs
    )


def trunk(model: Any, tokens: Any) -> np.ndarray:
    """The hidden states of all tokens, as heads take them."""
    rows = batch(tokens, 0, len(tokens))
    return model.draft_hidden(model.run(model.embed(rows), rows, caches(model.kv_cache_specs)))


def drafted(model: Any, tokens: Any, cut: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states and logits in passes of so many rows each, and of `DEPTH` guesses behind."""
    hidden, cache = trunk(model, tokens), caches(model.draft_cache_specs)
    made, start = [], 0
    for count in cut:
        step = batch(tokens[1:], start, start + count)
        made.append(model.draft(hidden[start : start + count], step, cache))
        start += count
    for row in range(start, start + DEPTH):
        step = batch(tokens[1:], row, row + 1)
        made.append(model.draft(made[-1][0][-1:], step, cache))
    states, logits = zip(*made, strict=True)
    return np.concatenate(states), np.concatenate(logits)


@pytest.fixture
def head(tiny: Callable[[str], Any], tmp_path: Path) -> Callable[[str], Any]:
    """The folder of a tiny model with its head, its config, and its parameters."""

    def make(name: str) -> tuple[Path, dict[str, Any], dict[str, np.ndarray]]:
        config, parameters = read_folder(tiny(name).folder)
        if "nextn" not in str(config) and name.startswith("glm"):
            config["num_nextn_predict_layers"] = 1
        parameters |= head_parameters(FORMS[name], config, parameters)
        return write_folder(tmp_path / "folder", config, parameters), config, parameters

    return make


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"quantize": "q8", "exact": False}], ids=["exact", "q8"])
def test_guesses_have_the_same_bits_however_the_tokens_come(
    tiny: Callable[[str], Any], head: Any, name: str, options: dict[str, Any]
) -> None:
    model, tokens = with_head(head(name)[0], **options), tiny(name).sequences[0]
    count = len(tokens) - 1 - DEPTH
    expected = drafted(model, tokens, [count])
    for cut in ([1] * count, [7, 1, 32, count - 40]):
        for one, other in zip(expected, drafted(model, tokens, cut), strict=True):
            assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("name", FAMILIES)
def test_guesses_have_the_same_bits_beside_another_sequence(
    tiny: Callable[[str], Any], head: Any, name: str
) -> None:
    model = with_head(head(name)[0])
    one, other = (tokens[:33] for tokens in tiny(name).sequences[:2])
    hidden = [trunk(model, each)[:-1] for each in (one, other)]
    alone = model.draft(hidden[0], batch(one[1:], 0, 32), caches(model.draft_cache_specs))
    places = np.arange(32, dtype=np.int32)
    both = Batch(
        tokens=np.array([*other[1:6], *one[1:]], np.int32),
        positions=np.concatenate([places[:5], places]),
        sequences=np.array([0] * 5 + [1] * 32, np.int32),
        block_tables=BLOCKS,
        logit_rows=np.array([4, 10, 36], np.int32),  # the others are computed for the cache alone
    )
    rows = np.concatenate([hidden[1][:5], hidden[0]])
    beside = model.draft(rows, both, caches(model.draft_cache_specs))
    for each, wanted in zip(beside, alone, strict=True):
        assert each.shape == (3, wanted.shape[1])
        assert each[1:].tobytes() == wanted[[5, 31]].tobytes()


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_are_left_out_unless_asked_for_and_change_nothing_of_the_model(
    tiny: Callable[[str], Any], head: Any, name: str
) -> None:
    folder, _, _ = head(name)
    without, small, tokens = loaded(folder), tiny(name), tiny(name).sequences[1]
    assert without.draft_cache_specs == ()
    with pytest.raises(UnsupportedModelError, match="not asked for"):
        without.draft(np.zeros((1, 64), np.float32), batch([1], 0, 1), ())
    model = with_head(folder)
    assert model.kv_cache_specs == small.model.kv_cache_specs
    assert len(model.draft_cache_specs) == 1
    expected = prefill_logits(small.model, tokens).tobytes()
    assert expected == prefill_logits(without, tokens).tobytes()
    assert expected == prefill_logits(model, tokens).tobytes()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_copy_without_heads_says_so(tiny: Callable[[str], Any], name: str) -> None:
    model = with_head(tiny(name).folder)
    assert model.draft_cache_specs == ()
    with pytest.raises(UnsupportedModelError, match="no draft heads: the checkpoint has none"):
        model.draft(np.zeros((1, 64), np.float32), batch([1], 0, 1), ())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_head_that_is_incomplete_or_misshapen_is_left_out_with_the_reason(
    tiny: Callable[[str], Any], head: Any, tmp_path: Path, name: str
) -> None:
    _, config, parameters = head(name)
    tokens = tiny(name).sequences[1]
    expected = prefill_logits(tiny(name).model, tokens).tobytes()
    projection = f"{FORMS[name].projection.format(config['num_hidden_layers'])}.weight"
    lacking = {key: value for key, value in parameters.items() if key != projection}
    wide = {**parameters, projection: parameters[projection][:, :64].copy()}
    for number, broken in enumerate((lacking, wide)):
        model = with_head(write_folder(tmp_path / f"broken{number}", config, broken))
        assert model.draft_cache_specs == ()
        assert projection in model.draft_problem
        assert prefill_logits(model, tokens).tobytes() == expected


@pytest.mark.parametrize("name", IN_GGUF)
@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0])
def test_a_gguf_s_heads_are_those_of_the_values_it_stands_for(
    tiny: Callable[[str], Any], head: Any, tmp_path: Path, name: str, kind: Kind
) -> None:
    _, config, parameters = head(name)
    layers = config["num_hidden_layers"]
    block, nextn = FORMS[name].block.format(layers), f"blk.{layers}.nextn"
    parts = ("enorm", "hnorm", "eh_proj", "shared_head_norm", "embed_tokens", "shared_head_head")
    theirs = (*_names(FORMS[name], layers), f"{block}.embed_tokens", f"{block}.shared_head.head")
    names = dict(zip(theirs, (f"{nextn}.{part}" for part in parts), strict=True))
    names[block] = f"model.layers.{layers}"
    offset = FORMS[name].offset
    renamed = {_renamed(key, names): value for key, value in parameters.items()}
    path = tmp_path / "model.gguf"
    config |= {"num_nextn_predict_layers": 1}
    counted = {} if name.startswith("glm") else {"num_hidden_layers": layers + 1}
    types = matrices_as(kind)
    if kind is Kind.Q8_0:  # whose blocks do not divide the rows of this one
        types = lambda key: Kind.F16 if "shared_expert.down" in key else matrices_as(kind)(key)  # noqa: E731
    values = write_gguf(path, {**config, **counted}, renamed, types)
    stored = {
        key: values[_renamed(key, names)] - np.float32(offset if _has_offset(key) else 0)
        for key in parameters
        if _renamed(key, names) in values
    }
    # What the converter recasts stands in no GGUF under its old name, and was not quantised here.
    plain = write_folder(tmp_path / "plain", config, {**parameters, **stored})
    tokens = tiny(name).sequences[0]
    expected, model = with_head(plain), with_head(path)
    assert model.draft_cache_specs, model.draft_problem
    assert len(model.kv_cache_specs) == layers
    hidden, cache = trunk(expected, tokens)[:-1], caches(model.draft_cache_specs)
    rows = batch(tokens[1:], 0, len(hidden))
    ours = model.draft(hidden, rows, cache)
    theirs = expected.draft(hidden, rows, caches(expected.draft_cache_specs))
    assert furthest(theirs[1], ours[1]) < 1e-5


def _names(form: Form, layers: int) -> list[str]:
    names = form.token_norm, form.hidden_norm, form.projection, form.norm
    return [name.format(layers) for name in names]


def _renamed(key: str, names: dict[str, str]) -> str:
    """The key with one of the names at its beginning replaced."""
    for theirs, ours in names.items():
        if key.startswith(f"{theirs}."):
            return ours + key.removeprefix(theirs)
    return key


def _has_offset(key: str) -> bool:
    return "norm" in key.rsplit(".", 2)[-2] and ".linear_attn." not in key


def test_an_fp8_folder_s_head_is_that_of_the_values_it_stands_for(
    tiny: Callable[[str], Any], head: Any, tmp_path: Path
) -> None:
    name = "deepseek_v3"
    _, config, parameters = head(name)
    settings = {"quant_method": "fp8", "weight_block_size": [32, 64]}

    def packed(key: str, weight: np.ndarray) -> Any:
        is_packed = key.endswith(("_proj.weight", "_with_mqa.weight")) and "eh_proj" not in key
        return packings.fp8(weight, block=(32, 64)) if is_packed else None

    folder = tmp_path / "packed"
    values = packings.write_packed(folder, config, parameters, settings, packed)
    plain = write_folder(tmp_path / "plain", config, values)
    tokens = tiny(name).sequences[0]
    one, other = (drafted(with_head(each), tokens, [72]) for each in (folder, plain))
    assert furthest(other[1], one[1]) < 1e-5


def test_a_stopped_pass_is_given_up(tiny: Callable[[str], Any], head: Any) -> None:
    model, tokens = with_head(head("mimo")[0]), tiny("mimo").sequences[1]
    stopped = replace(batch(tokens, 0, 4), interrupted=lambda: True)
    hidden = np.zeros((4, 64), np.float32)
    with pytest.raises(PassInterruptedError):
        model.draft(hidden, stopped, caches(model.draft_cache_specs))


@pytest.mark.parametrize("name", ["deepseek_v3", "glm4_moe"])
def test_of_several_heads_the_first_is_loaded(
    tiny: Callable[[str], Any], head: Any, tmp_path: Path, name: str
) -> None:
    folder, config, parameters = head(name)
    first = FORMS[name].block.format(config["num_hidden_layers"])
    number = int(first.rpartition(".")[2])
    second = f"{first.rpartition('.')[0]}.{number + 1}."
    more = {
        key.replace(f"{first}.", second): value * np.float32(2)
        for key, value in parameters.items()
        if key.startswith(f"{first}.")
    }
    several = {**config, "num_nextn_predict_layers": 2}
    model = with_head(write_folder(tmp_path / "several", several, {**parameters, **more}))
    tokens = tiny(name).sequences[1]
    cut = [len(tokens) - 1 - DEPTH]
    one, other = (drafted(each, tokens, cut)[1] for each in (with_head(folder), model))
    assert one.tobytes() == other.tobytes()


def test_show_says_whether_there_are_heads(
    tiny: Callable[[str], Any], head: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for folder in (head("mimo")[0], tiny("mimo").folder, tiny("qwen2").folder):
        with pytest.raises(SystemExit):
            main(["show", str(folder)])
        lines = capsys.readouterr().out.splitlines()
        shown.append([line.removeprefix("draft heads") for line in lines if "draft heads" in line])
    assert "guesses the token after the next" in shown[0][0]
    assert shown[1][0].strip() == "no: the checkpoint has none"
    assert shown[2] == []


@pytest.mark.parametrize("name", FAMILIES)
def test_a_description_says_whether_there_are_heads(
    tiny: Callable[[str], Any], head: Any, name: str
) -> None:
    described = describe(open_checkpoint(head(name)[0]))
    assert (described.has_draft_heads, described.problem) == (True, "")
    described = describe(open_checkpoint(tiny(name).folder))
    assert (described.has_draft_heads, described.draft_problem) == (
        False,
        "the checkpoint has none",
    )
