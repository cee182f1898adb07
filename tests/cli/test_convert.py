"""dure convert: what it says of what it writes."""

from __future__ import annotations

import json
from pathlib import Path

from outcome import Dure
from packed_mixtures import gguf_mixture

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
