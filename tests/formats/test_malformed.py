"""Files that are broken in one known way each are refused, with a sentence that says which."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import malformed_gguf
import malformed_safetensors
import pytest
from model_bytes import ARRAY, F32, U32, Array, KeyValue, gguf, rich_gguf, rich_safetensors

from dure.errors import DureError, ModelFileError, UnsupportedModelError
from dure.formats.gguf import read_gguf
from dure.formats.safetensors import read_safetensors
from dure.hub.facts import read_facts

Kind = Callable[[], Iterator[tuple[str, bytes, str]]]
SPARE_MEMORY = 64 << 20

KINDS = [
    *(pytest.param(read_gguf, kind, id=f"gguf-{kind.__name__}") for kind in malformed_gguf.KINDS),
    *(
        pytest.param(read_safetensors, kind, id=f"safetensors-{kind.__name__}")
        for kind in malformed_safetensors.KINDS
    ),
]


@pytest.mark.parametrize(("read", "kind"), KINDS)
def test_every_broken_file_is_refused_in_one_sentence_without_much_memory(
    read: Callable[[Path], object], kind: Kind, tmp_path: Path
) -> None:
    path = tmp_path / "broken.model"
    for name, data, says in kind():
        path.write_bytes(data)
        tracemalloc.start()
        try:
            with pytest.raises(DureError) as caught:
                read(path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert isinstance(caught.value, (ModelFileError, UnsupportedModelError)), name
        message = caught.value.message
        assert says in message, name
        assert str(path) in message, name
        assert message.endswith(".") and "\n" not in message, name
        assert len(message) < len(str(path)) + 600, name
        assert peak <= 2 * len(data) + SPARE_MEMORY, name


def test_there_are_over_a_thousand_distinct_broken_files() -> None:
    gguf = {data for kind in malformed_gguf.KINDS for _, data, _ in kind()}
    other = {data for kind in malformed_safetensors.KINDS for _, data, _ in kind()}
    assert len(gguf) + len(other) > 1_000
    for kind in (*malformed_gguf.KINDS, *malformed_safetensors.KINDS):
        names = [name for name, _, _ in kind()]
        assert len(set(names)) == len(names), kind.__name__


def test_the_files_that_the_broken_ones_are_made_from_are_sound(tmp_path: Path) -> None:
    (tmp_path / "sound.gguf").write_bytes(rich_gguf().data)
    (tmp_path / "sound.safetensors").write_bytes(rich_safetensors())
    file = read_gguf(tmp_path / "sound.gguf")
    assert len(file.metadata) == 18
    assert len(file.tensors) == 16
    assert len(read_safetensors(tmp_path / "sound.safetensors")) == 6


def test_keys_of_other_types_than_they_have_are_no_facts(tmp_path: Path) -> None:
    keys = [
        KeyValue("general.architecture", ARRAY, Array(U32, [])),
        KeyValue("general.name", F32, 1.5),
        KeyValue("tokenizer.ggml.tokens", F32, 1.5),
    ]
    path = tmp_path / "a.gguf"
    path.write_bytes(bytes(gguf(keys).data))
    facts = read_facts(path)
    assert (facts.architecture, facts.title, facts.vocabulary) == ("", "", 0)
