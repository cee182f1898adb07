"""What runs on a node: a Ray actor that has one stage's layers."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

from dure import kernels, machine
from dure.cluster import files
from dure.cluster.split import Room
from dure.cluster.work import Progress, StageWork
from dure.engine.stage import Stage
from dure.errors import InvalidRequestError
from dure.models import load_model
from dure.planning.probes import matrices_of, usual_seconds

if TYPE_CHECKING:
    from dure.batch import CacheDtype
    from dure.cluster.link import Address
    from dure.weights.quantize import Scheme
    from dure.weights.span import Span


@dataclass(frozen=True)
class StageOrder:
    """What a stage is to be."""

    name: str  # of the model, as it was asked for
    path: str  # of its files on the server's machine
    fingerprint: str
    version: str  # of dure on the server's machine
    span: Span
    threads: int | None  # None: the node's physical cores, divided among `share` replicas
    exact: bool
    quantize: Scheme | None
    num_blocks: int
    num_window_blocks: int
    num_states: int
    cache_dtype: CacheDtype
    share: int = 1  # replicas with a stage on the node


def version_here() -> str:
    """Return the version of dure that is installed on this machine."""
    try:
        return version("dure")
    except PackageNotFoundError:  # it runs from its sources
        return "from sources"


def speed_here(threads: int) -> float:
    """Measure the bytes of weights a second that one row is multiplied by on this machine."""
    matrices = matrices_of("Q8_0", threads)
    x = np.ones((1, matrices[0].cols), np.float32)

    def multiply() -> None:
        for matrix in matrices:
            kernels.matmul(x, matrix, threads=threads)

    [seconds] = usual_seconds([multiply])
    return sum(matrix.nbytes for matrix in matrices) / seconds


def room_here(threads: int | None, budget: int | None, share: int = 1) -> Room:
    """Return what this machine has for one of `share` stages.

    threads: None: its physical cores. budget: bytes of it that may be taken; None: all free ones.
    """
    memory = machine.memory_available()
    memory = memory if budget is None else min(memory, budget * share)
    return Room(memory // share, speed_here(threads or machine.usable_threads()) / share)


class StageActor:
    """A node's end of a pipeline. Its methods are called by the server, on threads of their own."""

    def __init__(self, secret: bytes, host: str) -> None:
        """host: the address of this node at which the stage before it comes in."""
        self._secret, self._host = secret, host
        self._work: StageWork | None = None

    def room(self, threads: int | None, budget: int | None, share: int) -> Room:
        """Return what this node has for one of `share` stages."""
        return room_here(threads, budget, share)

    def load(self, order: StageOrder) -> tuple[Address, int]:
        """Load the layers; return where the stage before comes in, and the bytes of the cache.

        Raises ModelFileError, UnsupportedModelError or InvalidRequestError.
        """
        if order.version != version_here():
            raise InvalidRequestError(
                f"A node has dure {version_here()}, and the server {order.version}.",
                hint="install the same version on every node",
            )
        checkpoint = files.find(order.path, order.name, order.fingerprint)
        model: Any = load_model(
            checkpoint,
            threads=order.threads or max(1, machine.usable_threads() // order.share),
            exact=order.exact,
            quantize=order.quantize,
            span=order.span,
        )
        kernels.release_free_memory()
        stage = Stage(
            model,
            order.span,
            num_blocks=order.num_blocks,
            num_window_blocks=order.num_window_blocks,
            num_states=order.num_states,
            cache_dtype=order.cache_dtype,
        )
        self._work = StageWork(stage, self._host, self._secret)
        return self._work.address, stage.storage.size_bytes

    def join(self, epoch: int, next_address: Address) -> None:
        """Link to the next stage, in place of the links of an earlier epoch."""
        self._loaded.join(epoch, next_address)

    def process(self) -> int:
        """Return the id of the actor's process."""
        return os.getpid()

    def progress(self) -> Progress | None:
        """Tell what the stage has done, and what it is at; None before it is loaded."""
        return None if self._work is None else self._work.progress()

    def close(self) -> None:
        """End the links."""
        if self._work is not None:
            self._work.close()

    @property
    def _loaded(self) -> StageWork:
        assert self._work is not None
        return self._work


def new_secret() -> bytes:
    """Draw what the stages of one pipeline know each other by."""
    return secrets.token_bytes(32)
