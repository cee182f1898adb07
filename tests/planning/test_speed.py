"""Seconds that can be computed by hand: of a machine with round figures, and small models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dure.layers.mixer_work import MixerWork
from dure.planning.machine import ROWS, AttentionSpeed, Machine
from dure.planning.speed import chosen_shares, expected
from dure.planning.work import MatrixWork, ModelWork

# A product of n rows computes 2 n GOP/s up to 8 rows: as long as one row; then 16 for all others.
RATES = tuple(2.0 * min(rows, 8) for rows in ROWS)
# A key takes 10 ns for one query head and 40 for four, of 128 numbers, and 20 and 80 of 256.
ATTENTION = AttentionSpeed((1, 4), (10.0, 40.0), (20.0, 80.0))
MACHINE = Machine(
    processor="made up",
    isa="avx2",
    threads=2,
    kernels="0",
    memory_bytes=8 << 30,
    read_bytes_s_1=1e10,
    read_bytes_s=1e12,
    gops={"Q8_0": RATES},
    attention={
        f"{kind}f16 {rows}": ATTENTION for kind in ("", "latent ") for rows in ("one", "many")
    },
    layer_s=0.001,
    element_s=0.0,
    step_s=0.002,
    delta_ns=2.0,
    disk_bytes_s=1e9,
)


def matrix(use: str, rows: int, columns: int, count: int = 1, **more: int) -> MatrixWork:
    copies = count * more.get("experts", 1)
    return MatrixWork("mlp", use, "Q8_0", rows, columns, count, copies * rows * columns, **more)  # type: ignore[arg-type]


def work(*matrices: MatrixWork, mixers: tuple[tuple[MixerWork, int], ...] = ()) -> ModelWork:
    return ModelWork("made up", "none", 10, 1000, 1000, 4096, matrices, mixers, 0, ())


GQA = MixerWork("gqa", heads=8, key_dim=64, value_dim=64, kv_heads=2)


def test_a_product_takes_what_its_rate_says_and_rows_between_lie_on_a_line() -> None:
    # 1e9 weights at one row: 2 giga-operations at 2 a second.
    assert MACHINE.seconds_of("Q8_0", 1e9, 1) == pytest.approx(1.0)
    assert MACHINE.seconds_of("Q8_0", 1e9, 8) == pytest.approx(1.0)
    assert MACHINE.seconds_of("Q8_0", 1e9, 16) == pytest.approx(2.0)
    assert MACHINE.seconds_of("Q8_0", 1e9, 12) == pytest.approx(1.5)
    assert MACHINE.seconds_of("Q8_0", 1e9, 1024) == pytest.approx(128.0)
    assert MACHINE.seconds_of("Q8_0", 1e9, 0) == 0.0


def test_a_product_is_no_faster_than_memory_gives_its_weights() -> None:
    slow = replace(MACHINE, read_bytes_s=1e8)
    assert slow.seconds_of("Q8_0", 1e9, 1) == pytest.approx(10 * 34 / 32)


def test_a_type_that_was_not_measured_is_as_fast_as_the_nearest_and_that_is_said() -> None:
    machine = replace(MACHINE, gops={"Q8_0": RATES, "BF16": tuple(2 * rate for rate in RATES)})
    assert machine.seconds_of("Q6_K", 1e9, 1) == machine.seconds_of("Q8_0", 1e9, 1)
    assert machine.seconds_of("F16", 1e9, 1) == machine.seconds_of("BF16", 1e9, 1)
    model = work(replace(matrix("dense", 1000, 1000), dtype="Q6_K"))
    assert expected(model, machine).assumed == ("Q6_K is taken to be as fast as Q8_0",)


def test_a_step_is_products_head_attention_and_what_layers_take() -> None:
    model = work(matrix("dense", 1000, 1000, 10), matrix("head", 1000, 1000), mixers=((GQA, 10),))
    step = expected(model, MACHINE).decode_step(1, 99)
    assert step.products == pytest.approx(0.01)
    assert step.head == pytest.approx(0.001)
    assert step.overhead == pytest.approx(0.002 + 10 * 0.001)
    assert step.attention == pytest.approx(10 * 100 * 2 * 40e-9)  # layers, keys, kv heads
    assert step.total == pytest.approx(0.01 + 0.001 + 0.012 + 80e-6)


def test_eight_streams_share_the_weights_and_each_reads_its_own_keys() -> None:
    model = work(matrix("dense", 1000, 1000, 10), mixers=((GQA, 10),))
    speeds = expected(model, MACHINE)
    one, eight = speeds.decode_step(1, 99), speeds.decode_step(8, 99)
    assert eight.products == pytest.approx(one.products)
    assert eight.attention == pytest.approx(8 * one.attention)
    assert speeds.decode_tps(8, 99) == pytest.approx(8 / eight.total)


def test_elements_of_rows_count_for_each_row() -> None:
    machine = replace(MACHINE, element_s=1e-6)
    speeds = expected(work(matrix("dense", 600, 400, 10)), machine)
    steps = (speeds.decode_step(rows, 0).overhead for rows in (8, 1))
    assert next(steps) - next(steps) == pytest.approx(7 * 10 * 1000 * 1e-6)


def test_elements_of_few_rows_have_a_figure_of_their_own() -> None:
    machine = replace(MACHINE, element_s=1e-9, element_few_s=3e-9)
    assert machine.elements_s(100, 1) == pytest.approx(100 * 3e-9)
    assert machine.elements_s(100, 272) == pytest.approx(100 * 272 * 2e-9)
    assert machine.elements_s(100, 512) == pytest.approx(100 * 512 * 1e-9)


def test_a_row_of_attention_takes_as_long_as_some_keys_more() -> None:
    slow = replace(ATTENTION, row_keys=30.0)
    machine = replace(MACHINE, attention={**MACHINE.attention, "f16 one": slow})
    model = work(mixers=((GQA, 1),))
    more = expected(model, machine).decode_step(8, 9).attention
    assert more == pytest.approx(expected(model, MACHINE).decode_step(8, 39).attention)


def test_a_window_ends_what_is_seen_and_an_indexer_chooses() -> None:
    def attention(mixer: MixerWork, depth: int) -> float:
        return expected(work(mixers=((mixer, 1),)), MACHINE).decode_step(1, depth).attention

    assert attention(replace(GQA, window=50), 4096) == pytest.approx(attention(GQA, 49))
    assert attention(replace(GQA, chosen=50), 4096) == pytest.approx(attention(GQA, 49))
    indexed = replace(GQA, chosen=50, indexer_heads=8, indexer_dim=100)
    scores = MACHINE.seconds_of("Q8_0", 4097 * 100, 8)
    assert attention(indexed, 4096) == pytest.approx(attention(GQA, 49) + scores)


def test_attention_follows_the_heads_of_a_group_and_the_numbers_of_a_key() -> None:
    assert ATTENTION.ns(1, 128) == 10
    assert ATTENTION.ns(2, 128) == 20
    assert ATTENTION.ns(8, 128) == 80
    assert ATTENTION.ns(4, 192) == 60


def test_a_recurrent_layer_takes_the_same_at_any_depth() -> None:
    mixer = MixerWork("recurrent", heads=16, key_dim=128, value_dim=128, kv_heads=8)
    speeds = expected(work(mixers=((mixer, 5),)), MACHINE)
    assert speeds.decode_step(1, 0).attention == pytest.approx(5 * 16 * 128 * 128 * 2e-9)
    assert speeds.decode_step(3, 4096).attention == pytest.approx(3 * 5 * 16 * 128 * 128 * 2e-9)


def test_a_prompt_goes_in_chunks_and_its_last_layer_computes_one_row() -> None:
    model = work(matrix("dense", 1000, 1000, 10), matrix("head", 1000, 1000), mixers=((GQA, 10),))
    speeds = expected(model, MACHINE)
    first, second = speeds.prefill_steps(600)
    assert first.products == pytest.approx(0.9 * 0.01 * 512 / 8)
    assert second.products == pytest.approx(0.9 * MACHINE.seconds_of("Q8_0", 1e7, 88))
    assert first.head == pytest.approx(0.001)
    keys = 512 * 513 / 2, 88 * 512 + 88 * 89 / 2
    assert first.attention == pytest.approx(0.9 * 10 * keys[0] * 2 * 40e-9)
    assert second.attention == pytest.approx(0.9 * 10 * keys[1] * 2 * 40e-9)
    assert speeds.first_token_s(600) == pytest.approx(first.total + second.total)
    assert speeds.prefill_tps(600) == pytest.approx(600 / speeds.first_token_s(600))


def test_experts_that_are_chosen_alike_are_as_many_as_draws_say() -> None:
    model = work(matrix("expert", 1000, 1000, 10, experts=4, active=1))
    alike = replace(expected(model, MACHINE), skew=0.0)
    assert alike.decode_step(1, 0).experts == pytest.approx(0.01)
    # Two rows: 1/4 of the time both take one expert, which costs no more than for one row.
    assert alike.decode_step(2, 0).experts == pytest.approx(0.01 * (2 - 1 / 4))


def test_a_mixture_takes_what_was_measured_over_its_products_alone() -> None:
    model = work(matrix("expert", 1000, 1000, 10, experts=4, active=1))
    machine = replace(MACHINE, expert_factors=(2.0, 1.5, 1.0), element_s=1e-3)
    assert machine.expert_factor(1) == 2.0 and machine.expert_factor(100) == 1.0
    assert machine.expert_factor(8**0.5) == pytest.approx(1.75)  # by the logarithm of the rows
    step = replace(expected(model, machine), skew=0.0).decode_step(1, 0)
    assert step.experts == pytest.approx(2 * 0.01)
    # What goes into experts and comes out of them is in the factor, and not counted again.
    assert step.overhead == pytest.approx(expected(model, MACHINE).decode_step(1, 0).overhead)


def test_uneven_routers_need_fewer_experts_for_many_rows() -> None:
    model = work(matrix("expert", 1000, 1000, 10, experts=64, active=4))
    speeds = expected(model, MACHINE)
    alike = replace(speeds, skew=0.0)
    assert speeds.decode_step(1, 0).experts == pytest.approx(alike.decode_step(1, 0).experts)
    assert speeds.decode_step(8, 0).experts < 0.97 * alike.decode_step(8, 0).experts


@pytest.mark.parametrize("skew", [0.0, 0.6])
def test_shares_of_experts_add_up_to_those_that_a_row_needs(skew: float) -> None:
    shares = chosen_shares(128, 8, skew)
    assert shares.sum() == pytest.approx(8)
    assert (np.diff(shares) >= 0).all()


def test_half_of_the_most_used_experts_do_what_trained_routers_give_them() -> None:
    """bench/make_moe.py: 90 % of slots, and the first 4.3 %, measured of Qwen3-30B-A3B."""
    shares = chosen_shares(128, 8, 0.6)[::-1] / 8
    assert 0.8 < shares[:64].sum() < 0.95
    assert 0.03 < shares[0] < 0.06


def test_experts_that_are_not_in_memory_are_waited_for() -> None:
    model = work(matrix("expert", 1000, 1000, 10, experts=128, active=8))
    assert expected(model, MACHINE).decode_step(1, 0).disk == 0.0
    half = expected(model, MACHINE, expert_cache_bytes=model.expert_bytes // 2)
    # 80 experts a token, of which 93 % are there; 1 MB each, 1 GB a second.
    assert half.decode_step(1, 0).disk == pytest.approx(80 * 0.07 * 1e-3)
    # A prompt needs nearly all of them, and the half that is used most is there.
    [step] = replace(half, prefill_rows=4096).prefill_steps(4096)
    assert 0.99 * 0.64 < step.disk < 0.64
    # Eight texts need some of the other half: of each expert, unless none of the eight names it.
    others = chosen_shares(128, 8, half.skew)[:64]
    needed = 10 * float((1 - (1 - others) ** 8).sum())
    assert half.decode_step(8, 0).disk == pytest.approx(needed * 1e-3)
    assert any("hits" in sentence for sentence in half.assumed)


def test_a_disk_that_nobody_measured_is_not_waited_for() -> None:
    model = work(matrix("expert", 1000, 1000, 10, experts=128, active=8))
    machine = replace(MACHINE, disk_bytes_s=None)
    speeds = expected(model, machine, expert_cache_bytes=model.expert_bytes // 2)
    assert speeds.decode_step(1, 0).disk == 0.0
