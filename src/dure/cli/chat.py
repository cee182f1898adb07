"""The chat in the terminal: read lines, stream answers, keep the conversation."""

from __future__ import annotations

import difflib
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dure.cli import console, print_error
from dure.cli.conversation import Conversation, completes_text
from dure.engine.params import SamplingParams
from dure.errors import DureError, InvalidRequestError
from dure.hub import human_bytes

if TYPE_CHECKING:
    from dure.llm import LLM
    from dure.metering.prices import Prices

HELP = '''\
/set parameter NAME VALUE   temperature, top_k, top_p, min_p, repetition_penalty,
                            presence_penalty, frequency_penalty, seed, max_tokens, stop;
                            the value "default" takes the model's own
/set system TEXT            the system message
/set think on|off|N|auto    thinking on, off, for at most N tokens, or as the model likes
/set verbose, /set quiet    show or hide token counts and speeds
/show info|parameters|system|template
/save FILE, /load FILE      save the conversation to a file, or load one
/clear                      forget the conversation
/bye                        leave (or Ctrl-D)
"""                         begins and ends a message of several lines; Alt-Enter starts a line
Ctrl-C                      stops the answer'''

COMMANDS = ("/set", "/show", "/save", "/load", "/clear", "/bye", "/help", "/?")
NUMBERS: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
    "max_tokens": int,
    "stop": shlex.split,
}


class Chat:
    """A chat of one person with one model. `read` returns a line, or raises EOFError at the end."""

    def __init__(
        self,
        llm: LLM,
        params: SamplingParams,
        *,
        system: str | None = None,
        think: bool | int | None = None,
        raw: bool = False,
        verbose: bool = False,
        prices: Prices | None = None,
        read: Callable[[str], str] | None = None,
    ) -> None:
        self.llm = llm
        self.params = params
        self.talk = Conversation(system=system)
        self.think = think
        self.verbose = verbose
        self._prices = prices
        # A model without a template completes each message on its own.
        self.is_plain = completes_text(llm, raw=raw, system=system, think=think)
        self._read = read or line_reader()

    def run(self) -> None:
        """Read and answer messages until the person leaves."""
        what = "no chat template: it completes text" if self.is_plain else "/? for help"
        console.note(f"{self.llm.name}: context of {self.llm.context:,} tokens. {what}")
        while True:
            try:
                message = self._message()
            except KeyboardInterrupt:
                console.note("(Ctrl-D or /bye leaves the chat)")
                continue
            except EOFError:
                return
            if message.strip() == "/bye":
                return
            try:
                if message.startswith("/"):
                    self.command(message)
                elif message.strip():
                    self.ask(message)
            except DureError as error:
                print_error(error)

    def ask(self, message: str) -> None:
        """Stream the answer to `message` to stdout, and add both to the conversation."""
        prompt = message if self.is_plain else self.talk.messages_with(message)
        said: list[str] = []
        completion = None
        disk = console.disk_reads(self.llm)
        with console.ProgressLine("reading the prompt", delay_s=0.5, beside=disk) as line:
            stream = self.llm.stream(prompt, self.params, think=self.think, on_prefill=line.update)
            try:
                with closing(stream):
                    for chunk in stream:
                        line.erase()
                        said.append(chunk.text)
                        console.write(chunk.text)
                        completion = chunk.completion
            except KeyboardInterrupt:
                line.erase()
        text = "".join(said)
        console.write("" if text.endswith("\n") else "\n")
        if completion is None:
            console.note("(stopped)")
        elif completion.finish_reason == "length":
            console.note(f"(cut short: {self._limit()})")
        if not self.is_plain and (text or completion is not None):
            self.talk.add(message, text)
        if completion is not None and self.verbose:
            console.note(console.summary(completion, self._prices))

    def command(self, line: str) -> None:
        """Run a command line such as `/set think on`. Raises InvalidRequestError."""
        verb, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if verb in ("/?", "/help"):
            console.note(HELP)
        elif verb == "/clear":
            self.talk.clear()
            console.note("The conversation is cleared.")
        elif verb == "/set":
            self._set(rest)
        elif verb == "/show":
            self._show(rest)
        elif verb in ("/save", "/load"):
            if not rest:
                raise InvalidRequestError(f"{verb} needs the name of a file.")
            self._keep(verb, Path(rest).expanduser())
        else:
            near = difflib.get_close_matches(verb, COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else "/? lists the commands"
            raise InvalidRequestError(f"There is no command {verb}.", hint=hint)

    def _message(self) -> str:
        """Read the next message: a line, or all lines between two triple quotes."""
        line = self._read(">>> ")
        head, quotes, rest = line.partition('"""')
        if not quotes or not (head.strip() == "" or head.startswith("/set system")):
            return line
        parts = [rest]
        while '"""' not in parts[-1]:
            parts.append(self._read("... "))
        parts[-1] = parts[-1].partition('"""')[0]
        return head + "\n".join(parts).strip("\n")

    def _limit(self) -> str:
        if self.params.max_tokens is not None:
            return f"max_tokens is {self.params.max_tokens:,}"
        return f"the context of {self.llm.context:,} tokens is full; /clear empties it"

    def _set(self, rest: str) -> None:
        what, _, value = rest.partition(" ")
        value = value.strip()
        if what in ("verbose", "quiet"):
            self.verbose = what == "verbose"
        elif what == "system":
            self._needs_template("A system message")
            self.talk.system = value or None
        elif what == "think":
            self._needs_template("Thinking")
            thinking = _think(value)
            if thinking is not None:
                self.llm.check_think(thinking)
            self.think = thinking
        elif what == "parameter":
            name, _, number = value.partition(" ")
            self._set_parameter(name, number.strip())
        else:
            raise InvalidRequestError(
                f"/set does not know {what!r}.",
                hint="it sets parameter, system, think, verbose or quiet",
            )

    def _set_parameter(self, name: str, value: str) -> None:
        if name not in NUMBERS:
            raise InvalidRequestError(
                f"There is no parameter {name!r}.", hint=f"one of {', '.join(NUMBERS)}"
            )
        parsed: Any
        try:
            parsed = getattr(SamplingParams(), name) if value == "default" else NUMBERS[name](value)
        except ValueError:
            raise InvalidRequestError(f"{value!r} is not a value for {name}.") from None
        self.params = replace(self.params, **{name: parsed})

    def _show(self, what: str) -> None:
        if what == "info":
            print(self._info())
        elif what == "parameters":
            resolved = self.params.resolve(self.llm.sampling_defaults)
            for name in NUMBERS:
                print(f"{name:20} {getattr(resolved, name)}")
        elif what == "system":
            print(self.talk.system or "(no system message)")
        elif what == "template":
            print(self.llm.template_source or "(no chat template)")
        else:
            raise InvalidRequestError("/show shows info, parameters, system or template.")

    def _info(self) -> str:
        config, metadata = self.llm.checkpoint.config, self.llm.checkpoint.metadata
        size = sum(tensor.size_bytes for tensor in self.llm.checkpoint.tensors.values())
        most = self.llm.model.context_length
        facts = {
            "model": self.llm.name,
            "file": self.llm.path,
            "family": metadata.get("general.architecture") or config.get("model_type"),
            "weights": human_bytes(size),
            "context": f"{self.llm.context:,} tokens of the model's {most:,}",
            "threads": self.llm.threads,
            "messages": len(self.talk.messages),
        }
        return "\n".join(f"{name:10} {value}" for name, value in facts.items())

    def _keep(self, verb: str, path: Path) -> None:
        if verb == "/save":
            self.talk.save(path, model=self.llm.name)
            console.note(f"Saved {len(self.talk.messages)} messages to {path}.")
        else:
            self.talk = Conversation.load(path)
            console.note(f"Loaded {len(self.talk.messages)} messages from {path}.")

    def _needs_template(self, what: str) -> None:
        if self.is_plain:
            raise InvalidRequestError(f"{what} needs a chat template, and none is used here.")


def _think(value: str) -> bool | int | None:
    if value in ("on", "off"):
        return value == "on"
    if value == "auto":
        return None
    if value.isdecimal() and len(value) < 10:
        return int(value)
    raise InvalidRequestError(f"{value!r} is not on, off, auto or a number of tokens.")


def line_reader() -> Callable[[str], str]:
    """Return a function that shows a prompt and reads a line, with history on a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return _read_plain
    from prompt_toolkit import PromptSession  # noqa: PLC0415 - only a terminal needs it
    from prompt_toolkit.completion import WordCompleter  # noqa: PLC0415
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent  # noqa: PLC0415

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        history=_history(),
        key_bindings=keys,
        completer=WordCompleter(list(COMMANDS), sentence=True),
        complete_while_typing=False,
    )
    return session.prompt


def _read_plain(prompt: str) -> str:
    """Read a line of stdin. The prompt goes to stderr because stdout is a file or a pipe."""
    sys.stderr.write(prompt)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def _history() -> Any:
    """Open the history file, which only its owner may read; keep it in memory where that fails."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory  # noqa: PLC0415

    from dure.hub.store import models_folder  # noqa: PLC0415

    try:
        path = models_folder().parent / "history"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    except (OSError, DureError):
        return InMemoryHistory()
    return FileHistory(str(path))
