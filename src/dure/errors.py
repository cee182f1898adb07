"""Every error a user can meet. Each says what was wrong, the limit it met, and what to do."""

from __future__ import annotations


class DureError(Exception):
    """Base of all errors raised on purpose.

    `hint` is what the user can do next. `detail` is what a library or a model's own code said: for
    the terminal and the log, and never for the client of a server. Either may be empty.
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
    """The file is sound, but its architecture or a tensor type is one we do not run."""


class ModelNotFoundError(DureError):
    """No model goes by that name here or at any source we asked."""


class DownloadError(DureError):
    """A source could not be reached, or what it sent failed its check."""


class NotEnoughMemoryError(DureError):
    """The model, or the context asked for, does not fit in memory."""


class TokenizerError(DureError):
    """The tokenizer is missing, damaged, or of a kind we do not know."""


class TemplateError(DureError):
    """The model's chat template is broken, forbidden, too slow or too long."""


class RenderingError(TemplateError):
    """The process that renders chat templates cannot be started, or dies whatever it is asked."""


class ContextLengthError(DureError):
    """A prompt, or a prompt and the tokens asked for, exceed the context."""


class InvalidRequestError(DureError, ValueError):
    """A parameter of a request is outside its range."""
