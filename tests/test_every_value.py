"""What `-p every_value` leaves out of a test's cases, as the sanitizers run them."""

from __future__ import annotations

import itertools

from every_value import chosen


def cases_of(*sizes: int) -> tuple[list[str], list[dict[str, int]]]:
    """The names and values of all combinations of so many parameters."""
    cases = [
        dict(zip("abcd", each, strict=False)) for each in itertools.product(*map(range, sizes))
    ]
    return [f"test[{'-'.join(map(str, case.values()))}]" for case in cases], cases


def test_half_of_the_combinations_have_every_value_of_each_parameter() -> None:
    for sizes in ((31, 4), (2, 2), (3, 3, 3, 2), (36, 2)):
        names, cases = cases_of(*sizes)
        found = chosen(names, cases)
        assert found == chosen(names, cases) == sorted({*found})
        assert len(found) < 0.8 * len(cases)
        for key, size in zip("abcd", sizes, strict=False):
            assert {cases[at][key] for at in found} == {*range(size)}


def test_a_single_parameter_keeps_all_of_its_cases() -> None:
    assert chosen(["test"], [{}]) == [0]
    assert chosen([f"test[{at}]" for at in range(9)], [{"a": at} for at in range(9)]) == [*range(9)]
    listed = [{"a": at, "b": at, "c": 0} for at in range(9)]  # a and b are listed together
    assert chosen([f"test[{at}]" for at in range(9)], listed) == [*range(9)]
