"""Writes one response in the form of the Responses API: its items and its numbered events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dure.server.openai.responses_request import seal
from dure.server.openai.usage import response_usage
from dure.server.wire.blocks import BlockDelta, ContentBlock, ContentBlocks, new_id

if TYPE_CHECKING:
    from dure.chat.output import Chunk, Completion
    from dure.metering.prices import Prices
    from dure.server.openai.responses_schemas import ResponsesBody

Value = dict[str, Any]

_PREFIXES = {"reasoning": "rs", "content": "msg", "call": "fc"}


class ResponseWriter:
    """Writes a response as chunks come; `response` is its newest state."""

    def __init__(
        self,
        body: ResponsesBody,
        model: str,
        *,
        stored: bool,
        digits: str | None = None,
        prices: Prices | None = None,
    ) -> None:
        """digits: those of the response's id. prices: what is charged."""
        self.response = _response(body, model, new_id("resp", digits), stored=stored)
        self._sealed = "reasoning.encrypted_content" in (body.include or ())
        self._pieces = ContentBlocks()
        self._ids: list[str] = []
        self._number = -1
        self._prices = prices

    def start(self) -> Iterator[Value]:
        """Yield the first events of a stream."""
        for name in ("created", "in_progress"):
            yield self._event(f"response.{name}", response=dict(self.response))

    def push(self, chunk: Chunk) -> Iterator[Value]:
        """Yield the events of one chunk; after the last chunk, also those that end the stream."""
        for event in chunk.events:
            for change in self._pieces.push(event):
                yield from self._changed(change)
        if chunk.completion is not None:
            yield from self._end(chunk.completion)

    def cancel(self) -> Iterator[Value]:
        """Yield the last events of a response that was cancelled."""
        for change in self._pieces.finish():
            yield from self._changed(change)
        self.response["status"] = "cancelled"
        yield self._event("response.incomplete", response=self.response)

    def fail(self, message: str) -> Iterator[Value]:
        """Yield the last event of a response that failed in midstream."""
        self.response["status"] = "failed"
        self.response["error"] = {"code": "server_error", "message": message}
        yield self._event("response.failed", response=self.response)

    def message(self) -> Value:
        """Return the response as an assistant message, for the chat that continues it."""
        said = "".join(piece.text for piece in self._pieces.all if piece.kind == "content")
        thought = "".join(piece.text for piece in self._pieces.all if piece.kind == "reasoning")
        calls = [
            {
                "id": piece.id,
                "type": "function",
                "function": {"name": piece.name, "arguments": piece.text},
            }
            for piece in self._pieces.all
            if piece.kind == "call"
        ]
        message: Value = {"role": "assistant", "content": said}
        if thought:
            message["reasoning_content"] = thought
        if calls:
            message["tool_calls"] = calls
        return message

    def _end(self, completion: Completion) -> Iterator[Value]:
        cut = completion.finish_reason == "length"
        for change in self._pieces.finish():
            yield from self._changed(change, status="incomplete" if cut else "completed")
        self.response["status"] = "incomplete" if cut else "completed"
        self.response["completed_at"] = None if cut else int(time.time())
        if cut:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        self.response["usage"] = response_usage(completion.usage, self._prices)
        yield self._event(f"response.{self.response['status']}", response=self.response)

    def _changed(self, change: BlockDelta, status: str = "completed") -> Iterator[Value]:
        piece = change.piece
        if change.what == "open":
            self._ids.append(new_id(_PREFIXES[piece.kind]))
            item = self._item(piece, "in_progress", empty=True)
            yield self._event("response.output_item.added", output_index=piece.index, item=item)
            if piece.kind != "call":
                part = _part(piece.kind, "")
                yield self._of("response.content_part.added", piece, content_index=0, part=part)
        elif change.what == "more":
            yield self._more(piece, change.text)
        else:
            yield from self._closed(piece)
            item = self._item(piece, status)
            self.response["output"].append(item)
            yield self._event("response.output_item.done", output_index=piece.index, item=item)

    def _more(self, piece: ContentBlock, text: str) -> Value:
        if piece.kind == "call":
            return self._of("response.function_call_arguments.delta", piece, delta=text)
        if piece.kind == "reasoning":
            return self._of("response.reasoning_text.delta", piece, content_index=0, delta=text)
        return self._of(
            "response.output_text.delta", piece, content_index=0, delta=text, logprobs=[]
        )

    def _closed(self, piece: ContentBlock) -> Iterator[Value]:
        text = piece.text
        if piece.kind == "call":
            yield self._of(
                "response.function_call_arguments.done", piece, name=piece.name, arguments=text
            )
            return
        if piece.kind == "reasoning":
            yield self._of("response.reasoning_text.done", piece, content_index=0, text=text)
        else:
            yield self._of(
                "response.output_text.done", piece, content_index=0, text=text, logprobs=[]
            )
        part = _part(piece.kind, text)
        yield self._of("response.content_part.done", piece, content_index=0, part=part)

    def _item(self, piece: ContentBlock, status: str, *, empty: bool = False) -> Value:
        text = "" if empty else piece.text
        item: Value = {"id": self._ids[piece.index], "status": status}
        if piece.kind == "call":
            call = {"call_id": piece.id, "name": piece.name, "arguments": text}
            return {**item, "type": "function_call", **call}
        content = [] if empty else [_part(piece.kind, text)]
        if piece.kind == "content":
            return {**item, "type": "message", "role": "assistant", "content": content}
        sealed = seal(text) if self._sealed and not empty else None
        return {
            **item,
            "type": "reasoning",
            "summary": [],
            "content": content,
            "encrypted_content": sealed,
        }

    def _of(self, kind: str, piece: ContentBlock, **values: Any) -> Value:
        """Make an event about the block's item."""
        where = {"item_id": self._ids[piece.index], "output_index": piece.index}
        return self._event(kind, **where, **values)

    def _event(self, kind: str, **values: Any) -> Value:
        self._number += 1
        return {"type": kind, "sequence_number": self._number, **values}


def _part(kind: str, text: str) -> Value:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _response(body: ResponsesBody, model: str, name: str, *, stored: bool) -> Value:
    """Make the response before any output, with the settings of the request."""
    asked = body.model_dump(by_alias=True, exclude_none=True)
    choice = asked.get("tool_choice", "auto")
    return {
        "id": name,
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "store": stored,
        "temperature": body.temperature,
        "text": asked.get("text") or {"format": {"type": "text"}},
        "tool_choice": choice,
        "tools": [{"strict": None, "parameters": None, **tool} for tool in asked.get("tools", [])],
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
        "metadata": body.metadata or {},
    }
