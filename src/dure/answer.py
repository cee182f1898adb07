"""The former home of Completion, Chunk and Timings, which `dure` has; goes in 0.3."""

from __future__ import annotations

import warnings

from dure.chat.output import Chunk, Completion
from dure.chat.usage import Timings

__all__ = ["Chunk", "Completion", "Timings"]

warnings.warn("Import Chunk, Completion and Timings from dure.", DeprecationWarning, stacklevel=2)
