"""Speed and perplexity: that the workload and the convention are the ones stated."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest
from fake_model import ScriptModel, alphabet

from dure.batch import Batch
from dure.benchmark import DirectRunner, perplexity, speed
from dure.errors import InvalidRequestError
from dure.weights.expert_pool import ExpertPool
from dure.weights.expert_stats import ExpertStats


class Recorder(ScriptModel):
    """A model of 50,000 tokens that finds each as likely, and remembers what it was given."""

    vocab_size = 50_000

    def forward(self, batch: Batch, cache: object) -> np.ndarray:
        self.batches.append(batch)
        return np.zeros((len(batch.logit_rows), self.vocab_size), np.float32)


def test_prefill_is_random_tokens_of_seed_1_in_chunks_of_512() -> None:
    model = Recorder()
    result = speed(model, prompt=600, decode=0, repeat=2)
    draw = random.Random(1)
    expected = [draw.randrange(100, 30_000) for _ in range(600)]
    assert [len(batch.tokens) for batch in model.batches] == [512, 88] * 3
    assert np.concatenate([batch.tokens for batch in model.batches[:2]]).tolist() == expected
    assert np.concatenate([b.positions for b in model.batches[:2]]).tolist() == list(range(600))
    assert [len(batch.logit_rows) for batch in model.batches] == [1] * 6
    assert result["decode_tps"] is None
    assert result["prefill_tps"] is not None


def test_decoding_feeds_fixed_tokens_to_all_sequences_after_the_depth() -> None:
    model = Recorder()
    result = speed(model, prompt=0, decode=3, depth=40, batch=2, repeat=1)
    first_round = model.batches[: len(model.batches) // 2]
    fills, steps = first_round[:2], first_round[2:]
    assert [batch.sequences[0] for batch in fills] == [0, 1]
    assert fills[0].tokens.tolist() == fills[1].tokens.tolist()
    assert [b.tokens.tolist() for b in steps] == [[100, 101], [101, 102], [102, 103]]
    assert [b.positions.tolist() for b in steps] == [[40, 40], [41, 41], [42, 42]]
    assert [b.logit_rows.tolist() for b in steps] == [[0, 1]] * 3
    tables = steps[0].block_tables
    assert len(set(tables.ravel().tolist())) == tables.size == 4
    assert result["prefill_tps"] is None


def test_the_speed_of_sequences_counts_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 2.0, 10.0, 14.0])  # the warm-up, then a round of 4 seconds
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    result = speed(Recorder(), prompt=0, decode=8, batch=5, repeat=1)
    assert result["decode_tps"] == 8 * 5 / 4


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary() -> None:
    result = perplexity(Recorder(), list(range(1000)), window=100)
    assert result["tokens"] == 1000
    assert result["scored"] == 10 * 50
    assert result["perplexity"] == pytest.approx(50_000)


def test_perplexity_scores_the_second_half_of_full_windows_from_an_empty_cache() -> None:
    letters = b"abcdefghijklmnopqrstuvwxyz"
    # In each window the first half is noise to the model, the second is as it expects.
    window = b"zxzxzxzxzxzxzx" + letters[:14]
    result = perplexity(ScriptModel(alphabet), list(window * 3 + b"qqq"), window=28)
    assert (result["tokens"], result["scored"]) == (87, 42)
    # 13 of 14 are certain; the first of the half follows "x" and is not the "y" expected.
    surprise = 30 + math.log(1 + 258 * math.exp(-30))
    assert result["perplexity"] == pytest.approx(math.exp(surprise / 14), rel=1e-6)


def test_a_window_of_odd_or_smallest_size_is_scored_without_its_first_half() -> None:
    assert perplexity(Recorder(), [1] * 9, window=2)["scored"] == 4
    assert perplexity(Recorder(), [1] * 9, window=2)["tail"] == 1
    assert perplexity(Recorder(), [1] * 9, window=5)["scored"] == 3


def test_a_text_below_one_window_is_refused_with_both_numbers() -> None:
    with pytest.raises(InvalidRequestError, match="99 tokens, less than one window of 100"):
        perplexity(Recorder(), [1] * 99, window=100)


def test_logits_do_not_depend_on_how_they_are_chunked() -> None:
    model = ScriptModel(alphabet)
    ids = list(b"hello there" * 30)
    parts = list(DirectRunner(model, tokens=len(ids)).logits(ids))
    assert [len(part) for part in parts] == [128, 128, 74]
    run = DirectRunner(model, tokens=len(ids))
    whole = run.forward(ids, range(len(ids)), [0] * len(ids), range(len(ids)))
    assert np.concatenate(parts).tolist() == whole.tolist()


class Reader(Recorder):
    """A model that reads 3 MB in a step of a prompt, and 1 MB in any other."""

    def __init__(self) -> None:
        super().__init__()
        self.stats = ExpertStats()

    def forward(self, batch: Batch, cache: object) -> np.ndarray:
        prompt = len(batch.tokens) > 1
        self.stats.read_bytes += 3_000_000 if prompt else 1_000_000
        self.stats.hits += 1
        self.stats.misses += 3 if prompt else 1
        return super().forward(batch, cache)


class Pool(ExpertPool):
    """A pool that counts what the model says."""

    def __init__(self, stats: ExpertStats) -> None:
        super().__init__()
        self._counted = stats

    @property
    def stats(self) -> ExpertStats:
        return self._counted


def test_what_a_token_reads_from_disk_is_told_beside_the_speed_without_the_warm_up() -> None:
    model = Reader()
    result = speed(model, prompt=30, decode=5, depth=7, repeat=2, expert_pool=Pool(model.stats))
    assert result["prefill_read_mb"] == pytest.approx(3 / 30)
    assert result["decode_read_mb"] == pytest.approx(1)  # what fills the depth is not counted
    assert (result["prefill_hit_rate"], result["decode_hit_rate"]) == (0.25, 0.5)
    nothing = speed(model, prompt=0, decode=1, repeat=1, expert_pool=Pool(model.stats))
    assert (nothing["prefill_read_mb"], nothing["prefill_hit_rate"]) == (None, None)
    assert "decode_read_mb" not in speed(model, prompt=0, decode=1, repeat=1)


def test_the_error_of_a_perplexity_is_that_of_the_mean_over_scored_tokens() -> None:
    class Wavering(Recorder):
        """Finds token 1 likelier after an even position."""

        def forward(self, batch: Batch, cache: object) -> np.ndarray:
            logits = super().forward(batch, cache)
            logits[batch.positions[batch.logit_rows] % 2 == 0, 1] = 9.0
            return logits

    result = perplexity(Wavering(), [1] * 100, window=10)
    sums = [math.log(49_999 + math.exp(9)) - 9, math.log(50_000)]
    # Each window scores its tokens 5 to 9, of which 5, 7 and 9 follow an even position.
    losses = [sums[0], sums[1], sums[0], sums[1], sums[0]] * 10
    expected = math.exp(statistics.fmean(losses))
    assert result["perplexity"] == pytest.approx(expected, rel=1e-5)
    error = expected * statistics.stdev(losses) / math.sqrt(50)
    assert result["standard_error"] == pytest.approx(error, rel=1e-4)
    assert math.isnan(perplexity(Recorder(), [1, 1], window=2)["standard_error"])


def test_the_speed_of_each_round_is_kept() -> None:
    result = speed(Recorder(), prompt=8, decode=0, repeat=4)
    assert len(result["prefill_samples"]) == 4
    assert result["decode_samples"] == []
    assert min(result["prefill_samples"]) <= result["prefill_tps"] <= max(result["prefill_samples"])
