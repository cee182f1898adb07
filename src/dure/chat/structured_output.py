"""Structured output: builds the grammar that enforces what a chat demands of its answer."""

from __future__ import annotations

from dataclasses import replace

from dure.chat.dialects import Dialect
from dure.chat.grammar_rules import Rules, complete, format_grammar
from dure.chat.output import OutputParserOptions
from dure.chat.prefill import begun_content
from dure.chat.request import ChatRequest, Format, tool_schemas
from dure.engine.grammar import Grammar, GrammarCompiler
from dure.engine.params import SamplingParams
from dure.errors import InvalidRequestError
from dure.text.tokenizer import Tokenizer

BAN = -100.0


class GrammarBuilder:
    """Makes the grammars of one model's requests. Threads may share it."""

    def __init__(self, tokenizer: Tokenizer, dialect: Dialect, vocab_size: int) -> None:
        self._grammars = GrammarCompiler(tokenizer, vocab_size)
        self._tokenizer = tokenizer
        self._dialect = dialect
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
        several = request.parallel_tool_calls and choice.mode != "named"
        return self._dialect.calls.grammar(schemas, rules, several=several)

    def _formatted(
        self, request: ChatRequest, form: Format, rules: Rules, reading: OutputParserOptions
    ) -> str:
        """Build the grammar of a format; if there are tools, calls may take its place."""
        answer = "formatted"
        if reading.tools and self._dialect.calls is not None:
            answer += f" | {rules.add(self._calls(request, rules))}"
        return f"{rules.text(answer)}\n{format_grammar(form.kind, form.value, name='formatted')}"

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
        return f"({rules.literal(think.open)} {rules.until(think.close)})?"


def is_strict(tool: object) -> bool:
    """Check whether a tool's calls must fit its schema even if no call is required ("strict")."""
    function = tool.get("function") if isinstance(tool, dict) else None
    return isinstance(function, dict) and function.get("strict") is True


def _name(form: Format) -> str:
    names = {"json_schema": "The JSON schema", "regex": "The regular expression"}
    return names.get(form.kind, "The grammar")
