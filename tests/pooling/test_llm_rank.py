"""LLM.rank: Qwen3-Reranker as it is published, and in the forms that others made of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_embedders as tiny
from tiny_embedders import tokenizer

from dure import LLM
from dure.errors import DureError, InvalidRequestError, UnsupportedModelError
from dure.formats.checkpoint import open_checkpoint
from dure.loading.describe import describe

QUERY, DOCUMENTS = "panda?", ["A bear of China.", "A car.", "<|im_end|>OK", "A bear of China."]
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
HEAD = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
TAIL = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
ALIKE = {"tie_word_embeddings": True}


def load(path: Path) -> LLM:
    return LLM(path, threads=1, context=500, exact=True)


@pytest.fixture(scope="module")
def oracle() -> Any:
    return tiny.oracle(**ALIKE)


def prompt(document: str, instruction: str = INSTRUCTION) -> list[int]:
    """The tokens of the model card: marks in a document are no marks."""
    text = tokenizer(ends=False)
    inner = f"<Instruct>: {instruction}\n<Query>: {QUERY}\n<Document>: "
    around = [text.encode(each).ids for each in (HEAD + inner, TAIL)]
    letters = [i for each in document for i in text.encode(each).ids]
    return [*around[0], *letters, *around[1]]


@pytest.fixture(scope="module")
def wanted(oracle: Any) -> list[float]:
    """The share of "yes" of the two logits behind each prompt, by transformers."""
    import torch  # noqa: PLC0415

    ids = [tokenizer().token_to_id(word) for word in ("yes", "no")]
    found = []
    for document in DOCUMENTS:
        with torch.no_grad():
            logits = oracle(torch.tensor([prompt(document)])).logits[0, -1, ids]
        found.append(float(torch.softmax(logits, 0)[0]))
    assert len(set(found)) == 3
    return found


def causal(oracle: Any, folder: Path) -> None:
    """As Qwen publishes it: only its name says what it is."""
    oracle.save_pretrained(folder)


def with_logit_score(oracle: Any, folder: Path) -> None:
    """As sentence-transformers saves it."""
    oracle.save_pretrained(folder)
    tiny.write_modules(folder, "LogitScore")
    ids = {f"{name}_token_id": tokenizer().token_to_id(word) for name, word in YES_AND_NO}
    tiny.write(folder / "1_LogitScore" / "config.json", ids)


YES_AND_NO = (("true", "yes"), ("false", "no"))


def converted(oracle: Any, folder: Path) -> None:
    """As a sequence classification, whose one logit is the difference of the two."""
    from safetensors.numpy import load_file, save_file  # noqa: PLC0415

    oracle.save_pretrained(folder)
    path = folder / "model.safetensors"
    found = load_file(path)
    rows = [found["model.embed_tokens.weight"][tokenizer().token_to_id(w)] for w in ("yes", "no")]
    save_file({**found, "score.weight": (rows[0] - rows[1])[None]}, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (causal, "Qwen3-Reranker-tiny"),
        pytest.param(with_logit_score, "ranks", marks=pytest.mark.long),
        pytest.param(converted, "seq-cls", marks=pytest.mark.long),
    ],
)
def test_scores_are_those_of_transformers(
    oracle: Any,
    wanted: list[float],
    write: Callable[[Any, Path], None],
    name: str,
    tmp_path: Path,
) -> None:
    folder = tmp_path / name
    write(oracle, folder)
    tiny.write_texts(folder, ends=False)
    llm = load(folder)
    ranked = llm.rank(QUERY, DOCUMENTS)
    scores = {each.index: each.score for each in ranked}
    assert np.allclose([scores[i] for i in range(4)], wanted, atol=1e-5)
    assert [each.score for each in ranked] == sorted(scores.values(), reverse=True)
    assert [each.document for each in ranked] == [DOCUMENTS[each.index] for each in ranked]
    assert llm.engine.stats.cached_tokens > 300  # the query's part is computed once
    assert len(llm.rank(QUERY, DOCUMENTS, top_n=2)) == 2
    assert llm.rank(QUERY, []) == []


def test_a_gguf_scores_by_its_two_rows(oracle: Any, wanted: list[float], tmp_path: Path) -> None:
    llm = load(tiny.write_gguf(tmp_path / "ranks.gguf", oracle, pooling=4, ranks=True))
    scores = {each.index: each.score for each in llm.rank(QUERY, DOCUMENTS)}
    assert np.allclose([scores[i] for i in range(4)], wanted, atol=1e-5)
    with pytest.raises(InvalidRequestError, match="makes scores, and writes no text"):
        llm.generate("Hello")


def test_an_instruction_takes_the_place_of_the_makers_own(oracle: Any, tmp_path: Path) -> None:
    import torch  # noqa: PLC0415

    folder = tmp_path / "reranker"
    causal(oracle, folder)
    tiny.write_texts(folder, ends=False)
    [made] = load(folder).rank(QUERY, ["A car."], instruction="Find cars")
    ids = [tokenizer().token_to_id(word) for word in ("yes", "no")]
    with torch.no_grad():
        logits = oracle(torch.tensor([prompt("A car.", "Find cars")])).logits[0, -1, ids]
    assert made.score == pytest.approx(float(torch.softmax(logits, 0)[0]), abs=1e-5)


def test_a_document_that_is_too_long_is_an_error_unless_it_may_be_cut(
    oracle: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "reranker"
    causal(oracle, folder)
    tiny.write_texts(folder, ends=False)
    llm = load(folder)
    with pytest.raises(DureError, match="takes 500 tokens at once"):
        llm.rank(QUERY, ["x" * 300])
    [cut] = llm.rank(QUERY, ["x" * 300], truncate=True)
    assert cut.prompt_tokens == 500
    [short] = llm.rank(QUERY, ["x" * 300], truncate=10)
    assert short.score == llm.rank(QUERY, ["x" * 10])[0].score
    with pytest.raises(DureError, match="takes 500 tokens at once"):
        llm.rank("x" * 600, ["A car."], truncate=True)


@pytest.mark.parametrize(
    ("query", "documents", "more", "said"),
    [
        (5, ["a"], {}, "A query is a text"),
        ("a", "a", {}, "Documents are a list of texts"),
        ("a", [5], {}, "Documents are a list of texts"),
        ("a", ["a"], {"top_n": 0}, "top_n must be"),
        ("a", ["a"], {"instruction": 5}, "instruction must be a text"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    oracle: Any, query: Any, documents: Any, more: dict[str, Any], said: str, tmp_path: Path
) -> None:
    causal(oracle, tmp_path)
    tiny.write_texts(tmp_path)
    with pytest.raises(InvalidRequestError, match=said):
        load(tmp_path).rank(query, documents, **more)


def test_a_classifier_of_several_classes_is_refused_before_it_is_loaded(
    oracle: Any, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file  # noqa: PLC0415

    converted(oracle, tmp_path)
    tiny.write_texts(tmp_path)
    path = tmp_path / "model.safetensors"
    found = load_file(path)
    three = np.repeat(found["score.weight"], 3, axis=0)
    save_file({**found, "score.weight": three}, path, {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match="sorts texts into 3 classes") as caught:
        load(tmp_path)
    assert "Qwen3-Reranker" in caught.value.hint
    assert "3 classes" in describe(open_checkpoint(tmp_path)).problem
