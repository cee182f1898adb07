"""A Ray of our own, with several nodes on this machine, and models of every kind that is cut.

`pytest tests/ray` runs these tests; `pytest` alone does not. They need `pip install '.[ray]'`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from stage_models import FAMILIES, written

NODES = 3


AGENT_PORTS = (
    *("metrics_agent_port", "metrics_export_port"),
    *("dashboard_agent_listen_port", "runtime_env_agent_port"),
)
"""Ports of the agents of a node. If they are not given, its raylet waits until the agents, two more
Pythons, have chosen some, and aborts after a few seconds: too few on a busy machine."""


def _node_options() -> dict[str, Any]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in AGENT_PORTS]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = {name: s.getsockname()[1] for name, s in zip(AGENT_PORTS, sockets, strict=True)}
    return {"num_cpus": 1, "object_store_memory": 80 << 20, "include_log_monitor": False, **ports}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A cluster of real raylets; this process is connected to its first node."""
    import ray  # noqa: PLC0415 - an extra
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = Cluster(
        initialize_head=True,
        head_node_args={**_node_options(), "include_dashboard": False, "no_monitor": True},
    )
    try:
        for _ in range(NODES - 1):
            made.add_node(**_node_options())
        ray.init(address=made.address, log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def node_options() -> dict[str, Any]:
    """What one more node is started with."""
    return _node_options()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each family with its tokenizer."""
    return {name: written(name, tmp_path_factory.mktemp("model")) for name in FAMILIES}
