"""The pipelines of all replicas of a model on one cluster, as people and dashboards see them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dure.cluster.chain import Stages, StageStatus
    from dure.cluster.nodes import Cluster


class Pipelines:
    """The stages of each replica but its head. To a server it is what the `Stages` of one are."""

    def __init__(self, cluster: Cluster) -> None:
        """cluster: that all of them are on; `close` ends the connection to it."""
        self.chains: list[Stages] = []
        self._cluster = cluster

    def start(self) -> None:
        """Load and link all at once. Raises what loading the first that fails raises."""
        with ThreadPoolExecutor(len(self.chains), "dure load") as threads:
            for started in [threads.submit(chain.start) for chain in self.chains]:
                started.result()

    @property
    def restarts(self) -> int:
        """Stages that were lost and started again, of all replicas."""
        return sum(chain.restarts for chain in self.chains)

    @property
    def recovery_seconds(self) -> float:
        """The longest time that the last loss of a replica took to be mended."""
        return max(chain.recovery_seconds for chain in self.chains)

    def status(self) -> list[StageStatus]:
        """Return what each stage told last, replica by replica; waits for none."""
        return [
            replace(status, replica=number)
            for number, chain in enumerate(self.chains, 1)
            for status in chain.status()
        ]

    def close(self) -> None:
        """End all stages, links and threads, and the connection."""
        for chain in self.chains:
            chain.end()
        self._cluster.close([])
