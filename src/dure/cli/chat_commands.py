"""The commands of a chat: what a line that begins with a slash does."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING

from dure.chat.request import Format
from dure.cli import console, saved_chats
from dure.cli.answer_view import AnswerView
from dure.cli.chat_settings import NUMBERS, WORDS, parse_think, said_think
from dure.cli.conversation import Conversation
from dure.cli.line_reader import TerminalReader
from dure.cli.served_model import ServedModel
from dure.errors import InvalidRequestError
from dure.hub import Preset, human_bytes, preset_of
from dure.hub.modelfile import modelfile_of

if TYPE_CHECKING:
    from dure.cli.chat_session import ChatSession
    from dure.llm import LLM

HELP = '''\
/set parameter NAME VALUE   temperature, top_k, top_p, min_p, repetition_penalty,
                            presence_penalty, frequency_penalty, seed, max_tokens, stop;
                            the value "default" takes the model's own
/set system TEXT            the system message
/set think on|off|N|auto    thinking on, off, for at most N tokens, or as the model likes
/set thoughts show|fold     show thoughts, or one line while the model thinks
/set verbose, /set quiet    show or hide token counts and speeds
/set wordwrap, nowordwrap   break lines between words, or leave them to the terminal
/set format json, noformat  answers are JSON, or text
/set history, nohistory     keep what you type for the next chats, or not
/show info|parameters|system|template|license|modelfile|messages
/regen                      another answer to the last message
/edit [TEXT]                change the last message, and ask again
/undo                       take back the last message and its answer
/read FILE                  send a file of text with the next message
/thoughts                   what the model thought before its last answer
/model [NAME]               go on with another model; without a name, which one this is
/save [NAME|FILE]           save the conversation under a name, or to a file
/load [NAME|FILE]           take it up again; without a name, list what is saved
/clear                      forget the conversation
/bye, /exit, /quit          leave (or Ctrl-D)
"""                         begins and ends a message of several lines; Alt-Enter starts a line
Ctrl-C                      stops the answer'''


class Commands:
    """Runs the commands of one chat."""

    def __init__(self, chat: ChatSession) -> None:
        self._chat = chat
        self._name = ""  # under which the chat was saved last

    def run(self, line: str) -> None:
        """Run a command line such as `/set think on`. Raises InvalidRequestError."""
        verb, _, rest = line.strip().partition(" ")
        command = COMMANDS.get(verb)
        if command is None:
            near = difflib.get_close_matches(verb, COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else "/? lists the commands"
            raise InvalidRequestError(
                f"There is no command {verb:.60}.",
                hint=f"{hint}; a space before it sends it as text",
            )
        command(self, rest.strip())

    def takes_lines(self, head: str) -> bool:
        """Whether what follows this beginning of a line may have several lines."""
        return head.rstrip() in ("/set system", "/edit")

    def help(self, _: str) -> None:
        """List the commands."""
        console.note(HELP)

    def clear(self, _: str) -> None:
        """Forget the conversation."""
        self._chat.talk.clear()
        self._chat.files.clear()
        console.note("The conversation is cleared.")

    def set(self, rest: str) -> None:
        """Set what holds for the next answers, and say so."""
        what, _, value = rest.partition(" ")
        value = value.strip()
        settings, talk = self._chat.settings, self._chat.talk
        if what in ("verbose", "quiet"):
            settings.verbose = what == "verbose"
            said = f"Counts and speeds are {'shown' if settings.verbose else 'hidden'}."
        elif what == "system":
            self._needs_template("A system message")
            talk.system = value or None
            said = f"The system message has {len(value):,} characters."
            said = said if value else "There is no system message."
        elif what in ("think", "nothink"):
            self._needs_template("Thinking")
            thinking = False if what == "nothink" else parse_think(value)
            if thinking is not None:
                self._chat.llm.check_think(thinking)
            settings.think = thinking
            said = said_think(thinking)
        elif what == "parameter":
            name, _, number = value.partition(" ")
            said = settings.set_parameter(name, number.strip())
        elif what == "thoughts" and value in ("show", "fold"):
            settings.fold = value == "fold"
            said = "Thoughts are one line; /thoughts shows them." if settings.fold else ""
            said = said or "Thoughts are shown."
        elif what in ("wordwrap", "nowordwrap"):
            settings.wrap = what == "wordwrap"
            said = f"Lines are broken {'between words' if settings.wrap else 'by the terminal'}."
        elif (what == "format" and value == "json") or what == "noformat":
            settings.form = Format("json_object") if what == "format" else None
            said = "Answers are JSON." if settings.form else "Answers are text."
        elif what in ("history", "nohistory"):
            said = self._history(what == "history")
        else:
            raise InvalidRequestError(
                f"/set does not know {rest!r:.60}.", hint=f"it sets {', '.join(WORDS)}"
            )
        console.note(said)

    def show(self, what: str) -> None:
        """Print something of the model or the chat to stdout."""
        chat = self._chat

        def say(text: str) -> None:
            console.write(text.removesuffix("\n") + "\n")

        if what == "info":
            say("\n".join(f"{name:10} {value}" for name, value in self._info().items()))
        elif what == "parameters":
            resolved = chat.settings.params.resolve(chat.llm.sampling_defaults)
            for name in NUMBERS:
                say(f"{name:20} {getattr(resolved, name)}")
        elif what == "system":
            own = getattr(getattr(chat.llm, "request_builder", None), "system", "")
            say(chat.talk.system or own or "(no system message)")
        elif what == "template":
            say(chat.llm.template_source or "(no chat template)")
        elif what == "license":
            say(self._license())
        elif what == "modelfile":
            name = chat.llm.name
            say(modelfile_of(preset_of(name) or Preset(name, name)))
        elif what == "messages":
            for message in chat.talk.messages:
                say(f"{message['role']}: {message['content']}")
        else:
            raise InvalidRequestError(
                "/show shows info, parameters, system, template, license, modelfile or messages."
            )

    def regen(self, _: str) -> None:
        """Answer the last message once more."""
        params = self._chat.settings.params.resolve(self._chat.llm.sampling_defaults)
        if params.seed is not None or params.temperature == 0:
            cause = "the temperature is 0" if params.temperature == 0 else "there is a seed"
            console.note(f"(the answer is the same: {cause})")
        self._chat.ask_again(self._last("There is no message to answer again."))

    def edit(self, text: str) -> None:
        """Change the last message, and ask again."""
        last = self._last("There is no message to edit.")
        text = text or self._chat.read("edit> ", last)
        if text.strip():
            self._chat.ask_again(text)

    def undo(self, _: str) -> None:
        """Take back the last message and its answer."""
        taken = self._chat.talk.take_back()
        if taken is None:
            raise InvalidRequestError("There is no message to take back.")
        console.note(f"Taken back: {' '.join(taken[:200].split())[:60]}")

    def read(self, rest: str) -> None:
        """Send a file with the next message."""
        if not rest:
            raise InvalidRequestError("/read needs the name of a file.")
        console.note(self._chat.take_file(console.path_given(rest)))

    def thoughts(self, _: str) -> None:
        """Print what the model thought before its last answer."""
        text = self._chat.talk.thoughts
        if not text:
            raise InvalidRequestError("There are no thoughts before the last answer.")
        view = AnswerView(wrap=self._chat.settings.wrap)
        view.say(text)
        view.end()

    def model(self, name: str) -> None:
        """Go on with another model, or say which one this is."""
        if name:
            self._chat.change_model(name)
        else:
            self._chat.introduce()

    def save(self, rest: str) -> None:
        """Save the conversation under a name, or to a file."""
        chat, given = self._chat, rest or self._name or saved_chats.new_name()
        path = saved_chats.path_to_save(given)
        chat.talk.save(path, model=chat.llm.name)
        self._name = given
        console.note(f"Saved {len(chat.talk.messages)} messages to {path}.")

    def load(self, rest: str) -> None:
        """Take up a saved conversation, or list those that there are."""
        if not rest:
            self._list()
            return
        path = saved_chats.path_to_load(rest)
        self._chat.talk = Conversation.load(path)
        self._name = rest
        console.note(f"Loaded {len(self._chat.talk.messages)} messages from {path}.")

    def _license(self) -> str:
        llm = self._chat.llm
        said = None if isinstance(llm, ServedModel) else llm.checkpoint.metadata
        return str((said or {}).get("general.license") or "(it is not said)")

    def _list(self) -> None:
        found = saved_chats.saved()
        if not found:
            console.note("No chat is saved. /save NAME saves this one.")
            return
        table: list[tuple[str, ...]] = [("NAME", "SAVED", "MESSAGES", "BEGINS")]
        for each in found:
            at = each.saved_at.strftime("%Y-%m-%d %H:%M")
            table.append((each.name, at, str(each.messages), console.printable(each.begins)))
        for line in console.aligned(table):
            console.note(line)

    def _history(self, wanted: bool) -> str:
        if isinstance(self._chat.read, TerminalReader):
            self._chat.read.remember(wanted)
        return f"What you type is {'kept for the next chats' if wanted else 'not kept'}."

    def _info(self) -> dict[str, object]:
        llm = self._chat.llm
        facts = llm.facts() if isinstance(llm, ServedModel) else _facts(llm)
        return {"model": llm.name, **facts, "messages": len(self._chat.talk.messages)}

    def _last(self, otherwise: str) -> str:
        said = [m["content"] for m in self._chat.talk.messages if m["role"] == "user"]
        if not said:
            raise InvalidRequestError(otherwise)
        return said[-1]

    def _needs_template(self, what: str) -> None:
        if self._chat.is_plain:
            raise InvalidRequestError(f"{what} needs a chat template, and none is used here.")


def _facts(llm: LLM) -> dict[str, object]:
    """Return what `/show info` says of a model in this process."""
    config, metadata = llm.checkpoint.config, llm.checkpoint.metadata
    size = sum(tensor.size_bytes for tensor in llm.checkpoint.tensors.values())
    return {
        "file": llm.path,
        "family": metadata.get("general.architecture") or config.get("model_type"),
        "weights": human_bytes(size),
        "context": f"{llm.context:,} tokens of the model's {llm.model.context_length:,}",
        "threads": llm.threads,
    }


COMMANDS: dict[str, Callable[[Commands, str], None]] = {
    "/set": Commands.set,
    "/show": Commands.show,
    "/regen": Commands.regen,
    "/edit": Commands.edit,
    "/undo": Commands.undo,
    "/read": Commands.read,
    "/thoughts": Commands.thoughts,
    "/model": Commands.model,
    "/save": Commands.save,
    "/load": Commands.load,
    "/chats": Commands.load,
    "/clear": Commands.clear,
    "/help": Commands.help,
    "/?": Commands.help,
}
