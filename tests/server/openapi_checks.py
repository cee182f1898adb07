"""What is asked of every answer to schemathesis, which loads this file as its hooks."""

from __future__ import annotations

import json
import re
from typing import Any

import requests
import schemathesis

SECONDS = 2.0
FOREIGN = re.compile(
    r"Traceback|File \"|\b[A-Z]\w+(Error|Exception|Warning)\b"
    r"|\b(pydantic|starlette|fastapi|uvicorn|h11|jinja2|llguidance|numpy|asyncio)\b"
    r"|Internal Server Error|validation error|object at 0x"
)


def shape_of(value: Any) -> Any:
    """The keys of a JSON object, to the bottom."""
    if isinstance(value, dict):
        return {key: shape_of(each) for key, each in value.items()}
    return None


def our_shape(path: str) -> Any:
    """The shape of an error in the API that the path belongs to."""
    if path.startswith("/api/"):
        return {"error": None}
    if path.removeprefix("/v1").startswith("/messages"):
        return {"type": None, "error": {"type": None, "message": None}}
    return {"error": {"message": None, "type": None, "param": None, "code": None}}


@schemathesis.check
def errors_are_ours(_: Any, response: Any, __: Any) -> None:
    """No failure of the server's, no words of a library's, and its API's form of an error."""
    assert response.status_code < 500, "the server failed"
    text = response.content.decode()
    if response.status_code < 400 or response.request.method == "HEAD":
        return
    found = FOREIGN.search(text)
    assert found is None, f"these are not our words: {found}"
    path = response.request.path_url.partition("?")[0]
    assert shape_of(json.loads(text)) == our_shape(path), "this is not the form of an error"


@schemathesis.check
def nothing_hangs(_: Any, response: Any, __: Any) -> None:
    """An answer within 2 s: at the fifth try at least, since a machine may be busy."""
    seconds = response.elapsed
    tries = 1
    while seconds > SECONDS and tries < 5:
        again = requests.Session().send(response.request, timeout=60)
        seconds = again.elapsed.total_seconds()
        tries += 1
    assert seconds <= SECONDS, f"it took {seconds:.1f} s, {tries} times"
