"""All errors that a user can meet. Each says what is wrong, the limit, and what to do."""

from __future__ import annotations


class DureError(Exception):
    """Base class of all errors that dure raises on purpose.

    `message` is one sentence. `hint` says what to do next. `detail` is the text of a library or of
    a model's own code: it goes to the terminal and the log, never to a server's client. `hint` and
    `detail` may be empty.
    """

    def __init__(self, message: str, *, hint: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail

    def __str__(self) -> str:
        said = f"{self.message}\n{self.detail}" if self.detail else self.message
        return f"{said}\nhint: {self.hint}" if self.hint else said


class ModelFileError(DureError):
    """A model file is missing, damaged, truncated, changed while in use, or of the wrong kind."""


class UnsupportedModelError(DureError):
    """The file is valid, but dure does not run its architecture or a tensor type."""


class ModelNotFoundError(DureError):
    """No model has that name, on this machine or at any source."""


class DownloadError(DureError):
    """A source could not be reached, or a downloaded file failed its check."""


class NotEnoughMemoryError(DureError):
    """The model, its context or its KV cache does not fit in memory."""


class ClusterError(DureError):
    """The machines that a model's layers lie on cannot be reached."""


class TokenizerError(DureError):
    """The tokenizer is missing, damaged, or of an unknown kind."""


class TemplateError(DureError):
    """The model's chat template is broken, forbidden, too slow or too long."""


class RenderingError(TemplateError):
    """The process that renders chat templates cannot start, or dies at every request."""


class ContextLengthError(DureError):
    """The prompt, or the prompt and max_tokens, exceed the context length.

    `room`: how many tokens the prompt leaves for its answer; None: not known.
    """

    room: int | None = None


class PromptLengthError(ContextLengthError):
    """The prompt alone exceeds the context length, however few tokens are asked for."""


class InvalidRequestError(DureError, ValueError):
    """A parameter of a request is wrong or out of range. Also a ValueError."""


class CallError(InvalidRequestError, TypeError):
    """A function was given an argument that it does not have, or too few. Also a TypeError."""
