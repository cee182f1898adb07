"""What the APIs for embeddings and ranks share: begin, wait for all vectors, say what was done.

Vectors of all requests have a bound in memory, from before they are computed until they are sent;
as JSON, which is five times as much, they are written a piece at a time.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from dure.pooling.output import Pooled
from dure.pooling.request import PreparedPooling
from dure.server import limits
from dure.server.errors import invalid
from dure.server.http.sse import ClientGone, cancel_on_disconnect
from dure.server.wire.body import admitted
from dure.server.wire.tenant import tenant

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from dure.llm import LLM
    from dure.server.serving.generation import Generation
    from dure.server.serving.service import Service
    from dure.server.wire.budget import Budget

    Floats = NDArray[np.float32]

_ARRAY_BYTES = 128
"""What a vector takes besides its numbers."""


@dataclass(frozen=True)
class Form:
    """How an API writes vectors: an object with a list of them."""

    before: Mapping[str, Any]  # fields before the list
    name: str  # of the list
    entry: Callable[[int, Floats], Any]  # what stands there for a vector of a number
    after: Mapping[str, Any]  # fields behind it


async def embedded(
    service: Service,
    request: Request,
    model: str | None,
    prepare: Callable[[LLM], PreparedPooling],
    form: Callable[[Generation, Pooled], Form],
    *,
    num_texts: int,
    dimensions: int | None,
    keep_alive: float | None = None,
) -> Response:
    """Embed a request's texts, and answer with their vectors.

    prepare, keep_alive: as for `pool`. form: says how vectors are written. Raises a 400 for more
    numbers than an answer may have, and a 503 if others' vectors leave no room in time.
    """
    width = dimensions
    if width is None:
        width = await service.with_model(model, lambda llm: llm.pooling_builder.width)
    numbers = num_texts * width
    if numbers > limits.MAX_VECTOR_NUMBERS:
        raise invalid(
            f"{num_texts:,} vectors of {width:,} are {numbers:,} numbers, and one answer may have "
            f"{limits.MAX_VECTOR_NUMBERS:,}. Send fewer texts in one request.",
            "input",
        )
    budget: Budget = request.app.state.vectors
    cost = 4 * numbers + _ARRAY_BYTES * num_texts
    await cancel_on_disconnect(request.receive, budget.take(cost))
    try:
        generation, pooled = await pool(service, request, model, prepare, keep_alive=keep_alive)
        writing = form(generation, pooled)
        made = VectorsResponse(
            writing, pooled.vectors, service.off_loop, close=partial(budget.give, cost)
        )
        return told(made, generation)
    except BaseException:
        budget.give(cost)
        raise


class VectorsResponse(Response):
    """A JSON object with a list of vectors, written and sent a piece at a time.

    `close` is called once, when all is sent or the client is gone.
    """

    def __init__(
        self,
        form: Form,
        vectors: tuple[Floats, ...],
        off_loop: Callable[[Callable[[], bytes]], Awaitable[bytes]],
        *,
        close: Callable[[], None],
    ) -> None:
        """off_loop: runs a function on a thread."""
        super().__init__(media_type="application/json")
        del self.headers["content-length"]
        self._form, self._vectors = form, vectors
        self._off_loop, self._close = off_loop, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send all; stop when the client disconnects."""
        try:
            await cancel_on_disconnect(receive, self._send_all(send))
        except ClientGone:
            pass
        finally:
            self._close()

    async def _send_all(self, send: Send) -> None:
        together = max(1, limits.VECTORS_PIECE // max(1, *map(len, self._vectors), 1))
        count = len(self._vectors)
        begun = False
        for start in range(0, max(1, count), together):
            end = min(count, start + together)
            body = await self._off_loop(partial(self._piece, start, end))
            if not begun:
                if end >= count:  # all of it: its length is known
                    self.headers["content-length"] = str(len(body))
                head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                await send(head)
                begun = True
            await send({"type": "http.response.body", "body": body, "more_body": end < count})

    def _piece(self, start: int, end: int) -> bytes:
        """Write the vectors from `start` to `end`, and what is around the list at its ends."""
        entries = [self._form.entry(each, self._vectors[each]) for each in range(start, end)]
        text = _json(entries)[1:-1]
        if start == 0:
            fields = _json({**self._form.before, self._form.name: []})
            text = fields[:-2] + text
        elif text:
            text = "," + text
        if end == len(self._vectors):
            fields = _json(self._form.after)[1:-1]
            text += "]" + (f",{fields}" if fields else "") + "}"
        return text.encode()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


async def pool(
    service: Service,
    request: Request,
    model: str | None,
    prepare: Callable[[LLM], PreparedPooling],
    *,
    keep_alive: float | None = None,
) -> tuple[Generation, Pooled]:
    """Compute the vectors of a request's texts; if its client goes, that ends within one step.

    prepare: makes the request of the loaded model, off the event loop.
    """
    began = service.pool(model, prepare, key=tenant(request), keep_alive=keep_alive)
    generation = await admitted(request, began)

    async def read() -> Pooled:
        async for _, chunk in generation:
            if isinstance(chunk.completion, Pooled):
                return chunk.completion
        raise RuntimeError("a request for vectors ended without any")

    try:
        return generation, await cancel_on_disconnect(request.receive, read())
    finally:
        generation.close()


def told(response: Response, generation: Generation) -> Response:
    """Say in the response's headers how vectors were made where the model does not say it.

    And how many texts were cut, if some were.
    """
    prepared = generation.prepared
    if isinstance(prepared, PreparedPooling):
        if not prepared.is_said:
            response.headers["x-dure-pooling"] = "last token; the model does not say"
        if prepared.num_cut:
            response.headers["x-dure-truncated"] = str(prepared.num_cut)
    return response
