"""dure show: what a model is, from its headers."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import packings
import pytest
import torch
from safetensors.numpy import save_file
from tiny_gguf import config_of, parameters_of, write_folder

from dure import machine
from dure.formats.checkpoint import open_checkpoint
from dure.hub import human_bytes
from dure.models import memory_needed

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DURE_HOME", str(tmp_path / "dure"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A mixture of 8 experts, 2 a token, in Q8_0 and F32; its name holds a terminal command."""
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_name("A \x1b[31mmodel")
    writer.add_license("mit")
    writer.add_block_count(2)
    writer.add_context_length(4096)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(32)
    writer.add_expert_count(8)
    writer.add_expert_used_count(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "c"])
    writer.add_chat_template(TEMPLATE)
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    experts = gguf.quantize(np.ones((8, 32, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.ffn_up_exps.weight", experts, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_show_says_what_the_file_is_and_what_it_needs(model: Path, dure_command) -> None:
    facts = json.loads(dure_command("show", str(model), "--json").out)
    weights = 64 * 4 + 8 * 32 * 64 // 32 * 34
    expected = {
        "architecture": "qwen3moe",
        "parameters": 64 + 8 * 32 * 64,
        "active_parameters": 64 + 2 * 32 * 64,
        "quantisation": {"Q8_0": 0.9961, "F32": 0.0039},
        "size_bytes": weights,
        "context": 4096,
        "vocabulary": 3,
        "experts": 8,
        "experts_used": 2,
        "license": "mit",
        "has_chat_template": True,
    }
    assert expected == {key: facts[key] for key in expected}
    memory = {
        "weight_bytes": weights,
        "cache_tokens": 4096,
        "cache_bytes": 4096 * 2 * 2 * 2 * 32 * 2,
    }
    assert memory == {key: facts["memory"][key] for key in memory}


def test_show_for_a_person_is_a_line_a_fact_without_terminal_commands(
    model: Path, dure_command
) -> None:
    done = dure_command("show", str(model))
    assert done.code == 0
    lines = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert lines["experts"] == "8, 2 a token"
    assert lines["context"] == "4,096 tokens"
    assert lines["weights"].startswith("18 kB, 8.6 bits each: Q8_0 100 %, F32 <1 %")
    assert lines["memory"].endswith("2.1 MB for 4,096 tokens of context")
    assert "\x1b" not in done.out


def test_show_lists_the_tensors(model: Path, dure_command) -> None:
    lines = [
        line.split() for line in dure_command("show", str(model), "--tensors").out.splitlines()
    ]
    assert ["Q8_0", "8", "x", "32", "x", "64", "blk.0.ffn_up_exps.weight"] in lines
    listed = json.loads(dure_command("show", str(model), "--tensors", "--json").out)["tensors"]
    assert {tensor["name"]: tensor["shape"] for tensor in listed} == {
        "output_norm.weight": [64],
        "blk.0.ffn_up_exps.weight": [8, 32, 64],
    }


def test_show_prints_the_template_alone(model: Path, dure_command) -> None:
    assert dure_command("show", str(model), "--template").out == TEMPLATE + "\n"


def test_show_reads_a_folder_of_safetensors(tmp_path: Path, dure_command) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file({"model.norm.weight": np.ones(16, np.float16)}, folder / "model.safetensors")
    config = {
        "model_type": "llama",
        "num_hidden_layers": 3,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "max_position_embeddings": 100_000,
        "vocab_size": 10,
    }
    (folder / "config.json").write_text(json.dumps(config))
    facts = json.loads(dure_command("show", str(folder), "--json").out)
    assert (facts["architecture"], facts["parameters"], facts["context"]) == ("llama", 16, 100_000)
    assert facts["memory"]["cache_bytes"] == 32768 * 3 * 2 * 8 * 2 * 2
    assert facts["license"] == ""


def test_show_of_a_catalogue_model_not_here_asks_nobody_and_says_how_to_get_it(
    dure_command,
) -> None:
    done = dure_command("show", "Qwen3:30B-A3B")
    assert done.code == 0
    assert "not on this machine: dure pull qwen3:30b-a3b" in done.out
    assert "3.35 billion work on a token" in done.out
    assert json.loads(dure_command("show", "qwen3:0.6b", "--json").out)["here"] is False


@pytest.mark.parametrize("name", ["maker/nothing", "./nothing.gguf", "qwen3:0.5b"])
def test_show_of_what_is_not_here_fails_with_a_sentence(name: str, dure_command) -> None:
    done = dure_command("show", name)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ")


def test_show_of_a_file_that_is_no_model_says_what_it_is(tmp_path: Path, dure_command) -> None:
    (tmp_path / "page.gguf").write_text("<!doctype html>not found")
    done = dure_command("show", str(tmp_path / "page.gguf"))
    assert done.code == 1
    assert "HTML" in done.err


def test_show_of_a_model_that_runs_says_its_parts_caches_and_lineage(
    tmp_path: Path, dure_command
) -> None:
    config = config_of("qwen3_moe-sliding")
    folder = write_folder(tmp_path / "R1-Distill-tiny", config, parameters_of(config))
    card = "---\nlicense: mit\nbase_model:\n- Maker/Base\n---\n"
    (folder / "README.md").write_text(card)
    facts = json.loads(dure_command("show", str(folder), "--json").out)
    assert (facts["family"], facts["problem"]) == ("qwen3_moe", "")
    assert (facts["license"], facts["lineage"]) == ("mit", "distilled, from Maker/Base")
    assert {part: list(types) for part, types in facts["parts"].items()} == {
        part: ["F32"] for part in ("attention", "embedding", "experts", "head", "router")
    }
    assert facts["parts"]["experts"]["F32"] == 2 * 8 * 3 * 32 * 64
    window = {"kind": "window", "layers": 2, "token_bytes": 384, "sequence_bytes": 0, "window": 8}
    assert facts["caches"] == [window]
    assert facts["cache_bytes_per_token"] == 0  # of tokens that no window sees any more
    assert facts["memory"]["cache_bytes"] == 256 * 384
    assert facts["memory"]["fits"] is True
    lines = dure_command("show", str(folder)).out
    assert " a token in 2 window layers of 8 tokens" in lines
    assert "\nfits          yes: a run takes " in lines


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe"])
def test_show_says_of_what_does_not_fit_whether_it_runs_all_the_same(
    tmp_path: Path, dure_command, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    config = config_of(model_type)
    folder = write_folder(tmp_path / "tiny", config, parameters_of(config))
    monkeypatch.setattr(machine, "memory_available", lambda: 1 << 20)
    facts = json.loads(dure_command("show", str(folder), "--json").out)
    mixture = model_type == "qwen3_moe"
    assert facts["memory"]["fits"] is False
    assert (facts["memory"]["expert_bytes"] > 0) == mixture
    lines = dure_command("show", str(folder)).out
    assert "\nfits          no: a run takes " in lines
    assert ("experts read from disk" in lines) == mixture


def test_show_says_what_weights_take_in_memory_and_which_scales_are_not_used(
    tmp_path: Path, dure_command
) -> None:
    config = config_of("llama", hidden_size=64)
    parameters = parameters_of(config)

    def pack(name: str, weight: np.ndarray) -> packings.Packed | None:
        if ".self_attn." not in name or weight.ndim < 2:
            return None
        tensors, values = packings.gptq(weight, group=8)  # which no type has: float32
        tensors["input_scale"] = torch.ones(1)
        return {**tensors, "k_scale": torch.ones(1)}, values

    settings = {"quant_method": "gptq", "bits": 4, "group_size": 8, "desc_act": False}
    packings.write_packed(tmp_path, config, parameters, settings, pack)
    facts = json.loads(dure_command("show", str(tmp_path), "--json").out)
    assert facts["unused_scales"] == {"activations": ["input_scale"], "cache": ["k_scale"]}
    needed = memory_needed(open_checkpoint(tmp_path))
    assert facts["memory"]["weight_bytes"] == needed > facts["size_bytes"]
    floats = sum(4 * array.size for name, array in parameters.items() if ".self_attn." in name)
    assert needed > floats
    lines = dure_command("show", str(tmp_path)).out
    assert "of activations (input_scale) and of the KV cache (k_scale), which dure" in lines
    assert f"{human_bytes(needed)} of weights" in lines


def test_show_says_why_a_model_does_not_run(model: Path, dure_command) -> None:
    facts = json.loads(dure_command("show", str(model), "--json").out)
    assert (facts["family"], facts["caches"]) == ("qwen3_moe", [])
    assert "vocab_size" in facts["problem"]
    assert facts["parts"] == {"experts": {"Q8_0": 8 * 32 * 64}}
    assert "\nruns          no: " in dure_command("show", str(model)).out
