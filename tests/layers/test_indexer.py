"""The tokens that an indexer chooses, and attention to them alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_configs import MODELS
from tiny_models import PagedRun, loaded, oracle, prefill_logits, random_sequences

from dure import kernels
from dure.batch import BLOCK_SIZE, KVCacheSpec
from dure.engine.engine import Engine
from dure.engine.model_runner import ModelRunner
from dure.engine.request import SamplingParams
from dure.layers import indexer
from dure.layers.indexer import IndexedLatentAttention, Selections, _best

WIDTH, LATENT, HEADS = 40, 32, 3


def test_the_best_are_in_order_and_of_equal_ones_the_first() -> None:
    scores = np.array([0, 3, 1, 3, 0, 0, -1], np.float32)
    assert _best(scores, 2).tolist() == [1, 3]
    assert _best(scores, 1).tolist() == [1]
    assert _best(scores, 4).tolist() == [0, 1, 2, 3]
    assert _best(scores, 5).tolist() == [0, 1, 2, 3, 4]
    assert _best(scores, 7).tolist() == list(range(7))
    assert _best(np.array([np.nan, 1, np.nan], np.float32), 2).tolist() == [0, 1]


def test_the_best_are_those_of_a_stable_sort() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 5, 63, 64):
        scores = rng.integers(-3, 3, 64).astype(np.float32)
        expected = np.sort(np.argsort(-scores, kind="stable")[:count])
        assert np.array_equal(_best(scores, count), expected)


def test_a_choice_is_read_for_some_rows_of_the_pass() -> None:
    chosen = np.arange(12, dtype=np.int32).reshape(3, 4)
    selections = Selections(np.array([2, 5, 6], np.int32), chosen)
    sparse, positions = selections.of(np.array([0, 5, 3, 6], np.int32))
    assert sparse.tolist() == [1, 3]
    assert np.array_equal(positions, chosen[1:])
    sparse, positions = selections.of(np.array([0], np.int32))
    assert (len(sparse), len(positions)) == (0, 0)
    assert selections.of(None)[1] is chosen
    with pytest.raises(RuntimeError, match="indexer"):
        Selections().of(None)


def attention() -> Any:
    """A layer without weights, of which only what attends is used."""
    layer = IndexedLatentAttention.__new__(IndexedLatentAttention)
    layer._latent, layer._scale, layer._threads = LATENT, 0.3, 1
    return layer


def filled(dtype: Any, tokens: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A cache with one sequence in blocks out of order, and its table (1, blocks)."""
    rng = np.random.default_rng(seed)
    blocks = -(-tokens // BLOCK_SIZE)
    cache = KVCacheSpec("latent", 1, WIDTH).storage(blocks + 2, dtype)
    table = rng.permutation(blocks + 2)[None, :blocks].astype(np.int32)
    entries = rng.normal(size=(tokens, WIDTH)).astype(np.float32)
    positions = np.arange(tokens, dtype=np.int32)
    kernels.write_latent(
        np.ascontiguousarray(entries[:, :LATENT]),
        np.ascontiguousarray(entries[:, LATENT:]),
        cache,
        positions,
        np.zeros(tokens, np.int32),
        table,
    )
    return cache, table


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8"])
@pytest.mark.parametrize("tokens", [1, 32, 33, 70])
def test_all_chosen_is_dense_attention_bit_for_bit(dtype: Any, tokens: int) -> None:
    cache, table = filled(dtype, tokens, tokens)
    q = np.random.default_rng(1).normal(size=(2, HEADS, WIDTH)).astype(np.float32)
    last, first = np.full(2, tokens - 1, np.int32), np.zeros(2, np.int32)
    layer = attention()
    expected = layer._gathered(q, cache, last, first, table)
    chosen = np.tile(np.arange(tokens, dtype=np.int32), (2, 1))
    tables = np.repeat(table, 2, axis=0)
    assert np.array_equal(expected, layer._of_chosen(q, cache, tables, chosen))


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8"])
def test_only_the_chosen_are_seen_however_many_rows_are_taken_at_a_time(
    dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: attention over a cache that holds nothing but the chosen entries."""
    cache, table = filled(dtype, 90, 2)
    rng = np.random.default_rng(3)
    q = rng.normal(size=(5, HEADS, WIDTH)).astype(np.float32)
    picks = [np.sort(rng.choice(90, 35, replace=False)) for _ in q]
    chosen = np.array(picks, np.int32)
    layer, tables = attention(), np.repeat(table, len(q), axis=0)
    together = layer._of_chosen(q, cache, tables, chosen)
    monkeypatch.setattr(indexer, "_MOST_ENTRIES", 1)
    assert np.array_equal(together, layer._of_chosen(q, cache, tables, chosen))
    stored = indexer._floats(cache, WIDTH, table[0])[chosen].astype(np.float32)
    scores = np.einsum("nhd,nkd->nhk", q, stored) * 0.3
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    expected = np.einsum("nhk,nkd->nhd", weights, stored[:, :, :LATENT])
    assert np.abs(expected - together).max() < 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("indexed")
    oracle("deepseek_v32").save_pretrained(path)
    return path


def test_a_row_reads_no_more_entries_than_it_chose(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What attends to chosen entries gets blocks for these alone, however long the past is."""
    model, top_k = loaded(folder), MODELS["deepseek_v32"][1]["index_topk"]
    (tokens,) = random_sequences(75)
    run = PagedRun(model, [tokens])
    run.step((74,))
    seen: list[int] = []
    attend = kernels.latent_attention

    def watched(q: Any, cache: Any, positions: Any, *rest: Any, **options: Any) -> Any:
        seen.extend((positions + 1).tolist())
        assert len(cache) == 1  # block: 6 entries of 75
        return attend(q, cache, positions, *rest, **options)

    monkeypatch.setattr(kernels, "latent_attention", watched)
    run.step((1,))
    assert seen == [top_k] * 3


def test_threads_pieces_of_scores_and_the_fast_mode_change_no_bit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tokens,) = random_sequences(75)
    expected = prefill_logits(loaded(folder), tokens)
    monkeypatch.setattr(indexer, "_MOST_SCORES", 1)
    for threads, exact in ((2, True), (1, False), (3, False)):
        model = loaded(folder, threads=threads, exact=exact)
        assert expected.tobytes() == prefill_logits(model, tokens).tobytes()


@pytest.mark.parametrize("dtype", ["f16", "q8"])
def test_a_request_gets_the_same_bits_in_any_company(folder: Path, dtype: Any) -> None:
    """Beside others, in chunks, from a reused prefix and after it was preempted."""
    model = loaded(folder)
    prompt, *others = random_sequences(50, 40, 33)
    params = SamplingParams(max_tokens=40, temperature=0.8, seed=1, logprobs=3, ignore_eos=True)

    def told(company: list[list[int]], *, blocks: int, rows: int) -> list[Any]:
        runner = ModelRunner(model, num_blocks=blocks, cache_dtype=dtype)
        engine = Engine(runner, max_batch_tokens=rows)
        if company:  # the prefix is there already
            engine.add(prompt, SamplingParams(max_tokens=1))
            while engine.has_work:
                engine.step()
        requests = [engine.add(each, params) for each in (prompt, *company)]
        while engine.has_work:
            engine.step()
        if company:
            assert engine.stats.preemptions > 0
        return [requests[0].output_ids, requests[0].logprobs]

    assert told([], blocks=20, rows=512) == told(others, blocks=5, rows=33)
