"""A plan is what loading would do, from headers alone: of files, and of the catalogue's models."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from big_mixture import Mixture
from tiny_configs import MODELS
from tiny_gguf import config_of

from dure import hub, models
from dure.errors import InvalidRequestError
from dure.formats.checkpoint import open_checkpoint
from dure.formats.source import SourceFile
from dure.loading.load import load
from dure.loading.memory import OVERHEAD_BYTES
from dure.planning.memory import buffer_bytes, footprint
from dure.planning.plan import Wish, plan_model, ranked, runs_badly, two_lines
from dure.planning.shapes import catalogued, sketch
from dure.planning.vendor_prices import nearest_price, vendor_prices
from dure.planning.work import ModelWork, work_of

HEADER = 8_000_000  # more than the vocabulary of any catalogue model takes in a GGUF's header


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of 46 MB, of which 37 MB are experts."""
    sizes = Mixture(layers=2, experts=32)
    return sizes.write(tmp_path_factory.mktemp("plan") / "small.gguf")


@pytest.fixture(scope="module")
def work(mixture: Path) -> ModelWork:
    return work_of(open_checkpoint(mixture), "small")


def test_a_plan_reads_no_weight(mixture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(mixture)

    def refuse(*_: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(SourceFile, "read_into", refuse)
    monkeypatch.setattr(SourceFile, "reading", refuse)
    found = work_of(checkpoint, "small")
    assert footprint(checkpoint, found, available=8 << 30).fits


def test_the_work_of_a_model_has_every_byte_that_loading_counts(
    mixture: Path, work: ModelWork
) -> None:
    counted = models.weight_bytes(open_checkpoint(mixture))
    assert counted.total == work.matrix_bytes + work.vector_bytes
    assert counted.experts == work.expert_bytes
    experts = [matrix for matrix in work.matrices if matrix.use == "expert"]
    assert {(matrix.experts, matrix.active) for matrix in experts} == {(32, 4)}
    assert {matrix.use for matrix in work.matrices} == {"embedding", "dense", "expert", "head"}
    idle = work.expert_bytes * 28 // 32
    lookup = sum(m.nbytes for m in work.matrices if m.use == "embedding")
    assert work.active_bytes == work.matrix_bytes - idle - lookup


@pytest.mark.parametrize("name", [name for name in MODELS if "-" not in name])
def test_every_family_has_a_plan_for_nothing(name: str) -> None:
    checkpoint = sketch(name, config_of(name), lambda *_: "F32")
    found = work_of(checkpoint, name)
    assert sum(count for _, count in found.mixers) == found.layers
    uses = {matrix.use for matrix in found.matrices}
    assert uses >= {"dense", "head"}
    planned = footprint(checkpoint, found, context=64, available=8 << 30)
    assert planned.fits
    assert planned.cache_bytes + planned.state_bytes > 0


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("qwen3_next", {"recurrent", "gqa"}),
        ("kimi_linear", {"recurrent", "latent"}),
        ("lfm2", {"conv", "gqa"}),
    ],
)
def test_layers_say_what_they_compute(name: str, kinds: set[str]) -> None:
    found = work_of(sketch(name, config_of(name), lambda *_: "F32"), name)
    assert {mixer.kind for mixer, _ in found.mixers} == kinds


@pytest.mark.parametrize("name", ["qwen3_next", "gpt_oss", "qwen3"])
def test_as_many_users_fit_as_have_a_cache_and_states_of_their_own(name: str) -> None:
    checkpoint = sketch(name, config_of(name), lambda *_: "F32")
    found = work_of(checkpoint, name)
    state = 2 * sum(spec.bytes_per_sequence for spec in found.cache_specs)
    one = footprint(checkpoint, found, context=32, available=1 << 30)
    room = one.available_bytes - one.weight_bytes - OVERHEAD_BYTES
    for users, fits in ((one.most_users, True), (one.most_users + 1, False)):
        of_all = footprint(checkpoint, found, context=32, users=users, available=1 << 30)
        assert (of_all.cache_bytes + users * state <= room) == fits


def test_a_plan_decides_as_loading_does(mixture: Path, work: ModelWork) -> None:
    loaded = load(mixture, context=1024, cache_tokens=2048, conversations=2, with_tokenizer=False)
    planned = footprint(open_checkpoint(mixture), work, context=1024, users=2)
    assert planned.cache_bytes == loaded.memory.cache_bytes
    assert planned.experts_kept == loaded.memory.expert_cache_bytes
    use = loaded.memory
    assert planned.weight_bytes == use.resident_bytes + use.expert_bytes
    assert planned.peak_bytes <= planned.reserved_bytes


def test_what_attention_and_the_mlp_leave_for_the_next_buffer_of_its_size_adds_up() -> None:
    shapes = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}
    config = config_of("qwen2", **shapes, intermediate_size=11008, tie_word_embeddings=False)
    config.pop("head_dim", None)
    found = work_of(sketch("wide", config, lambda *_: "F32"), "wide")
    floats, keys, tiles, inner = 8 << 20, 2 << 20, 7 << 19, 10 << 20  # of 512 rows, in classes
    kept = 4 * floats + 2 * keys + 2 * tiles + inner
    assert buffer_bytes(found, 512) == floats + kept
    assert buffer_bytes(found, 128) == (floats + kept) // 4


def test_replicas_have_a_cache_each_and_the_same_weights(mixture: Path, work: ModelWork) -> None:
    options = {"context": 1024, "cache_tokens": 2048, "conversations": 2, "replicas": 3}
    loaded = load(mixture, with_tokenizer=False, **options)
    checkpoint = open_checkpoint(mixture)
    planned = footprint(checkpoint, work, context=1024, users=5, replicas=3)
    assert planned.cache_bytes == loaded.memory.cache_bytes
    one = footprint(checkpoint, work, context=1024, users=2)
    assert planned.cache_bytes == 3 * one.cache_bytes
    assert (planned.weight_bytes, planned.token_bytes) == (one.weight_bytes, one.token_bytes)
    least = footprint(checkpoint, work, context=512, available=8 << 30).reserved_bytes - (10 << 20)
    for replicas, fits in ((1, True), (2, False)):  # experts on disk are one engine's
        plan = footprint(
            checkpoint, work, context=512, budget=least, available=8 << 30, replicas=replicas
        )
        assert plan.fits == fits


@pytest.mark.parametrize("name", ["qwen3_next", "gpt_oss", "qwen3"])
def test_as_many_users_fit_in_replicas_as_in_one_each(name: str) -> None:
    checkpoint = sketch(name, config_of(name), lambda *_: "F32")
    found = work_of(checkpoint, name)
    options = {"context": 32, "available": 1 << 30, "replicas": 2}
    most = footprint(checkpoint, found, **options).most_users
    assert most % 2 == 0
    state = 4 * sum(spec.bytes_per_sequence for spec in found.cache_specs)
    for users, fits in ((most, True), (most + 1, False)):
        of_all = footprint(checkpoint, found, users=users, **options)
        room = of_all.available_bytes - of_all.weight_bytes - OVERHEAD_BYTES
        assert (of_all.cache_bytes + -(-users // 2) * state <= room) == fits


def test_what_a_budget_leaves_on_disk_is_said(mixture: Path, work: ModelWork) -> None:
    checkpoint = open_checkpoint(mixture)
    whole = footprint(checkpoint, work, context=512, available=8 << 30)
    budget = whole.reserved_bytes - (10 << 20)
    planned = footprint(checkpoint, work, context=512, budget=budget, available=8 << 30)
    assert whole.fits
    assert not whole.streams
    assert planned.streams
    assert planned.experts_kept < sum(planned.experts.values())
    assert planned.reserved_bytes <= budget


def test_what_does_not_fit_has_a_plan_with_the_number_that_would_do(
    mixture: Path, work: ModelWork
) -> None:
    planned = footprint(open_checkpoint(mixture), work, context=512, budget=150 << 20)
    assert not planned.fits
    assert "needs" in planned.problem
    assert "would do" in planned.hint


def test_a_context_beyond_the_model_is_an_error(mixture: Path, work: ModelWork) -> None:
    with pytest.raises(InvalidRequestError, match="outside 1 to 4,096"):
        footprint(open_checkpoint(mixture), work, context=5000)


KNOWN = [entry for entry in hub.load_catalogue().entries if entry.is_known]


@pytest.mark.parametrize("entry", KNOWN, ids=lambda entry: entry.name)
def test_the_catalogue_knows_the_size_of_its_models_to_the_byte(entry: hub.CatalogueEntry) -> None:
    """A config that is wrong in one number would miss the publisher's count, or the file's size."""
    checkpoint = catalogued(entry)
    sizes = {name: math.prod(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    repeated = sizes["model.embed_tokens.weight"] if "qwen2.5" in entry.name else 0
    repeated *= "7b" not in entry.name  # whose head is another matrix
    assert sum(sizes.values()) - repeated == entry.parameters
    weights = sum(tensor.size_bytes for tensor in checkpoint.tensors.values())
    assert 0 < entry.size_bytes - weights < HEADER


def test_a_model_of_the_catalogue_is_planned_without_a_connection(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DURE_HOME", str(tmp_path))
    small, large = (
        plan_model(name, Wish(available=8 << 30)) for name in ("qwen3:0.6b", "qwen3:30b-a3b")
    )
    assert (small.origin.kind, small.origin.fetched_bytes) == ("catalogue", 0)
    assert (small.memory.streams, large.memory.streams) == (False, True)
    assert ranked([large, small]) == [small, large]
    assert runs_badly(large) and not runs_badly(small)
    assert "639 MB to download" in two_lines(small)[0]
    assert "read from disk" in two_lines(large)[1]


@pytest.mark.parametrize(
    ("name", "billions", "model", "same"),
    [
        ("qwen3:8b", 8.19, "Qwen3-8B", True),
        ("Qwen/Qwen3-8B-GGUF:Q4_K_M", 8.19, "Qwen3-8B", True),
        ("modelscope:Qwen/Qwen3-8B", 8.19, "Qwen3-8B", True),
        ("bartowski/Qwen_Qwen3-8B-GGUF", 8.19, "Qwen3-8B", True),
        ("unsloth/DeepSeek-R1-0528-Qwen3-8B-GGUF", 8.19, "Qwen3-8B", False),  # a distillation
        ("qwen3:4b", 4.02, "Qwen3.5-4B", False),
        ("qwen3-80b", 80.0, None, False),  # the nearest is another class
        ("smollm2:1.7b", 1.7, None, False),  # other makers' prices say nothing of it
    ],
)
def test_a_vendors_price_is_that_of_the_same_model_or_of_the_nearest_of_its_makers(
    name: str, billions: float, model: str | None, same: bool
) -> None:
    found = nearest_price(name, "qwen3" if "qwen" in name else "llama", round(billions * 1e9))
    assert (found and found[0].model) == model
    assert found is None or found[1] == same


@pytest.mark.parametrize("price", vendor_prices(), ids=lambda price: price.model)
def test_every_price_has_a_date_and_an_address(price: object) -> None:
    from datetime import date  # noqa: PLC0415

    assert date.fromisoformat(price.as_of) <= date.today()  # type: ignore[attr-defined]
    assert price.source.startswith("https://")  # type: ignore[attr-defined]
    assert price.output >= price.input > 0  # type: ignore[attr-defined]


def test_prices_are_converted_by_a_rate() -> None:
    yuan = next(price for price in vendor_prices() if price.currency == "CNY")
    assert yuan.in_currency("CNY") is yuan
    dollars = yuan.in_currency("USD", 8.0)
    assert dollars.output == yuan.output / 8
    assert dollars.in_currency("CNY", 8.0).output == yuan.output
    for currency, rate in (("EUR", 7.0), ("USD", 0.0)):
        with pytest.raises(InvalidRequestError):
            yuan.in_currency(currency, rate)
