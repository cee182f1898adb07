"""What dure serve says on stderr before the first request: models, address, lost answers."""

# ruff: noqa: PLC0415 - the kernels are loaded when the verb runs, not for its --help

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

from dure.cli import console

if TYPE_CHECKING:
    from dure.llm import LLM
    from dure.metering.ledger import Ledger

MAX_LOST_SHOWN = 20


def tell_address(address: tuple[str, int], *, is_tls: bool, page: bool) -> None:
    """Say where the server listens. page: whether a browser is shown something there."""
    host, port = address
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    url = f"{'https' if is_tls else 'http'}://{authority}"
    console.note(f"dure listens on {url}/v1")
    if page:
        console.note(f"a chat for a browser is at {url}")


def tell_lost(ledger: Ledger) -> None:
    """Say which answers ran when the last server of this ledger was killed."""
    if not ledger.lost:
        return
    console.note(f"{len(ledger.lost)} answers were lost when the last server was killed:")
    for each in ledger.lost[:MAX_LOST_SHOWN]:
        at = datetime.fromtimestamp(each.opened, timezone.utc)
        console.note(f"  {each.id} of {each.key}, {each.model}, {at:%Y-%m-%d %H:%M:%S} UTC")
    if len(ledger.lost) > MAX_LOST_SHOWN:
        console.note("  and others; in the ledger all have the end `lost`")


def tell_model(name: str, llm: LLM, parallel: int) -> None:
    """Say what is served: its name in requests, context, KV cache and dialect."""
    from dure.batch import BLOCK_SIZE
    from dure.loading.memory import gigabytes

    engines = [driver.engine for driver in llm.driver.drivers]
    tokens = llm.engine.pool.num_blocks * BLOCK_SIZE
    size = gigabytes(sum(engine.runner.cache_bytes for engine in engines))
    copies = f"{len(engines)} replicas, each with a " if len(engines) > 1 else ""
    console.note(
        f"{name}: context of {llm.context:,} tokens, {parallel} requests at once, "
        f"{copies}KV cache of {tokens:,} tokens ({size}{' in all' if copies else ''})"
    )
    console.tell_notes(llm.notes)
    console.tell_memory(name, llm.memory)
    for number, stage in enumerate([] if llm.stages is None else llm.stages.status(), 1):
        console.note(
            f"stage {number}: layers {stage.first_layer} to {stage.last_layer} on {stage.node}, "
            f"{gigabytes(stage.memory_bytes)} of memory"
        )
    dialect = llm.dialect
    thinks = f"reasoning in {dialect.think.open}" if dialect.think else "no reasoning"
    calls = "tool calls" if dialect.calls else "no tool calls"
    console.note(f"dialect {dialect.name}: {thinks}, {calls}")
