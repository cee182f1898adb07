"""Where a model is cut: by memory and speed, and only where it may be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dure.cluster.split import Cost, Costs, Room, cut, need
from dure.errors import InvalidRequestError, NotEnoughMemoryError
from dure.loading.memory import OVERHEAD_BYTES
from dure.weights.span import Span

MB = 1 << 20
LAYER = Cost(100 * MB, 100.0 * MB, token_bytes=1024)


def costs(layers: int = 24, *, cuts: range | None = None, head: int = 200) -> Costs:
    made = Cost(head * MB, float(head * MB))
    return Costs((LAYER,) * layers, Cost(head * MB), made, frozenset(cuts or range(1, layers)))


def starts(given: Costs, *rooms: Room, tokens: int = 1024) -> tuple[int, ...]:
    return cut("it", given, rooms, tokens=tokens, sequences=0)


def room(memory_mb: int = 1 << 20, speed: float = 1e9) -> Room:
    return Room(memory_mb * MB, speed)


def test_equal_nodes_get_equal_work_and_the_head_counts() -> None:
    assert starts(costs(head=0), room(), room()) == (12,)
    assert starts(costs(head=200), room(), room()) == (13,)  # 13 layers, and 11 with the head
    assert starts(costs(head=0), *[room()] * 4) == (6, 12, 18)


def test_a_slow_node_gets_less() -> None:
    assert starts(costs(head=0), room(speed=1e9), room(speed=3e9)) == (6,)
    assert starts(costs(head=0), room(speed=5e9), room(speed=1e9)) == (20,)


def test_a_node_with_little_memory_gets_what_fits() -> None:
    small = (OVERHEAD_BYTES >> 20) + 200 + 5 * 100 + 50
    assert starts(costs(), room(small), room()) == (5,)
    assert starts(costs(), room(), room(small)) == (19,)
    # a longer context takes room from layers
    assert starts(costs(), room(small), room(), tokens=40 << 10) == (3,)


def test_it_is_cut_where_it_may_be() -> None:
    assert starts(costs(cuts=range(8, 24, 8)), room(), room()) == (16,)
    assert starts(costs(cuts=range(8, 24, 8)), room(speed=1e9), room(speed=2e9)) == (8,)


def test_a_node_without_room_gets_no_layer() -> None:
    assert starts(costs(), room(10), room(), room())[0] == 0


def test_as_many_stages_as_were_asked_for_get_layers() -> None:
    def asked(given: Costs, *rooms: Room) -> tuple[int, ...]:
        return cut("it", given, rooms, tokens=1024, sequences=0, every=True)

    slow, fast = room(speed=1e6), room(speed=1e12)
    assert starts(costs(4), slow, slow, fast) == (0, 0)
    assert asked(costs(4), slow, slow, fast) == (1, 2)
    assert asked(costs(4), fast, slow, slow) == (3, 4)  # the last has the head alone
    assert asked(costs(4, cuts=range(2, 3)), fast, fast, slow) == (2, 4)
    with pytest.raises(InvalidRequestError, match="in 4 stages; at most 3 are possible"):
        asked(costs(4, cuts=range(2, 3)), fast, fast, fast, fast)
    with pytest.raises(NotEnoughMemoryError):
        asked(costs(4), room(10), fast)


def test_a_model_that_does_not_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(NotEnoughMemoryError) as caught:
        starts(costs(), room(1000), room(1000))
    whole = need(sum([LAYER] * 24, Cost(400 * MB)), 1024, 0) + OVERHEAD_BYTES
    assert f"it in 2 stages needs {whole / 1e9:.2f} GB" in caught.value.message
    assert "1.05 GB and 1.05 GB" in caught.value.message


def test_a_span_takes_its_layers_and_its_ends() -> None:
    given: Any = costs(4)
    first, middle, last = (given.of_span(span) for span in Span.cut(4, (1, 3)))
    assert [c.weight_bytes // MB for c in (first, middle, last)] == [300, 200, 300]
    # one matrix that is the embedding and the head is there once where both are
    assert given.of_span(Span(0, 4, 4)).weight_bytes // MB == 800
    tied = replace(given, tied=True)  # one matrix is the embedding and the head
    assert tied.of_span(Span(0, 4, 4)).weight_bytes // MB == 600
