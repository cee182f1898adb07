"""Open-weight models on ordinary CPUs: the public names, each imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dure.errors import (
    ClusterError,
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
    from dure.async_llm import AsyncLLM
    from dure.chat.output import Chunk, Completion
    from dure.chat.request import ChatRequest, Format, Thinking, ToolChoice
    from dure.chat.usage import Timings, Usage
    from dure.engine.params import SamplingParams
    from dure.llm import LLM
    from dure.loading.memory import MemoryUse
    from dure.metering.cost import Cost
    from dure.metering.estimates import Watts
    from dure.metering.meter import Meter, Totals
    from dure.metering.prices import Prices
    from dure.pooling.output import Embedding, RankedDocument
    from dure.weights.expert_stats import ExpertUse

__version__ = "0.2.0.dev0"

__all__ = [
    "LLM",
    "AsyncLLM",
    "ChatRequest",
    "Chunk",
    "ClusterError",
    "Completion",
    "ContextLengthError",
    "Cost",
    "DownloadError",
    "DureError",
    "Embedding",
    "ExpertUse",
    "Format",
    "InvalidRequestError",
    "MemoryUse",
    "Meter",
    "ModelFileError",
    "ModelNotFoundError",
    "NotEnoughMemoryError",
    "Prices",
    "RankedDocument",
    "SamplingParams",
    "TemplateError",
    "Thinking",
    "Timings",
    "TokenizerError",
    "ToolChoice",
    "Totals",
    "UnsupportedModelError",
    "Usage",
    "Watts",
    "__version__",
]

# numpy, tokenizers and the kernels take longer to import than `dure --help` may last.
_HOMES = {
    "LLM": "dure.llm",
    "AsyncLLM": "dure.async_llm",
    "ChatRequest": "dure.chat.request",
    "Chunk": "dure.chat.output",
    "Completion": "dure.chat.output",
    "Cost": "dure.metering.cost",
    "Embedding": "dure.pooling.output",
    "ExpertUse": "dure.weights.expert_stats",
    "Format": "dure.chat.request",
    "MemoryUse": "dure.loading.memory",
    "Meter": "dure.metering.meter",
    "Prices": "dure.metering.prices",
    "RankedDocument": "dure.pooling.output",
    "SamplingParams": "dure.engine.params",
    "Thinking": "dure.chat.request",
    "Timings": "dure.chat.usage",
    "ToolChoice": "dure.chat.request",
    "Totals": "dure.metering.meter",
    "Usage": "dure.chat.usage",
    "Watts": "dure.metering.estimates",
}


def __getattr__(name: str) -> Any:
    """Import the public class `name`. Raises AttributeError for any other name."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dure' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
