"""Errors as HTTP responses: a status, and a body in the form of the API that was called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dure.errors import (
    ClusterError,
    ContextLengthError,
    DownloadError,
    DureError,
    InvalidRequestError,
    ModelNotFoundError,
    NotEnoughMemoryError,
    RenderingError,
    TemplateError,
)


@dataclass
class HTTPError(Exception):
    """An error response. `type`, `param` and `code` are the fields of OpenAI's error object."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message


def invalid(message: str, param: str | None = None, code: str | None = None) -> HTTPError:
    """Make a 400: the request is wrong, and the client can correct it."""
    return HTTPError(400, message, param=param, code=code)


def busy(message: str, retry_seconds: int) -> HTTPError:
    """Make a 429: the queue is full. `retry_seconds` becomes the Retry-After header."""
    headers = {"Retry-After": str(retry_seconds)}
    return HTTPError(429, message, "rate_limit_error", code="queue_full", headers=headers)


def unavailable(message: str, code: str, retry_seconds: int = 5) -> HTTPError:
    """Make a 503: the server cannot do this now. `retry_seconds` becomes the Retry-After header."""
    headers = {"Retry-After": str(retry_seconds)}
    return HTTPError(503, message, "unavailable_error", code=code, headers=headers)


def of(error: BaseException) -> HTTPError:
    """Convert any exception to an HTTPError.

    One that is not ours becomes a 500 without its text.
    """
    if isinstance(error, HTTPError):
        return error
    if isinstance(error, ContextLengthError):
        return invalid(_said(error), "messages", "context_length_exceeded")
    if isinstance(error, RenderingError):
        return unavailable(_said(error), "template_unavailable")
    if isinstance(error, InvalidRequestError | TemplateError):
        return invalid(_said(error))
    if isinstance(error, ModelNotFoundError):
        return HTTPError(404, _said(error), param="model", code="model_not_found")
    if isinstance(error, NotEnoughMemoryError | DownloadError | ClusterError):
        return unavailable(_said(error), "model_unavailable")
    if isinstance(error, DureError):
        return HTTPError(500, _said(error), "server_error", code="model_unusable")
    if isinstance(error, MemoryError):
        return unavailable("There was not enough memory for this request.", "out_of_memory")
    return HTTPError(
        500,
        "The server failed at this request; its log says why, under the request's id.",
        "server_error",
        code="internal_error",
    )


def is_ours(error: BaseException) -> bool:
    """Check whether dure raised the error on purpose, with a message meant for the client."""
    return isinstance(error, HTTPError | DureError)


def openai_body(error: HTTPError) -> dict[str, Any]:
    """Write the error as OpenAI's API does."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def anthropic_body(error: HTTPError) -> dict[str, Any]:
    """Write the error as Anthropic's API does."""
    kinds = {
        401: "authentication_error",
        402: "billing_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        503: "overloaded_error",
    }
    kind = kinds.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def ollama_body(error: HTTPError) -> dict[str, Any]:
    """Write the error as Ollama does."""
    return {"error": error.message}


def body_for(path: str, error: HTTPError) -> dict[str, Any]:
    """Write the error in the form of the API that `path` belongs to."""
    if path.startswith("/api/"):
        return ollama_body(error)
    if path.removeprefix("/v1").startswith("/messages"):
        return anthropic_body(error)
    return openai_body(error)


def _said(error: DureError) -> str:
    return f"{error.message} (hint: {error.hint})" if error.hint else error.message
