"""Readers of what models and users write: calls of all dialects, grammars, templates, tokens."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fake_model import ByteTokenizer
from fuzz_files import Files, side_files
from mutations import (
    TEXTS,
    anything,
    damaged_bytes,
    damaged_json,
    damaged_text,
    in_pieces,
    json_bytes,
)
from reader import Fault, Reader
from transcripts import TOOLS, TRANSCRIPTS, merged

from dure.chat.dialects import Dialect, Event, StreamParser
from dure.chat.grammar_rules import complete, format_grammar
from dure.chat.output import OutputParserOptions
from dure.chat.prompt import RequestBuilder
from dure.chat.request import ChatRequest, ToolChoice
from dure.chat.structured_output import GrammarBuilder
from dure.engine.grammar import GrammarCompiler, GrammarState
from dure.errors import InvalidRequestError

SCHEMAS: tuple[Any, ...] = (
    {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    {
        "type": "object",
        "properties": {
            "a": {"$ref": "#/$defs/b"},
            "c": {"anyOf": [{"type": "integer"}, {"type": "null"}, {"const": "x"}]},
            "d": {"type": "array", "items": {"enum": ["p", 1, None]}, "minItems": 1, "maxItems": 3},
            "e": {"type": "string", "pattern": "^[a-z]{1,4}$", "maxLength": 9},
            "f": {"type": "string", "format": "date-time"},
            "g": {"type": "number", "minimum": 0, "exclusiveMaximum": 2.5, "multipleOf": 0.5},
        },
        "required": ["a"],
        "additionalProperties": False,
        "$defs": {"b": {"type": "object", "properties": {"next": {"$ref": "#/$defs/b"}}}},
    },
    {"type": ["string", "null"], "enum": ["a", "b", None]},
    {"oneOf": [{"const": 1, "title": "one"}, {"const": 2, "title": "two"}]},
    {"allOf": [{"type": "object"}, {"properties": {"x": {"type": "boolean"}}}], "minProperties": 1},
    {"type": "object", "patternProperties": {"^x": {"type": "integer"}}, "propertyNames": {}},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False},
    TOOLS["get_weather"],
)


class Dialects(Reader):
    """What models write, in pieces: events must not depend on the pieces."""

    name = "dialects"
    weight = 240

    def draw(self, rng: random.Random) -> Any:
        transcript = rng.choice(TRANSCRIPTS)
        text = damaged_text(rng, transcript.text, [rng.choice(TRANSCRIPTS).text, *TEXTS])
        if rng.random() < 0.3:
            text = damaged_text(rng, text, [each.text for each in TRANSCRIPTS])
        tools: Any = dict(TOOLS) if rng.random() < 0.95 else {}
        if tools and rng.random() < 0.4:
            tools["get_weather"] = damaged_json(rng, rng.choice(SCHEMAS), SCHEMAS)
            if not isinstance(tools["get_weather"], dict):
                tools["get_weather"] = {}
        starts = transcript.starts_in_reasoning ^ (rng.random() < 0.1)
        return transcript.dialect, tools, starts, in_pieces(rng, text)

    def read(self, drawn: Any) -> bool:
        dialect, tools, starts, pieces = drawn
        whole, unparsed = self._events(dialect, tools, starts, ["".join(pieces)])
        again, also = self._events(dialect, tools, starts, pieces)
        if (whole, unparsed) != (again, also):
            raise Fault(f"the pieces matter: {whole!r} and {again!r}")
        _check_events(whole, unparsed)
        return not unparsed

    @staticmethod
    def _events(
        dialect: Dialect, tools: Any, starts: bool, pieces: Sequence[str]
    ) -> tuple[list[Event], int]:
        parser = StreamParser(
            dialect, tools=tools, starts_in_reasoning=starts, make_id=lambda: "id"
        )
        events = [event for piece in pieces for event in parser.push(piece)]
        return merged([*events, *parser.finish()]), parser.unparsed


def _check_events(events: Sequence[Event], unparsed: int) -> None:
    """Every call begins, ends, and has the arguments of a JSON object, unless it was cut short."""
    open_call: int | None = None
    said = ""
    for event in events:
        if event.kind == "call":
            if open_call is not None or not event.name:
                raise Fault(f"a call in a call, or without a name: {events!r}")
            open_call, said = event.index, ""
        elif event.kind == "arguments":
            if event.index != open_call:
                raise Fault(f"arguments outside of their call: {events!r}")
            said += event.text
        elif event.kind == "call_end":
            if event.index != open_call:
                raise Fault(f"the end of a call that did not begin: {events!r}")
            open_call = None
            whole = unparsed == 0 and said and not _is_cut(said)
            if whole and not isinstance(json.loads(said), dict):
                raise Fault(f"arguments that are no object: {said!r}")
        elif open_call is not None:
            raise Fault(f"content within a call: {events!r}")
    if open_call is not None:
        raise Fault(f"a call without an end: {events!r}")


def _is_cut(text: str) -> bool:
    """Whether JSON text ends too early, as that of an answer that was cut."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) - 6 or error.msg.startswith("Unterminated"):
            return True
        raise Fault(f"arguments that are no JSON: {text!r}") from None
    return False


REGEXES = (r"[a-z]+\d{2,3}", r"(yes|no)", r"\p{L}+ \w*", r"^a|b$", r"(?i)abc{1,5}", r"\d+(\.\d+)?")
LARKS = (
    'start: "yes" | "no"',
    'start: item ("," item)*\nitem: /[a-z]+/ | NUMBER\nNUMBER: /[0-9]+/',
    'start: %json {"type": "object"}',
    'start: a\na: "x" a | "y"',
)


class Grammars(Reader):
    """Schemas, regular expressions, grammars, choices; and the first tokens of such an answer."""

    name = "grammars"
    weight = 6

    def __init__(self, folder: Path, *, small: bool = False) -> None:
        super().__init__(folder, small=small)
        self.compiler = GrammarCompiler(ByteTokenizer(), 259)  # type: ignore[arg-type]

    def draw(self, rng: random.Random) -> Any:
        kind = rng.choice(("json_schema",) * 5 + ("regex", "grammar", "choice", "json_object"))
        if kind == "json_schema":
            value = damaged_json(rng, rng.choice(SCHEMAS), SCHEMAS)
        elif kind in ("regex", "grammar"):
            base = rng.choice(REGEXES if kind == "regex" else LARKS)
            value = damaged_text(rng, base, [*REGEXES, *LARKS, *TEXTS, "{1,99999}", "((a*)*)*"])
        elif kind == "choice":
            value = damaged_json(rng, ["yes", "no", "maybe"], [list(TEXTS)])
        else:
            value = anything(rng)
        return kind, value, rng.random()

    def read(self, drawn: Any) -> bool:
        kind, value, seed = drawn
        self._walk(complete(format_grammar(kind, value)), seed)
        return True

    def _walk(self, text: str, seed: float) -> None:
        self._follow(self.compiler.compile(text).start(), seed)

    @staticmethod
    def _follow(state: GrammarState, seed: float) -> None:
        """Take a few of the tokens that are allowed."""
        rng = random.Random(seed)
        for _ in range(12):
            forbidden = set(state.forbidden().tolist())
            allowed = [token for token in range(259) if token not in forbidden]
            if state.accept(rng.choice(allowed)):
                break


class CallGrammars(Grammars):
    """Grammars of calls in every dialect, for tools of any schema."""

    name = "call-grammars"
    weight = 5

    def draw(self, rng: random.Random) -> Any:
        dialect = rng.choice([t.dialect for t in TRANSCRIPTS if t.dialect.calls is not None])
        tools: dict[str, Any] = {}
        for _ in range(rng.choice((1, 1, 2))):
            schema = damaged_json(rng, rng.choice(SCHEMAS), SCHEMAS)
            name = rng.choice(("get_weather", "now", *TEXTS))
            tools[name or "a"] = schema if isinstance(schema, dict) else {}
        return dialect, tools, rng.random() < 0.5, rng.random()

    def read(self, drawn: Any) -> bool:
        dialect, tools, several, seed = drawn
        builder = GrammarBuilder(Bytes(), dialect, 259)  # type: ignore[arg-type]
        listed = [
            {"type": "function", "function": {"name": name, "parameters": schema}}
            for name, schema in tools.items()
        ]
        request = ChatRequest(
            MESSAGES[0],
            listed,
            tool_choice=ToolChoice("required"),
            parallel_tool_calls=several,
        )
        grammar = builder.of_chat(request, "", OutputParserOptions(dialect, tools))
        if grammar is not None:
            self._follow(grammar.start(), seed)
        return True


MESSAGES: tuple[Any, ...] = (
    [{"role": "user", "content": "hi"}],
    [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "how"}, {"type": "text", "text": "?"}],
        },
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [
                {
                    "id": "a",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "rain"},
        {"role": "assistant", "content": "rain"},
        {"role": "developer", "content": "now shout"},
        {"role": "user", "content": "again"},
    ],
)
CHAT_TOOLS: tuple[Any, ...] = tuple(
    {"type": "function", "function": {"name": name, "description": "it", "parameters": schema}}
    for name, schema in TOOLS.items()
)


class Bytes(ByteTokenizer):
    """A token a byte; as dure's own, it refuses what is not Unicode."""

    def encode(self, text: str, **options: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidRequestError("The text has half a surrogate pair.") from None
        return super().encode(text, **options)


class Templates(Reader):
    """Chat templates of many models, damaged, over damaged messages."""

    name = "templates"
    weight = 0.5

    def __init__(self, folder: Path, *, small: bool = False) -> None:
        super().__init__(folder, small=small)
        found = sorted((Path(__file__).parent.parent / "chat/templates").glob("*.jinja"))
        self.sources = [each.read_text("utf-8") for each in (found[:2] if small else found)]
        self.kept: dict[str, RequestBuilder] = {}

    def draw(self, rng: random.Random) -> Any:
        source = rng.choice(self.sources)
        if rng.random() < 0.15:
            source = damaged_text(
                rng, source, [*self.sources, "{%", "%}", "{{", "|tojson", " not "]
            )
        messages = damaged_json(rng, rng.choice(MESSAGES), MESSAGES)
        tools = rng.choice((None, None, list(CHAT_TOOLS)))
        if tools and rng.random() < 0.5:
            tools = damaged_json(rng, tools, [list(SCHEMAS)])
        return source, messages, tools

    def read(self, drawn: Any) -> bool:
        source, messages, tools = drawn
        builder = self.kept.get(source) or _builder(source)
        if source in self.sources:
            self.kept[source] = builder
        try:
            from dure import arguments  # noqa: PLC0415

            arguments.check_messages(messages)
            arguments.check_tools(tools)
            builder.make(ChatRequest(messages, tuple(tools or ())))
        finally:
            if source not in self.sources and builder._template is not None:
                builder._template.close()
        return True

    def close(self) -> None:
        for each in self.kept.values():
            if each._template is not None:
                each._template.close()


def _builder(source: str) -> RequestBuilder:
    return RequestBuilder(
        Bytes(),  # type: ignore[arg-type]
        template=source,
        name="fake",
        context=1 << 20,
        longest=1 << 20,
        vocab_size=259,
        sampling_defaults={},
    )


class Tokenizers(Reader):
    """tokenizer.json and the tokenizer's part of a GGUF, and texts through what came of them."""

    name = "tokenizers"
    weight = 10

    def __init__(self, folder: Path, *, small: bool = False) -> None:
        super().__init__(folder, small=small)
        import tiny  # noqa: PLC0415
        from nasty import nasty_texts  # noqa: PLC0415
        from tokenizers import pre_tokenizers  # noqa: PLC0415

        trained = tiny.train_byte_level(pre_tokenizers.ByteLevel(), vocab_size=270)
        self.texts = random.Random(1).sample([t[:200] for t in nasty_texts()], 6)
        self.side: Files = side_files(folder)[0]
        self.trees = [json.loads(self.side["tokenizer.json"])]
        self.metadata = [tiny.gguf_metadata(trained, "gpt-2")]
        if not small:
            model = tiny.train_sentencepiece(400)
            self.metadata.append(tiny.sentencepiece_metadata(model))
            self.trees.append(_unigram())

    def draw(self, rng: random.Random) -> Any:
        if rng.random() < 0.5:
            tree = damaged_json(rng, rng.choice(self.trees), self.trees)
            raw = json_bytes(rng, tree)
            if rng.random() < 0.2:
                raw = damaged_bytes(rng, raw, head=len(raw))
            config = json.loads(self.side["tokenizer_config.json"])
            return raw, damaged_json(rng, config) if rng.random() < 0.3 else config
        data = dict(rng.choice(self.metadata))
        for _ in range(rng.choice((1, 1, 2))):
            key = rng.choice(list(data))
            if hasattr(data[key], "__len__") and len(data[key]) and rng.random() < 0.6:
                changed = list(data[key])
                for _ in range(rng.choice((1, 3))):
                    at = rng.randrange(len(changed))
                    changed[at] = rng.choice((anything(rng), changed[at], rng.choice(changed)))
                if rng.random() < 0.3:
                    del changed[rng.randrange(len(changed)) :]
                data[key] = changed
            else:
                data[key] = anything(rng)
        return None, data

    def read(self, drawn: Any) -> bool:
        from dure.text.tokenizer import Tokenizer  # noqa: PLC0415

        raw, given = drawn
        if raw is None:
            checkpoint = SimpleNamespace(kind="gguf", metadata=given)
        else:
            path = self.folder / "tokenizer.json"
            path.write_bytes(raw)
            checkpoint = SimpleNamespace(
                kind="safetensors",
                path=self.folder,
                metadata={},
                tokenizer_json=path,
                tokenizer_config=given if isinstance(given, dict) else {},
                generation_config={"eos_token_id": [1]},
                config={},
            )
        tokenizer = Tokenizer.from_checkpoint(checkpoint)
        for text in self.texts:
            ids = tokenizer.encode(text)
            tokenizer.encode(text, parse_special=False)
            tokenizer.decode(ids)
        for token in range(min(tokenizer.vocab_size, 300)):
            tokenizer.token_bytes(token)
        return True


def _unigram() -> Any:
    """A small Unigram tokenizer.json."""
    import tokenizers  # noqa: PLC0415

    words = [("<unk>", 0.0), ("▁", -1.0), ("a", -2.0), ("b", -2.5), ("▁a", -1.5), ("ab", -1.7)]
    words += [(f"<0x{byte:02X}>", -5.0) for byte in range(256)]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(words, unk_id=0, byte_fallback=True))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Metaspace()]
    )
    made.add_special_tokens(["<|im_end|>"])
    return json.loads(made.to_str())


TEXT_READERS: Mapping[str, type[Reader]] = {
    each.name: each for each in (Dialects, Grammars, CallGrammars, Templates, Tokenizers)
}
