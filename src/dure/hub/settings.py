"""What a store or a preset says of how a model is to be used, beside its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SAMPLING_FIELDS = (
    *("temperature", "top_k", "top_p", "min_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty", "seed", "max_tokens", "stop"),
)
"""Fields of SamplingParams that a model may have a default of."""


@dataclass(frozen=True)
class ModelSettings:
    """Defaults of a model; a request or an option wins over each.

    `sampling` has names of SAMPLING_FIELDS. `system` is the system message of a chat that has
    none. `template` replaces the checkpoint's chat template, `fallback_template` stands in where it
    has none; `template_note` is then said, and `go_template` is Ollama's, for which it stands.
    `messages` ({"role": …, "content": …}) stand before those of every chat. `notes` say what was
    left out.
    """

    sampling: Mapping[str, Any] = field(default_factory=dict)
    context: int | None = None
    system: str = ""
    template: str = ""
    fallback_template: str = ""
    template_note: str = ""
    go_template: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


NO_SETTINGS = ModelSettings()
