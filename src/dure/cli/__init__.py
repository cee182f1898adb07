"""The `dure` command: find the verb, run it, print its errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from dure import __version__
from dure.errors import DureError

VERBS = {
    "run": "Ask a model one question, or chat with it.",
    "serve": "Serve models over HTTP, as OpenAI, Anthropic and Ollama do.",
    "plan": "Plan models before a download: memory, users, prices.",
    "embed": "Print the embeddings of texts.",
    "pull": "Download a model.",
    "search": "Find models by words: in the catalogue, then on Hugging Face.",
    "list": "List the models on this machine and in the catalogue.",
    "show": "Show what a model is: its family, size, context and template.",
    "create": "Create a preset: a model with settings of its own.",
    "cp": "Give a model another name.",
    "rm": "Remove a downloaded model, or a preset.",
    "convert": "Write a model as a GGUF file, or in fewer bits.",
    "imatrix": "Compute which columns of a model's matrices matter most.",
    "bench": "Measure a model's speed on this machine.",
    "costs": "Show what a server's requests took and cost, from its ledger.",
    "perplexity": "Measure how well a model predicts a text.",
    "ps": "List the models that a server has in memory.",
    "stop": "Unload a model from a server's memory.",
    "doctor": "Say what of this machine makes a model slow, and why.",
    "ls": "The same as list.",
    "completion": "Print a script that completes commands in a shell.",
    "version": "Print the version, and what it runs on.",
}
"""Verb -> its line in `dure --help`. Its module is dure/cli/VERB.py, and there its `command`."""


ENVIRONMENT = "DURE"
"""What the variable of an option begins with; the verb and the option's name follow."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line (default: sys.argv) and exit with its code.

    0 done; 1 an error we explain; 2 wrong usage; 130 stopped by Ctrl-C.
    """
    # Not list(…): once the verb `list` has been imported, that name is its module here.
    argv = [*(sys.argv[1:] if arguments is None else arguments)]
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(
                errors="replace"
            )  # an emoji must not end an answer on a Latin-1 terminal
    try:
        build(argv)(args=argv, prog_name="dure")
    except (KeyboardInterrupt, SystemExit) as ended:
        code = 130 if isinstance(ended, KeyboardInterrupt) else ended.code
        if code == 130 and arguments is None:  # this is the process: nobody waits until it is tidy
            _leave(130)
        sys.exit(code)
    except OSError as error:  # of no verb: the help could not be written
        print_error(DureError(f"{error.strerror or error}"))
        sys.exit(1)
    sys.exit(0)


def build(argv: Sequence[str]) -> typer.Typer:
    """Build the command with all verbs; import only the verbs that `argv` names."""
    app = typer.Typer(
        name="dure",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,  # rich takes longer to import than all of the help takes to print
        pretty_exceptions_enable=False,
        context_settings={
            "help_option_names": ["-h", "--help"],
            "auto_envvar_prefix": ENVIRONMENT,  # DURE_SERVE_PORT is --port of `dure serve`
        },
    )
    app.callback()(_options)
    for verb, summary in VERBS.items():
        called = verb in argv
        function = guarded(import_module(f"dure.cli.{verb}").command) if called else _not_imported
        app.command(verb, help=function.__doc__ if called else summary, short_help=summary)(
            function
        )
    return app


def guarded(function: Callable[..., None]) -> Callable[..., None]:
    """Wrap `function`: print its errors as a sentence and a hint, and turn them into exit codes."""

    @wraps(function)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            function(*arguments, **options)
            sys.stdout.flush()
        except DureError as error:
            print_error(error)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # `dure … | head` is no error. Python would report the pipe again when it closes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except MemoryError:
            print_error(DureError("Out of memory.", hint="a smaller --context or a smaller model"))
            raise typer.Exit(1) from None
        except OSError as error:
            name = f": {error.filename}" if error.filename else ""
            print_error(DureError(f"{error.strerror or error}{name}"))
            raise typer.Exit(1) from None

    return run


def _leave(code: int) -> NoReturn:
    """End the process now: Python takes a second to give a model's memory back piece by piece."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def print_error(error: DureError) -> None:
    """Write `error: …` and, where there is one, `hint: …` to stderr."""
    from dure.cli.console import note  # noqa: PLC0415 - it needs what is above

    note(f"error: {error.message}")
    if error.detail:
        note(error.detail)
    if error.hint:
        note(f"hint: {error.hint}")


def _open_closed_streams() -> None:
    """Point standard streams that the parent closed (`>&-`) at the null device.

    Otherwise a file that is opened later would take the stream's number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - until the end
            setattr(sys, name, stream)


def _version(asked: bool) -> None:
    if asked:
        print(f"dure {__version__}")
        raise typer.Exit(0)


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_version,
            is_eager=True,
            allow_from_autoenv=False,
            help="Print the version.",
        ),
    ] = False,
) -> None:
    """Run open-weight models on this machine's CPU."""


def _not_imported() -> None:
    """Stand in for a verb that this command line does not call."""
