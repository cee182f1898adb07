"""The chat in the terminal: reads messages and commands until the person leaves."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from dure.cli import console, print_error
from dure.cli.chat_commands import COMMANDS, Commands
from dure.cli.chat_session import ChatSession
from dure.cli.line_reader import ReadLine, line_reader, read_message
from dure.errors import DureError

if TYPE_CHECKING:
    from dure.cli.served_model import ServedModel
    from dure.engine.params import SamplingParams
    from dure.llm import LLM

LEAVE = ("/bye", "/exit", "/quit")


class Chat(ChatSession):
    """A chat of one person with one model, line by line."""

    def __init__(
        self,
        llm: LLM | ServedModel,
        params: SamplingParams,
        *,
        read: ReadLine | None = None,
        **options: Any,
    ) -> None:
        """read: reads a line; None: from the terminal. options: as of ChatSession."""
        super().__init__(llm, params, read=read or line_reader([*COMMANDS, *LEAVE]), **options)
        self._commands = Commands(self)

    def run(self) -> None:
        """Read and answer messages until the person leaves."""
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            # Inherited from a parent that ignores Ctrl-C, as nohup does. A chat is at a terminal,
            # where Ctrl-C stops an answer; a single answer keeps ignoring it.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.introduce()
        while True:
            try:
                message = read_message(self.read, opens=self._commands.takes_lines)
            except KeyboardInterrupt:
                console.note("(Ctrl-D or /bye leaves the chat)")
                continue
            except EOFError:
                break
            if message.strip() in LEAVE:
                break
            try:
                if message.startswith("/"):
                    self._commands.run(message)
                elif message.strip():
                    self.ask(message)
            except DureError as error:
                print_error(error)
            except KeyboardInterrupt:  # in the midst of a command
                console.note("(stopped)")
            if self.is_over:
                console.note("(no model is left, so the chat ends)")
                break
        self.close()
