"""The former name of dure.benchmark; goes in 0.3."""

from __future__ import annotations

import warnings

from dure.benchmark import perplexity, speed

__all__ = ["perplexity", "speed"]

warnings.warn("dure.measure is dure.benchmark now.", DeprecationWarning, stacklevel=2)
