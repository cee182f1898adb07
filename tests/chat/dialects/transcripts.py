"""What models of every family write, and what it says."""

# ruff: noqa: E501 - a transcript a line is what can be read

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dure.chat.dialects import (
    Dialect,
    Event,
    deepseek,
    dsml,
    ernie,
    gemma,
    glm,
    guessed,
    harmony,
    hermes,
    hunyuan,
    hy3,
    kimi,
    ling,
    llama3,
    minimax,
    mistral,
    pangu,
    plain,
    pythonic,
    qwenxml,
    solar,
    toolcall,
)
from dure.chat.dialects.dialect import THINK, Delimiters

TOOLS: dict[str, dict[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "units": {"enum": ["C", "F"]},
            "wind": {"type": ["boolean", "null"]},
            "near": {"type": "array", "items": {"type": "string"}},
            "any": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        },
    },
    "now": {"type": "object", "properties": {}},
}
CITY = '{"city": "Oslo"}'
OSLO = ("get_weather", CITY)


@dataclass(frozen=True)
class Transcript:
    """`text` as a model wrote it, and the thoughts, content and calls it is made of, in order.

    says: ("reasoning" or "content", text), or (name, arguments) for a call; a call that was cut
    short has no end. unparsed: calls that could not be read.
    """

    name: str
    dialect: Dialect
    text: str
    says: tuple[tuple[str, str], ...]
    starts_in_reasoning: bool = False
    unparsed: int = 0
    tools: bool = True

    @property
    def events(self) -> list[Event]:
        """What it says as merged events."""
        made: list[Event] = []
        index = 0
        for kind, text in self.says:
            if kind in ("reasoning", "content"):
                made.append(Event(kind, text))  # type: ignore[arg-type]
                continue
            made.append(Event("call", index=index, id="id", name=kind))
            if text:
                made.append(Event("arguments", text, index=index))
            made.append(Event("call_end", index=index))
            index += 1
        return made


def _reasoned(*says: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return (("reasoning", "Hm, Oslo."), *says)


HERMES = Dialect(
    "Hermes",
    THINK,
    hermes.HermesCalls(),
    call_ends_thinking=True,
    fallback_parser=guessed.GuessedCalls(),
)
QWEN = Dialect("Qwen XML", THINK, qwenxml.XmlCalls(), call_ends_thinking=True)
MIMO = Dialect("MiMo XML", THINK, qwenxml.XmlCalls(escaped=True), call_ends_thinking=True)
R1 = Dialect("DeepSeek R1/V3", THINK, deepseek.DeepSeekCalls(fenced=True))
V31 = Dialect("DeepSeek V3.1", THINK, deepseek.DeepSeekCalls(fenced=False))
V32, V4 = dsml.V32, dsml.V4
KIMI = Dialect("Kimi K2", THINK, kimi.KimiCalls(), call_ends_thinking=True)
M1, M2, M3 = minimax.M1, minimax.M2, minimax.M3
ERNIE = ernie.THINKING
GEMMA = gemma.find("<|turn>", lambda _: True) or plain.PLAIN
HUNYUAN = hunyuan.HUNYUAN
HY3 = hy3.dialect(":opensource")
PANGU = pangu.OLD
LLAMA = llama3.LLAMA3
HARMONY = harmony.HARMONY
SOLAR = solar.SOLAR

MISTRAL = Dialect(
    "Mistral", mistral.THINK, mistral.MistralCalls(named=True), call_ends_thinking=True
)
PHI = toolcall.PHI
GRANITE = toolcall.granite(thinks=True, wraps=True)
LFM2 = pythonic.find(pythonic.OPEN, lambda _: True) or plain.PLAIN
GLM4 = glm.find("[gMASK]<sop><|observation|>", lambda _: True) or plain.PLAIN
OLMO = pythonic.find(f"{pythonic.OLMO_OPEN} tool_calls", lambda _: True) or plain.PLAIN
SEED = Dialect(
    "Seed-OSS",
    Delimiters("<seed:think>", "</seed:think>", "</seed:think>"),
    qwenxml.XmlCalls(prefix=qwenxml.SEED),
    call_ends_thinking=True,
)

HERMES_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
HERMES_NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
QWEN_CALL = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n"
    "</function>\n</tool_call>"
)
SEED_CALL = (
    "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Oslo</parameter>\n"
    "<parameter=days>3</parameter>\n</function>\n</seed:tool_call>"
)
SEED_NOW = "<seed:tool_call>\n<function=now>\n</function>\n</seed:tool_call>"
SEED_SAYS = ("get_weather", '{"city": "Oslo", "days": 3}')
QWEN_NOW = "<tool_call>\n<function=now>\n</function>\n</tool_call>"
V31_CALL = "<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>" + CITY + "<｜tool▁call▁end｜>"
V31_NOW = "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
CALLS = "<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>"


def _r1(name: str, arguments: str) -> str:
    return f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```<｜tool▁call▁end｜>"


def _dsml(block: str, *calls: str) -> str:
    return f"<｜DSML｜{block}>\n" + "\n".join(calls) + f"\n</｜DSML｜{block}>"


DSML_CALL = (
    '<｜DSML｜invoke name="get_weather">\n'
    '<｜DSML｜parameter name="city" string="true">Oslo</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>"
)
DSML_NOW = '<｜DSML｜invoke name="now">\n\n</｜DSML｜invoke>'
FOUND, NEXT = "<|channel|>analysis<|message|>Hm, Oslo.<|end|>", "<|start|>assistant<|channel|>"
TO_OSLO = "commentary to=functions.get_weather <|constrain|>json<|message|>" + CITY
SOLAR_FOUND, SOLAR_NEXT = "<|think|>Hm, Oslo.<|end|>", "<|begin|>assistant"
SOLAR_CALL = f"<|tool_call:begin|>a1b2c3d4e5<|tool_call:name|>get_weather<|tool_call:args|>{CITY}<|tool_call:end|>"
SOLAR_NOW = (
    "<|tool_call:begin|>f6g7h8i9j0<|tool_call:name|>now<|tool_call:args|>{}<|tool_call:end|>"
)
DSML_SAYS = ("get_weather", '{"city": "Oslo", "days": 3}')
M2_CALL = (
    '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Oslo</parameter>\n'
    '<parameter name="days">3</parameter>\n</invoke>\n{}</minimax:tool_call>'
)
KIMI_CALL = (
    f"<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{CITY}<|tool_call_end|>"
)
GEMMA_CALL = '<|tool_call>call:get_weather{city:<|"|>Oslo<|"|>}<tool_call|>'
GEMMA_NOW = "<|tool_call>call:now{}<tool_call|>"
GEMMA_DEEP = '<|tool_call>call:get_weather{near:[<|"|>a "b", {c}\n<|"|>,{x:[1,-2.5e3],y:null}],wind:true}<tool_call|>'
GEMMA_THOUGHT = "<|channel>thought\nHm, Oslo.\n<channel|>"
KIMI_NOW = "<|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}<|tool_call_end|>"
KIMI_CALLS = "<|tool_calls_section_begin|>{}<|tool_calls_section_end|>"
# As its template shows calls: no line end between an argument and the next.
LING_CALL = (
    "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>"
    "<arg_key>wind</arg_key>\n<arg_value>true</arg_value>\n</tool_call>"
)
LING_NOW = "<tool_call>now\n\n</tool_call>"
HY3_CALL = (
    "<tool_call:opensource>get_weather<tool_sep:opensource>\n"
    "<arg_key:opensource>city</arg_key:opensource>\n"
    "<arg_value:opensource>Oslo</arg_value:opensource>\n"
    "<arg_key:opensource>wind</arg_key:opensource>\n"
    "<arg_value:opensource>True</arg_value:opensource>\n</tool_call:opensource>\n"
)
HY3_CALLS = "<tool_calls:opensource>\n{}</tool_calls:opensource>"
HY3_SAYS = ("get_weather", '{"city": "Oslo", "wind": true}')
ARRAY = '[{"name": "get_weather", "arguments": {"city": "Oslo"}}]'
ARRAY_OF_2 = '[{"name": "get_weather", "arguments": {"city": "Oslo"}}, {"name": "now"}]'
NOW = ("now", "{}")

NS = "]<]minimax[>["
M3_CALL = (
    f'{NS}<tool_call>\n{NS}<invoke name="get_weather">{NS}<city>Oslo{NS}</city>'
    f"{NS}<days>3{NS}</days>{NS}</invoke>\n{{}}{NS}</tool_call>"
)
M3_NEAR = f"{NS}<near>{NS}<item>Ski{NS}</item>{NS}<item>Oslo{NS}</item>{NS}</near>"
HY_CALL = "<tool_call>get_weather\n```json\n" + CITY + "\n```</tool_call>"
HY_NOW = "<tool_call>now\n```json\n{}\n```</tool_call>"
BLOCK = '```json\n{\n  "name": "get_weather",\n  "arguments": {\n    "city": "Oslo"\n  }\n}\n```'
BLOCK_SAYS = ("get_weather", '{\n    "city": "Oslo"\n  }')
BLOCK_NOW = '```json\n{"name": "now", "arguments": {}}\n```'

_THOUGHT = "<think>\nHm, Oslo.\n</think>\n\n"

TRANSCRIPTS = (
    Transcript("plain text", plain.PLAIN, "a\n<think>b</think> ", (("content", "a\n<think>b</think> "),)),
    # Hermes: Qwen2.5, QwQ, Qwen3, MiMo-7B
    Transcript("answer", HERMES, "Cold.\n", (("content", "Cold.\n"),)),
    Transcript("thoughts and answer", HERMES, _THOUGHT + "Cold.", _reasoned(("content", "Cold."))),
    Transcript("thoughts opened in the prompt", HERMES, "Hm, Oslo.\n</think>\n\nCold.", _reasoned(("content", "Cold.")), starts_in_reasoning=True),
    Transcript("empty thoughts", HERMES, "<think>\n\n</think>\n\nCold.", (("content", "Cold."),)),
    Transcript("thoughts never closed", HERMES, "<think>\nHm, Oslo.\n", _reasoned()),
    Transcript("a mark in the midst is content", HERMES, "Write <think> or </think>.", (("content", "Write <think> or </think>."),)),
    Transcript("one call", HERMES, HERMES_CALL, (OSLO,)),
    Transcript("thoughts, words, a call", HERMES, f"{_THOUGHT}Let me see.\n{HERMES_CALL}", _reasoned(("content", "Let me see."), OSLO)),
    Transcript("two calls", HERMES, f"{HERMES_CALL}\n{HERMES_NOW}\n", (OSLO, NOW)),
    Transcript("words after a call", HERMES, f"a\n\n{HERMES_CALL}\n\nb \n", (("content", "a"), OSLO, ("content", "b"))),
    Transcript("a call within thoughts", HERMES, f"<think>\nHm, Oslo.\n{HERMES_CALL}\n</think>\n\nb", _reasoned(OSLO, ("content", "b"))),
    Transcript("arguments first", HERMES, '<tool_call>{"arguments": {"city": "Oslo"}, "name": "get_weather"}</tool_call>', (OSLO,)),
    Transcript("arguments within a string", HERMES, '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}</tool_call>', (OSLO,)),
    Transcript("no arguments", HERMES, '<tool_call>{"id": 7, "name": "now"}</tool_call>', (NOW,)),
    Transcript("a brace too few", HERMES, '<tool_call>\n{"name": "now", "arguments": {}\n</tool_call>', (NOW,)),
    Transcript("a brace too many", HERMES, '<tool_call>\n{"name": "now", "arguments": {}}}\n</tool_call>', (NOW,)),
    Transcript("a raw line end in a string", HERMES, '<tool_call>{"name": "get_weather", "arguments": {"city": "O\ns\\do"}}</tool_call>', (("get_weather", '{"city": "O\\ns\\\\do"}'),)),
    Transcript("a mark within a string", HERMES, '<tool_call>{"name": "get_weather", "arguments": {"city": "</tool_call>"}}</tool_call>', (("get_weather", '{"city": "</tool_call>"}'),)),
    Transcript("no tools", HERMES, HERMES_CALL, (("content", HERMES_CALL),), tools=False),
    Transcript("not JSON", HERMES, "so: <tool_call>\nget_weather('Oslo')\n</tool_call> ok", (("content", "so: <tool_call>\nget_weather('Oslo')\n</tool_call> ok"),), unparsed=1),
    Transcript("Python's quotes", HERMES, "<tool_call>{\"name\": \"now\", \"arguments\": {'a': 1}}</tool_call>", (("content", "<tool_call>{\"name\": \"now\", \"arguments\": {'a': 1}}</tool_call>"),), unparsed=1),
    Transcript("arguments that are a list", HERMES, '<tool_call>{"name": "now", "arguments": [1]}</tool_call>', (("content", '<tool_call>{"name": "now", "arguments": [1]}</tool_call>'),), unparsed=1),
    Transcript("cut short in a call", HERMES, '<tool_call>{"name": "get_weather", "arguments": {"city": "Os', (("get_weather", '{"city": "Os'),), unparsed=1),
    Transcript("cut short before the name's end", HERMES, '<tool_call>{"name": "get', (("content", '<tool_call>{"name": "get'),), unparsed=1),
    Transcript("no closing mark", HERMES, '<tool_call>{"name": "now", "arguments": {}}', (NOW,)),
    Transcript("a broken call, then a good one", HERMES, f"<tool_call>?</tool_call>{HERMES_NOW}", (("content", "<tool_call>?</tool_call>"), NOW), unparsed=1),
    Transcript("a closing mark alone", HERMES, "</think>\n\nCold.", (("content", "Cold."),)),
    Transcript("a call in a block of code", HERMES, BLOCK, (BLOCK_SAYS,)),
    Transcript("thoughts, words, a call in a block", HERMES, f"{_THOUGHT}Let me see.\n\n{BLOCK}\n", _reasoned(("content", "Let me see."), BLOCK_SAYS)),
    Transcript("two calls in blocks", HERMES, f"{BLOCK}\n\n{BLOCK_NOW}", (BLOCK_SAYS, NOW)),
    Transcript("a block that is not closed", HERMES, BLOCK.removesuffix("\n```"), (BLOCK_SAYS,)),
    Transcript("a block of no language", HERMES, BLOCK_NOW.replace("json", ""), (NOW,)),
    Transcript("words after a block", HERMES, f"{BLOCK}\nThat is it.", (("content", f"{BLOCK}\nThat is it."),)),
    Transcript("a block of no tool there is", HERMES, BLOCK_NOW.replace("now", "later"), (("content", BLOCK_NOW.replace("now", "later")),)),
    Transcript("a block of more than a call", HERMES, BLOCK_NOW.replace("{}", '{}, "id": 1'), (("content", BLOCK_NOW.replace("{}", '{}, "id": 1')),)),
    Transcript("a block without arguments", HERMES, '```json\n{"name": "now"}\n```', (("content", '```json\n{"name": "now"}\n```'),)),
    Transcript("a block whose arguments are a list", HERMES, BLOCK_NOW.replace("{}", "[]"), (("content", BLOCK_NOW.replace("{}", "[]")),)),
    Transcript("a block in the midst of a line", HERMES, f"Write {BLOCK_NOW}", (("content", f"Write {BLOCK_NOW}"),)),
    Transcript("a block of a language", HERMES, "so:\n```python\nprint(1)\n```\n", (("content", "so:\n```python\nprint(1)\n```\n"),)),
    Transcript("a block cut short", HERMES, BLOCK[:40], (("content", BLOCK[:40]),)),
    Transcript("a block without tools", HERMES, BLOCK, (("content", BLOCK),), tools=False),
    Transcript("a block in thoughts", HERMES, f"<think>\n{BLOCK_NOW}\n</think>\n\nCold.", (("reasoning", BLOCK_NOW), ("content", "Cold."))),
    Transcript("a bare call", HERMES, '{"name": "get_weather", "arguments": {"city": "Oslo"}}', (OSLO,)),
    Transcript("words and a bare call", HERMES, 'a\n{"arguments": {}, "name": "now"}\n', (("content", "a"), NOW)),
    Transcript("braces as the template shows them", HERMES, '{{"name": "get_weather", "arguments": {"city": "Oslo"}}}}', (OSLO,)),
    Transcript("such braces between marks", HERMES, HERMES_CALL.replace('{"name"', '{{"name"').replace("}}", "}}}"), (OSLO,)),
    Transcript("two bare calls, a brace too few", HERMES, '{"name": "now", "arguments": {}}\n{"name": "now", "arguments": {}', (NOW, NOW)),
    Transcript("calls in another mark", HERMES, '<tools>\n{"name": "now", "arguments": {}}\n</tools>\n<tools>\n{"name": "now", "arguments": {}}\n</tools>', (NOW, NOW)),
    Transcript("no calls in another mark", HERMES, '<tools>\n<function name="now"/>\n</tools>', (("content", '<tools>\n<function name="now"/>\n</tools>'),)),
    Transcript("an object that is no call", HERMES, '{"name": "Ada", "age": 36}', (("content", '{"name": "Ada", "age": 36}'),)),
    Transcript("words after a bare call", HERMES, '{"name": "now", "arguments": {}} ok', (("content", '{"name": "now", "arguments": {}} ok'),)),
    Transcript("a bare call in the midst of a line", HERMES, 'a {"name": "now", "arguments": {}}', (("content", 'a {"name": "now", "arguments": {}}'),)),
    Transcript("a bare call in a block of another language", HERMES, '```js\n{"name": "now", "arguments": {}}\n```', (("content", '```js\n{"name": "now", "arguments": {}}\n```'),)),
    Transcript("a bare call cut short", HERMES, '{"name": "now", "argu', (("content", '{"name": "now", "argu'),)),
    Transcript("a block, then a call between marks", HERMES, f"{BLOCK_NOW}\n{HERMES_NOW}", (("content", BLOCK_NOW), NOW)),
    Transcript("words where the closing mark should be", HERMES, '<tool_call>{"name": "now", "arguments": {}} or not', (NOW, ("content", "or not")), unparsed=1),
    Transcript("the beginning of a mark", HERMES, "1 <tool", (("content", "1 <tool"),)),
    # Mistral: arrays of calls, and since 2025 calls by their names
    Transcript("an array of calls", MISTRAL, f"[TOOL_CALLS]{ARRAY_OF_2}", (OSLO, NOW)),
    Transcript("an array with ids", MISTRAL, '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo"}, "id": "abcdefghi"}]', (OSLO,)),
    Transcript("a call by name", MISTRAL, f"[TOOL_CALLS]get_weather[ARGS]{CITY}", (OSLO,)),
    Transcript("two calls by name", MISTRAL, f"[TOOL_CALLS]get_weather[ARGS]{CITY}[TOOL_CALLS]now[ARGS]{{}}", (OSLO, NOW)),
    Transcript("a call with an id", MISTRAL, f"[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{CITY}", (OSLO,)),
    Transcript("thoughts, words, a call", MISTRAL, f"[THINK]Hm, Oslo.[/THINK]Let me see.[TOOL_CALLS]get_weather[ARGS]{CITY}", _reasoned(("content", "Let me see."), OSLO)),
    Transcript("a call within thoughts", MISTRAL, f"[THINK]Hm, Oslo.[TOOL_CALLS]get_weather[ARGS]{CITY}", _reasoned(OSLO)),
    Transcript("no arguments at all", MISTRAL, "[TOOL_CALLS]now[ARGS] or not", (("content", "[TOOL_CALLS]now[ARGS] or not"),), unparsed=1),
    Transcript("cut short", MISTRAL, '[TOOL_CALLS]get_weather[ARGS]{"city": "Os', (("get_weather", '{"city": "Os'),), unparsed=1),
    Transcript("no tools", MISTRAL, "[TOOL_CALLS]now[ARGS]{}", (("content", "[TOOL_CALLS]now[ARGS]{}"),), tools=False),
    # Phi-4-mini
    Transcript("an array of calls", PHI, f"<|tool_call|>{ARRAY_OF_2}<|/tool_call|>", (OSLO, NOW)),
    Transcript("no closing mark", PHI, f"<|tool_call|>{ARRAY}", (OSLO,)),
    # Granite 3
    Transcript("an array of calls", GRANITE, f"<|tool_call|>{ARRAY_OF_2}", (OSLO, NOW)),
    Transcript("thoughts and a response", GRANITE, "<think>Hm, Oslo.</think><response>Cold.</response>", _reasoned(("content", "Cold."))),
    # Seed-OSS
    Transcript("one call", SEED, SEED_CALL, (SEED_SAYS,)),
    Transcript("thoughts, words, two calls", SEED, f"<seed:think>Hm, Oslo.</seed:think>\na\n\n{SEED_CALL}\n{SEED_NOW}", _reasoned(("content", "a"), SEED_SAYS, NOW)),
    Transcript("line ends of a value", SEED, SEED_CALL.replace("Oslo<", "\n\nOslo\n<"), (("get_weather", '{"city": "\\n\\nOslo\\n", "days": 3}'),)),
    Transcript("what is left of the budget", SEED, "<seed:think>Hm, <seed:cot_budget_reflect>9 left</seed:cot_budget_reflect></seed:think>Cold.", (("reasoning", "Hm, <seed:cot_budget_reflect>9 left</seed:cot_budget_reflect>"), ("content", "Cold."))),
    Transcript("cut short", SEED, SEED_CALL.partition("lo</")[0], (("get_weather", '{"city": "Os'),), unparsed=1),
    # Qwen3-Coder, Qwen3.5
    Transcript("one call", QWEN, QWEN_CALL, (OSLO,)),
    Transcript("thoughts, words, two calls", QWEN, f"Hm, Oslo.\n</think>\n\na\n\n{QWEN_CALL}\n{QWEN_NOW}", _reasoned(("content", "a"), OSLO, NOW), starts_in_reasoning=True),
    Transcript("no opening mark", QWEN, QWEN_CALL.removeprefix("<tool_call>\n"), (OSLO,)),
    Transcript("a call within thoughts", QWEN, f"Hm, Oslo.\n\n{QWEN_CALL}", _reasoned(OSLO), starts_in_reasoning=True),
    Transcript(
        "values of all types",
        QWEN,
        "<tool_call>\n<function=get_weather>\n<parameter=city>\n  \"O\\\n\nslo\n\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        '<parameter=near>\n["a",  "b"]\n</parameter>\n<parameter=wind>\nFalse\n</parameter>\n<parameter=any>\n12\n</parameter>\n'
        "<parameter=units>\nC\n</parameter>\n<parameter=unknown>\n12\n</parameter>\n</function>\n</tool_call>",
        (
            (
                "get_weather",
                '{"city": "  \\"O\\\\\\n\\nslo\\n", "days": 3, "near": ["a", "b"], "wind": false, "any": 12, "units": "C", "unknown": "12"}',
            ),
        ),
    ),
    Transcript("values of the wrong type", QWEN, "<tool_call>\n<function=get_weather>\n<parameter=days>\na few\n</parameter>\n<parameter=wind>\nNone\n</parameter>\n</function>\n</tool_call>", (("get_weather", '{"days": "a few", "wind": null}'),)),
    Transcript("a parameter that does not end", QWEN, "<function=get_weather>\n<parameter=city>\nOslo\n<parameter=days>\n3\n</function>\n</tool_call>", (("get_weather", '{"city": "Oslo", "days": 3}'),)),
    Transcript("not a function", QWEN, "<tool_call>\n<fun>", (("content", "<tool_call>\n<fun>"),), unparsed=1),
    Transcript("words within a function", QWEN, "<tool_call><function=now>\nwell", (("now", ""), ("content", "well")), unparsed=1),
    Transcript("cut short", QWEN, QWEN_CALL[:56], (("get_weather", '{"city": "Oslo'),), unparsed=1),
    # MiMo-V2
    Transcript("escaped values", MIMO, "<tool_call>\n<function=get_weather><parameter=city>a &amp;&amp; b</parameter><parameter=days>2</parameter></function>\n</tool_call>", (("get_weather", '{"city": "a && b", "days": 2}'),)),
    # DeepSeek R1 and V3
    Transcript("thoughts opened in the prompt", R1, "Hm, Oslo.\n</think>\n\nCold.", _reasoned(("content", "Cold.")), starts_in_reasoning=True),
    Transcript("one call", R1, CALLS.format(_r1(*OSLO)), (OSLO,)),
    Transcript("words, two calls", R1, "a\n" + CALLS.format(_r1(*OSLO) + "\n" + _r1(*NOW)), (("content", "a"), OSLO, NOW)),
    Transcript("as V3.1 writes", R1, CALLS.format(V31_CALL), (OSLO,)),
    Transcript("no JSON", R1, CALLS.format(_r1("now", "none")), (("content", CALLS.format(_r1("now", "none"))),), unparsed=1),
    # DeepSeek V3.1
    # Gemma 4
    Transcript("thoughts and answer", GEMMA, GEMMA_THOUGHT + "Cold.", _reasoned(("content", "Cold."))),
    Transcript("empty thoughts", GEMMA, "<|channel>thought\n<channel|>Cold.", (("content", "Cold."),)),
    Transcript("one call", GEMMA, GEMMA_CALL, (OSLO,)),
    Transcript("thoughts, words, two calls", GEMMA, GEMMA_THOUGHT + "a" + GEMMA_CALL + GEMMA_NOW, _reasoned(("content", "a"), OSLO, NOW)),
    Transcript("a call within thoughts", GEMMA, "<|channel>thought\nHm, Oslo." + GEMMA_CALL, _reasoned(OSLO)),
    Transcript("lists, objects and signs", GEMMA, GEMMA_DEEP, (("get_weather", '{"near": ["a \\"b\\", {c}\\n", {"x": [1, -2.5e3], "y": null}], "wind": true}'),)),
    Transcript("arguments as JSON", GEMMA, f"<|tool_call>call:get_weather{CITY}<tool_call|>", (OSLO,)),
    Transcript("no quotes, and a comma too many", GEMMA, "<|tool_call>call:get_weather{city:Oslo,}<tool_call|>", (OSLO,)),
    Transcript("no mark at the end", GEMMA, GEMMA_CALL.removesuffix("<tool_call|>"), (OSLO,)),
    Transcript("no arguments", GEMMA, "<|tool_call>call:now<tool_call|>", (("content", "<|tool_call>call:now<tool_call|>"),), unparsed=1),
    Transcript("no tools", GEMMA, GEMMA_NOW, (("content", GEMMA_NOW),), tools=False),
    # Kimi K2 to K2.6
    Transcript("thoughts and answer", ling.LING_3, "Hm, Oslo.</think>Cold.", _reasoned(("content", "Cold.")), starts_in_reasoning=True),
    Transcript("answer, thinking off", ling.LING_3, "Cold.", (("content", "Cold."),)),
    Transcript("thoughts, words, two calls", ling.LING_3, f"Hm, Oslo.</think>I look.\n{LING_CALL}\n{LING_NOW}", _reasoned(("content", "I look."), HY3_SAYS, NOW), starts_in_reasoning=True),
    Transcript("calls within thoughts", ling.LING_3, f"Hm, Oslo.{LING_CALL}", _reasoned(HY3_SAYS), starts_in_reasoning=True),
    Transcript("a call without a name", ling.LING_3, "<tool_call>\n</tool_call>", (("content", "<tool_call>\n</tool_call>"),), unparsed=1),
    Transcript("one call", KIMI, KIMI_CALLS.format(KIMI_CALL), (OSLO,)),
    Transcript("thoughts, words, two calls", KIMI, "<think>Hm, Oslo.</think>a" + KIMI_CALLS.format(KIMI_CALL + KIMI_NOW), _reasoned(("content", "a"), OSLO, NOW)),
    Transcript("calls within thoughts", KIMI, "<think>Hm, Oslo." + KIMI_CALLS.format(KIMI_CALL), _reasoned(OSLO)),
    Transcript("line ends between the marks", KIMI, KIMI_CALLS.format(f"\n{KIMI_CALL}\n{KIMI_NOW}\n"), (OSLO, NOW)),
    Transcript("neither prefix nor number", KIMI, KIMI_CALLS.format(KIMI_CALL.replace("functions.", "").replace(":0", "")), (OSLO,)),
    Transcript("a name with a colon", KIMI, KIMI_CALLS.format(KIMI_CALL.replace(":0", ":a:12")), (("get_weather:a", OSLO[1]),)),
    Transcript("no list around it", KIMI, KIMI_CALL, (OSLO,)),
    Transcript("no marks at the end", KIMI, KIMI_CALLS.format(KIMI_CALL).removesuffix("<|tool_call_end|><|tool_calls_section_end|>"), (OSLO,)),
    Transcript("no separator", KIMI, KIMI_CALLS.format("<|tool_call_begin|>functions.now:0"), (("content", KIMI_CALLS.format("<|tool_call_begin|>functions.now:0")),), unparsed=1),
    Transcript("one call", V31, CALLS.format(V31_CALL), (OSLO,)),
    Transcript("thoughts, words, two calls", V31, "Hm, Oslo.</think>a" + CALLS.format(V31_CALL + V31_NOW), _reasoned(("content", "a"), OSLO, NOW), starts_in_reasoning=True),
    Transcript("as R1 writes", V31, CALLS.format(_r1(*OSLO)), (OSLO,)),
    Transcript("no marks at the end", V31, CALLS.format(V31_CALL).removesuffix("<｜tool▁call▁end｜><｜tool▁calls▁end｜>"), (OSLO,)),
    Transcript("cut short", V31, CALLS.format(V31_CALL)[:73], (("get_weather", '{"city": "O'),), unparsed=1),
    # DeepSeek V3.2 and V4
    Transcript("one call", V32, _dsml("function_calls", DSML_CALL), (DSML_SAYS,)),
    Transcript("thoughts, words, two calls", V4, "Hm, Oslo.</think>a\n\n" + _dsml("tool_calls", DSML_CALL, DSML_NOW), _reasoned(("content", "a"), DSML_SAYS, NOW), starts_in_reasoning=True),
    Transcript("a string that looks like a number", V4, _dsml("tool_calls", DSML_CALL.replace('string="false"', 'string="true"')), (("get_weather", '{"city": "Oslo", "days": "3"}'),)),
    Transcript("JSON that is none", V4, _dsml("tool_calls", DSML_CALL.replace(">3<", ">a few<")), (("get_weather", '{"city": "Oslo", "days": "a few"}'),)),
    Transcript("an invocation cut short", V4, _dsml("tool_calls", DSML_CALL)[:80], (("get_weather", ""), ("content", _dsml("tool_calls", DSML_CALL)[53:80])), unparsed=1),
    Transcript("the other block's mark", V4, "<｜DSML｜function_calls>", (("content", "<｜DSML｜function_calls>"),)),
    # MiniMax
    Transcript("thoughts and answer", M2, "Hm, Oslo.\n</think>\n\nCold.", _reasoned(("content", "Cold.")), starts_in_reasoning=True),
    Transcript("words and a call", M2, f"Hm, Oslo.\n</think>\n\na\n{M2_CALL.format('')}", _reasoned(("content", "a"), DSML_SAYS), starts_in_reasoning=True),
    Transcript("two calls", M2, M2_CALL.format('<invoke name="now">\n</invoke>\n'), (DSML_SAYS, NOW)),
    Transcript("nothing is invoked", M2, "<minimax:tool_call>\n</minimax:tool_call>", (("content", "<minimax:tool_call>\n</minimax:tool_call>"),), unparsed=1),
    Transcript("lines of objects", M1, f'{_THOUGHT}a\n<tool_calls>\n{ARRAY[1:-1]}\n{{"name": "now", "arguments": {{}}}}\n</tool_calls>', _reasoned(("content", "a"), OSLO, NOW)),
    Transcript("thoughts and answer", M3, "<mm:think>Hm, Oslo.</mm:think>Cold.", _reasoned(("content", "Cold."))),
    Transcript("no thoughts", M3, "</mm:think>Cold.", (("content", "Cold."),)),
    Transcript("thoughts, words, two calls", M3, "Hm, Oslo.</mm:think>a" + M3_CALL.format(f'{NS}<invoke name="now">{NS}</invoke>\n'), _reasoned(("content", "a"), DSML_SAYS, NOW), starts_in_reasoning=True),
    Transcript("a list", M3, M3_CALL.format("").replace(f"{NS}<days>3{NS}</days>", M3_NEAR), (("get_weather", '{"city": "Oslo", "near": ["Ski", "Oslo"]}'),)),
    Transcript("an empty list", M3, M3_CALL.format("").replace(f"{NS}<days>3{NS}</days>", f"{NS}<near>{NS}</near>"), (("get_weather", '{"city": "Oslo", "near": []}'),)),
    Transcript("objects in a list that no schema knows", M3, M3_CALL.format("").replace("days>3", f"at>{NS}<item>{NS}<x>1{NS}</x>{NS}<y>a{NS}</y>{NS}</item>").replace("/days", "/at"), (("get_weather", '{"city": "Oslo", "at": [{"x": "1", "y": "a"}]}'),)),
    Transcript("a list as JSON", M3, M3_CALL.format("").replace("days>3", 'near>["Ski"]').replace("/days", "/near"), (("get_weather", '{"city": "Oslo", "near": ["Ski"]}'),)),
    Transcript("a value cut short", M3, M3_CALL.partition("lo")[0], (("get_weather", '{"city": "Os'),), unparsed=1),
    Transcript("an element that another ends", M3, M3_CALL.format("").replace("/days", "/city"), (("get_weather", '{"city": "Oslo"'), ("content", f"{NS}<days>3{NS}</city>{NS}</invoke>\n{NS}</tool_call>")), unparsed=1),
    Transcript("nothing is invoked", M3, f"{NS}<tool_call>\n{NS}</tool_call>", (("content", f"{NS}<tool_call>\n{NS}</tool_call>"),), unparsed=1),
    # ERNIE 4.5
    Transcript("thoughts and response", ERNIE, "Hm, Oslo.\n</think>\n\n\n<response>\nCold.\n</response>\n", _reasoned(("content", "Cold.")), starts_in_reasoning=True),
    Transcript("thoughts and two calls", ERNIE, f"Hm, Oslo.\n</think>\n\n\n{HERMES_CALL}\n{HERMES_NOW}\n", _reasoned(OSLO, NOW), starts_in_reasoning=True),
    Transcript("a response cut short", ERNIE, "Hm, Oslo.\n</think>\n\n\n<response>\nCold.\n</resp", _reasoned(("content", "Cold.\n</resp")), starts_in_reasoning=True),
    # Hunyuan
    Transcript("thoughts and answer", HUNYUAN, "<think>\nHm, Oslo.\n</think>\n<answer>\nCold.\n</answer>", _reasoned(("content", "Cold."))),
    Transcript("answer without marks", HUNYUAN, "Cold.", (("content", "Cold."),)),
    Transcript("thoughts and a call", HUNYUAN, f"<think>\nHm, Oslo.\n</think>\n<answer>\n<tool_calls>{ARRAY}</tool_calls>\n</answer>", _reasoned(OSLO)),
    Transcript("two calls", HUNYUAN, f"<tool_calls>{ARRAY_OF_2}</tool_calls>", (OSLO, NOW)),
    Transcript("a call within thoughts is a thought", HUNYUAN, f"<think>\nHm, Oslo. <tool_calls>{ARRAY}</tool_calls>\n</think>\n<answer>\nno\n</answer>", (("reasoning", f"Hm, Oslo. <tool_calls>{ARRAY}</tool_calls>"), ("content", "no"))),
    Transcript("no array", HUNYUAN, "<tool_calls>none</tool_calls>", (("content", "<tool_calls>none</tool_calls>"),), unparsed=1),
    Transcript("a named call", HUNYUAN, f"<tool_calls>{HY_CALL}</tool_calls>", (OSLO,)),
    Transcript("thoughts, words, two named calls", HUNYUAN, f"<think>\nHm, Oslo.\n</think>\n<answer>\na\n<tool_calls>{HY_CALL}\n{HY_NOW}</tool_calls>\n</answer>", _reasoned(("content", "a"), OSLO, NOW)),
    Transcript("a named call without JSON", HUNYUAN, "<tool_calls><tool_call>now\nnone</tool_call></tool_calls>", (("content", "<tool_calls><tool_call>now\nnone</tool_call></tool_calls>"),), unparsed=1),
    # Hunyuan 3
    Transcript("thoughts and answer", HY3, "Hm, Oslo.</think:opensource>Cold.", _reasoned(("content", "Cold.")), starts_in_reasoning=True),
    Transcript("thoughts and a call", HY3, "Hm, Oslo.</think:opensource>" + HY3_CALLS.format(HY3_CALL), _reasoned(HY3_SAYS), starts_in_reasoning=True),
    Transcript("two calls", HY3, "a" + HY3_CALLS.format(HY3_CALL + HY3_CALL), (("content", "a"), HY3_SAYS, HY3_SAYS)),
    Transcript("a key without a value", HY3, HY3_CALLS.format(HY3_CALL)[:130], (("get_weather", ""), ("content", HY3_CALLS.format(HY3_CALL)[79:130])), unparsed=1),
    # openPangu
    Transcript("thoughts and answer", PANGU, "[unused16]Hm, Oslo.[unused17]Cold.", _reasoned(("content", "Cold."))),
    Transcript("two calls", PANGU, f"a[unused11]{ARRAY_OF_2}[unused12]", (("content", "a"), OSLO, NOW)),
    Transcript("parameters", PANGU, f"[unused11]{ARRAY.replace('arguments', 'parameters')}[unused12]", (OSLO,)),
    # Llama 3
    Transcript("answer", LLAMA, "Cold.", (("content", "Cold."),)),
    Transcript("a call", LLAMA, '{"name": "get_weather", "parameters": {"city": "Oslo"}}', (OSLO,)),
    Transcript("a call after its mark", LLAMA, '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Oslo"}}', (OSLO,)),
    Transcript("two calls", LLAMA, '{"name": "get_weather", "parameters": {"city": "Oslo"}}; {"name": "now", "parameters": {}}', (OSLO, NOW)),
    # gpt-oss
    Transcript("thoughts and answer", HARMONY, FOUND + NEXT + "final<|message|>Cold.", _reasoned(("content", "Cold."))),
    Transcript("answer alone", HARMONY, "<|channel|>final<|message|>Cold.<|return|>", (("content", "Cold."),)),
    Transcript("text without a head", HARMONY, "Cold.", (("content", "Cold."),)),
    Transcript("thoughts cut short", HARMONY, "<|channel|>analysis<|message|>Hm, Oslo.", _reasoned()),
    Transcript("thoughts and a call", HARMONY, FOUND + NEXT + TO_OSLO + "<|call|>", _reasoned(OSLO)),
    Transcript("a call whose recipient comes before its channel", HARMONY, " to=functions.get_weather<|channel|>commentary json<|message|>" + CITY, (OSLO,)),
    Transcript("a call among the thoughts", HARMONY, "<|channel|>analysis to=functions.now code<|message|>{}<|call|>", (("now", "{}"),)),
    Transcript("what is said before a call", HARMONY, FOUND + NEXT + "commentary<|message|>I look.<|end|><|start|>assistant<|channel|>" + TO_OSLO, _reasoned(("content", "I look."), OSLO)),
    Transcript("two messages of each kind", HARMONY, FOUND + NEXT + "analysis<|message|>Yes.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.\n<|end|><|start|>assistant<|channel|>final<|message|>Cold.", (("reasoning", "Hm, Oslo.\n\nYes."), ("content", "I look.\n\nCold."))),
    Transcript("in thoughts already", HARMONY, "Hm, Oslo.<|end|><|start|>assistant<|channel|>final<|message|>Cold.", _reasoned(("content", "Cold.")), starts_in_reasoning=True),
    Transcript("a call without JSON", HARMONY, "<|channel|>commentary to=functions.now<|message|>none<|call|>", (("content", "<|channel|>commentary to=functions.now<|message|>none"),), unparsed=1),
    Transcript("a call without tools", HARMONY, "<|channel|>" + TO_OSLO + "<|call|>", (("content", CITY),), tools=False),
    Transcript("a channel that no text follows", HARMONY, "<|channel|>" + 600 * "x", (("content", "<|channel|>" + 600 * "x"),)),
    # Solar-Open: messages whose heads are one token
    Transcript("thoughts and answer", SOLAR, SOLAR_FOUND + SOLAR_NEXT + "<|content|>Cold.<|end|>", _reasoned(("content", "Cold."))),
    Transcript("answer alone", SOLAR, "<|content|>Cold.", (("content", "Cold."),)),
    Transcript("text without a head", SOLAR, "Cold.", (("content", "Cold."),)),
    Transcript("thoughts cut short", SOLAR, "<|think|>Hm, Oslo.", _reasoned()),
    Transcript("thoughts and a call", SOLAR, f"{SOLAR_FOUND}{SOLAR_NEXT}<|tool_calls|>{SOLAR_CALL}<|calls|>", _reasoned(OSLO)),
    Transcript("two calls", SOLAR, f"<|tool_calls|>{SOLAR_CALL}{SOLAR_NOW}<|calls|>", (OSLO, NOW)),
    Transcript("words before a call", SOLAR, f"<|content|>I look.<|end|>{SOLAR_NEXT}<|tool_calls|>{SOLAR_NOW}", (("content", "I look."), NOW)),
    Transcript("signs that are no heads", SOLAR, "<|content|>a <| b |> <|x|>", (("content", "a <| b |> <|x|>"),)),
    Transcript("a call without JSON", SOLAR, "<|tool_calls|><|tool_call:begin|>a<|tool_call:name|>now<|tool_call:args|>none", (("content", "<|tool_calls|><|tool_call:begin|>a<|tool_call:name|>now<|tool_call:args|>none"),), unparsed=1),
    Transcript("JSON that is no call", LLAMA, '{"name": "Ada", "parameters": {}}', (("content", '{"name": "Ada", "parameters": {}}'),), unparsed=1),
    # LFM2 and OLMo 3: calls as Python writes them
    Transcript("a call", LFM2, "<|tool_call_start|>[get_weather(city='Oslo')]<|tool_call_end|>", (OSLO,)),
    Transcript("two calls", LFM2, f'{_THOUGHT}I look.<|tool_call_start|>[get_weather(city="Oslo", days=3), now()]<|tool_call_end|>\n', _reasoned(("content", "I look."), ("get_weather", '{"city": "Oslo", "days": 3}'), NOW)),
    Transcript("words after calls", LFM2, "<|tool_call_start|>[now()]<|tool_call_end|>Looking.", (NOW, ("content", "Looking."))),
    Transcript("Python's literals", LFM2, "<|tool_call_start|>[get_weather(wind=True, any=None, days=-3, near=['a', \"b\"])]<|tool_call_end|>", (("get_weather", '{"wind": true, "any": null, "days": -3, "near": ["a", "b"]}'),)),
    Transcript("objects within lists", LFM2, "<|tool_call_start|>[get_weather(near=[{'a': 1.5, \"b\": []}, {}])]<|tool_call_end|>", (("get_weather", '{"near": [{"a": 1.5, "b": []}, {}]}'),)),
    Transcript("escapes", LFM2, "<|tool_call_start|>[get_weather(city='O\\'s\\n\\\\ \\xe9\\u00e9 \\d')]<|tool_call_end|>", (("get_weather", '{"city": "O\'s\\n\\\\ éé \\\\d"}'),)),
    Transcript("an escaped pair of surrogates", LFM2, "<|tool_call_start|>[get_weather(city='\\ud83d\\ude00 \\ud83d')]<|tool_call_end|>", (("get_weather", '{"city": "\\ud83d\\ude00 \\ud83d"}'),)),
    Transcript("a tuple", LFM2, "<|tool_call_start|>[get_weather(near=(1, ('a',), ()), city='')]<|tool_call_end|>", (("get_weather", '{"near": [1, ["a"], []], "city": ""}'),)),
    Transcript("three quotes", LFM2, "<|tool_call_start|>[get_weather(city='''a 'b', \"c\",\nd''', days=3)]<|tool_call_end|>", (("get_weather", '{"city": "a \'b\', \\"c\\",\\nd", "days": 3}'),)),
    Transcript("a quote that nothing escapes", LFM2, "<|tool_call_start|>[get_weather(city='it's \"so\"')]<|tool_call_end|>", (("get_weather", '{"city": "it\'s \\"so\\""}'),)),
    Transcript("lines and a comma too many", LFM2, "<|tool_call_start|>[\n  get_weather(\n    city = 'Oslo',\n  ),\n]<|tool_call_end|>", (OSLO,)),
    Transcript("a call as JSON", LFM2, f"<|tool_call_start|>{ARRAY_OF_2}<|tool_call_end|>", (OSLO, NOW)),
    Transcript("no end", LFM2, "<|tool_call_start|>[now()", (NOW,)),
    Transcript("cut short", LFM2, "<|tool_call_start|>[get_weather(city='Os", (("get_weather", '{"city": "Os'),), unparsed=1),
    Transcript("no call", LFM2, "<|tool_call_start|>[]<|tool_call_end|>", (("content", "<|tool_call_start|>[]<|tool_call_end|>"),), unparsed=1),
    Transcript("a name alone", LFM2, "<|tool_call_start|>[now]<|tool_call_end|>", (("content", "<|tool_call_start|>[now]<|tool_call_end|>"),), unparsed=1),
    Transcript("no tools", LFM2, "<|tool_call_start|>[now()]<|tool_call_end|>", (("content", "<|tool_call_start|>[now()]<|tool_call_end|>"),), tools=False),
    Transcript("a call", OLMO, '<function_calls>get_weather(city="Oslo")</function_calls>', (OSLO,)),
    Transcript("a call a line", OLMO, 'I look.\n<function_calls>\nget_weather(city="Oslo")\nnow()\n</function_calls>', (("content", "I look."), OSLO, NOW)),
    Transcript("values as JSON", OLMO, '<function_calls>get_weather(wind=true, any=null, near=["a"])</function_calls>', (("get_weather", '{"wind": true, "any": null, "near": ["a"]}'),)),
    Transcript("thoughts opened in the prompt", OLMO, "Hm, Oslo.</think>Cold.", _reasoned(("content", "Cold.")), starts_in_reasoning=True),
    # GLM-4: a tool's name in a line, and its arguments in the next
    Transcript("a call", GLM4, f"get_weather\n{CITY}", (OSLO,)),
    Transcript("as its template shows it", GLM4, f"\nget_weather \n{CITY}\n", (OSLO,)),
    Transcript("thoughts, words, a call", GLM4, f"{_THOUGHT}I look.\nget_weather\n{CITY}", _reasoned(("content", "I look."), OSLO)),
    Transcript("two calls", GLM4, f"get_weather\n{CITY}\nnow\n{{}}", (OSLO, NOW)),
    Transcript("words after a call", GLM4, "now\n{}\nSo I look.", (NOW, ("content", "So I look."))),
    Transcript("no tool of that name", GLM4, "later\n{}", (("content", "later\n{}"),)),
    Transcript("a name within a line", GLM4, "not now\n{}", (("content", "not now\n{}"),)),
    Transcript("a name alone", GLM4, "now\nor never", (("content", "now\nor never"),)),
    Transcript("cut short", GLM4, 'get_weather\n{"city": "Os', (("get_weather", '{"city": "Os'),), unparsed=1),
    Transcript("not JSON", GLM4, "now\n{?}", (("content", "now\n{?}"),), unparsed=1),
    Transcript("no tools", GLM4, "now\n{}", (("content", "now\n{}"),), tools=False),
)  # fmt: skip


def merged(events: Sequence[Event]) -> list[Event]:
    """The events with texts of one kind that follow each other joined."""
    made: list[Event] = []
    for event in events:
        last = made[-1] if made else None
        same = last is not None and (last.kind, last.index) == (event.kind, event.index)
        if last is not None and same and event.kind in ("content", "reasoning", "arguments"):
            made[-1] = replace(last, text=last.text + event.text)
        else:
            made.append(event)
    return made
