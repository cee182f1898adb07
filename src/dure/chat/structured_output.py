"""Structured output: builds the grammar that enforces what a chat demands of its answer."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dure.chat.dialects import Dialect
from dure.chat.dialects.jsoncalls import arguments_schema
from dure.chat.grammar_rules import Rules, complete, format_grammar
from dure.chat.output import OutputParserOptions
from dure.chat.prefill import begun_content
from dure.chat.request import MAX_TOOLS, ChatRequest, Format, tool_schemas
from dure.chat.schema.check import check, loosened
from dure.engine.grammar import Grammar, GrammarCompiler, cause_of_failure
from dure.engine.params import SamplingParams
from dure.errors import InvalidRequestError
from dure.text.tokenizer import Tokenizer

BAN = -100.0
MAX_CHECKED = 2 * MAX_TOOLS


def check_format(form: Format) -> tuple[str, ...]:
    """Check that a format can be enforced, by whatever model.

    Returns what it leaves to the model, such as '"uniqueItems" at tags'. Raises
    InvalidRequestError, which names the place and the keyword of a JSON schema.
    """
    if form.kind == "json_schema":
        return check(form.value, _name(form), cause_of_failure)
    format_grammar(form.kind, form.value)
    return ()


class GrammarBuilder:
    """Makes the grammars of one model's requests. Threads may share it."""

    def __init__(self, tokenizer: Tokenizer, dialect: Dialect, vocab_size: int) -> None:
        self._grammars = GrammarCompiler(tokenizer, vocab_size)
        self._tokenizer = tokenizer
        self._dialect = dialect
        self._checked: OrderedDict[tuple[str, str], tuple[str, str] | None] = OrderedDict()
        self._lock = threading.Lock()
        ids = {mark: tokenizer.token_id(mark) for mark in dialect.marks}
        single = tokenizer.added_ids | tokenizer.special_ids
        self._marks = {  # a token beyond the logits cannot be asked for
            mark: token
            for mark, token in ids.items()
            if token in single and token is not None and token < vocab_size
        }

    def prepare(self) -> None:
        """Build what the first grammar needs, which stops all threads for a second."""
        self._grammars.prepare()

    def of_format(self, form: Format | None) -> Grammar | None:
        """Return the grammar of a completion; None if it is free."""
        if form is None:
            return None
        self._check_format(form)
        return self._grammars.compile(complete(format_grammar(form.kind, form.value)), _name(form))

    def of_chat(
        self, request: ChatRequest, prompt: str, reading: OutputParserOptions
    ) -> Grammar | None:
        """Return the grammar of the answer to `prompt`, reasoning first; None if it is free.

        InvalidRequestError if the model has no way to call tools and must, or if what is asked for
        cannot be enforced.
        """
        form = request.format
        self._check_begun(request)
        rules = Rules(self._marks)
        before = self._thoughts(request, prompt, reading, rules)
        mode = request.tool_choice.mode
        if mode in ("required", "named"):
            body = rules.text(self._calls(request, rules))
            what = "A call of these tools"
        elif form is not None:
            self._check_format(form)
            body, what = self._formatted(request, form, rules, reading), _name(form)
        elif reading.tools and any(is_strict(tool) for tool in request.tools):
            calls = self._strict(request, rules)
            if calls is None:
                return None
            body, what = rules.text(calls), "A call of these tools"
        else:
            return None
        grammar = self._grammars.compile(complete(body, before=before), what)
        # A call that is demanded may follow any text; a format holds for all of the answer.
        is_free = mode in ("required", "named")
        return grammar if is_free else self._continued(grammar, request, reading)

    def _check_begun(self, request: ChatRequest) -> None:
        """Raise InvalidRequestError for a call that is begun in the last message's text."""
        markers = self._dialect.calls.start_markers if self._dialect.calls else ()
        if not (request.continue_final and request.tools and markers):
            return
        text = begun_content(request.messages[-1], self._dialect)
        if any(mark in text for mark in markers):
            raise InvalidRequestError(
                "The last message begins a call of a tool in its text, and a call cannot be "
                "continued.",
                hint="end the message before the call, or leave the tools out",
            )

    def _continued(
        self, grammar: Grammar, request: ChatRequest, reading: OutputParserOptions
    ) -> Grammar:
        """Return the grammar of the rest, where the last message begins the answer."""
        if not request.continue_final or reading.starts_in_reasoning:
            return grammar
        begun = begun_content(request.messages[-1], self._dialect)
        if not begun:
            return grammar
        ids = self._tokenizer.encode(begun, add_special=False, parse_special=False)
        return grammar.after(ids)

    def without_calls(self, params: SamplingParams) -> SamplingParams:
        """Forbid the beginning of a call, as far as it has tokens of its own."""
        start_markers = self._dialect.calls.start_markers if self._dialect.calls else ()
        parts = {mark for mark in self._marks for begin in start_markers if mark in begin}
        banned = {self._marks[mark]: BAN for mark in parts}
        return replace(params, logit_bias={**params.logit_bias, **banned}) if banned else params

    def _calls(self, request: ChatRequest, rules: Rules) -> str:
        if self._dialect.calls is None:
            raise InvalidRequestError(
                "This model's chat template has no form for tool calls that we know.",
                hint="leave tool_choice out, or ask for JSON with response_format",
            )
        schemas = tool_schemas(request.tools)
        choice = request.tool_choice
        if choice.mode == "named":
            schemas = {choice.name: schemas[choice.name]}
        strict = {tool["function"]["name"] for tool in request.tools if is_strict(tool)}
        kept = {
            name: self._enforceable(name, schema, must=choice.mode != "auto" or name in strict)
            for name, schema in schemas.items()
        }
        several = request.parallel_tool_calls and choice.mode != "named"
        return self._dialect.calls.grammar(kept, rules, several=several)

    def _enforceable(
        self, name: str, schema: Mapping[str, Any], *, must: bool
    ) -> Mapping[str, Any]:
        """Return the schema that calls of a tool keep to.

        It is the tool's own, if that can be enforced. Where it `must` be, InvalidRequestError
        otherwise says why not; else the call is free where it cannot, as without any grammar.
        """
        what = f"The parameters of the tool {name[:60]!r}"
        wrong = self._wrong(arguments_schema(schema), what)
        if wrong is None:
            return schema
        if must:
            raise InvalidRequestError(wrong[0], hint=wrong[1])
        return loosened(schema, cause_of_failure)

    def _check_format(self, form: Format) -> None:
        if form.kind == "json_schema" and (wrong := self._wrong(form.value, _name(form))):
            raise InvalidRequestError(wrong[0], hint=wrong[1])

    def _wrong(self, schema: Any, what: str) -> tuple[str, str] | None:
        """Return why a schema cannot be enforced, and a hint; the newest answers are kept."""
        try:
            key = (what, json.dumps(schema))
        except (TypeError, ValueError, RecursionError):
            return _checked(schema, what)
        with self._lock:
            if key in self._checked:
                self._checked.move_to_end(key)
                return self._checked[key]
        found = _checked(schema, what)
        with self._lock:
            self._checked[key] = found
            while len(self._checked) > MAX_CHECKED:
                self._checked.popitem(last=False)
        return found

    def _formatted(
        self, request: ChatRequest, form: Format, rules: Rules, reading: OutputParserOptions
    ) -> str:
        """Build the grammar of a format; if there are tools, calls may take its place."""
        answer = f"{self._answer_head(request, reading, rules)}formatted"
        if reading.tools and self._dialect.calls is not None:
            answer += f" | {rules.add(self._calls(request, rules))}"
        return f"{rules.text(answer)}\n{format_grammar(form.kind, form.value, name='formatted')}"

    def _answer_head(self, request: ChatRequest, reading: OutputParserOptions, rules: Rules) -> str:
        """Return an expression for what stands before an answer that is a message."""
        form = self._dialect.messages
        if form is None:
            return ""
        if reading.starts_in_reasoning:
            return f"{rules.literal(form.start + form.role + form.answer)} "
        if request.continue_final and begun_content(request.messages[-1], self._dialect):
            return ""
        return f"{rules.literal(form.answer)} "

    def _strict(self, request: ChatRequest, rules: Rules) -> str | None:
        """Return a grammar of text, or calls that fit their schemas; None if they look alike."""
        calls = self._dialect.calls
        if calls is None or not all(mark in self._marks for mark in calls.start_markers[:1]):
            return None
        text = rules.add("/(?s:.+)/")
        return f"{text}? {rules.add(self._calls(request, rules))}? | {text}"

    def _thoughts(
        self, request: ChatRequest, prompt: str, reading: OutputParserOptions, rules: Rules
    ) -> str | None:
        """Return an expression for reasoning before the answer; None if there is none."""
        think = self._dialect.think
        if think is None or prompt.rstrip().endswith(think.close):
            return None
        if reading.starts_in_reasoning:
            return ""  # the grammar begins after them
        if request.thinking.is_off:
            return None
        form = self._dialect.messages
        after = f" {rules.literal(form.start + form.role)}" if form else ""
        return f"({rules.literal(think.open)} {rules.until(think.close)}{after})?"


def _checked(schema: Any, what: str) -> tuple[str, str] | None:
    try:
        check(schema, what, cause_of_failure)
    except InvalidRequestError as error:
        return error.message, error.hint
    return None


def is_strict(tool: object) -> bool:
    """Check whether a tool's calls must fit its schema even if no call is required ("strict")."""
    function = tool.get("function") if isinstance(tool, dict) else None
    return isinstance(function, dict) and function.get("strict") is True


def _name(form: Format) -> str:
    names = {"json_schema": "The JSON schema", "regex": "The regular expression"}
    return names.get(form.kind, "The grammar")
