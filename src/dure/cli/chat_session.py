"""A chat's model and conversation: answers are asked for, shown and kept."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

from dure.cli import console
from dure.cli.answer_view import AnswerView
from dure.cli.answering import AnswerThread
from dure.cli.chat_settings import ChatSettings
from dure.cli.conversation import Conversation, completes_text
from dure.cli.line_reader import ReadLine
from dure.cli.served_model import ServedModel
from dure.errors import DureError, InvalidRequestError

if TYPE_CHECKING:
    from dure.chat.output import Chunk, Completion
    from dure.engine.params import SamplingParams
    from dure.llm import LLM
    from dure.metering.prices import Prices

MAX_FILE_BYTES = 8 << 20


class ChatSession:
    """One person, one model and what they said: asks, and keeps the conversation."""

    def __init__(
        self,
        llm: LLM | ServedModel,
        params: SamplingParams,
        *,
        system: str | None = None,
        think: bool | int | None = None,
        raw: bool = False,
        verbose: bool = False,
        fold: bool = False,
        prices: Prices | None = None,
        read: ReadLine,
        source: str | None = None,
        load: Callable[[str], LLM | ServedModel] | None = None,
    ) -> None:
        """fold: show thoughts as one line. source: what the model was loaded from, if that is not
        its name. load: loads another, for `/model`.
        """
        self.llm: LLM | ServedModel = llm
        self.talk = Conversation(system=system)
        self.settings = ChatSettings(params, think=think, verbose=verbose, fold=fold)
        self.load = load
        self._source = source or llm.name
        self.files: list[tuple[str, str]] = []  # names and texts that go with the next message
        self._raw = raw
        self._prices = prices
        # A model without a template completes each message on its own.
        self.is_plain = completes_text(llm, raw=raw, system=system, think=think)
        self.read = read
        self._answers = AnswerThread(llm.driver.interrupted)
        self.is_over = False  # there is no model to go on with

    def close(self) -> None:
        """Let go of the model, after the last answer."""
        self._answers.close()

    def introduce(self) -> None:
        """Say which model it is."""
        what = "no chat template: it completes text" if self.is_plain else "/? for help"
        console.note(f"{self.llm.name}: context of {self.llm.context:,} tokens. {what}")

    def ask(self, message: str) -> None:
        """Stream the answer to `message` to stdout, and add both to the conversation."""
        message = self._with_files(message)
        settings = self.settings
        view = AnswerView(fold=settings.fold, wrap=settings.wrap, plain=self.is_plain)
        thoughts: list[str] = []
        completion: Completion | None = None
        disk = console.disk_reads(self.llm)
        with console.ProgressLine(
            "reading the prompt", delay_s=0.5, beside=disk, time_left=True
        ) as line:
            try:
                for chunk in self._answers.chunks(lambda: self._stream(message, line.update)):
                    line.erase()
                    view.show(chunk.events)
                    thoughts += [e.text for e in chunk.events if e.kind == "reasoning"]
                    completion = chunk.completion
            except KeyboardInterrupt:
                line.erase()
            except DureError:
                view.break_off()
                raise
        view.end()
        if completion is None:
            console.note("(stopped)")
        elif completion.finish_reason == "length":
            console.note(f"(cut short: {self._limit(completion.usage.output_tokens)})")
        self.files.clear()
        if not self.is_plain and (view.content or completion is not None):
            self.talk.add(message, view.content, "".join(thoughts))
        if completion is not None and settings.verbose:
            console.note(console.summary(completion, self._prices))

    def ask_again(self, message: str) -> None:
        """Ask in place of the last turn, which comes back if nothing is answered."""
        before = list(self.talk.messages)
        self.talk.take_back()
        rest = len(self.talk.messages)
        try:
            self.ask(message)
        finally:
            if len(self.talk.messages) == rest:  # refused, or stopped before the first word
                self.talk.messages = before

    def take_file(self, path: Path) -> str:
        """Read a file of text that goes with the next message; return what to say of it."""
        text = console.read_text(path, most=MAX_FILE_BYTES)
        self.files.append((path.name, text))
        return f"{path.name}, {len(text):,} characters, goes with your next message."

    def change_model(self, name: str) -> None:
        """Chat on with another model. The one before is loaded again if that fails.

        If that fails, too, the chat is over.
        """
        if self.load is None:
            raise InvalidRequestError("This chat cannot load another model.")
        self._answers.wait()
        former, source = self.llm if isinstance(self.llm, ServedModel) else None, self._source
        del self.llm  # two models may not fit
        try:
            self._take_model(self.load(name))
            self._source = name
        except (DureError, KeyboardInterrupt):
            console.note(f"({source} is {'taken' if former else 'loaded'} again)")
            self.is_over = True  # unless this succeeds
            self._take_model(former or self.load(source))
            self.is_over = False
            raise
        self.introduce()

    def _take_model(self, llm: LLM | ServedModel) -> None:
        self.llm = llm
        self._answers.interrupted = llm.driver.interrupted
        self.is_plain = self._raw or llm.template_source is None
        if self.is_plain:
            self.talk.system, self.settings.think = None, None

    def _stream(
        self, message: str, on_prefill: Callable[[int, int], None]
    ) -> Generator[Chunk, None, None]:
        settings = self.settings
        prompt = message if self.is_plain else self.talk.messages_with(message)
        return self.llm.stream(
            prompt,
            settings.params,
            think=settings.think,
            format=settings.form,
            on_prefill=on_prefill,
        )

    def _with_files(self, message: str) -> str:
        parts = [f"{name}:\n\n```\n{text.rstrip()}\n```" for name, text in self.files]
        return "\n\n".join([*parts, message])

    def _limit(self, written: int) -> str:
        most = self.settings.params.resolve(self.llm.sampling_defaults).max_tokens
        if most is not None and written >= most:
            return f"max_tokens is {most:,}"
        return f"the context of {self.llm.context:,} tokens is full; /clear empties it"
