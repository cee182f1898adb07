"""Short convolution, delta rule, gated norm and gate against the reference, in any pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from kernel_inputs import bits

from dure import kernels
from dure.kernels import reference

NO_SAVES = np.empty((0, 2), np.int32)


@dataclass(frozen=True)
class Rows:
    """Rows of sequences that have `past` tokens each and `new` ones to come, and their slots."""

    positions: np.ndarray
    sequences: np.ndarray
    slots: np.ndarray

    @classmethod
    def of(cls, spans: list[tuple[int, int]], slots: list[int]) -> Rows:
        positions = [np.arange(past, past + new) for past, new in spans]
        sequences = [np.full(new, i) for i, (_, new) in enumerate(spans)]
        return cls(
            np.concatenate(positions).astype(np.int32),
            np.concatenate(sequences).astype(np.int32),
            np.array(slots, np.int32),
        )

    def arguments(self, states: np.ndarray, saves: np.ndarray = NO_SAVES) -> tuple[Any, ...]:
        return states, self.positions, self.sequences, self.slots, saves


SPANS = [(0, 9), (5, 1), (0, 1), (40, 37), (3, 2)]
SLOTS = [4, 0, 6, 1, 3]


def drawn_states(rng: np.random.Generator, slots: int, size: int) -> np.ndarray:
    return rng.normal(0, 1, (slots, size)).astype(np.float32)


CONVOLUTIONS = [(1, 5, False), (2, 16, True), (4, 64, True), (4, 300, False), (7, 33, True)]


def convolution(rng: np.random.Generator, kernel: int, channels: int, mapped: bool) -> Any:
    rows = Rows.of(SPANS, SLOTS)
    x = rng.normal(0, 2, (len(rows.positions), channels + 9)).astype(np.float32)
    weight = rng.normal(0, 1, (kernel, channels)).astype(np.float32)
    columns = rng.permutation(channels + 9)[:channels].astype(np.int32) if mapped else None
    if columns is not None and channels >= 48:
        columns[16:32] = np.arange(3, 19)  # sixteen that lie together
    return x, weight, rows, columns


@pytest.mark.parametrize("with_silu", [True, False])
@pytest.mark.parametrize(("kernel", "channels", "mapped"), CONVOLUTIONS)
def test_convolutions_are_those_of_the_reference(
    kernel: int, channels: int, mapped: bool, with_silu: bool
) -> None:
    rng = np.random.default_rng(1)
    x, weight, rows, columns = convolution(rng, kernel, channels, mapped)
    states = drawn_states(rng, 9, (kernel - 1) * channels + 4)
    expected_states = states.copy()
    saves = np.array([[4, 5], [20, 2], [8, 7]], np.int32)
    how = {"columns": columns, "with_silu": with_silu}
    actual = kernels.short_conv(x, weight, *rows.arguments(states, saves), **how, threads=2)
    expected = reference.short_conv(x, weight, *rows.arguments(expected_states, saves), **how)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(states, expected_states)  # inputs are kept as they are


DELTAS = [(1, 1, 1, 1), (2, 4, 8, 8), (2, 2, 24, 40), (1, 3, 33, 96), (4, 8, 128, 128)]


DECAYS = ("head", "channel", "bounded channel")


def delta(
    rng: np.random.Generator, shape: tuple[int, int, int, int], n: int, decays: str = "head"
) -> dict[str, Any]:
    """Arguments of the rule for (key heads, value heads, key_dim, value_dim).

    decays: what has one of its own.
    """
    key_heads, heads, key_dim, value_dim = shape
    width = 2 * key_heads * key_dim + heads * value_dim
    decaying = heads if decays == "head" else heads * key_dim
    return {
        "qkv": rng.normal(0, 1, (n, width)).astype(np.float32),
        "a": rng.normal(0, 2, (n, decaying)).astype(np.float32),
        "b": rng.normal(0, 2, (n, heads)).astype(np.float32),
        "rate": -rng.uniform(0.01, 4, heads).astype(np.float32),
        "bias": rng.normal(0, 1, decaying).astype(np.float32),
        "key_heads": key_heads,
        "key_dim": key_dim,
        "bound": -5.0 if decays == "bounded channel" else 0.0,
    }


def state_size(shape: tuple[int, int, int, int]) -> int:
    return kernels.delta_size(shape[1], shape[2], shape[3])


def run_delta(
    arguments: dict[str, Any], rows: Rows, states: np.ndarray, module: Any = kernels, **more: Any
) -> np.ndarray:
    """The rule's output; `more` may hold saves, offset and threads."""
    saves = more.pop("saves", NO_SAVES)
    arrays = [arguments[name] for name in ("qkv", "a", "b", "rate", "bias")]
    sizes = {name: arguments[name] for name in ("key_heads", "key_dim", "bound")}
    return module.delta_rule(*arrays, *rows.arguments(states, saves), **sizes, **more)


@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("shape", DELTAS)
def test_the_delta_rule_is_that_of_the_reference(
    shape: tuple[int, int, int, int], decays: str
) -> None:
    rng = np.random.default_rng(2)
    rows = Rows.of(SPANS, SLOTS)
    arguments = delta(rng, shape, len(rows.positions), decays)
    size, offset = state_size(shape), 5
    states = np.zeros((9, offset + size), np.float32)
    warm = Rows.of([(0, 3)] * 7, list(range(7)))  # states as the rule makes them, padding and all
    run_delta(delta(rng, shape, 21, decays), warm, states, offset=offset)
    assert states[:7, offset:].any(axis=1).all()
    expected_states = states.copy()
    saves = np.array([[4, 5], [20, 2], [8, 7]], np.int32)
    actual = run_delta(arguments, rows, states, saves=saves, offset=offset, threads=2)
    expected = run_delta(arguments, rows, expected_states, reference, saves=saves, offset=offset)
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-6)
    np.testing.assert_allclose(states, expected_states, rtol=2e-4, atol=2e-6)
    assert not states[:, :offset].any()


@pytest.mark.parametrize("gate", [-2e4, -90.0, -1e-3, 0.0, 19.9, 90.0, 2e4, np.inf, -np.inf])
@pytest.mark.parametrize("decays", DECAYS[1:])
def test_decays_of_any_gate_are_right(gate: float, decays: str) -> None:
    rng = np.random.default_rng(7)
    arguments = delta(rng, (1, 1, 24, 8), 2, decays)
    arguments["a"][:] = gate
    arguments["bias"][:] = 0
    rows, states = Rows.of([(0, 2)], [0]), np.zeros((2, 1, state_size((1, 1, 24, 8))), np.float32)
    actual = run_delta(arguments, rows, states[0])
    expected = run_delta(arguments, rows, states[1], reference)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(states[0], states[1], rtol=1e-5, atol=1e-7)


def test_one_decay_for_all_channels_is_that_of_the_head() -> None:
    rng = np.random.default_rng(8)
    shape, rows = (2, 4, 24, 40), Rows.of([(0, 30)], [0])
    arguments, size = delta(rng, shape, 30), state_size((2, 4, 24, 40))
    spread = {name: np.repeat(arguments[name], 24, axis=-1) for name in ("a", "bias")}
    whole = run_delta(arguments, rows, np.zeros((1, size), np.float32))
    each = run_delta({**arguments, **spread}, rows, np.zeros((1, size), np.float32))
    np.testing.assert_allclose(each, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 4, 128, 128)])
def test_pieces_threads_company_and_snapshots_change_no_bit(
    shape: tuple[int, int, int, int], decays: str
) -> None:
    rng = np.random.default_rng(3)
    n, size = 70, state_size(shape)
    arguments = delta(rng, shape, n, decays)
    states = np.zeros((3, size), np.float32)
    whole = run_delta(arguments, Rows.of([(0, n)], [0]), states)
    for cuts in ([1] * n, [7, 1, 32, 30], [69, 1]):
        for threads in (1, 3):
            mine = np.full((3, size), np.nan, np.float32)
            parts, start = [], 0
            for count in cuts:
                part = {
                    name: value[start : start + count] if name in ("qkv", "a", "b") else value
                    for name, value in arguments.items()
                }
                other = delta(rng, shape, 2, decays)
                mixed = {
                    name: np.concatenate([other[name], value])
                    if name in ("qkv", "a", "b")
                    else value
                    for name, value in part.items()
                }
                saves = np.array([[2, 2]] if start == 0 else NO_SAVES, np.int32).reshape(-1, 2)
                rows = Rows.of([(0, 2), (start, count)], [1, 0])
                parts.append(run_delta(mixed, rows, mine, saves=saves, threads=threads)[2:])
                start += count
            np.testing.assert_array_equal(bits(whole), bits(np.concatenate(parts)))
            np.testing.assert_array_equal(bits(states[0]), bits(mine[0]))
            # The snapshot after the first token: to go on from it gives the same again.
            rest = {
                name: value[1:] if name in ("qkv", "a", "b") else value
                for name, value in arguments.items()
            }
            again = run_delta(rest, Rows.of([(1, n - 1)], [2]), mine)
            np.testing.assert_array_equal(bits(whole[1:]), bits(again))


@pytest.mark.parametrize("cuts", [[1] * 40, [7, 1, 32], [2, 38]])
def test_a_convolution_in_pieces_changes_no_bit(cuts: list[int]) -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(0, 2, (40, 70)).astype(np.float32)
    weight = rng.normal(0, 1, (4, 70)).astype(np.float32)
    states = np.full((2, 210), np.nan, np.float32)
    whole = kernels.short_conv(x, weight, *Rows.of([(0, 40)], [0]).arguments(states))
    parts, start = [], 0
    for count in cuts:
        rows = Rows.of([(start, count)], [1])
        part = np.ascontiguousarray(x[start : start + count])
        parts.append(kernels.short_conv(part, weight, *rows.arguments(states), threads=2))
        start += count
    np.testing.assert_array_equal(bits(whole), bits(np.concatenate(parts)))
    np.testing.assert_array_equal(bits(states[0]), bits(states[1]))


@pytest.mark.parametrize(("heads", "dim"), [(1, 1), (3, 8), (4, 24), (2, 128), (5, 33)])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("with_silu", [True, False])
def test_gated_norms_and_gates_are_those_of_the_reference(
    heads: int, dim: int, mapped: bool, with_silu: bool
) -> None:
    rng = np.random.default_rng(5)
    n, width = 19, heads * dim
    x = rng.normal(0, 2, (n, width)).astype(np.float32)
    gate = rng.normal(0, 4, (n, width + 7)).astype(np.float32)
    gate[0, :3] = (100, -100, 0)
    weight = rng.normal(1, 0.3, dim).astype(np.float32)
    columns = rng.permutation(width + 7)[:width].astype(np.int32) if mapped else None
    how = {"columns": columns, "with_silu": with_silu}
    alone: dict[str, list[np.ndarray]] = {"norm": [], "gate": []}
    for row in range(n):
        x_row, gate_row = x[row : row + 1], gate[row : row + 1]
        alone["norm"].append(kernels.gated_norm(x_row, weight, 1e-6, gate_row, **how))
        alone["gate"].append(kernels.sigmoid_mul(x_row, gate_row, columns=columns))
    for threads in (1, 2):
        normed = kernels.gated_norm(x, weight, 1e-6, gate, **how, threads=threads)
        expected = reference.gated_norm(x, weight, 1e-6, gate, **how)
        np.testing.assert_allclose(normed, expected, rtol=1e-5, atol=1e-30)
        np.testing.assert_array_equal(bits(normed), bits(np.concatenate(alone["norm"])))
        gated = kernels.sigmoid_mul(x, gate, columns=columns, threads=threads)
        expected = reference.sigmoid_mul(x, gate, columns=columns)
        np.testing.assert_allclose(gated, expected, rtol=1e-5, atol=1e-30)
        np.testing.assert_array_equal(bits(gated), bits(np.concatenate(alone["gate"])))


def test_a_sequence_that_is_not_finite_spoils_no_other() -> None:
    rng = np.random.default_rng(6)
    shape = (1, 2, 8, 8)
    arguments = delta(rng, shape, 6)
    rows = Rows.of([(0, 3), (0, 3)], [0, 1])
    clean = run_delta(arguments, rows, np.zeros((2, state_size(shape)), np.float32))
    arguments["qkv"][1, 20] = np.nan
    states = np.full((2, state_size(shape)), np.nan, np.float32)
    spoilt = run_delta(arguments, rows, states)
    assert np.isnan(spoilt[1]).any()
    np.testing.assert_array_equal(bits(clean[3:]), bits(spoilt[3:]))
    assert np.isfinite(states[1]).all()


def bad(**changes: Any) -> list[Any]:
    """Arguments of short_conv for 3 rows of one sequence, some of them changed."""
    good: dict[str, Any] = {
        "x": np.zeros((3, 8), np.float32),
        "weight": np.zeros((4, 8), np.float32),
        "states": np.zeros((2, 24), np.float32),
        "positions": np.arange(3, dtype=np.int32),
        "sequences": np.zeros(3, np.int32),
        "slots": np.array([1], np.int32),
        "saves": NO_SAVES,
    }
    return list({**good, **changes}.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"states": np.zeros((2, 23), np.float32)},
        {"states": np.zeros((2, 24), np.float64)},
        {"positions": np.array([0, 2, 3], np.int32)},
        {"positions": np.array([-1, 0, 1], np.int32)},
        {"sequences": np.array([0, 0, 1], np.int32)},
        {"sequences": np.array([0, 0], np.int32)},
        {"slots": np.array([2], np.int32)},
        {"slots": np.array([-1], np.int32)},
        {"saves": np.array([[3, 0]], np.int32)},
        {"saves": np.array([[0, 1]], np.int32)},
        {"saves": np.array([[0, 0], [1, 0]], np.int32)},
        {"saves": np.array([[0, 2]], np.int32)},
        {"saves": np.zeros((1, 3), np.int32)},
        {"x": np.zeros((3, 7), np.float32)},
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any]) -> None:
    kernels.short_conv(*bad())
    with pytest.raises((TypeError, ValueError)):
        kernels.short_conv(*bad(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": np.zeros((3, 9), np.float32)}, "a must have one entry"),
        ({"a": np.zeros((2, 16), np.float32)}, "a must have one entry"),
        ({"bias": np.zeros(2, np.float32)}, "the bias"),
        ({"b": np.zeros((3, 16), np.float32)}, "b must have one entry"),
        ({"bound": 1.0}, "above 0"),
        ({"a": np.zeros((3, 2), np.float32), "bias": np.zeros(2, np.float32)}, "no bound"),
    ],
)
def test_decays_that_do_not_fit_the_heads_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    good = delta(np.random.default_rng(9), (1, 2, 8, 8), 3, "bounded channel")
    rows, states = Rows.of([(0, 3)], [0]), np.zeros((1, state_size((1, 2, 8, 8))), np.float32)
    run_delta(good, rows, states)
    with pytest.raises(ValueError, match=message):
        run_delta({**good, **changes}, rows, states)


def test_a_column_that_is_not_there_is_refused() -> None:
    for columns in ([0, 1, 2, 3, 4, 5, 6, 8], [-1, *range(7)], [0] * 7):
        with pytest.raises(ValueError, match="column"):
            kernels.short_conv(*bad(), columns=np.array(columns, np.int32))
