"""Values that are written without quotes: their types, their ends, and the grammar of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fake_model import END, ByteTokenizer

from dure.chat.dialects import Dialect, StreamParser, dsml, glm, hy3, minimax, qwenxml
from dure.chat.dialects.values import as_json, as_value
from dure.chat.grammar_rules import Rules, complete
from dure.engine.grammar import GrammarCompiler

QWEN = Dialect("Qwen XML", calls=qwenxml.XmlCalls())
MIMO = Dialect("MiMo XML", calls=qwenxml.XmlCalls(escaped=True))
GLM, HY3 = glm.GLM, hy3.dialect(":opensource")
M2, M3, V32 = minimax.M2, minimax.M3, dsml.V32
P = minimax.PREFIX


def written(dialect: Dialect, members: dict[str, str], *, strings: bool = True) -> str:
    """A call of `f` as the dialect writes it. strings: what DSML says of each member."""
    kind = str(strings).lower()
    around = {
        "Qwen XML": ("<parameter={}>\n", "\n</parameter>\n"),
        "MiMo XML": ("<parameter={}>", "</parameter>"),
        "GLM": ("<arg_key>{}</arg_key>\n<arg_value>", "</arg_value>\n"),
        "Hunyuan 3": (
            "<arg_key:opensource>{}</arg_key:opensource>\n<arg_value:opensource>",
            "</arg_value:opensource>\n",
        ),
        "MiniMax M2": ('<parameter name="{}">', "</parameter>\n"),
        "MiniMax M3": (P + "<{}>", P + "</{}>"),
        "DeepSeek V3.2": (
            f'<｜DSML｜parameter name="{{}}" string="{kind}">',
            "</｜DSML｜parameter>\n",
        ),
    }[dialect.name]
    inner = "".join(
        around[0].format(name) + value + around[1].format(name) for name, value in members.items()
    )
    return {
        "Qwen XML": f"<tool_call>\n<function=f>\n{inner}</function>\n</tool_call>",
        "MiMo XML": f"<tool_call>\n<function=f>{inner}</function>\n</tool_call>",
        "GLM": f"<tool_call>f\n{inner}</tool_call>",
        "Hunyuan 3": (
            f"<tool_calls:opensource>\n<tool_call:opensource>f<tool_sep:opensource>\n{inner}"
            "</tool_call:opensource>\n</tool_calls:opensource>"
        ),
        "MiniMax M2": (
            f'<minimax:tool_call>\n<invoke name="f">\n{inner}</invoke>\n</minimax:tool_call>'
        ),
        "MiniMax M3": (f'{P}<tool_call>\n{P}<invoke name="f">{inner}{P}</invoke>\n{P}</tool_call>'),
        "DeepSeek V3.2": (
            f'<｜DSML｜function_calls>\n<｜DSML｜invoke name="f">\n{inner}</｜DSML｜invoke>\n'
            "</｜DSML｜function_calls>"
        ),
    }[dialect.name]


def read(dialect: Dialect, text: str, schema: dict[str, Any], *, cut: int = 1) -> list[Any]:
    """The arguments of each call in `text`, read `cut` characters at a time."""
    parser = StreamParser(dialect, tools={"f": schema})
    events = [
        event for at in range(0, len(text), cut) for event in parser.push(text[at : at + cut])
    ]
    events += parser.finish()
    assert parser.unparsed == 0
    assert not [event for event in events if event.kind == "content" and event.text.strip()]
    calls: dict[int, str] = {}
    for event in events:
        if event.kind == "arguments":
            calls[event.index] = calls.get(event.index, "") + event.text
    return [json.loads(each) for each in calls.values()]


def schema_of(value: Any, **definitions: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"v": value, "w": {"type": "string"}}, **definitions}


UNTYPED = [QWEN, MIMO, GLM, HY3, M2, M3]
ALL = [*UNTYPED, V32]
name_of = pytest.mark.parametrize("dialect", UNTYPED, ids=lambda each: each.name)


# --- types ---------------------------------------------------------------------------------------

INT = {"type": "integer"}
NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/a"}, "n": INT}}


@name_of
@pytest.mark.parametrize(
    "value, definitions, text, read_as",
    [
        ({"$ref": "#/$defs/a"}, {"$defs": {"a": INT}}, "7", 7),
        ({"$ref": "#/definitions/a"}, {"definitions": {"a": INT}}, "7", 7),
        ({"$ref": "#/$defs/a"}, {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": INT}}, "7", 7),
        ({"$ref": "#/$defs/a~1b%20c"}, {"$defs": {"a/b c": INT}}, "7", 7),
        ({"$ref": "#/properties/x"}, {}, "7", "7"),
        ({"$ref": "#/$defs/a"}, {"$defs": {"a": {"$ref": "#/$defs/a"}}}, "7", "7"),
        ({"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}, {"$defs": {"a": INT}}, "7", 7),
        ({"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}, {"$defs": {"a": INT}}, "", None),
        ({"allOf": [{"$ref": "#/$defs/a"}], "title": "A"}, {"$defs": {"a": INT}}, "7", 7),
        ({"allOf": [{"type": "number"}, {"minimum": 1}]}, {}, "7.5", 7.5),
        (
            {"$ref": "#/$defs/a"},
            {"$defs": {"a": NODE}},
            '{"n": 1, "next": {}}',
            {"n": 1, "next": {}},
        ),
        ({"$ref": "#/$defs/a"}, {"$defs": {"a": {"type": "array"}}}, "[1]", [1]),
        ({"$ref": "#/$defs/a"}, {"$defs": {"a": {"enum": [1, 2]}}}, "2", 2),
        ({"$ref": "#/$defs/a"}, {"$defs": {"a": {"enum": ["1", "2"]}}}, "2", "2"),
        (INT, {}, "3.0", 3),
        (INT, {}, "-2e2", -200),
        ({"type": "number"}, {}, "3.0", 3.0),
        ({"type": ["integer", "null"]}, {}, "", None),
        ({"type": ["string", "null"]}, {}, "", ""),
    ],
)
def test_a_value_has_the_type_that_its_schema_says(
    dialect: Dialect, value: Any, definitions: Any, text: str, read_as: Any
) -> None:
    schema = schema_of(value, **definitions)
    [arguments] = read(dialect, written(dialect, {"v": text}), schema)
    assert arguments == {"v": read_as}
    assert type(arguments["v"]) is type(read_as)


@name_of
def test_a_tool_whose_parameters_are_a_reference_has_its_types(dialect: Dialect) -> None:
    schema = {"$ref": "#/$defs/a", "$defs": {"a": schema_of(INT)}}
    [arguments] = read(dialect, written(dialect, {"v": "7", "w": "8"}), schema)
    assert arguments == {"v": 7, "w": "8"}


# --- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ALL, ids=lambda each: each.name)
@pytest.mark.parametrize("cut", [1, 7, 10_000])
def test_a_text_may_hold_the_mark_that_ends_it(dialect: Dialect, cut: int) -> None:
    if dialect in (MIMO,):
        texts = ["a</parameter>b"]
    else:
        around = written(dialect, {"v": "|", "evil": "1"}).split("|")[1]
        end = around[: around.index(">") + 1].strip()
        texts = [f"a{end}b", f"a{end}", f"{end}\n{end} c", f"a\n{end}\nb"]
        if dialect is not M3:  # whose mark is a token: a member of any name follows it
            texts.append("a" + around[: around.index("evil") + 8])
    for text in texts:
        schema = schema_of({"type": "string"})
        whole = written(dialect, {"v": text, "w": "next"})
        assert read(dialect, whole, schema, cut=cut) == [{"v": text, "w": "next"}], text
        whole = written(dialect, {"w": "first", "v": text})
        assert read(dialect, whole, schema, cut=cut) == [{"w": "first", "v": text}], text


@pytest.mark.parametrize("cut", [1, 10_000])
@pytest.mark.parametrize(
    "text",
    [
        "one\n</function>\ntwo",
        "one\n<parameter=evil>\ntwo",
        "one\n</parameter>\n<parameter=evil>\n1",
        "one\n<parameter=v>\ntwo",
        "one\n</parameter>\n</function>\ntwo",
    ],
)
def test_no_parameter_is_invented_and_no_call_cut_short(text: str, cut: int) -> None:
    schema = schema_of({"type": "string"})
    whole = written(QWEN, {"v": text, "w": "x"})
    assert read(QWEN, whole, schema, cut=cut) == [{"v": text, "w": "x"}]


# --- grammar -------------------------------------------------------------------------------------


class Follower:
    """A dialect's grammar of one tool, whose marks are text."""

    def __init__(self, dialect: Dialect, schema: dict[str, Any]) -> None:
        assert dialect.calls is not None
        rules = Rules({})
        text = rules.text(dialect.calls.grammar({"f": schema}, rules, several=False))
        tokenizer: Any = ByteTokenizer()
        self.grammar = GrammarCompiler(tokenizer, 259).compile(complete(text))

    def allows(self, text: str) -> bool:
        state = self.grammar.start()
        for byte in text.encode():
            if byte in set(state.forbidden().tolist()):
                return False
            state.accept(byte)
        return END not in set(state.forbidden().tolist())


COLOUR = {"$defs": {"c": {"enum": ["red", "blue"]}}}


@pytest.mark.parametrize("dialect", ALL, ids=lambda each: each.name)
@pytest.mark.parametrize(
    "value, definitions, good, bad",
    [
        ({"const": "red"}, {}, ["red"], ["blue", "re"]),
        ({"anyOf": [{"enum": ["a"]}, {"const": "b"}]}, {}, ["a", "b"], ["c"]),
        ({"type": ["string", "null"], "enum": ["a", None]}, {}, ["a"], ["b"]),
        ({"type": "string", "pattern": "^[A-Z]{2}$"}, {}, ["AB"], ["ab", "ABC", "A"]),
        ({"type": "string", "pattern": "b+"}, {}, ["abc", "b"], ["ac"]),
        ({"type": "string", "pattern": "^a|c$"}, {}, ["ab", "bc"], ["ba"]),
        ({"type": "string", "format": "date"}, {}, ["2024-02-03"], ["2024-13-03", "today"]),
        (
            {"type": "string", "format": "uuid"},
            {},
            ["0" * 8 + "-0000-0000-0000-" + "a" * 12],
            ["1"],
        ),
        ({"$ref": "#/$defs/c"}, COLOUR, ["red", "blue"], ["green"]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, {}, ["ab", "abc"], ["a", "abcd"]),
        (
            {"allOf": [{"$ref": "#/$defs/c"}, {"enum": ["blue", "green"]}]},
            COLOUR,
            ["blue"],
            ["red", "green"],
        ),
        ({"type": "string"}, {}, ["any text\nat all", ""], []),
    ],
)
def test_a_strict_value_keeps_to_its_schema(
    dialect: Dialect, value: Any, definitions: Any, good: list[str], bad: list[str]
) -> None:
    schema = {**schema_of(value, **definitions), "required": ["v"]}
    follower = Follower(dialect, schema)
    for text in good:
        whole = written(dialect, {"v": text})
        assert follower.allows(whole), text
        assert read(dialect, whole, schema) == [{"v": text}]
    for text in bad:
        assert not follower.allows(written(dialect, {"v": text})), text


@name_of
def test_a_strict_choice_of_a_number_or_a_word_keeps_to_both(dialect: Dialect) -> None:
    value = {"anyOf": [{"type": "integer"}, {"enum": ["auto", "7"]}, {"type": "null"}]}
    schema = {**schema_of(value), "required": ["v"]}
    follower = Follower(dialect, schema)
    for text, read_as in (("12", 12), ("auto", "auto"), ("null", None), ("7", 7)):
        assert follower.allows(written(dialect, {"v": text}))
        assert read(dialect, written(dialect, {"v": text}), schema) == [{"v": read_as}]
    for text in ("none of it", "1.5", "autos"):
        assert not follower.allows(written(dialect, {"v": text}))


@pytest.mark.parametrize("dialect", [QWEN, MIMO, GLM, HY3, M2, V32], ids=lambda each: each.name)
def test_a_strict_text_holds_no_mark_that_could_end_it(dialect: Dialect) -> None:
    follower = Follower(dialect, {**schema_of({"type": "string"}), "required": ["v"]})
    around = written(dialect, {"v": "|", "w": "1"}).split("|")[1]
    end = around[: around.index(">") + 1].strip()
    assert follower.allows(written(dialect, {"v": f"a{end[:-1]} b"}))
    assert not follower.allows(written(dialect, {"v": f"a{end}b"}))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e999", "1e999"),
        (' {"a": [-9E520]} ', '{"a": [-9E520]}'),
        ("1.0", "1.0"),
        ("NaN", None),
        ("[Infinity]", None),
        ('["a\n", 1e999]', None),
    ],
)
def test_a_number_beyond_a_double_is_a_number_as_it_is_written(
    text: str, value: str | None
) -> None:
    assert as_value(text) == value


@pytest.mark.parametrize(
    "value",
    [
        [True, False, None, 1.5, -2],
        {"a": "it's", "b": 'say "hi"', "c": "both ' and \"", "True": "None"},
        {"deep": [{"x": "\\n \n \t \x07 é \u200b 😀"}], "empty": [{}, []]},
        ["True", "a: None, b", "\\", "\\'"],
    ],
)
def test_lists_and_objects_are_read_as_python_writes_them(value: Any) -> None:
    schema = {"type": "array" if isinstance(value, list) else "object"}
    assert json.loads(as_json(repr(value), schema)) == value
    assert json.loads(as_json(json.dumps(value), schema)) == value
    either = {"type": [schema["type"], "string"]}
    assert json.loads(as_json(repr(value), either)) == repr(value)


@pytest.mark.parametrize("text", ["[1, ", "{'a': b}", "['a' 'b']", "[f(1)]", "{1, 2}", "['a"])
def test_what_python_would_have_to_compute_stays_a_text(text: str) -> None:
    assert json.loads(as_json(text, {"type": ["array", "object"]})) == text
