"""dure serve: the OpenAI, Anthropic and Ollama APIs over HTTP."""

# ruff: noqa: PLC0415 - the server is loaded when the verb runs, not for its --help

from __future__ import annotations

import gc
import inspect
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dure.cli import before_download, console, placement
from dure.cli import serve_options as options
from dure.cli.serve_config import read_config
from dure.cli.serve_models import LoadOptions, ServedModels, cache_bytes
from dure.cli.serve_report import tell_address, tell_lost, tell_model
from dure.errors import InvalidRequestError

if TYPE_CHECKING:
    from dure.llm import LLM
    from dure.metering.keys_file import PriceList
    from dure.server.run import Server

DEFAULT_KEEP_ALIVE = 300.0  # seconds, of models that are loaded on demand


def command(
    models: options.Models = None,
    *,
    config: options.ConfigFile = None,
    host: options.Host = "127.0.0.1",
    port: options.Port = 8000,
    api_key: options.ApiKeys = None,
    api_key_file: options.ApiKeyFile = None,
    insecure: options.Insecure = False,
    allowed_host: options.AllowedHosts = None,
    cors: options.Origins = None,
    alias: options.Aliases = None,
    parallel: options.Parallel = 32,
    queue: options.Queue = 512,
    context: options.Context = None,
    cache: console.CacheType = console.Cache.f16,
    cache_gb: options.CacheGb = None,
    memory: options.Memory = None,
    threads: console.Threads = None,
    ray: options.Ray = None,
    stages: options.Stages = "auto",
    replicas: options.Replicas = 1,
    models_dir: console.ModelsDir = None,
    quantize: console.Quantize = None,
    exact: console.Exact = False,
    speculate: console.Speculate = None,
    draft: console.Draft = None,
    max_models: options.MaxModels = 1,
    keep_alive: options.KeepAlive = None,
    keys: options.KeysFile = None,
    ledger: options.LedgerFile = None,
    watts: console.WattsOption = None,
    price: console.Price = None,
    metrics_prefix: options.MetricsPrefix = "dure",
    page: options.Page = True,
    tls_cert: options.TlsCert = None,
    tls_key: options.TlsKey = None,
    verbose: options.Verbose = False,
    log_file: options.LogFile = None,
    yes: before_download.Yes = False,
) -> None:
    """Serve models over HTTP with the OpenAI, Anthropic and Ollama APIs.

    Listens on this machine only unless --host says otherwise. Ctrl-C or SIGTERM ends it after
    running requests finish; so does SIGHUP, or, with --log-file, it opens that file again.
    """
    del models_dir  # set in the environment
    from dure.loading.memory import check_memory
    from dure.metering.keys_file import read_keys
    from dure.metering.meter import Meter
    from dure.server.http.tls import Tls
    from dure.server.logs import reopen_files, set_up
    from dure.server.run import Server, Settings
    from dure.weights.quantize import check_scheme

    # A wrong value ends the command, not the first request.
    budget = console.memory_budget(memory)
    meter = Meter.of_this_machine(console.watts(watts))
    prices = _price_list(price)
    policies = () if keys is None else tuple(read_keys(keys, prices).policies.items())
    share = None if budget is None else check_memory(budget // max_models)
    sequences = -(-parallel // replicas)  # in each
    usual = LoadOptions(
        threads=threads,
        context=context,
        quantize=None if quantize is None else check_scheme(quantize),
        exact=exact,
        cache_dtype=cache.value,
        cache_bytes=cache_bytes(cache_gb),
        speculate=console.speculation(speculate, draft),
        memory=share,
        ray=ray,
        stages=placement.stages_of(stages),
        replicas=replicas,
        max_sequences=sequences,
        # Of several models each would take half of the memory that none has touched yet.
        conversations=sequences if max_models == 1 else 1,
    )
    parameters = list(inspect.signature(command).parameters)
    tables = () if config is None else read_config(config, parameters).models
    served = ServedModels.of(tuple(models or ()), usual, tables)
    if keep_alive is None and len(served.names) != 1:
        keep_alive = DEFAULT_KEEP_ALIVE
    settings = Settings(
        models=served.names,
        host=host,
        port=port,
        keys=_keys(api_key or [], api_key_file),
        insecure=insecure,
        allowed_hosts=tuple(allowed_host or ()),
        cors=tuple(cors or ()),
        aliases=(*served.aliases, *map(_alias, alias or ())),  # of two, the last holds
        parallel=parallel,
        queue=queue,
        max_loaded=max_models,
        keep_alive=keep_alive,
        metrics_prefix=metrics_prefix,
        prices=prices,
        policies=policies,
        ledger=ledger,
        page=page,
        tls=Tls.of(tls_cert, tls_key),
        keep_alives=served.keep_alives,
    )
    set_up(verbose=verbose, file=log_file)
    if ray is None:  # what this machine lacks others may have
        _tell_plans(served, users=parallel if max_models == 1 else 1, yes=yes)
    reopen = None if log_file is None else reopen_files
    server = Server(
        settings,
        lambda name: _load(name, served, server),
        on_ready=lambda _: _ready(server),
        on_hangup=reopen,
        meter=meter,
    )
    if server.ledger is not None:
        tell_lost(server.ledger)
    if verbose or ledger is not None:
        console.tell_energy(meter.energy)
    server.run()
    if server.is_loading:  # a thread that cannot be told to stop, and may be in the kernels
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _price_list(price: str | None) -> PriceList:
    """Return what --price charges, of every model alike. Raises InvalidRequestError."""
    from dure.metering.keys_file import NO_PRICES, PriceList

    charged = console.prices(price)
    return NO_PRICES if charged is None else PriceList((("*", charged),))


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


def _tell_plans(served: ServedModels, *, users: int, yes: bool) -> None:
    """Say of each model that is not here what it needs. Raises InvalidRequestError."""
    for name in served.names:
        chosen = served.options_of(name)
        before_download.tell_plan(
            name,
            context=chosen.context,
            budget=chosen.memory,
            quantize=chosen.quantize,
            users=users,
            yes=yes,
        )


def _load(name: str, served: ServedModels, server: Server) -> LLM:
    """Load a model that is asked for, and say what it is."""
    from dure.llm import LLM
    from dure.server.run import shown

    with console.loading() as progress:
        llm = LLM(
            name,
            **vars(served.options_of(name)),
            meter=server.meter,
            require_tokenizer=True,
            **server.watched(progress),
        )
    tell_model(shown(name), llm, server.settings.parallel)
    return llm


def _ready(server: Server) -> None:
    # What is there now stays: without it, a collection is short enough for the event loop.
    gc.collect()
    gc.freeze()
    settings = server.settings
    tell_address(server.address, is_tls=settings.tls is not None, page=settings.page)
