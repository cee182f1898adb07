"""The options of dure serve: their types, and what --help says of each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dure.cli.serve_config import fitted, read_config
from dure.errors import InvalidRequestError


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


Models = Annotated[
    list[str] | None,
    typer.Argument(
        envvar="DURE_SERVE_MODELS",
        show_envvar=False,
        metavar="MODEL",
        help="Models to serve: short names, hub ids, files, folders. One is loaded at start, "
        "several on first use; without any, every model on this machine is served on demand.",
    ),
]

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        is_eager=True,
        callback=_take_config,
        help="A file in TOML with options by their names, and a table [[model]] for each model "
        "with its own; the command line and variables win. See docs/guides/serve.md.",
    ),
]

Host = Annotated[str, typer.Option(help="The address to listen on.")]

Port = Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 for any.")]

ApiKeys = Annotated[
    list[str] | None,
    typer.Option(
        help="An API key; may be repeated. Each key has a prefix cache of its own. "
        "Prefer $DURE_API_KEY or --api-key-file: other users can read a command line.",
    ),
]

ApiKeyFile = Annotated[
    Path | None, typer.Option(help="A file of API keys, one per line; # starts a comment.")
]

Insecure = Annotated[
    bool, typer.Option("--insecure", help="Allow a public address without an API key.")
]

AllowedHosts = Annotated[
    list[str] | None,
    typer.Option(help="A Host name to accept besides local ones; may be repeated."),
]

Origins = Annotated[
    list[str] | None,
    typer.Option(metavar="ORIGIN", help="An origin to allow by CORS; may be repeated."),
]

Aliases = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[=MODEL]",
        help="Another name for a model; * matches anything, as in claude-*.",
    ),
]

Parallel = Annotated[int, typer.Option(min=1, help="Requests computed at once.")]

Queue = Annotated[int, typer.Option(min=0, help="Requests that may wait; more get status 429.")]

Context = Annotated[
    int | None,
    typer.Option(min=1, show_default="the model's, up to 32768", help="Context length in tokens."),
]

CacheGb = Annotated[
    float | None,
    typer.Option(
        show_default="4,096 tokens for each request, within half the free memory",
        help="Size of the KV cache of all requests, in GB.",
    ),
]

Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        show_default="what the machine has free",
        help="Memory to stay below, all told: 8GB, 512MB, 6GiB. Each of --max-models has an "
        "equal share.",
    ),
]

Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Compute the layers in stages on the nodes of a Ray cluster: auto for the one of "
        "this machine, HOST:PORT, or local for one of its own. --threads and --memory are "
        "those of each node; see docs/guides/many-machines.md.",
    ),
]

Stages = Annotated[
    str,
    typer.Option(
        metavar="N",
        help="With --ray: how many stages, this process's own included; auto: one a node.",
    ),
]

Replicas = Annotated[
    int,
    typer.Option(
        min=1,
        max=64,
        metavar="N",
        help="Engines that compute the model behind this address, each with --threads of its "
        "own; --parallel and --queue hold for all together. With --ray: whole copies of the "
        "model, or of its --stages, on the cluster's nodes; else over the same weights.",
    ),
]

MaxModels = Annotated[
    int,
    typer.Option(min=1, help="Models in memory at once; the least recently used is unloaded."),
]

KeepAlive = Annotated[
    float | None,
    typer.Option(
        show_default="300; with one MODEL: -1",
        help="Seconds until an unused model is unloaded; -1: never.",
    ),
]

KeysFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A JSON file of API keys, each with a name, prices and limits; see "
        "docs/guides/costs.md.",
    ),
]

LedgerFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write a row for each request to this SQLite file; `dure costs FILE` sums it up.",
    ),
]

MetricsPrefix = Annotated[
    str, typer.Option(help="Prefix of the names in /metrics; vllm fits vLLM's dashboards.")
]

Page = Annotated[
    bool,
    typer.Option(
        "--page/--no-page", help="Show browsers a chat at /, what runs at /status, and /docs."
    ),
]

TlsCert = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Serve HTTPS with this certificate (PEM), its chain behind it."
    ),
]

TlsKey = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", show_default="in the file of --tls-cert", help="The certificate's key."
    ),
]

Verbose = Annotated[bool, typer.Option("--verbose", help="Log a line per request.")]

LogFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Append the log to this file, as a JSON object a line: requests, answers, errors; "
        "no words of either side.",
    ),
]
