"""Reads and writes Ollama's Modelfile: a text of instructions. Nothing in it is executed.

FROM llama3.2                  a name, a file or a folder
PARAMETER temperature 0.3      one a line; stop may be repeated
SYSTEM \"\"\"…\"\"\"                 a text, in quotes if it has several lines
TEMPLATE \"\"\"…\"\"\"               Jinja is used; of Ollama's Go templates the known forms are
MESSAGE user Hello             what stands before every chat
LICENSE \"\"\"…\"\"\"
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dure.errors import InvalidRequestError
from dure.hub.presets import Preset
from dure.hub.settings import ModelSettings
from dure.hub.stores.ollama import settings_of

MAX_BYTES = 1 << 20
INSTRUCTIONS = (
    *("FROM", "PARAMETER", "SYSTEM", "TEMPLATE", "MESSAGE", "LICENSE", "REQUIRES", "ADAPTER"),
)
_RAW = ("PARAMETER", "MESSAGE")  # a word stands before the value, which may be in quotes
_OLLAMAS = {"repetition_penalty": "repeat_penalty", "max_tokens": "num_predict"}
_WHOLE = ("top_k", "seed", "num_predict", "num_ctx")
_KNOWN = (
    *("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty"),
    *("frequency_penalty", "seed", "num_predict", "num_ctx", "stop"),
)
_PASSED_OVER = (  # they change no answer, or are said not to be used
    *("num_gpu", "num_thread", "num_batch", "main_gpu", "use_mmap", "use_mlock", "numa", "num_gqa"),
    *("low_vram", "f16_kv", "logits_all", "vocab_only", "num_keep", "draft_num_predict"),
    *("mirostat", "mirostat_tau", "mirostat_eta", "repeat_last_n", "tfs_z", "typical_p"),
    "penalize_newline",
)
_GO = re.compile(r"\{\{-?\s*(?:if|range|end|else|with|template|block|define|\$|\.|slice|json)")


@dataclass
class Modelfile:
    """What a Modelfile says."""

    base: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    system: str = ""
    template: str = ""
    messages: list[Mapping[str, str]] = field(default_factory=list)
    license: str = ""

    def preset(self, name: str) -> Preset:
        """Return the preset of that name. Raises InvalidRequestError for what cannot be honoured.

        What of the parameters is not used is said in its settings' notes.
        """
        if not self.base:
            raise InvalidRequestError(
                "It is not said which model the preset is made of.", hint="FROM NAME, or --from"
            )
        is_go = _GO.search(self.template) is not None and "{%" not in self.template
        settings = settings_of(
            self.parameters, system=self.system, go_template=self.template if is_go else ""
        )
        if is_go and not settings.fallback_template:
            raise InvalidRequestError(
                "The TEMPLATE is a program in Go, which is not run, and its form is not known.",
                hint="leave it out for the model's own template, or write it in Jinja",
            )
        return Preset(
            name,
            self.base,
            ModelSettings(
                settings.sampling,
                settings.context,
                settings.system,
                template="" if is_go else self.template,
                fallback_template=settings.fallback_template,
                template_note=settings.template_note,
                go_template=settings.go_template,
                messages=tuple(self.messages),
                notes=settings.notes,
            ),
            self.license,
        )

    def set_parameter(self, name: str, value: str) -> None:
        """Set a parameter by Ollama's name or dure's. Raises InvalidRequestError."""
        name = _OLLAMAS.get(name, "num_ctx" if name == "context" else name)
        if name not in _KNOWN and name not in _PASSED_OVER:
            near = difflib.get_close_matches(name, _KNOWN, n=1)
            raise InvalidRequestError(
                f"There is no parameter {name!r:.60}.",
                hint=f"did you mean {near[0]}?" if near else f"one of {', '.join(_KNOWN)}",
            )
        if name == "stop":
            self.parameters.setdefault("stop", []).append(value)
            return
        try:
            parsed: Any = int(value) if name in _WHOLE else float(value)
        except ValueError:
            if name in _KNOWN:
                raise InvalidRequestError(f"{value!r:.60} is not a value for {name}.") from None
            parsed = value
        if name == "num_ctx" and parsed < 1:
            raise InvalidRequestError(f"num_ctx is a number of tokens, not {parsed}.")
        self.parameters[name] = parsed


def read_modelfile(path: Path) -> Modelfile:
    """Read a Modelfile; a base that is a path is taken from the file's folder.

    Raises InvalidRequestError, with the line, for what is none.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InvalidRequestError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InvalidRequestError(f"{path} is not UTF-8 text.") from None
    if len(data) > MAX_BYTES:
        raise InvalidRequestError(f"{path} is longer than {MAX_BYTES:,} bytes.")
    made = Modelfile()
    for number, instruction, value in _instructions(text, str(path)):
        try:
            _take(made, instruction, value, path.parent)
        except InvalidRequestError as error:
            error.message = f"{path}, line {number}: {error.message}"
            raise
    return made


def modelfile_of(preset: Preset) -> str:
    """Write a preset as a Modelfile, which makes it again."""
    settings = preset.settings
    lines = [f"FROM {preset.base}"]
    for name, value in settings.sampling.items():
        for each in value if isinstance(value, (list, tuple)) else [value]:
            shown = json.dumps(each, ensure_ascii=False) if isinstance(each, str) else each
            lines.append(f"PARAMETER {_OLLAMAS.get(name, name)} {shown}")
    lines += [f"PARAMETER num_ctx {settings.context}"] if settings.context else []
    template = settings.template or settings.go_template
    for word, text in (("SYSTEM", settings.system), ("TEMPLATE", template)):
        lines += [f"{word} {_quoted(text)}"] if text else []
    lines += [f"MESSAGE {m['role']} {_quoted(m['content'])}" for m in settings.messages]
    lines += [f"LICENSE {_quoted(preset.license)}"] if preset.license else []
    return "\n".join(lines) + "\n"


def _take(made: Modelfile, instruction: str, value: str, folder: Path) -> None:
    if instruction == "FROM":
        if made.base:
            raise InvalidRequestError("There is a FROM already.", hint="a preset has one base")
        if not value.strip():
            raise InvalidRequestError("FROM names no model.", hint="FROM NAME, or a path")
        made.base = _base(value, folder)
    elif instruction == "PARAMETER":
        name, _, given = value.partition(" ")
        made.set_parameter(name.casefold(), given)
    elif instruction == "SYSTEM":
        made.system = value
    elif instruction == "TEMPLATE":
        made.template = value
    elif instruction == "LICENSE":
        made.license = "\n".join(part for part in (made.license, value) if part)
    elif instruction == "MESSAGE":
        role, _, said = value.partition(" ")
        if role.casefold() not in ("system", "user", "assistant"):
            raise InvalidRequestError(
                f"A MESSAGE has no role {role!r:.40}.", hint="system, user or assistant"
            )
        made.messages.append({"role": role.casefold(), "content": said})
    elif instruction == "ADAPTER":
        raise InvalidRequestError(
            "ADAPTER is not supported: dure loads no adapters.",
            hint="merge it into the weights first",
        )
    elif instruction != "REQUIRES":  # which version of Ollama reads it: no matter here
        near = difflib.get_close_matches(instruction, INSTRUCTIONS, n=1)
        raise InvalidRequestError(
            f"{instruction:.40} is no instruction.",
            hint=f"did you mean {near[0]}?" if near else ", ".join(INSTRUCTIONS),
        )


def _base(value: str, folder: Path) -> str:
    """Return what FROM names: a path as seen from the file, or a name as it is."""
    try:
        path = folder / Path(value).expanduser()
        is_path = value.startswith((".", "/", "~")) or path.exists()
    except (OSError, RuntimeError, ValueError):
        return value
    return str(path.absolute()) if is_path else value


def _instructions(text: str, source: str) -> Iterator[tuple[int, str, str]]:
    """Yield (line, instruction, value) of each; values in quotes may have several lines."""
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        number, line = at + 1, lines[at].lstrip().rstrip("\r")
        at += 1
        if not line.strip() or line.startswith("#"):
            continue
        word, rest = _split(line)
        word, head, value = word.upper(), "", rest
        if word in _RAW:  # PARAMETER stop "…", MESSAGE user "…"
            head, value = _split(rest)
            head += " "
        quotes = next((each for each in ('"""', '"') if value.startswith(each)), "")
        closed = value.rstrip()
        if quotes == '"' and '"' in closed[1:-1] and not closed.endswith('"'):
            quotes = ""  # SYSTEM "Hi" is what you say
        value = value[len(quotes) :] if quotes else closed
        while quotes and not value.rstrip().endswith(quotes):
            if quotes == '"""' and quotes in value:
                raise InvalidRequestError(
                    f"{source}, line {at}: something stands behind the quotes.",
                    hint="begin a new line for it",
                )
            if at == len(lines):
                raise InvalidRequestError(
                    f"{source}, line {number}: the text has no end.", hint=f"close it with {quotes}"
                )
            value += "\n" + lines[at].rstrip("\r")
            at += 1
        if quotes:
            value = value.rstrip().removesuffix(quotes)
        if quotes == '"':
            value = _unescaped(value) if word == "PARAMETER" else _as_written(value)
        yield number, word, head + value


def _split(text: str) -> tuple[str, str]:
    """Split the first word off."""
    word, *rest = text.split(maxsplit=1)[:2] or [""]
    return word, "".join(rest)


def _unescaped(text: str) -> str:
    """Return what stands between two quotes, with its escapes read if all of them are known."""
    try:
        return str(json.loads(f'"{text}"', strict=False))
    except ValueError:
        return text


def _as_written(text: str) -> str:
    """Return what stands between two quotes: as it is, since Ollama has no escapes (\\boxed is no
    backspace), unless it is what `_quoted` makes of a text that nothing else would bring back.
    """
    meant = _unescaped(text)
    return meant if _quoted(meant) == f'"{text}"' else text


def _quoted(text: str) -> str:
    """Return a text in the quotes that bring it back as it is."""
    if '"""' in text or "\r" in text:
        return json.dumps(text, ensure_ascii=False)
    return f'"""{text}"""'
