"""What is asked of Ray, and when it is not asked."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from dure.cluster.nodes import Actor, Node


@pytest.mark.parametrize("connected", [True, False])
def test_an_actor_is_ended_through_a_connection_that_is_there_and_through_no_other(
    monkeypatch: pytest.MonkeyPatch, connected: bool
) -> None:
    killed: list[Any] = []
    ray = SimpleNamespace(is_initialized=lambda: connected, kill=killed.append)
    monkeypatch.setitem(sys.modules, "ray", ray)
    Actor(Node("id", "10.0.0.1", is_here=True), "its handle").kill()
    # Without a connection, Ray would start a cluster of its own to look for it there.
    assert killed == (["its handle"] if connected else [])
