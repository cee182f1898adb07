"""`pytest -p every_value`: half of a test's combinations of parameters, with every value of each.

A test of one parameter, or of none, runs as it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from hashlib import sha256

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what `chosen` does not choose of each test."""
    tests = defaultdict(list)
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item)
    kept = set()
    for same in tests.values():
        kept |= {same[at] for at in chosen([item.nodeid for item in same], values_of(same))}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def values_of(items: Sequence[pytest.Item]) -> list[dict[str, int]]:
    """The parameters of each item of one test: for every value its place among them."""
    places: dict[str, dict[int, int]] = defaultdict(dict)
    found = []
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        found.append(
            {
                key: places[key].setdefault(id(each), len(places[key]))
                for key, each in params.items()
            }
        )
    return found


def chosen(names: Sequence[str], cases: Sequence[Mapping[str, int]]) -> list[int]:
    """Which of a test's cases to run: half of them by their names, and each whose value is new.

    names: of the cases. Parameters that always change together are one.
    """
    columns = {tuple(case[key] for case in cases) for key in cases[0]} if cases else set()
    if len([column for column in columns if len({*column}) > 1]) < 2:
        return [*range(len(cases))]
    half = [at for at, name in enumerate(names) if sha256(name.encode()).digest()[0] % 2]
    seen = {(key, cases[at][key]) for at in half for key in cases[at]}
    found = set(half)
    for at, case in enumerate(cases):
        if not seen.issuperset(case.items()):
            found.add(at)
            seen |= {*case.items()}
    return sorted(found)
