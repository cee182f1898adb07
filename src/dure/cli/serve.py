"""dure serve: a model behind HTTP, for clients of OpenAI's, Anthropic's and Ollama's APIs."""

# ruff: noqa: PLC0415 - the server is loaded when the verb runs, not for its --help

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dure.cli import console
from dure.errors import InvalidRequestError

if TYPE_CHECKING:
    from dure.llm import LLM

DEFAULT_KEEP_ALIVE = 300.0  # seconds, of models that are loaded when they are asked for


def command(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="What to serve: short names, hub ids, files, folders. One is loaded at once, "
            "several when first asked for; none: whatever of this machine's models is asked for.",
        ),
    ] = None,
    *,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 for any.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="A key that opens the server; may be repeated. Each has a cache of its own. "
            "Safer in $DURE_API_KEY or a file: others see a command line.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="A file of keys, one a line; # begins a comment.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen on a public address without a key.")
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="A name that this server is reached by; may be repeated."),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="A web page's origin that may ask; may be repeated."),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=MODEL]",
            help="Another name for a model; * stands for anything, as in claude-*.",
        ),
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Answers computed at once.")] = 32,
    queue: Annotated[int, typer.Option(min=0, help="Answers that may wait; then 429.")] = 512,
    context: Annotated[
        int | None,
        typer.Option(min=1, show_default="the model's, up to 32768", help="Tokens of a chat."),
    ] = None,
    cache: Annotated[
        console.Cache,
        typer.Option(
            help="Keep past tokens in 16 bits, or in 8: about half the memory, nearly as good."
        ),
    ] = console.Cache.f16,
    cache_gb: Annotated[
        float | None,
        typer.Option(
            min=0,
            show_default="for 4,096 of each answer, in half the free memory",
            help="Memory for past tokens, in GB, for all answers.",
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, show_default="the physical cores", help="Threads.")
    ] = None,
    quantize: console.Quantize = None,
    max_models: Annotated[
        int, typer.Option(min=1, help="Models in memory at once; the least used one leaves.")
    ] = 1,
    keep_alive: Annotated[
        float | None,
        typer.Option(
            show_default="300, or for ever with one MODEL",
            help="Seconds an unused model stays in memory; -1 for ever.",
        ),
    ] = None,
    metrics_prefix: Annotated[
        str, typer.Option(help="What the names in /metrics begin with: vllm suits its dashboards.")
    ] = "dure",
    verbose: Annotated[
        bool, typer.Option("--verbose", help="A line in the log for each request.")
    ] = False,
) -> None:
    """Serve models over HTTP: chat and completions as OpenAI's API has them, and others.

    It listens on this machine alone, until Ctrl-C or SIGTERM; answers that run may finish.
    """
    from dure.server.run import Server, Settings, shown
    from dure.weights.quantize import check_scheme

    # A word that is none ends the command, and not the first request.
    scheme = None if quantize is None else check_scheme(quantize)
    served = tuple(models or ())
    if keep_alive is None and len(served) != 1:
        keep_alive = DEFAULT_KEEP_ALIVE
    settings = Settings(
        models=served,
        host=host,
        port=port,
        keys=_keys(api_key or [], api_key_file),
        insecure=insecure,
        allowed_hosts=tuple(allowed_host or ()),
        cors=tuple(cors or ()),
        aliases=tuple(_alias(each) for each in alias or ()),
        parallel=parallel,
        queue=queue,
        max_loaded=max_models,
        keep_alive=keep_alive,
        metrics_prefix=metrics_prefix,
    )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("dure.server").setLevel(logging.INFO if verbose else logging.WARNING)

    def load(name: str) -> LLM:
        from dure.llm import LLM

        with console.loading() as progress:
            llm = LLM(
                name,
                threads=threads,
                context=context,
                quantize=scheme,
                cache_dtype=cache.value,
                cache_bytes=None if cache_gb is None else round(cache_gb * 1e9),
                max_sequences=parallel,
                # Of several models each would take half of the memory that none has touched yet.
                conversations=parallel if max_models == 1 else 1,
                **progress,
            )
        _introduce(shown(name), llm, parallel)
        return llm

    def ready(_: LLM | None) -> None:
        console.note(f"dure listens on http://{_authority(*server.address)}/v1")

    server = Server(settings, load, on_ready=ready)
    server.run()
    if server.is_loading:  # a thread that cannot be told to stop, and may be in the kernels
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _introduce(name: str, llm: LLM, parallel: int) -> None:
    """Print what is served, by the name that requests give it, what its cache may come to, and the
    dialect that was found."""
    from dure.batch import BLOCK_SIZE
    from dure.loading.memory import gigabytes

    tokens = llm.engine.pool.num_blocks * BLOCK_SIZE
    size = gigabytes(llm.engine.runner.cache_bytes)
    console.note(
        f"{name}: {llm.context:,} tokens of context, {parallel} answers at once; "
        f"past tokens: up to {tokens:,}, {size}"
    )
    dialect = llm.dialect
    thinks = f"thoughts in {dialect.think.open}" if dialect.think else "no thoughts"
    calls = "tool calls" if dialect.calls else "no tool calls"
    console.note(f"its template and vocabulary speak {dialect.name}: {thinks}, {calls}")


def _keys(given: list[str], file: Path | None) -> tuple[str, ...]:
    """The keys of the command line, the environment and the file.

    InvalidRequestError for a file without any: whoever names one does not mean an open server.
    """
    keys = [*given, *filter(None, [os.environ.get("DURE_API_KEY", "").strip()])]
    if file is not None:
        lines = [line.strip() for line in console.read_text(file).splitlines()]
        found = [line for line in lines if line and line[0] != "#"]
        if not found:
            raise InvalidRequestError(f"{file} holds no key.", hint="write one a line")
        keys += found
    return tuple(dict.fromkeys(keys))


def _alias(text: str) -> tuple[str, str]:
    pattern, _, name = text.partition("=")
    return pattern, name


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
