"""The unfinished requests of one engine, and which of them are choices of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dure.errors import InvalidRequestError

if TYPE_CHECKING:
    from dure.engine.request import Request


class Roster:
    """The unfinished requests by their ids. All choices of one are entered together."""

    def __init__(self) -> None:
        self._requests: dict[str, Request] = {}
        self._choices: dict[str, tuple[Request, ...]] = {}  # by choice 0's id, until all are done
        self._number = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request: Request) -> bool:
        return self._requests.get(request.id) is request

    def get(self, request_id: str) -> Request | None:
        """Return the unfinished request with this id, if there is one."""
        return self._requests.get(request_id)

    def asked_by(self, request_id: str) -> Sequence[Request]:
        """Return the unfinished ones that the id means: by choice 0's id all choices."""
        single = self._requests.get(request_id)
        group = self._choices.get(request_id, () if single is None else (single,))
        return [request for request in group if not request.is_finished]

    def new_name(self, kind: str) -> str:
        """Return an id that no other request here got by itself."""
        self._number += 1
        return f"{kind}-{self._number}"

    def rename(self, choices: Sequence[Request]) -> None:
        """Give the choices of a request that another engine had ids of this one."""
        name = self.new_name("moved")
        for request in choices:
            request.id = f"{name}:{request.choice}" if request.choice else name
            request.num_moves += 1

    def enter(self, choices: tuple[Request, ...]) -> None:
        """Enter all choices of one request; InvalidRequestError if an id is in use."""
        for request in choices:
            if request.id in self._requests or request.id in self._choices:
                raise InvalidRequestError(f"A request with the id {request.id!r} is still running.")
        self._choices[choices[0].id] = choices
        for request in choices:
            request.choices = choices
            if not request.is_finished:
                self._requests[request.id] = request

    def leave(self, request: Request) -> None:
        """Take out a request that has finished."""
        del self._requests[request.id]
        if all(choice.is_finished for choice in request.choices):
            del self._choices[request.choices[0].id]

    def leave_together(self, choices: Sequence[Request]) -> None:
        """Take out all choices of one request, finished or not."""
        del self._choices[choices[0].id]
        for request in choices:
            self._requests.pop(request.id, None)

    @property
    def is_consistent(self) -> bool:
        """Whether no choices are left where no request is."""
        return bool(self._requests) or not self._choices
