"""Open-weight models on ordinary CPUs. The public names; each is imported when first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dure.errors import (
    ContextLengthError,
    DownloadError,
    DureError,
    InvalidRequestError,
    ModelFileError,
    ModelNotFoundError,
    NotEnoughMemoryError,
    TemplateError,
    TokenizerError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from dure.chat.output import Completion
    from dure.engine.params import SamplingParams
    from dure.llm import LLM

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "Completion",
    "ContextLengthError",
    "DownloadError",
    "DureError",
    "InvalidRequestError",
    "ModelFileError",
    "ModelNotFoundError",
    "NotEnoughMemoryError",
    "SamplingParams",
    "TemplateError",
    "TokenizerError",
    "UnsupportedModelError",
    "__version__",
]

# numpy, tokenizers and the kernels take longer to import than `dure --help` may last.
_HOMES = {
    "LLM": "dure.llm",
    "Completion": "dure.chat.output",
    "SamplingParams": "dure.engine.params",
}


def __getattr__(name: str) -> Any:
    """The public class `name`, imported now; AttributeError if it is not one of ours."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dure' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
