"""A mixture becomes a folder of packed experts that computes the same bits; or it is refused."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import packed_mixtures
import pytest
from packed_mixtures import GGUF_KINDS, LAYOUTS, gguf_mixture, mixture
from safetensors import safe_open
from tiny_gguf import config_of, parameters_of, read_folder, write_folder
from tiny_models import oracle, prefill_logits, random_sequences, saved

from dure import kernels
from dure.convert import copies as copies_module
from dure.convert import folder as folder_module
from dure.convert.folder import pack_folder
from dure.convert.gguf import convert
from dure.errors import InvalidRequestError, ModelFileError, UnsupportedModelError
from dure.formats import gguf_writer
from dure.formats.checkpoint import open_checkpoint
from dure.models import load_model, memory_needed

TOKENS = random_sequences(40, seed=1)[0]
# Families with mixtures; their names are of the tiny models that transformers makes.
FAMILIES = [
    "qwen3_moe",
    "qwen2_moe",
    "qwen3_next",
    "ernie4_5_moe",
    "hunyuan_v1_moe",
    "deepseek_v2-queries",
    "deepseek_v3",
    "minimax_m2",
    "glm4_moe",
    "pangu_pro_moe",
]


def bits(path: Path, **options: Any) -> bytes:
    """The logits of a prompt."""
    return prefill_logits(load_model(open_checkpoint(path), threads=2, **options), TOKENS).tobytes()


@pytest.mark.parametrize("kind", GGUF_KINDS)
def test_a_packed_gguf_computes_the_bits_of_its_file(tmp_path: Path, kind: str) -> None:
    source, out = gguf_mixture(tmp_path / "in.gguf", kind), tmp_path / "out.dure"
    pack_folder(source, out)
    assert bits(out) == bits(source)
    if kind in ("F16", "BF16"):  # these experts are integers now
        assert bits(out, exact=True) != bits(source, exact=True)
    else:
        assert bits(out, exact=True) == bits(source, exact=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_packed_folder_computes_the_bits_of_its_layout(tmp_path: Path, layout: str) -> None:
    source, out = mixture(tmp_path / "in", layout), tmp_path / "out.dure"
    pack_folder(source, out)
    assert bits(out) == bits(source)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_mixtures_can_be_packed(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    source, out = saved(name, oracle(name), tmp_path / "in"), tmp_path / "out.dure"
    pack_folder(source, out)
    assert bits(out) == bits(source)
    assert not any(".experts." in each for each in open_checkpoint(out).tensors)


@pytest.mark.parametrize("layout", ["bfloat16", "fp8", "gptq desc_act"])
def test_quantised_while_packed_is_quantised_on_load(tmp_path: Path, layout: str) -> None:
    source, out = mixture(tmp_path / "in", layout), tmp_path / "out.dure"
    pack_folder(source, out, quantize="q4")
    expected = bits(source, quantize="q4")
    assert bits(out) == bits(out, quantize="q4") == expected
    with pytest.raises(InvalidRequestError, match=r"converted with --quantize q4.*made q8 now"):
        load_model(open_checkpoint(out), quantize="q8")
    with pytest.raises(InvalidRequestError, match=r"converted with --quantize q4.*made q8 now"):
        memory_needed(open_checkpoint(out), quantize="q8")


def test_floats_that_were_packed_as_they_are_cannot_be_quantised_later(tmp_path: Path) -> None:
    source, out = mixture(tmp_path / "in", "bfloat16"), tmp_path / "out.dure"
    pack_folder(source, out)
    with pytest.raises(InvalidRequestError, match="converted without --quantize"):
        load_model(open_checkpoint(out), quantize="q4")


def test_all_other_tensors_and_the_metadata_of_a_gguf_stay_as_they_are(tmp_path: Path) -> None:
    source, out = gguf_mixture(tmp_path / "in.gguf", "Q8_0"), tmp_path / "out.dure"
    pack_folder(source, out)
    before, after = (gguf.GGUFReader(path) for path in (source, out / "model.gguf"))
    fields = [
        {name: (f.types, f.contents()) for name, f in reader.fields.items()}
        for reader in (before, after)
    ]
    for each in fields:
        each.pop("GGUF.tensor_count")
    assert fields[0] == fields[1]
    kept = {t.name: t for t in before.tensors if "_exps" not in t.name}
    assert [t.name for t in after.tensors] == list(kept)
    for tensor in after.tensors:
        assert tensor.tensor_type == kept[tensor.name].tensor_type
        assert tensor.data.tobytes() == kept[tensor.name].data.tobytes()


def test_all_other_tensors_and_files_of_a_folder_stay_as_they_are(tmp_path: Path) -> None:
    source, out = mixture(tmp_path / "in", "gptq"), tmp_path / "out.dure"
    small = {
        "tokenizer.json": "{}",
        "tokenizer_config.json": "{}",
        "generation_config.json": '{"top_k": 3}',
        "chat_template.jinja": "{{ messages }}",
        "merges.txt": "a b",
        "README.md": "---\nlicense: mit\n---\n",
        "LICENSE": "free",
    }
    for name, text in small.items():
        (source / name).write_text(text)
    (source / "modeling.py").write_text("print('never')")
    (source / "training_args.bin").write_bytes(b"pickle")
    pack_folder(source, out)
    weights = {"config.json", "model.safetensors", "experts.dure"}
    assert {path.name for path in out.iterdir()} == weights | set(small)
    for name in (*small, "config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    with (
        safe_open(source / "model.safetensors", "np") as before,
        safe_open(out / "model.safetensors", "np") as after,
    ):
        names = set(after.keys())
        assert names == {name for name in set(before.keys()) if ".experts." not in name}
        assert after.metadata() == before.metadata()
        for name in names:
            assert after.get_tensor(name).tobytes() == before.get_tensor(name).tobytes()


def test_an_experts_bias_of_zeros_goes_with_its_matrix(tmp_path: Path) -> None:
    import torch  # noqa: PLC0415
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    source, out = mixture(tmp_path / "in", "gptq"), tmp_path / "out.dure"
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.mlp.experts.1.up_proj.bias"] = torch.zeros(
        config_of("qwen3_moe")["moe_intermediate_size"]
    )
    save_file(tensors, source / "model.safetensors")
    pack_folder(source, out)
    assert bits(out) == bits(source)


def test_sharded_folders_and_split_files_become_one(tmp_path: Path) -> None:
    from safetensors.numpy import save_file  # noqa: PLC0415

    whole = mixture(tmp_path / "whole", "float32")
    config, arrays = read_folder(whole)
    shards, places = tmp_path / "shards", {}
    shards.mkdir()
    (shards / "config.json").write_text(json.dumps(config))
    for index in range(3):
        name = f"model-{index + 1:05d}-of-00003.safetensors"
        part = dict(sorted(arrays.items())[index::3])
        save_file(part, shards / name, metadata={"format": "pt"})
        places |= dict.fromkeys(part, name)
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    pack_folder(shards, tmp_path / "out.dure")
    assert bits(tmp_path / "out.dure") == bits(whole)
    assert not (tmp_path / "out.dure" / "model.safetensors.index.json").exists()


def test_the_size_is_told_first_and_kept(tmp_path: Path) -> None:
    for source in (mixture(tmp_path / "in", "bfloat16"), gguf_mixture(tmp_path / "a.gguf", "Q8_0")):
        (tmp_path / "in" / "tokenizer_config.json").write_text("{}")
        out = tmp_path / f"{source.name}.dure"
        told: list[int] = []
        seen: list[tuple[int, int]] = []
        checked: list[tuple[int, int]] = []

        def first(size: int, out: Path = out, told: list[int] = told) -> None:
            told.append(size)
            assert not out.exists()

        written = pack_folder(
            source,
            out,
            tell_size=first,
            progress=lambda *each, seen=seen: seen.append(each),
            checking=lambda *each, checked=checked: checked.append(each),
        )
        real = sum(path.stat().st_size for path in out.iterdir())
        assert told == [real] == [written.size_bytes]
        for each in (seen, checked):
            done, totals = zip(*each, strict=True)
            assert list(done) == sorted(done)
            assert done[-1] <= totals[-1] <= real
            assert len(set(totals)) == 1
        assert checked[-1][0] == checked[-1][1]


def test_memory_needed_is_that_of_the_source(tmp_path: Path) -> None:
    source, out = mixture(tmp_path / "in", "gptq"), tmp_path / "out.dure"
    pack_folder(source, out)
    assert memory_needed(open_checkpoint(out)) == memory_needed(open_checkpoint(source))


def test_each_record_begins_at_a_page(tmp_path: Path) -> None:
    source, out = gguf_mixture(tmp_path / "in.gguf", "Q4_0"), tmp_path / "out.dure"
    pack_folder(source, out)
    experts = open_checkpoint(out).experts
    assert experts is not None
    for layer in experts.layers.values():
        assert layer.offset % 4096 == layer.record_bytes % 4096 == 0


def test_a_model_without_experts_is_refused(tmp_path: Path) -> None:
    config = config_of("qwen3")
    source = write_folder(tmp_path / "in", config, parameters_of(config))
    with pytest.raises(UnsupportedModelError, match="has no experts"):
        pack_folder(source, tmp_path / "out.dure")
    assert not (tmp_path / "out.dure").exists()


def test_what_is_packed_is_not_converted_again(tmp_path: Path) -> None:
    source, out = gguf_mixture(tmp_path / "in.gguf", "Q8_0"), tmp_path / "out.dure"
    pack_folder(source, out)
    with pytest.raises(UnsupportedModelError, match="converted already"):
        pack_folder(out, tmp_path / "again.dure")
    with pytest.raises(UnsupportedModelError, match="experts packed"):
        convert(out, tmp_path / "again.gguf")


def test_only_a_folder_of_ours_is_replaced_and_only_by_force(tmp_path: Path) -> None:
    source, out = gguf_mixture(tmp_path / "in.gguf", "Q8_0"), tmp_path / "out.dure"
    pack_folder(source, out)
    with pytest.raises(InvalidRequestError, match=r"out\.dure exists"):
        pack_folder(source, out)
    (out / "note").write_text("old")
    pack_folder(source, out, force=True)
    assert not (out / "note").exists()
    other = tmp_path / "photos.dure"
    other.mkdir()
    (other / "one.png").write_text("")
    with pytest.raises(InvalidRequestError, match="not a folder that dure convert wrote"):
        pack_folder(source, other, force=True)
    assert (other / "one.png").exists()
    with pytest.raises(InvalidRequestError, match="is not a folder"):
        pack_folder(source, tmp_path / "nowhere" / "out.dure")
    assert {path.name for path in tmp_path.iterdir()} == {"in.gguf", "out.dure", "photos.dure"}


@pytest.mark.parametrize("which", ["progress", "checking"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_what_ends_early_leaves_nothing_behind(
    tmp_path: Path, error: BaseException, which: str
) -> None:
    source, target = gguf_mixture(tmp_path / "in.gguf", "Q8_0"), tmp_path / "target"
    target.mkdir()

    def fail(done: int, total: int) -> None:
        if done > total // 2:
            raise error

    wanted = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else InvalidRequestError
    with pytest.raises(wanted):
        pack_folder(source, target / "out.dure", **{which: fail})  # type: ignore[arg-type]
    assert list(target.iterdir()) == []


def test_what_ends_early_leaves_the_folder_that_was_to_be_replaced(tmp_path: Path) -> None:
    source, out = gguf_mixture(tmp_path / "in.gguf", "Q8_0"), tmp_path / "out.dure"
    pack_folder(source, out)

    def fail(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_folder(source, out, force=True, checking=fail)
    assert bits(out) == bits(source)
    assert {path.name for path in tmp_path.iterdir()} == {"in.gguf", "out.dure"}


def test_a_disk_that_is_too_full_is_said_before_a_byte_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = gguf_mixture(tmp_path / "in.gguf", "Q8_0"), tmp_path / "target"
    target.mkdir()
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(gguf_writer.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InvalidRequestError, match=r"0\.00 GB of that disk is free"):
        pack_folder(source, target / "out.dure")
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("name", ["model.gguf", "experts.dure"])
@pytest.mark.parametrize("at", [0.3, 0.999])
def test_a_byte_that_the_disk_changes_is_found_before_the_folder_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, at: float
) -> None:
    source = gguf_mixture(tmp_path / "in.gguf", "Q8_0")

    def spoil(path: Path) -> None:
        if path.name == name:
            with path.open("r+b") as file:
                place = file.seek(int(at * path.stat().st_size))
                byte = file.read(1)[0]
                file.seek(place)
                file.write(bytes([byte ^ 1]))

    monkeypatch.setattr(copies_module, "drop_cached", spoil)
    monkeypatch.setattr(folder_module, "drop_cached", spoil)
    with pytest.raises(ModelFileError, match="is not what was written"):
        pack_folder(source, tmp_path / "out.dure")
    assert {path.name for path in tmp_path.iterdir()} == {"in.gguf"}


def test_a_weight_that_is_not_finite_is_found_while_packing(tmp_path: Path) -> None:
    config = config_of("qwen3_moe")
    arrays = parameters_of(config)
    arrays["model.layers.1.mlp.experts.2.down_proj.weight"][3, 4] = np.inf
    source = write_folder(tmp_path / "in", config, arrays)
    with pytest.raises(ModelFileError, match="is NaN or infinite"):
        pack_folder(source, tmp_path / "out.dure")
    assert not (tmp_path / "out.dure").exists()


def test_columns_in_orders_of_their_own_are_refused_as_on_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def own(name: str, cols: int) -> np.ndarray:
        return np.random.default_rng(len(name) + int(name.split(".")[-3])).permutation(cols)

    monkeypatch.setattr(packed_mixtures, "one_order", own)
    source, out = mixture(tmp_path / "in", "gptq desc_act"), tmp_path / "out.dure"
    with pytest.raises(UnsupportedModelError, match="an order of its own"):
        pack_folder(source, out)
    assert not out.exists()
    pack_folder(source, out, quantize="q8")
    assert bits(out) == bits(source, quantize="q8")


def test_a_folder_of_another_layout_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = gguf_mixture(tmp_path / "in.gguf", "Q8_0"), tmp_path / "out.dure"
    pack_folder(source, out)
    monkeypatch.setattr(kernels, "LAYOUT", kernels.LAYOUT + 1)
    with pytest.raises(
        UnsupportedModelError, match=r"packed in layout 1, and .* layout 2"
    ) as error:
        load_model(open_checkpoint(out))
    assert "convert the model again" in error.value.hint


def test_a_file_of_other_tensors_that_was_replaced_is_refused(tmp_path: Path) -> None:
    source, out = gguf_mixture(tmp_path / "in.gguf", "Q8_0"), tmp_path / "out.dure"
    pack_folder(source, out)
    gguf_mixture(out / "model.gguf", "Q4_0")
    with pytest.raises(ModelFileError, match=re.escape("is not the file that experts.dure")):
        open_checkpoint(out)


def test_either_file_names_the_folder(tmp_path: Path) -> None:
    source, out = gguf_mixture(tmp_path / "in.gguf", "Q8_0"), tmp_path / "out.dure"
    pack_folder(source, out)
    assert bits(out / "model.gguf") == bits(source)


PEAK = """
import sys
from pathlib import Path

from dure.convert.folder import pack_folder
from dure.models import families

def status(key):
    fields = Path("/proc/self/status").read_text().split()
    return int(fields[fields.index(key) + 1]) << 10

families()
before = status("VmRSS:")
pack_folder(Path(sys.argv[1]), Path(sys.argv[2]), quantize=sys.argv[3] or None, threads=1)
print(status("VmHWM:") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("quantize", [pytest.param("", marks=pytest.mark.long), "q4"])
def test_one_expert_is_in_memory_at_a_time(tmp_path: Path, quantize: str) -> None:
    """Of 75 MB, 2.4 MB each."""
    sizes = {"hidden_size": 512, "moe_intermediate_size": 768}
    source = mixture(tmp_path / "in", "bfloat16", num_experts=16, **sizes)
    script = [sys.executable, "-c", PEAK, str(source), str(tmp_path / "out.dure"), quantize]
    peak = int(subprocess.run(script, check=True, capture_output=True, text=True).stdout)
    assert (source / "model.safetensors").stat().st_size > 75_000_000
    assert peak < 48 << 20
