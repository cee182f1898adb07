"""dure bench: measure the prefill and decode speed of a model."""

# ruff: noqa: PLC0415 - the kernels are loaded when the verb runs, not for its --help

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from enum import Enum
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dure import __version__
from dure.cli import console
from dure.cli.ctrl_c import ends_soon
from dure.errors import InvalidRequestError

if TYPE_CHECKING:
    from dure.cli.bench_table import Row
    from dure.loading.load import LoadedModel

MAX_TOKENS = 1 << 24
MAX_PARALLEL = 512
MAX_THREADS = 1 << 16
MAX_MEASUREMENTS = 1000


class Output(str, Enum):
    """How measurements are printed."""

    md = "md"
    csv = "csv"
    json = "json"


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A short name, a hub id, a file or a folder.")
    ],
    *,
    prompt: Annotated[str, typer.Option(metavar="N,N…", help="Tokens to prefill.")] = "512",
    decode: Annotated[
        str, typer.Option(metavar="N,N…", help="Tokens to decode, one step each.")
    ] = "64",
    depth: Annotated[
        str, typer.Option(metavar="N,N…", help="Tokens in the cache before decoding.")
    ] = "0",
    parallel: Annotated[
        str,
        typer.Option(
            "--parallel", "--batch", metavar="N,N…", help="Sequences decoded together, to 512."
        ),
    ] = "1",
    repeat: Annotated[int, typer.Option(min=1, max=1000, help="Rounds after the warm-up.")] = 3,
    cache: console.CacheType = console.Cache.f16,
    quantize: console.Quantize = None,
    memory: console.Memory = None,
    threads: Annotated[
        str | None,
        typer.Option(metavar="N,N…", show_default="the physical cores", help="CPU threads."),
    ] = None,
    output: Annotated[
        Output, typer.Option(help="A Markdown table, CSV, or a JSON list.")
    ] = Output.md,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, of a single measurement.")
    ] = False,
    models_dir: console.ModelsDir = None,
) -> None:
    """Measure prefill and decode speed in tokens per second on this machine.

    Tokens are fixed; nothing is sampled. A line is the mean of --repeat rounds after one warm-up,
    and their standard deviation: pp512 is a prompt of 512 tokens, tg64 are 64 steps of decoding,
    @ d4096 after 4,096 tokens. Decode speed is the total of all --parallel sequences. Several
    numbers, as in --prompt 128,512,4096, are measured one after the other, combined with those of
    the other options. With --json the speeds are medians.
    """
    del models_dir  # set in the environment
    prompts = _numbers("--prompt", prompt, 0, MAX_TOKENS)
    decodes = _numbers("--decode", decode, 0, MAX_TOKENS)
    depths = _numbers("--depth", depth, 0, MAX_TOKENS)
    parallels = _numbers("--parallel", parallel, 1, MAX_PARALLEL)
    cores: Sequence[int | None] = [None]
    if threads is not None:
        cores = _numbers("--threads", threads, 1, MAX_THREADS)
    if not any(prompts) and not any(decodes):
        raise InvalidRequestError("Nothing to measure: --prompt and --decode are both 0.")
    tests: list[dict[str, int]] = [{"prompt": each, "decode": 0} for each in prompts if each]
    tests += [
        {"prompt": 0, "decode": steps, "depth": before, "batch": together}
        for together, before, steps in product(parallels, depths, decodes)
        if steps
    ]
    if len(tests) * len(cores) > MAX_MEASUREMENTS:
        raise InvalidRequestError(
            f"These are {len(tests) * len(cores):,} measurements; {MAX_MEASUREMENTS:,} are the "
            "most at once.",
            hint="give fewer numbers",
        )
    single = max(map(len, (prompts, decodes, depths, parallels, cores))) == 1
    if json and not single:
        raise InvalidRequestError(
            "--json prints a single measurement, and several are asked for.",
            hint="--output json prints a list of them",
        )
    longest = max(1, *prompts, max(depths) + max(decodes))
    fixed = {
        "context": longest,
        "cache_tokens": max(*prompts, max(parallels) * (max(depths) + max(decodes)), 1),
        "cache_dtype": cache.value,
        "quantize": quantize,
        "memory": console.memory_budget(memory),
    }
    found: list[Row] = []
    speeds: dict[str, Any] = {}
    for count in cores:
        loaded = None  # the last one goes before the next comes
        loaded = _load(model, count, fixed)
        describe = _describer(loaded)
        for test, each in _measured(loaded, tests, repeat):
            speeds |= {name: value for name, value in each.items() if value not in (None, [])}
            found.append(describe(test, each))
    if not json:
        from dure.cli.bench_table import formatted

        sys.stdout.write(formatted(found, output.value))
        return
    assert loaded is not None
    facts = {
        "model": loaded.name,
        "threads": loaded.threads,
        "cache": cache.value,
        **{"prompt": prompts[0], "decode": decodes[0], "depth": depths[0], "batch": parallels[0]},
        "repeat": repeat,
    }
    console.print_json({**facts, "prefill_tps": None, "decode_tps": None, **speeds})


def _numbers(option: str, text: str, low: int, high: int) -> list[int]:
    """Return the numbers of "128,512,4096". Raises BadParameter for anything else."""
    parts = [part.strip() for part in text.split(",")]
    is_whole = all(part.isascii() and part.isdecimal() and len(part) < 12 for part in parts)
    if not is_whole or not all(low <= int(part) <= high for part in parts):
        raise typer.BadParameter(
            f"{text[:60]!r} is not whole numbers from {low:,} to {high:,}, with commas between.",
            param_hint=option,
        )
    return list(dict.fromkeys(map(int, parts)))


def _load(model: str, threads: int | None, fixed: dict[str, Any]) -> LoadedModel:
    from dure.loading.load import load

    with console.loading() as progress:
        loaded = load(model, threads=threads, with_tokenizer=False, **fixed, **progress)
    console.tell_memory(loaded.name, loaded.memory)
    return loaded


def _measured(
    loaded: LoadedModel, tests: Sequence[dict[str, int]], repeat: int
) -> Iterator[tuple[dict[str, int], dict[str, Any]]]:
    """Yield each test with what `benchmark.speed` says of it."""
    from dure import benchmark

    for number, test in enumerate(tests, 1):
        label = "measuring" if len(tests) == 1 else f"measuring {number} of {len(tests)}"
        with ends_soon(), console.ProgressLine(label) as line:
            found = benchmark.speed(
                loaded.model,
                **test,
                repeat=repeat,
                cache_dtype=loaded.cache_dtype,
                expert_pool=loaded.expert_pool,
                chunk=loaded.memory.prefill_rows,
                progress=line.update,
            )
        yield test, found


def _describer(loaded: LoadedModel) -> Any:
    """Return what makes a row of a test and its result."""
    from functools import partial

    from dure import kernels
    from dure.cli.bench_table import Row
    from dure.loading.describe import describe
    from dure.planning.measure import processor

    described = describe(loaded.checkpoint)
    kinds: dict[str, int] = {}
    for part in described.parts.values():
        for kind, count in part.items():
            kinds[kind] = kinds.get(kind, 0) + count
    commonest = max(kinds, key=lambda kind: kinds[kind], default="")
    make = partial(
        Row,
        build=__version__,
        cpu_info=processor(),
        isa=kernels.isa(),
        model_filename=loaded.name,
        model_type=f"{described.family} {commonest}".strip(),
        model_size=sum(tensor.size_bytes for tensor in loaded.checkpoint.tensors.values()),
        model_n_params=sum(kinds.values()),
        n_threads=loaded.threads,
        type_kv=loaded.cache_dtype,
    )

    def row(test: dict[str, int], found: dict[str, Any]) -> Row:
        phase = "prefill" if test["prompt"] else "decode"
        return make(
            n_prompt=test["prompt"],
            n_gen=test["decode"],
            n_depth=test.get("depth", 0),
            n_parallel=test.get("batch", 1),
            test_time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            samples_ts=tuple(found[f"{phase}_samples"]),
            read_mb=found.get(f"{phase}_read_mb"),
            hit_rate=found.get(f"{phase}_hit_rate"),
        )

    return row
