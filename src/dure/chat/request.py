"""ChatRequest: a chat and its options, which every wire format is translated to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal, get_args

from dure.calls import explained_class
from dure.errors import InvalidRequestError

ThinkMode = Literal["auto", "on", "off"]
ChoiceMode = Literal["auto", "none", "required", "named"]
FormatKind = Literal["json_object", "json_schema", "regex", "grammar", "choice"]
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
MAX_TOOLS = 512
_FORMS = {
    "messages": '[{"role": "user", "content": "…"}]',
    "tools": '[{"type": "function", "function": {"name": …, "parameters": {…}}}]',
    "tool_choice": 'ToolChoice("required")',
    "thinking": 'Thinking("on")',
    "format": 'Format("json_object")',
}
"""What these look like."""


def _one_of(what: str, value: object, allowed: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise InvalidRequestError(
            f"{what} must be one of {', '.join(allowed)}, but is {str(value)[:60]!r}.",
            hint=f'such as "{allowed[0]}"',
        )


def _wrong(what: str, value: object, wanted: str, hint: str = "") -> InvalidRequestError:
    return InvalidRequestError(f"{what} must be {wanted}, but is {value!r:.60}.", hint=hint)


@explained_class
@dataclass(frozen=True)
class Thinking:
    """Whether the model thinks before it answers, how hard, and for how many tokens at most."""

    mode: ThinkMode = "auto"  # auto: as the model's template has it
    effort: str | None = None  # one of EFFORTS; "none" is off
    budget: int | None = None  # reasoning tokens at most

    def __post_init__(self) -> None:
        _one_of("thinking", self.mode, get_args(ThinkMode))
        if self.effort is not None:
            _one_of("The thinking effort", self.effort, EFFORTS)
        if isinstance(self.budget, bool) or not isinstance(self.budget, Integral | None):
            raise _wrong(
                "A thinking limit", self.budget, "a whole number of tokens", "Thinking(budget=512)"
            )
        if self.budget is not None:
            object.__setattr__(self, "budget", int(self.budget))  # of numpy's integers
        if self.budget is not None and self.budget < 0:
            raise InvalidRequestError(
                f"A thinking limit of {self.budget} tokens is below 0.", hint="0 turns it off"
            )

    @property
    def is_off(self) -> bool:
        """Whether thinking is turned off."""
        return self.mode == "off" or self.effort == "none"

    @property
    def is_on(self) -> bool:
        """Whether thinking is asked for, by a switch, an effort or a budget."""
        wants = self.mode == "on" or self.effort is not None or self.budget is not None
        return wants and not self.is_off

    @property
    def is_demanded(self) -> bool:
        """Whether thoughts are asked for by a switch or an effort, and not only limited."""
        return self.is_on and (self.mode == "on" or self.effort is not None)


@explained_class
@dataclass(frozen=True)
class ToolChoice:
    """Whether the model may, must or must not call tools; `name` is that of the "named" one."""

    mode: ChoiceMode = "auto"  # auto, none, required or named
    name: str = ""  # the tool that "named" demands

    def __post_init__(self) -> None:
        _one_of("tool_choice", self.mode, get_args(ChoiceMode))
        if not isinstance(self.name, str):
            raise _wrong(
                "The name of a tool to call", self.name, "a text", 'ToolChoice("named", "weather")'
            )


@explained_class
@dataclass(frozen=True)
class Format:
    """What the answer must be: JSON of a kind, or a text of one.

    value: a JSON schema, a regular expression, a Lark grammar, or the texts to choose from.
    """

    kind: FormatKind  # json_object, json_schema, regex, grammar (Lark) or choice
    value: Any = None  # the schema, the expression, the grammar, or the list of texts

    def __post_init__(self) -> None:
        _one_of("The answer's format", self.kind, get_args(FormatKind))


@explained_class
@dataclass(frozen=True)
class ChatRequest:
    """A chat in the form of OpenAI's messages and tools, and what is asked of its next message."""

    messages: Sequence[Mapping[str, Any]]  # {"role": …, "content": …}, oldest first
    tools: Sequence[Mapping[str, Any]] = ()  # {"type": "function", "function": {…}}; at most 512
    tool_choice: ToolChoice = ToolChoice()  # whether a tool must be called
    parallel_tool_calls: bool = True  # False: at most one call
    thinking: Thinking = Thinking()  # whether the model thinks, and for how many tokens
    format: Format | None = None  # what the answer must be
    template_variables: Mapping[str, Any] = field(default_factory=dict)  # for the chat template
    continue_final: bool = False  # continue the last message, the assistant's
    prediction: str = ""  # what the answer may be, such as a file to be edited; it only speeds up

    def __post_init__(self) -> None:
        self._check_types()
        if not self.messages:
            raise InvalidRequestError("There are no messages.", hint=_FORMS["messages"])
        _check_tools(self.tools)
        names = tool_schemas(self.tools)
        if self.tool_choice.mode in ("required", "named") and not names:
            raise InvalidRequestError(
                f'tool_choice is "{self.tool_choice.mode}", but the request has no tools.',
                hint="send tools, or leave tool_choice out",
            )
        if self.tool_choice.mode == "named" and self.tool_choice.name not in names:
            raise InvalidRequestError(
                f"tool_choice names {self.tool_choice.name!r}, but no tool has that name.",
                hint=f"one of {', '.join(sorted(names)[:20])}",
            )
        last = self.messages[-1]
        if self.continue_final and last.get("role") != "assistant":
            raise InvalidRequestError(
                "Only a last message of the assistant can be continued.",
                hint='{"role": "assistant", "content": "…"} as the last one',
            )

    def _check_types(self) -> None:
        """Raise InvalidRequestError for a field of another type than its own."""
        for what, listed in (("messages", self.messages), ("tools", self.tools)):
            if not isinstance(listed, Sequence) or isinstance(listed, (str, bytes, bytearray)):
                raise _wrong(what, listed, "a list of dictionaries", _FORMS[what])
        for number, message in enumerate(self.messages, 1):
            if not isinstance(message, Mapping):
                raise _wrong(f"Message {number}", message, "a dictionary", _FORMS["messages"])
        for name, kind in (("tool_choice", ToolChoice), ("thinking", Thinking), ("format", Format)):
            value = getattr(self, name)
            if not isinstance(value, kind) and not (name == "format" and value is None):
                raise _wrong(name, value, f"a {kind.__name__}", _FORMS[name])
        variables = self.template_variables
        if not isinstance(variables, Mapping) or not all(isinstance(k, str) for k in variables):
            raise _wrong(
                "template_variables",
                variables,
                "a dictionary whose keys are texts",
                '{"enable_thinking": False}',
            )
        if not isinstance(self.prediction, str):
            raise _wrong("prediction", self.prediction, "a text", 'leave it out, or ""')
        for name in ("parallel_tool_calls", "continue_final"):
            if not isinstance(getattr(self, name), bool):
                raise _wrong(name, getattr(self, name), "True or False", f"{name}=True")


def tool_schemas(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the JSON schema of each tool's arguments, by name."""
    functions = [tool.get("function", {}) for tool in tools]
    return {each["name"]: each.get("parameters") or {} for each in functions}


def _check_tools(tools: Sequence[Mapping[str, Any]]) -> None:
    if len(tools) > MAX_TOOLS:
        raise InvalidRequestError(f"There are {len(tools)} tools; the limit is {MAX_TOOLS}.")
    for tool in tools:
        function = tool.get("function") if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name or len(name) > 256 or not name.isprintable():
            raise InvalidRequestError(
                "A tool needs a name of 1 to 256 printable characters.",
                hint=_FORMS["tools"],
            )
        schema = function.get("parameters") if isinstance(function, Mapping) else None
        if schema is not None and not isinstance(schema, Mapping):
            raise InvalidRequestError(
                f"The parameters of the tool {name!r} must be a JSON schema, an object.",
                hint='{"type": "object", "properties": {…}}',
            )
