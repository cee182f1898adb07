"""Bounds how deep definitions lead into each other.

llguidance follows them by recursion, on the thread's own stack: 8 MiB hold some 1,700 schemas or
2,600 rules within each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

MAX_SCHEMAS = 512
MAX_RULES = 1000


def deepest(weights: Mapping[str, int], uses: Mapping[str, AbstractSet[str]]) -> int:
    """Return the greatest sum of weights that may stand within each other.

    weights: of each definition. uses: the definitions that each leads to. Definitions that lead
    back to each other count in full, since all of them may be within each other (Tarjan's strongly
    connected components, then the longest path).
    """
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    depth: dict[str, int] = {}  # of the definitions whose component is complete
    open_: list[str] = []
    for root in weights:
        todo = [] if root in index else [(root, iter(uses[root]))]
        while todo:
            name, following = todo[-1]
            if name not in index:
                index[name] = low[name] = len(index)
                open_.append(name)
            inner = next((each for each in following if each in weights), None)
            if inner is None:
                todo.pop()
                if todo:
                    low[todo[-1][0]] = min(low[todo[-1][0]], low[name])
                if low[name] == index[name]:
                    _close(name, open_, weights, uses, depth)
            elif inner not in index:
                todo.append((inner, iter(uses[inner])))
            elif inner not in depth:
                low[name] = min(low[name], index[inner])
    return max(depth.values(), default=0)


def _close(
    name: str,
    open_: list[str],
    weights: Mapping[str, int],
    uses: Mapping[str, AbstractSet[str]],
    depth: dict[str, int],
) -> None:
    """Take the component that began with `name` off the stack, and note its depth."""
    members: list[str] = []
    while not members or members[-1] != name:
        members.append(open_.pop())
    beneath = (depth[each] for one in members for each in uses[one] if each in depth)
    total = sum(weights[one] for one in members) + max(beneath, default=0)
    depth.update(dict.fromkeys(members, total))
