"""dure serve: the OpenAI, Anthropic and Ollama APIs over HTTP."""

# ruff: noqa: PLC0415 - the server is loaded when the verb runs, not for its --help

from __future__ import annotations

import gc
import inspect
import os
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dure.cli import before_download, console, placement
from dure.cli.serve_config import ModelOptions, fitted, read_config
from dure.errors import InvalidRequestError

if TYPE_CHECKING:
    from dure.llm import LLM
    from dure.metering.ledger import Ledger

DEFAULT_KEEP_ALIVE = 300.0  # seconds, of models that are loaded on demand
MAX_CACHE_GB = 1_000_000
MAX_LOST_SHOWN = 20


def _take_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the file's options the defaults: the command line and variables win."""
    if path is not None:
        known = [parameter.name for parameter in context.command.params if parameter.name]
        try:
            options = read_config(path, known).options
            context.default_map = fitted(options, context.command.params, path)
        except InvalidRequestError as error:
            raise typer.BadParameter(
                f"{error.message} {error.hint}".strip(), param_hint="--config"
            ) from None
    return path


def command(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            envvar="DURE_SERVE_MODELS",
            show_envvar=False,
            metavar="MODEL",
            help="Models to serve: short names, hub ids, files, folders. One is loaded at start, "
            "several on first use; without any, every model on this machine is served on demand.",
        ),
    ] = None,
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            is_eager=True,
            callback=_take_config,
            help="A file in TOML with options by their names, and a table [[model]] for each model "
            "with its own; the command line and variables win. See docs/guides/serve.md.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 for any.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="An API key; may be repeated. Each key has a prefix cache of its own. "
            "Prefer $DURE_API_KEY or --api-key-file: other users can read a command line.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="A file of API keys, one per line; # starts a comment.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow a public address without an API key.")
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="A Host name to accept besides local ones; may be repeated."),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="An origin to allow by CORS; may be repeated."),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=MODEL]",
            help="Another name for a model; * matches anything, as in claude-*.",
        ),
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Requests computed at once.")] = 32,
    queue: Annotated[
        int, typer.Option(min=0, help="Requests that may wait; more get status 429.")
    ] = 512,
    context: Annotated[
        int | None,
        typer.Option(
            min=1, show_default="the model's, up to 32768", help="Context length in tokens."
        ),
    ] = None,
    cache: Annotated[
        console.Cache,
        typer.Option(help="KV cache type: f16, or q8 for about half the memory."),
    ] = console.Cache.f16,
    cache_gb: Annotated[
        float | None,
        typer.Option(
            show_default="4,096 tokens for each request, within half the free memory",
            help="Size of the KV cache of all requests, in GB.",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            show_default="what the machine has free",
            help="Memory to stay below, all told: 8GB, 512MB, 6GiB. Each of --max-models has an "
            "equal share.",
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, show_default="the physical cores", help="CPU threads.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Compute the layers in stages on the nodes of a Ray cluster: auto for the one of "
            "this machine, HOST:PORT, or local for one of its own. --threads and --memory are "
            "those of each node; see docs/guides/many-machines.md.",
        ),
    ] = None,
    stages: Annotated[
        str,
        typer.Option(
            metavar="N",
            help="With --ray: how many stages, this process's own included; auto: one a node.",
        ),
    ] = "auto",
    replicas: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            metavar="N",
            help="Engines that compute the model behind this address, each with --threads of its "
            "own; --parallel and --queue hold for all together. With --ray: whole copies of the "
            "model, or of its --stages, on the cluster's nodes; else over the same weights.",
        ),
    ] = 1,
    models_dir: console.ModelsDir = None,
    quantize: console.Quantize = None,
    exact: console.Exact = False,
    speculate: console.Speculate = None,
    draft: console.Draft = None,
    max_models: Annotated[
        int,
        typer.Option(min=1, help="Models in memory at once; the least recently used is unloaded."),
    ] = 1,
    keep_alive: Annotated[
        float | None,
        typer.Option(
            show_default="300; with one MODEL: -1",
            help="Seconds until an unused model is unloaded; -1: never.",
        ),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A JSON file of API keys, each with a name, prices and limits; see "
            "docs/guides/costs.md.",
        ),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a row for each request to this SQLite file; `dure costs FILE` sums it up.",
        ),
    ] = None,
    watts: console.WattsOption = None,
    price: console.Price = None,
    metrics_prefix: Annotated[
        str, typer.Option(help="Prefix of the names in /metrics; vllm fits vLLM's dashboards.")
    ] = "dure",
    page: Annotated[
        bool,
        typer.Option(
            "--page/--no-page", help="Show browsers a chat at /, what runs at /status, and /docs."
        ),
    ] = True,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Serve HTTPS with this certificate (PEM), its chain behind it."
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", show_default="in the file of --tls-cert", help="The certificate's key."
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log a line per request.")] = False,
    log_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Append the log to this file, as a JSON object a line: requests, answers, errors; "
            "no words of either side.",
        ),
    ] = None,
    yes: before_download.Yes = False,
) -> None:
    """Serve models over HTTP with the OpenAI, Anthropic and Ollama APIs.

    Listens on this machine only unless --host says otherwise. Ctrl-C or SIGTERM ends it after
    running requests finish; so does SIGHUP, or, with --log-file, it opens that file again.
    """
    del models_dir  # set in the environment
    from dure.loading.memory import check_memory
    from dure.metering.keys_file import NO_PRICES, PriceList, read_keys
    from dure.metering.meter import Meter
    from dure.server.http.tls import Tls
    from dure.server.logs import reopen_files, set_up
    from dure.server.run import Server, Settings, shown
    from dure.weights.quantize import check_scheme

    # A wrong value ends the command, not the first request.
    budget = console.memory_budget(memory)
    meter = Meter.of_this_machine(console.watts(watts))
    charged = console.prices(price)
    prices = NO_PRICES if charged is None else PriceList((("*", charged),))
    policies = {} if keys is None else read_keys(keys, prices).policies
    share = None if budget is None else check_memory(budget // max_models)
    served = tuple(models or ())
    usual: dict[str, Any] = {
        "threads": threads,
        "context": context,
        "quantize": None if quantize is None else check_scheme(quantize),
        "exact": exact,
        "cache_dtype": cache.value,
        "cache_bytes": _cache_bytes(cache_gb),
        "speculate": console.speculation(speculate, draft),
        "memory": share,
        "ray": ray,
        "stages": placement.stages_of(stages),
        "replicas": replicas,
        "max_sequences": -(-parallel // replicas),  # in each
        # Of several models each would take half of the memory that none has touched yet.
        "conversations": -(-parallel // replicas) if max_models == 1 else 1,
    }
    given = () if config is None else read_config(config, _parameters()).models
    tables = tuple(each for each in given if each.name in served)
    own = {each.name: own_options(each) for each in tables}
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
        aliases=(
            *((name, shown(each.name)) for each in tables for name in each.alias),
            *(_alias(each) for each in alias or ()),  # of two, the last holds
        ),
        parallel=parallel,
        queue=queue,
        max_loaded=max_models,
        keep_alive=keep_alive,
        metrics_prefix=metrics_prefix,
        prices=prices,
        policies=tuple(policies.items()),
        ledger=ledger,
        page=page,
        tls=Tls.of(tls_cert, tls_key),
        keep_alives=tuple(
            (name, options.pop("keep_alive"))
            for name, options in own.items()
            if "keep_alive" in options
        ),
    )
    set_up(verbose=verbose, file=log_file)

    def load(name: str) -> LLM:
        from dure.llm import LLM

        with console.loading() as progress:
            llm = LLM(
                name,
                **{**usual, **own.get(name, {})},
                meter=meter,
                require_tokenizer=True,
                **server.watched(progress),
            )
        _introduce(shown(name), llm, parallel)
        return llm

    def ready(_: LLM | None) -> None:
        # What is there now stays: without it, a collection is short enough for the event loop.
        gc.collect()
        gc.freeze()
        scheme = "http" if settings.tls is None else "https"
        address = f"{scheme}://{_authority(*server.address)}"
        console.note(f"dure listens on {address}/v1")
        if page:
            console.note(f"a chat for a browser is at {address}")

    for name in served if ray is None else ():  # what this machine lacks others may have
        chosen = {**usual, **own.get(name, {})}
        before_download.tell_plan(
            name,
            context=chosen["context"],
            budget=chosen["memory"],
            quantize=chosen["quantize"],
            users=parallel if max_models == 1 else 1,
            yes=yes,
        )
    reopen = None if log_file is None else reopen_files
    server = Server(settings, load, on_ready=ready, on_hangup=reopen, meter=meter)
    if server.ledger is not None:
        _tell_lost(server.ledger)
    if verbose or ledger is not None:
        console.tell_energy(meter.energy)
    server.run()
    if server.is_loading:  # a thread that cannot be told to stop, and may be in the kernels
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def own_options(table: ModelOptions) -> dict[str, Any]:
    """Return the arguments of LLM that a model's table gives, and its `keep_alive`.

    Raises InvalidRequestError.
    """
    from dure.loading.memory import check_memory
    from dure.weights.quantize import check_scheme

    memory = console.memory_budget(table.memory)
    guessing = None
    if table.speculate is not None or table.draft is not None:
        guessing = console.speculation(table.speculate, table.draft)
    options = {
        "threads": table.threads,
        "context": table.context,
        "quantize": None if table.quantize is None else check_scheme(table.quantize),
        "cache_dtype": table.cache,
        "cache_bytes": _cache_bytes(table.cache_gb),
        "speculate": guessing,
        "memory": None if memory is None else check_memory(memory),
        "keep_alive": table.keep_alive,
    }
    return {key: value for key, value in options.items() if value is not None}


def _parameters() -> list[str]:
    return list(inspect.signature(command).parameters)


def _tell_lost(ledger: Ledger) -> None:
    """Say which answers ran when the last server of this ledger was killed."""
    if not ledger.lost:
        return
    console.note(f"{len(ledger.lost)} answers were lost when the last server was killed:")
    for each in ledger.lost[:MAX_LOST_SHOWN]:
        at = datetime.fromtimestamp(each.opened, timezone.utc)
        console.note(f"  {each.id} of {each.key}, {each.model}, {at:%Y-%m-%d %H:%M:%S} UTC")
    if len(ledger.lost) > MAX_LOST_SHOWN:
        console.note("  and others; in the ledger all have the end `lost`")


def _cache_bytes(gigabytes: float | None) -> int | None:
    """Convert --cache-gb to bytes. Raises InvalidRequestError, also for nan and infinity."""
    if gigabytes is None:
        return None
    if not 0.001 <= gigabytes <= MAX_CACHE_GB:
        raise InvalidRequestError(
            f"--cache-gb must be from 0.001 to {MAX_CACHE_GB:,}, but is {gigabytes:g}.",
            hint="leave it out to use half of the free memory",
        )
    return round(gigabytes * 1e9)


def _introduce(name: str, llm: LLM, parallel: int) -> None:
    """Print what is served: its name in requests, context, KV cache and dialect."""
    from dure.batch import BLOCK_SIZE
    from dure.loading.memory import gigabytes

    engines = [driver.engine for driver in llm.driver.drivers]
    tokens = llm.engine.pool.num_blocks * BLOCK_SIZE
    size = gigabytes(sum(engine.runner.cache_bytes for engine in engines))
    copies = f"{len(engines)} replicas, each with a " if len(engines) > 1 else ""
    console.note(
        f"{name}: context of {llm.context:,} tokens, {parallel} requests at once, "
        f"{copies}KV cache of {tokens:,} tokens ({size}{' in all' if copies else ''})"
    )
    console.tell_notes(llm.notes)
    console.tell_memory(name, llm.memory)
    for number, stage in enumerate([] if llm.stages is None else llm.stages.status(), 1):
        console.note(
            f"stage {number}: layers {stage.first_layer} to {stage.last_layer} on {stage.node}, "
            f"{gigabytes(stage.memory_bytes)} of memory"
        )
    dialect = llm.dialect
    thinks = f"reasoning in {dialect.think.open}" if dialect.think else "no reasoning"
    calls = "tool calls" if dialect.calls else "no tool calls"
    console.note(f"dialect {dialect.name}: {thinks}, {calls}")


def _keys(given: list[str], file: Path | None) -> tuple[str, ...]:
    """Collect the keys of the command line, the environment and the file.

    Raises InvalidRequestError for a file without a key: an open server is not what was meant.
    """
    keys = [*given, *filter(None, [os.environ.get("DURE_API_KEY", "").strip()])]
    if file is not None:
        lines = [line.strip() for line in console.read_text(file).splitlines()]
        found = [line for line in lines if line and line[0] != "#"]
        if not found:
            raise InvalidRequestError(f"{file} holds no key.", hint="write one key per line")
        keys += found
    return tuple(dict.fromkeys(keys))


def _alias(text: str) -> tuple[str, str]:
    pattern, _, name = text.partition("=")
    return pattern, name


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
