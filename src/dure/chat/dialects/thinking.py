"""Maps thinking options to the variables of each family's chat template."""

from __future__ import annotations

import re
from typing import Any

_USES_THINKING = re.compile(
    r"\b(?:if|elif|not|and|or)\s+(?:not\s+)?thinking\s*(?:-?[%}]\}|is\b|and\b|or\b|[=!)])"
)
"""DeepSeek's and Granite's switch; the bare word occurs in the prose of many templates."""

# What each family's `reasoning_effort` may be; another value is an error there, or means nothing.
_HY = {"minimal": "low", "low": "low", "medium": "high"}
_DEEPSEEK = {"minimal": "low", "low": "low", "medium": "high", "max": "max"}
_QWEN = {"minimal": "low", "low": "low", "medium": "medium"}
_COMMON = {"minimal": "low", "low": "low", "medium": "medium"}


def template_variables(template: str, *, on: bool | None, effort: str | None) -> dict[str, Any]:
    """Return the variables that turn thinking `on`, off or leave it (None), with an `effort`."""
    variables: dict[str, Any] = {}
    if on is not None:
        if "enable_thinking" in template:
            variables["enable_thinking"] = on
        if _USES_THINKING.search(template):
            variables["thinking"] = on
        if "thinking_budget" in template and not on:  # Seed-OSS: tokens, 0 for none
            variables["thinking_budget"] = 0
        if "thinking_mode" in template:
            variables["thinking_mode"] = "enabled" if on else "disabled"
    if "reasoning_effort" in template:
        value = _effort(template, on=on, effort=effort)
        if value is not None:
            variables["reasoning_effort"] = value
    return variables


def has_switch(template: str) -> bool:
    """Return whether some variable of the template turns thinking on and off."""
    both = [template_variables(template, on=on, effort=None) for on in (True, False)]
    return both[0] != both[1]


def _effort(template: str, *, on: bool | None, effort: str | None) -> str | None:
    """Return the effort in the template's own word; None to leave it out."""
    if "'no_think'" in template:  # Hunyuan 3: it refuses any word but its three
        if on is False:
            return "no_think"
        return _HY.get(effort, "high") if effort else "high" if on else None
    if "think_render_option" in template:  # Solar-Open: minimal effort is none
        return "minimal" if on is False else effort or ("high" if on else None)
    if on is False or effort is None:
        return None
    if "'xhigh'" in template.replace('"', "'"):  # Qwen3.8: it refuses "high"
        return _QWEN.get(effort, "xhigh")
    return (_DEEPSEEK if "DSML" in template else _COMMON).get(effort, "high")
