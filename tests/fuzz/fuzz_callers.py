"""Readers of what callers give: the Python API, the command line, and saved conversations."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from fake_model import loaded
from fuzz_server import Babbler
from fuzz_texts import CHAT_TOOLS, MESSAGES, SCHEMAS, Bytes
from mutations import NUMBERS, TEXTS, anything, damaged_json, json_bytes
from reader import Fault, Reader

import dure.llm
from dure import LLM, SamplingParams
from dure.chat.request import ChatRequest, Format, Thinking, ToolChoice
from dure.errors import DureError, InvalidRequestError
from dure.metering.estimates import Watts
from dure.metering.keys_file import read_keys
from dure.metering.prices import Prices

ODD = (
    *(b"abc", bytearray(b"a"), memoryview(b"ab"), {1, 2}, frozenset((1,)), range(3), object(), len),
    *(np.array([1, 2]), np.array([[1.5]]), np.int64(3), np.float32("nan"), np.bool_(True), int),
    *(1 + 2j, slice(1), iter([1]), ..., NotImplemented, Exception("x"), np.array([]), np.array(5)),
)


def anything_at_all(rng: random.Random) -> Any:
    """A value that a Python caller may give by mistake."""
    return rng.choice(ODD) if rng.random() < 0.35 else anything(rng)


class KeysFile(Reader):
    """A server's file of keys, prices and limits; and both on a command line."""

    name = "keys"
    weight = 250

    def draw(self, rng: random.Random) -> Any:
        limits = {"tokens_per_minute": 5, "money_per_month": 1.5, "streams": 2}
        prices = {"qwen*": {"input": 0.1, "currency": "EUR"}, "*": {"output": 3, "kwh": 0.3}}
        keys = [
            {"name": "ada", "key": "secret-of-ada", "limits": limits},
            {"name": "bob", "key": "secret-of-bob", "prices": prices},
        ]
        given = damaged_json(rng, {"keys": keys, "prices": {"input": 1, "output": 2}})
        line = rng.choice(("input=1,kwh=0.3,currency=EUR", "5,30"))
        cut = rng.randrange(len(line))
        return json_bytes(rng, given), line[:cut] + rng.choice((*TEXTS, "9e99", "=")) + line[cut:]

    def read(self, drawn: Any) -> bool:
        data, line = drawn
        path = self.folder / "keys.json"
        path.write_bytes(data)
        read = 0
        for parse in (
            lambda: read_keys(path),
            lambda: Prices.parse(line),
            lambda: Watts.parse(line),
        ):
            with contextlib.suppress(InvalidRequestError):
                parse()
                read += 1
        return read > 0


class Params(Reader):
    """Fields of SamplingParams, and generation_config as defaults for them."""

    name = "params"
    weight = 350

    def draw(self, rng: random.Random) -> Any:
        names = [each.name for each in dataclasses.fields(SamplingParams)]
        given = {}
        for name in rng.sample(names, rng.choice((1, 1, 2, 3))):
            given[name] = rng.choice(
                (
                    rng.choice(NUMBERS),
                    rng.choice((0, 1, 0.5, [1], ["a"], {1: 2})),
                    anything_at_all(rng),
                )
            )
        defaults = damaged_json(
            rng, {"temperature": 0.5, "top_k": 3, "top_p": 0.5, "do_sample": False, "min_p": 0.1}
        )
        return given, defaults if isinstance(defaults, dict) else {}

    def read(self, drawn: Any) -> bool:
        given, defaults = drawn
        SamplingParams(**given).resolve(defaults)
        return True


class PythonApi(Reader):
    """Calls of an LLM with wrong arguments."""

    name = "python"
    weight = 40

    def __init__(self, folder: Path, *, small: bool = False) -> None:
        super().__init__(folder, small=small)
        model = loaded(Babbler(context_length=512), context=512, num_blocks=64)
        model = dataclasses.replace(model, text=Bytes())  # type: ignore[arg-type]
        with patch.object(dure.llm, "load", lambda *_, **__: model):
            self.llm = LLM("fake", max_sequences=4)

    def draw(self, rng: random.Random) -> Any:
        params = SamplingParams(max_tokens=4, seed=1)
        messages = MESSAGES[0] if rng.random() < 0.5 else MESSAGES[1]
        base: dict[str, tuple[list[Any], dict[str, Any]]] = {
            "generate": ([["ab", [1, 2]], params], {}),
            "chat": ([messages, params], {"tools": list(CHAT_TOOLS), "think": None}),
            "stream": (["ab", params], {"think": None, "on_prefill": None}),
            "logits": ([[1, 2, 3]], {}),
            "chat_prompt": ([messages], {"tools": None, "think": None}),
            "check_think": ([None], {}),
            "prepare": (["ab", params], {"cache_salt": "", "priority": 0, "format": None}),
            "request": ([messages], {"tools": list(CHAT_TOOLS)}),
            "format": (["json_schema", SCHEMAS[0]], {}),
            "thinking": (["on", "low", 3], {}),
            "choice": (["named", "now"], {}),
        }
        name = rng.choice(list(base))
        arguments, options = base[name]
        arguments, options = list(arguments), dict(options)
        if name == "request" and rng.random() < 0.5:
            options |= {"format": anything_at_all(rng), "template_variables": anything(rng)}
        for _ in range(rng.choice((1, 1, 2))):
            if options and rng.random() < 0.4:
                options[rng.choice(list(options))] = anything_at_all(rng)
                continue
            at = rng.randrange(len(arguments))
            if rng.random() < 0.5 and isinstance(arguments[at], (list, dict)):
                with contextlib.suppress(TypeError):
                    arguments[at] = damaged_json(rng, arguments[at])
                    if rng.random() < 0.3 and isinstance(arguments[at], list) and arguments[at]:
                        arguments[at][0] = rng.choice(ODD)
            else:
                arguments[at] = anything_at_all(rng)
        if callable(options.get("on_prefill")):
            options["on_prefill"] = None  # what a caller's own function raises is the caller's
        return name, arguments, options

    def read(self, drawn: Any) -> bool:
        name, arguments, options = drawn
        made = {
            "request": ChatRequest,
            "format": Format,
            "thinking": Thinking,
            "choice": ToolChoice,
        }
        try:
            if name == "format":
                form = Format(*arguments)
                self.llm.generate("a", SamplingParams(max_tokens=2))
                list(self.llm.stream("a", SamplingParams(max_tokens=4), format=form))
            elif name == "request":
                self.llm.chat(ChatRequest(*arguments, **options), SamplingParams(max_tokens=3))
            elif name in made:
                made[name](*arguments)
            else:
                result = getattr(self.llm, name)(*arguments, **options)
                if name == "stream":
                    list(result)
        finally:
            self.llm.engine.check_idle()
            if self.llm.engine.has_work:
                raise Fault(f"the engine has work after {name}")
        return True


class Conversations(Reader):
    """Files that `/load` of a chat reads, and what is written of them again."""

    name = "conversations"
    weight = 90

    def draw(self, rng: random.Random) -> bytes:
        messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "안녕"}]
        base = {"model": "a", "system": "b", "messages": messages}
        return json_bytes(rng, damaged_json(rng, base))

    def read(self, drawn: bytes) -> bool:
        from dure.cli.conversation import Conversation  # noqa: PLC0415

        path = self.folder / "chat.json"
        path.write_bytes(drawn)
        found = Conversation.load(path)
        found.save(self.folder / "again.json", model="a")
        again = Conversation.load(self.folder / "again.json")
        if again != found:
            raise Fault(f"{found} is saved as {again}")
        return True


class CommandLine(Reader):
    """Arguments of `dure`, over a model that costs nothing."""

    name = "command-line"
    weight = 0.5

    def __init__(self, folder: Path, *, small: bool = False) -> None:
        super().__init__(folder, small=small)
        sys.path.append(str(Path(__file__).parent.parent / "cli"))
        (folder / "schema.json").write_text(json.dumps(SCHEMAS[1]))
        (folder / "bad.json").write_text("[" * 2000)
        (folder / "model.gguf").write_bytes(b"GGUF\x03")

    def draw(self, rng: random.Random) -> Any:
        common = [
            *("--max-tokens", "--temperature", "--top-k", "--top-p", "--min-p", "--seed", "--stop"),
            *("--system", "--think", "--json-schema", "--threads", "--context", "--cache-gb"),
            *("--raw", "--json", "--quantize", "--cache-type", "--verbose", "--parallel", "--port"),
            *("--host", "--api-key", "--keep-alive", "--alias", "--queue", "--cors", "--template"),
            *("--tensors", "--all", "--help", "--metrics-prefix", "--allowed-host", "--max-loaded"),
        ]
        numbers = [str(n) for n in NUMBERS if not isinstance(n, int) or abs(n) < 10**40]
        files = [
            str(self.folder / each) for each in ("schema.json", "bad.json", "none", "model.gguf")
        ]
        texts = [each.replace("\0", "") for each in TEXTS if each.isprintable()]
        verb = rng.choice(("run", "run", "run", "serve", "show", "bench", "rm", "list", "convert"))
        words = [verb, rng.choice(("fake", "base", "missing", *files, *texts))]
        for _ in range(rng.choice((1, 1, 2, 3))):
            words.append(rng.choice(common))
            if rng.random() < 0.85:
                words.append(
                    rng.choice((rng.choice(numbers), rng.choice(texts), rng.choice(files)))
                )
        if rng.random() < 0.3:
            words.append("hello there")
        stdin = rng.choice((b"", b"", b"hi", b"\xff\xfe", b"a\0b"))
        return words, stdin

    def read(self, drawn: Any) -> bool:
        from fake_llm import FakeLLM  # noqa: PLC0415

        import dure.server.run  # noqa: PLC0415
        from dure.cli import main  # noqa: PLC0415

        words, stdin = drawn
        out, err = io.StringIO(), io.StringIO()
        home = {"DURE_HOME": str(self.folder / "home"), "HF_HUB_OFFLINE": "1"}
        home |= {"HF_HOME": str(self.folder / "hf"), "HOME": str(self.folder)}
        home |= {"DURE_URL": "http://127.0.0.1:9"}  # where nobody listens

        def no_server(*_: Any, **__: Any) -> Any:
            raise InvalidRequestError("No server is started here.")

        def no_download(*_: Any, **__: Any) -> Any:
            raise DureError("Nothing is fetched here.")

        code: Any = None
        with (
            patch.object(dure.llm, "LLM", FakeLLM),
            patch.object(dure.server.run, "listen", no_server),
            patch("dure.hub.http.open_url", no_download),
            patch.dict(os.environ, home),
            patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin))),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            contextlib.chdir(self.folder),
        ):
            try:
                main(words)
            except SystemExit as end:
                code = end.code
        if code not in (0, 1, 2, None) or "Traceback" in err.getvalue():
            raise Fault(f"{words} ends with {code}: {err.getvalue()[-500:]}")
        if code and not err.getvalue().strip():
            raise Fault(f"{words} ends with {code} and without a word")
        return not code


CALLER_READERS: Mapping[str, type[Reader]] = {
    each.name: each for each in (Params, KeysFile, PythonApi, Conversations, CommandLine)
}
