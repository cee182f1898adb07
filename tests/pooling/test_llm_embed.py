"""LLM.embed: what a checkpoint says of pooling, against transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_embedders as tiny
from tiny_embedders import QUERY, hidden, pooled, tokenizer, unit

from dure import LLM, SamplingParams
from dure.errors import DureError, InvalidRequestError, ModelFileError, UnsupportedModelError
from dure.formats.checkpoint import open_checkpoint
from dure.pooling.config import read_pooling
from dure.pooling.request import MAX_TEXTS, MAX_TOKENS

TEXTS = ["Hello", "A long text, " * 12, "두레", "Hello there", "a"]
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def load(folder: Path, **options: Any) -> LLM:
    return LLM(folder, threads=1, context=300, **{"exact": True, **options})


@pytest.fixture(scope="module")
def oracle() -> Any:
    return tiny.oracle(tie_word_embeddings=False)


@pytest.fixture(scope="module")
def folder(oracle: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Qwen3-Embedding is published: no head, names without "model.", and an end after texts."""
    made = tmp_path_factory.mktemp("embedder")
    oracle.model.save_pretrained(made)
    tiny.write_texts(made)
    tiny.write_modules(made, "Pooling", "Normalize")
    return made


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return load(folder)


def ids_of(text: str) -> list[int]:
    return tokenizer().encode(text).ids


def test_an_embedding_is_the_last_tokens_state_behind_the_end(llm: LLM, oracle: Any) -> None:
    for text, made in zip(TEXTS, llm.embed(TEXTS), strict=True):
        ids = ids_of(text)
        assert made.prompt_tokens == len(ids)
        assert np.allclose(made.vector, unit(hidden(oracle, ids)[-1]), atol=1e-5)


def test_a_prompt_goes_before_the_text_by_name_or_as_it_is(llm: LLM, oracle: Any) -> None:
    wanted = unit(hidden(oracle, ids_of(QUERY + "Hello"))[-1])
    for options in ({"prompt_name": "query"}, {"prompt": QUERY}):
        assert np.allclose(llm.embed("Hello", **options)[0].vector, wanted, atol=1e-5)
    with pytest.raises(
        InvalidRequestError, match=r"no prompt called 'passage'.*\n.*query, document"
    ):
        llm.embed("Hello", prompt_name="passage")
    with pytest.raises(InvalidRequestError, match="not both"):
        llm.embed("Hello", prompt_name="query", prompt=QUERY)


def test_token_ids_are_taken_as_they_are(llm: LLM) -> None:
    assert np.array_equal(llm.embed([ids_of("Hello")])[0].vector, llm.embed("Hello")[0].vector)


def test_a_prompt_is_not_written_before_token_ids_and_that_is_said(llm: LLM) -> None:
    for options in ({"prompt_name": "query"}, {"prompt": QUERY}):
        with pytest.raises(InvalidRequestError, match=r"no prompt is written before them"):
            llm.embed([ids_of("Hello")], **options)


def test_of_token_ids_nothing_is_left_out_as_a_default_prompt(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = replace(llm.pooling, default_prompt="query", include_prompt=False)
    monkeypatch.setattr(llm.pooling_builder, "config", default)
    assert llm.pooling_builder.embeddings(["Hello"]).pooling.skip > 0
    assert llm.pooling_builder.embeddings([ids_of("Hello")]).pooling.skip == 0
    with pytest.raises(InvalidRequestError, match="cannot be embedded at once"):
        llm.embed(["Hello", ids_of("Hello")])


def test_a_long_prompt_is_not_tokenised_for_every_text_only_to_be_cut(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match=r"prompt of 5,000 characters .*\n.*fewer texts"):
        llm.pooling_builder.embeddings(["a"] * 600, prompt="x" * 5000, truncate=2)


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_layer_that_makes_a_vector_infinite_is_an_error(llm: LLM) -> None:
    prepared = llm.pooling_builder.embeddings(["Hello"])
    damaged = replace(prepared, finish=lambda vector: vector * np.float32(np.inf))
    with pytest.raises(ModelFileError, match="not finite"):
        llm.driver.pool(damaged)


def test_fewer_dimensions_are_the_first_ones_with_the_length_1(llm: LLM) -> None:
    whole, cut = llm.embed("Hello")[0].vector, llm.embed("Hello", dimensions=24)[0].vector
    assert np.allclose(cut, unit(whole[:24]), atol=1e-6)
    with pytest.raises(InvalidRequestError, match=r"dimensions is 65, but .* have 64 numbers"):
        llm.embed("Hello", dimensions=65)


def test_a_length_of_1_can_be_left_out(llm: LLM, oracle: Any) -> None:
    [made] = llm.embed("Hello", normalize=False)
    assert np.allclose(made.vector, hidden(oracle, ids_of("Hello"))[-1], atol=1e-4)


def test_a_text_that_is_too_long_is_an_error_unless_it_may_be_cut(llm: LLM, oracle: Any) -> None:
    long = "x" * 400  # sentence_bert_config.json says 256
    with pytest.raises(DureError, match=r"401 tokens, and embedder.* takes 256"):
        llm.embed(long)
    wanted = [*ids_of(long)[:255], ids_of("")[0]]
    [cut] = llm.embed(long, truncate=True)
    assert cut.prompt_tokens == 256
    assert np.allclose(cut.vector, unit(hidden(oracle, wanted)[-1]), atol=1e-5)
    assert llm.embed(long, truncate=10)[0].prompt_tokens == 10


def test_no_text_is_no_embedding_and_an_empty_one_is_its_end(llm: LLM, oracle: Any) -> None:
    assert llm.embed([]) == []
    assert np.allclose(llm.embed("")[0].vector, unit(hidden(oracle, ids_of(""))[-1]), atol=1e-5)
    with pytest.raises(InvalidRequestError, match="2,049 texts, and one request may have 2,048"):
        llm.embed(["a"] * 2049)


def test_an_embedder_writes_no_text(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="makes embeddings, and writes no text"):
        llm.generate("Hello", SamplingParams(max_tokens=1))
    with pytest.raises(InvalidRequestError, match="is no reranker"):
        llm.rank("Hello", ["Hello"])


def test_a_vector_has_the_same_bits_whatever_shares_its_batch(folder: Path) -> None:
    """Also where its beginning is in the cache, and in int8 products."""
    for exact in (True, False):
        fresh = load(folder, exact=exact, cache_bytes=2 << 20)
        together = [each.vector.tobytes() for each in fresh.embed(TEXTS)]
        alone = [fresh.embed(text)[0].vector.tobytes() for text in TEXTS]
        reused = [each.vector.tobytes() for each in fresh.embed(TEXTS[::-1])][::-1]
        assert together == alone == reused
    assert fresh.engine.stats.cached_tokens > 100
    assert fresh.engine.pool.num_free == fresh.engine.pool.num_blocks


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
def test_pooling_is_as_the_checkpoint_says(
    folder: Path, oracle: Any, mode: str, tmp_path: Path
) -> None:
    flags = {"lasttoken": "pooling_mode_lasttoken", "cls": "pooling_mode_cls_token"}
    chosen = {flags.get(mode, f"pooling_mode_{mode.removesuffix('_tokens')}_tokens"): True}
    config = with_modules(folder, tmp_path, "Pooling", pooling=chosen)
    assert (config.modes, config.steps) == ((mode,), ())
    llm = load(tmp_path)
    for text, made in zip(TEXTS, llm.embed(TEXTS), strict=True):
        wanted = pooled(hidden(oracle, ids_of(text)), mode)
        assert np.allclose(made.vector, wanted, atol=1e-4)


def with_modules(folder: Path, tmp_path: Path, *kinds: str, **options: Any) -> Any:
    """A copy of the folder with other modules; what is read of them."""
    for path in folder.iterdir():
        if path.is_file():
            (tmp_path / path.name).symlink_to(path)
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (tmp_path / name).unlink()
    tiny.write_modules(tmp_path, *kinds, **options)
    if "Dense" in kinds:
        tiny.write_dense(tmp_path / f"{kinds.index('Dense') + 1}_Dense", 24)
    return read_pooling(open_checkpoint(tmp_path))


def test_several_modes_a_prompt_left_out_and_a_dense_layer(
    folder: Path, oracle: Any, tmp_path: Path
) -> None:
    pooling = {"pooling_mode": ["mean", "lasttoken"], "include_prompt": False}
    with_modules(folder, tmp_path, "Pooling", "Dense", "Normalize", pooling=pooling)
    weight, bias = tiny.write_dense(tmp_path / "2_Dense", 24, 128)
    [made] = load(tmp_path).embed("Hello", prompt_name="query")
    states = hidden(oracle, ids_of(QUERY + "Hello"))
    both = [pooled(states, mode, len(QUERY)) for mode in ("mean", "lasttoken")]
    wanted = unit(np.tanh(weight @ np.concatenate(both) + bias))
    assert np.allclose(made.vector, wanted, atol=1e-5)


def test_modules_that_are_not_known_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="'LSTM', which dure does not compute"):
        with_modules(folder, tmp_path, "LSTM")
    tiny.write_modules(tmp_path, "Pooling", pooling={"pooling_mode": "median"})
    with pytest.raises(UnsupportedModelError, match="pools by 'median'"):
        read_pooling(open_checkpoint(tmp_path))
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[1]["path"] = "../elsewhere"
    tiny.write(tmp_path / "modules.json", modules)
    with pytest.raises(ModelFileError, match=r"names the folder '../elsewhere'"):
        read_pooling(open_checkpoint(tmp_path))


def test_a_chat_model_gives_the_last_tokens_state_and_no_part_of_it(
    oracle: Any, tmp_path: Path
) -> None:
    oracle.save_pretrained(tmp_path)
    tiny.write_texts(tmp_path, ends=False)
    llm = load(tmp_path)
    assert not llm.pooling.is_said
    [made] = llm.embed("Hello")
    wanted = unit(hidden(oracle, tokenizer(ends=False).encode("Hello").ids)[-1])
    assert np.allclose(made.vector, wanted, atol=1e-5)
    with pytest.raises(InvalidRequestError, match="not known to be trained for shorter vectors"):
        llm.embed("Hello", dimensions=16)
    with pytest.raises(InvalidRequestError, match="A text is empty"):
        llm.embed("")
    assert llm.generate("Hello", SamplingParams(max_tokens=2))[0].token_ids


@pytest.mark.parametrize(
    ("ends", "pooling"),
    [
        (True, 3),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in ((None, 3), (False, 3), (True, 1))
        ),
    ],
)
def test_a_gguf_pools_as_its_key_says(
    oracle: Any, ends: bool | None, pooling: int, tmp_path: Path
) -> None:
    """The first files of Qwen3-Embedding had no key for the end, and need it all the same."""
    path = tiny.write_gguf(tmp_path / "embed.gguf", oracle, pooling=pooling, ends=ends)
    [made] = load(path).embed("Hello", prompt="Query: ")
    ids = tokenizer(ends=ends is not False).encode("Query: Hello").ids
    mode = {1: "mean", 3: "lasttoken"}[pooling]
    assert np.allclose(made.vector, unit(pooled(hidden(oracle, ids), mode)), atol=1e-5)


def test_matryoshka_lengths_are_those_of_the_config(folder: Path, tmp_path: Path) -> None:
    with_modules(folder, tmp_path, "Pooling", pooling={"pooling_mode_mean_tokens": True})
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    tiny.write(tmp_path / "config.json", {**config, "matryoshka_dimensions": [16, 32]})
    llm = load(tmp_path)
    assert len(llm.embed("Hello", dimensions=32)[0].vector) == 32
    with pytest.raises(InvalidRequestError, match="is trained for 16, 32"):
        llm.embed("Hello", dimensions=24)


def test_attention_without_a_causal_mask_is_refused(folder: Path, tmp_path: Path) -> None:
    with_modules(folder, tmp_path, "Pooling")
    config = json.loads((folder / "config.json").read_text())
    for more in ({"is_causal": False}, {"use_bidirectional_attention": True}):
        (tmp_path / "config.json").unlink()
        tiny.write(tmp_path / "config.json", {**config, **more})
        with pytest.raises(UnsupportedModelError, match="attention without a causal mask"):
            load(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"texts": 5}, "A prompt is text"),
        ({"texts": "a", "dimensions": 0}, "dimensions must be"),
        ({"texts": "a", "dimensions": "all"}, "dimensions must be"),
        ({"texts": "a", "truncate": "yes"}, "truncate must be"),
        ({"texts": "a", "normalize": 1}, "normalize must be True or False"),
        ({"texts": "a", "prompt": 7}, "prompt must be a text"),
        ({"texts": [[1, 999]]}, "Token id 999"),
    ],
)
def test_wrong_arguments_are_one_sentence(llm: LLM, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        llm.embed(**wrong)


def test_the_limits_of_a_call_are_in_the_documentation() -> None:
    said = LLM.embed.__doc__ or ""
    assert f"{MAX_TEXTS:,} texts" in said
    assert f"{MAX_TOKENS:,} tokens" in said
