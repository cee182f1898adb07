"""Reasoning settings: whether and for how long to think, by the many names of the APIs."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from dure.chat.request import EFFORTS, Thinking
from dure.engine.params import MAX_ID
from dure.server.errors import invalid
from dure.server.wire.validation import Body

Budget = Annotated[int, Field(ge=-1, le=MAX_ID)]  # -1 is llama-server's for no limit

_OTHER_EFFORTS = {"ultra": "max", "highest": "max", "off": "none", "no_think": "none"}
_OURS = ("enable_thinking", "thinking", "reasoning_effort")
_RENDERERS = frozenset(
    ("messages", "tools", "self", "add_generation_prompt", "bos_token", "eos_token")
)
"""Variables that the renderer sets itself: a request sets them by other fields."""


class ThinkingFields(Body):
    """The reasoning fields that the body of any API may have, besides that API's own."""

    reasoning_effort: str | None = Field(None, max_length=32)
    enable_thinking: bool | None = None
    thinking_budget: Budget | None = None
    thinking_token_budget: Budget | None = None
    thinking_budget_tokens: Budget | None = None
    reasoning_budget: Budget | None = None
    reasoning_budget_tokens: Budget | None = None
    chat_template_kwargs: dict[str, Any] | None = None


def thinking_of(
    body: ThinkingFields, *, switch: Any = None, effort: Any = None, budget: Any = None
) -> Thinking:
    """Read the reasoning settings of a body.

    switch, effort and budget: the values of the API's own fields, if it has any.
    """
    variables = body.chat_template_kwargs or {}
    switch = first(
        body.enable_thinking, switch, variables.get("enable_thinking"), variables.get("thinking")
    )
    effort = first(body.reasoning_effort, effort, variables.get("reasoning_effort"))
    budget = first(
        body.thinking_budget,
        body.thinking_token_budget,
        body.thinking_budget_tokens,
        body.reasoning_budget,
        body.reasoning_budget_tokens,
        budget,
    )
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int)):
        raise invalid("The thinking budget must be a whole number of tokens.", "thinking_budget")
    if effort is not None:
        effort = _effort(effort)
    if switch is False or budget == 0:
        return Thinking("off")
    limit = None if budget is None or budget < 0 else budget
    return Thinking("on" if switch is True else "auto", effort=effort, budget=limit)


def variables_of(body: ThinkingFields) -> dict[str, Any]:
    """Return chat_template_kwargs without the variables that `thinking_of` reads.

    Raises a 400 for a name that the renderer itself sets.
    """
    given = body.chat_template_kwargs or {}
    for name in given:
        if name in _RENDERERS or not name.isidentifier():
            raise invalid(
                f"chat_template_kwargs must not hold {name[:60]!r}: the server sets it, "
                "or it is not a name that a template can use.",
                "chat_template_kwargs",
            )
    return {name: value for name, value in given.items() if name not in _OURS}


def switch_of(kind: Any) -> bool | None:
    """Map DeepSeek's and Anthropic's type to a switch: True, False, or None for "adaptive"."""
    return {"enabled": True, "disabled": False}.get(kind) if isinstance(kind, str) else None


def first(*values: Any) -> Any:
    """Return the first value that is not None; None if all are."""
    return next((value for value in values if value is not None), None)


def _effort(effort: Any) -> str:
    text = effort.strip().lower() if isinstance(effort, str) else ""
    text = _OTHER_EFFORTS.get(text, text)
    if text not in EFFORTS:
        raise invalid(
            f"The reasoning effort must be one of {', '.join(EFFORTS)}.", "reasoning_effort"
        )
    return text
