"""Families that dure knows and does not run are refused by their name, with what is missing."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dure import LLM
from dure.cli import main
from dure.errors import UnsupportedModelError
from dure.formats.checkpoint import Checkpoint
from dure.models import families, family_of
from dure.models.not_run import NOT_RUN, NotRun, find_not_run

TYPES = [(family, each) for family in NOT_RUN for each in family.types]
GGUF = [(family, each) for family in NOT_RUN for each in family.gguf]
# The families of 2026 that the issue of that year names.
NAMED = {
    *("qwen4_exp", "minimax_m3_vl", "deepseek_v4", "hy_v4", "glm5_next", "step3p5", "step3p7"),
    *("longcat_flash", "longcat_flash_ngram", "longcat_flash_sparse", "kimi_k3", "dots3_note"),
    *("deepseek_v41", "openpangu_v2", "nemotron_h", "granitemoehybrid", "laguna"),
}
# What transformers counts among them and is no language model that writes by itself: encoders,
# halves of encoder-decoders, parts of models of speech, images and music, guessers of tokens.
# And those of before 2023, small and long replaced.
OTHERS = {
    *("bart", "beam", "bert-generation", "big_bird", "bigbird_pegasus", "blenderbot", "ernie"),
    *("blenderbot-small", "data2vec-text", "marian", "mbart", "megatron-bert", "mvp", "pegasus"),
    *("plbart", "prophetnet", "rembert", "roberta-prelayernorm", "roc_bert", "roformer", "trocr"),
    *("xlm", "xlm-roberta", "xlm-roberta-xl", "xmod", "modernbert-decoder", "whisper", "moshi"),
    *("musicgen", "musicgen_melody", "moss_transcribe_diarize", "emu3", "fuyu", "git", "got_ocr2"),
    *("mllama", "gemma4_assistant", "gemma4_unified_assistant"),
    *("biogpt", "cpmant", "ctrl", "gpt-sw3", "gpt_neox_japanese", "openai-gpt", "persimmon"),
    *("reformer", "xglm", "xlnet"),
}


def refusal(checkpoint: Checkpoint) -> UnsupportedModelError:
    with pytest.raises(UnsupportedModelError) as caught:
        family_of(checkpoint)
    return caught.value


def is_told(error: UnsupportedModelError, family: NotRun) -> bool:
    """Whether it names the family and what is missing, in one sentence."""
    sentence = re.fullmatch(
        r"\S+ is of the family (.+) \(\S+\), which .+ would need (.+)\.", str(error.message)
    )
    return sentence is not None and (sentence[1], sentence[2]) == (family.name, family.needs)


def folder(config: dict[str, Any]) -> Checkpoint:
    return Checkpoint(Path("some-model"), "safetensors", {}, config=config)


@pytest.mark.parametrize(("family", "name"), TYPES, ids=[each for _, each in TYPES])
def test_a_folder_of_the_family_is_refused_by_name_and_with_what_is_missing(
    family: NotRun, name: str
) -> None:
    alone = {"model_type": name}
    # As transformers writes the config, where it has the family: a wrapper has its text part.
    as_saved = name in NAMED and name in CONFIG_MAPPING_NAMES
    written = AutoConfig.for_model(name).to_dict() if as_saved else alone
    wrapped = {"model_type": "some_vl", "text_config": alone}
    around = {"model_type": name, "text_config": {"hidden_size": 64}}
    for config in (alone, written, wrapped, around):
        assert is_told(refusal(folder(config)), family)


@pytest.mark.parametrize(("family", "name"), GGUF, ids=[each for _, each in GGUF])
def test_a_gguf_of_the_family_is_refused_the_same_way(family: NotRun, name: str) -> None:
    checkpoint = Checkpoint(Path("some.gguf"), "gguf", {}, metadata={"general.architecture": name})
    assert is_told(refusal(checkpoint), family)


@pytest.mark.parametrize("written", ["", "a_name_of_their_own"])
@pytest.mark.parametrize(("family", "name"), TYPES, ids=[each for _, each in TYPES])
def test_its_class_tells_a_family_whose_model_type_is_another(
    family: NotRun, name: str, written: str
) -> None:
    camel = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    for ending in ("ForCausalLM", "ForConditionalGeneration", "CausalLM"):
        config = {"model_type": written, "architectures": [camel + ending]}
        found = find_not_run(folder(config))
        assert found is not None
        assert found[1] is family
        assert not written or is_told(refusal(folder(config)), family)


def test_the_classes_of_transformers_are_known() -> None:
    for class_, name in [
        ("Qwen4ExpForCausalLM", "Qwen3.8-Flash-Next"),
        ("MiniMaxM3VLForConditionalGeneration", "MiniMax-M3"),
        ("HYV4ForCausalLM", "Hy4"),
        ("Glm5NextForConditionalGeneration", "GLM-5.3-Flash"),
        ("LongcatFlashForCausalLM", "LongCat-Flash"),
        ("Step3p7ForConditionalGeneration", "Step-3.5 / 3.7-Flash"),
        ("NemotronHForCausalLM", "Nemotron-H / Nemotron-3"),
        ("GraniteMoeHybridForCausalLM", "Granite-4.0-H"),
    ]:
        found = find_not_run(folder({"architectures": [class_]}))
        assert found is not None
        assert found[1].name == name


def test_no_family_is_run_and_refused_and_none_is_refused_twice() -> None:
    names = [name for _, name in TYPES]
    assert len(names) == len(set(names))
    assert len(GGUF) == len({name for _, name in GGUF})
    known = families()
    assert not known.keys() & {*names, *(name for _, name in GGUF)}
    assert set(names) >= NAMED - known.keys()


def test_each_decoder_that_transformers_has_is_run_or_refused_by_name() -> None:
    """A name that is new there is looked at, and gets its place."""
    told = {*families(), *(name for _, name in TYPES), *OTHERS}
    assert {name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in told} == set()
    assert not OTHERS & {*families(), *(name for _, name in TYPES)}


def test_the_documentation_lists_them() -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    for family in NOT_RUN:
        [row] = [line for line in text.splitlines() if line.startswith(f"| {family.name} |")]
        assert family.needs in row
        assert all(f"`{name}`" in row for name in (*family.types, *family.gguf))


@pytest.mark.parametrize("written", [None, 7, ["llama"], {}, "x" * 10**6])
def test_names_that_make_no_sense_are_passed_over(written: Any) -> None:
    config = {"model_type": written, "architectures": written, "text_config": written}
    assert find_not_run(folder(config)) is None
    assert find_not_run(folder({"architectures": [written]})) is None


@pytest.fixture(params=["safetensors", "wrapper", "gguf"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file of a family that is not run."""
    weight = np.zeros((8, 32), np.float32)
    if request.param == "gguf":
        path = tmp_path / "next.gguf"
        writer = gguf.GGUFWriter(path, "qwen4exp")
        writer.add_tensor("token_embd.weight", weight)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path
    text = {"model_type": "qwen4_exp_text"}
    wrapper = {"model_type": "qwen4_exp", "text_config": text}
    config = wrapper if request.param == "wrapper" else text
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"model.embed_tokens.weight": weight}, tmp_path / "model.safetensors")
    return tmp_path


def test_python_refuses_it(model: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"of the family Qwen3\.8-Flash-Next .* n-gram"):
        LLM(model)


@pytest.mark.parametrize("verb", ["run", "show", "serve", "bench", "convert"])
def test_the_command_and_the_server_refuse_it(
    verb: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    more = {"convert": [str(tmp_path / "out.gguf")], "serve": ["--port", "0"], "run": ["hi"]}
    if verb == "convert" and model.is_file():
        pytest.skip("a GGUF file is not converted, whatever it is")
    with pytest.raises(SystemExit) as caught:
        main([verb, str(model), *more.get(verb, [])])
    said = capsys.readouterr()
    assert bool(caught.value.code) == (verb != "show")
    text = " ".join((said.out + said.err).split())
    assert "of the family Qwen3.8-Flash-Next (qwen4" in text
    assert "it would need residual streams" in text
    assert "Traceback" not in text
