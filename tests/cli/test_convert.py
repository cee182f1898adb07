"""dure convert: what it says of what it writes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from outcome import Dure
from packed_mixtures import gguf_mixture

from dure.formats.gguf import read_gguf
from dure.formats.imatrix import read_imatrix
from dure.hub import human_bytes


def test_a_folder_of_packed_experts_is_announced_written_and_shown(
    tmp_path: Path, dure_command: Dure
) -> None:
    source, out = gguf_mixture(tmp_path / "in.gguf", "Q8_0"), tmp_path / "out.dure"
    said = dure_command("convert", str(source), str(out))
    size = human_bytes(sum(path.stat().st_size for path in out.iterdir()))
    assert said.code == 0
    assert said.err == f"{out} will take {size}\n"
    assert said.out.startswith(f"{out}: {size}, of which ")
    assert said.out.endswith("are the experts of 2 layers (Q8_0)\n")
    shown, before = (
        json.loads(dure_command("show", str(path), "--json").out) for path in (out, source)
    )
    same = ("architecture", "parameters", "active_parameters", "experts", "parts", "quantisation")
    assert {key: shown[key] for key in same} == {key: before[key] for key in same}
    assert shown["memory"]["weight_bytes"] == before["memory"]["weight_bytes"]
    assert not shown["problem"]
    names = dure_command("show", str(out), "--tensors").out
    assert "model.layers.1.mlp.experts.down_proj.weight" in names


def test_json_has_the_same(tmp_path: Path, dure_command: Dure) -> None:
    source, out = gguf_mixture(tmp_path / "in.gguf", "Q8_0"), tmp_path / "out.dure"
    value = json.loads(dure_command("convert", str(source), str(out), "--json").out)
    assert value["size_bytes"] == sum(path.stat().st_size for path in out.iterdir())
    assert value["layers"] == 2
    assert value["types"] == {"Q8_0": 2 * 3 * 8}


def test_another_ending_is_refused_with_both(tmp_path: Path, dure_command: Dure) -> None:
    said = dure_command("convert", str(tmp_path), str(tmp_path / "out"))
    assert said.code == 1
    assert "must end in .gguf or .dure" in said.err


def test_a_gguf_file_is_written_in_fewer_bits_and_says_so(
    tmp_path: Path, dure_command: Dure
) -> None:
    source, out = gguf_mixture(tmp_path / "in.gguf", "F32"), tmp_path / "out.gguf"
    said = dure_command("convert", str(source), str(out), "--quantize", "q8_0")
    size = human_bytes(out.stat().st_size)
    assert said.code == 0
    assert said.err == f"{out} will take {size}\n"
    assert said.out.startswith(f"{out}: {size}, ")
    assert "Q8_0 tensors" in said.out
    again = dure_command("convert", str(out), str(tmp_path / "two.gguf"), "--quantize", "Q4_K_M")
    assert "were quantised already: their errors add up" in again.err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["in.gguf", "out.gguf"], "is a GGUF file already"),
        (["in.gguf", "out.gguf", "--quantize", "Q3_K"], "'Q3_K' is not a quantisation that dure"),
        (["in.gguf", "out.dure", "--quantize", "Q4_K_M"], "'Q4_K_M' is not a quantisation that"),
        (["in.gguf", "out.gguf", "--imatrix", "x.dat"], "--imatrix is for OUT.gguf with"),
        (["in.gguf", "in.gguf", "--quantize", "q4"], "in.gguf exists"),
    ],
)
def test_what_cannot_be_written_is_a_sentence(
    tmp_path: Path, dure_command: Dure, arguments: list[str], said: str
) -> None:
    gguf_mixture(tmp_path / "in.gguf", "F32")
    paths = [str(tmp_path / each) if "." in each else each for each in arguments]
    outcome = dure_command("convert", *paths)
    assert outcome.code == 1
    assert said in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
@pytest.mark.parametrize("name", ["out.gguf", "out.dure"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_half_written(
    tmp_path: Path,
    dure_command: Dure,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    number: signal.Signals,
) -> None:
    def killed(_: int) -> None:
        assert signal.getsignal(number) != signal.SIG_DFL  # which would end the tests
        assert len(list(tmp_path.iterdir())) == 2
        os.kill(os.getpid(), number)

    source = gguf_mixture(tmp_path / "in.gguf", "F32")
    monkeypatch.setattr(os, "fsync", killed)
    said = dure_command("convert", str(source), str(tmp_path / name), "--quantize", "q8")
    assert said.code == 128 + number
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]
    assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.model
def test_a_models_importance_is_computed_and_used(
    tmp_path: Path, smollm2: Path, dure_command: Dure
) -> None:
    text, matrix, out = (tmp_path / name for name in ("text.txt", "m.gguf", "out.gguf"))
    text.write_text("The capital of France is Paris. " * 20)
    said = dure_command("imatrix", str(smollm2), str(text), str(matrix), "--window", "32")
    assert (said.code, f"{matrix}: " in said.out) == (0, True)
    found = read_imatrix(matrix)
    assert found.datasets == ("text.txt",)
    assert len(found.entries) == 210  # of seven matrices in 30 layers
    assert all(each.counts.tolist() == [32 * found.chunks] for each in found.entries.values())
    arguments = ("--quantize", "IQ4_XS", "--imatrix", str(matrix))
    assert dure_command("convert", str(smollm2), str(out), *arguments).code == 0
    assert read_gguf(out).metadata["quantize.imatrix.entries_count"] == 210
