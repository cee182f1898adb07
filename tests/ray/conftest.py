"""A Ray of our own, with several nodes on this machine.

`pytest tests/ray` runs these tests; `pytest` alone does not. They need `pip install '.[ray]'`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

NODES = 3


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A cluster of real raylets; this process joins it at its first node."""
    import ray  # noqa: PLC0415 - an extra
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False},
    )
    for _ in range(NODES - 1):
        made.add_node(num_cpus=1, object_store_memory=80 << 20)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()
